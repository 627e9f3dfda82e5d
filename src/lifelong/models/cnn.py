"""A small convolutional network with batch normalisation."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn


class CNN(nn.Module):
    """Convolutions 3×3 with batch normalisation and ReLU, each followed by pooling.

    Each block halves height and width (max pooling 2×2); after the last one the mean over all
    places goes into a linear layer. So images of any size of at least 2^blocks pixels a side fit.

    Args:
        channels_in: The images' channels; 1 for grey, 3 for colour.
        widths: The channels after each block.
        num_classes: The number of logits.

    Example:
        >>> import torch
        >>> CNN(channels_in=3, num_classes=7)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 7])
    """

    def __init__(
        self,
        channels_in: int = 1,
        widths: Sequence[int] = (32, 64, 128),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.channels_in = channels_in
        self.num_classes = num_classes
        blocks: list[nn.Module] = []
        for before, after in pairwise([channels_in, *widths]):
            # batch normalisation takes the bias away again
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear([channels_in, *widths][-1], num_classes)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """The logits of a batch of images.

        Args:
            images: normalised pixels; [batch, channels, height, width].

        Returns:
            Unnormalised log-probabilities; [batch, classes].
        """
        return self.classifier(self.blocks(images).mean(dim=(-2, -1)))
