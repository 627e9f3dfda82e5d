"""The multilayer perceptron that the main job trains."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn


class Perceptron(nn.Module):
    """Linear layers with ReLU between them, on flattened images.

    logits = W_L relu(… relu(W_1 x + b_1) …) + b_L, with x the image as one row.

    Args:
        in_features: the values of an image, whatever its shape; 784 for 28×28, 3072 for 3×32×32.
        hidden: the widths between the pixels and the classes; empty for softmax regression.
        num_classes: the number of logits.

    Example:
        >>> import torch
        >>> Perceptron()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int = 784,
        hidden: Sequence[int] = (1024, 512, 256, 128, 128),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.num_classes = num_classes
        widths = [in_features, *hidden, num_classes]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, images: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """The logits of a batch of images.

        Args:
            images: normalised pixels; [batch, ...], `in_features` of them in an image.

        Returns:
            Unnormalised log-probabilities; [batch, classes].
        """
        return self.layers(images.flatten(1))
