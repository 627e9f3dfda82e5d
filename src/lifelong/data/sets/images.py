"""Labelled images as every task holds them: bytes of one size, in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

# Of these data sets, not of images: whoever trains on others takes nothing from here.
SIDE = 28  # pixels: the frame that the digits share, MNIST's own
BOX = 20  # pixels: MNIST fits its digits into a square of this side
CLASSES = 10
MEAN, STD = 0.1307, 0.3081  # of MNIST's training pixels in 0..1; all digits are normalised by them


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Grey images and the digit each shows.

    Pixels are bytes, 0 the background and 255 full ink; normalising is left to the batch loader.

    Args:
        images: The pixels [N, 28, 28], uint8.
        labels: The digits 0 to 9 [N], int64.

    Example:
        >>> import torch
        >>> blank = torch.zeros(3, 28, 28, dtype=torch.uint8)
        >>> digits = LabelledImages(blank, torch.tensor([4, 0, 4]))
        >>> len(digits), digits.select(torch.tensor([2, 1])).labels.tolist()
        (3, [4, 0])
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.shape[1:] != (SIDE, SIDE):
            raise ValueError(
                f"images are {self.images.dtype} {list(self.images.shape)}; "
                "give torch.uint8 [N, 28, 28]"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels are {self.labels.dtype} {list(self.labels.shape)}; "
                f"give torch.int64 [{len(self.images)}], one for each image"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> LabelledImages:
        """Return the images at these places, as copies.

        Args:
            indices: Places [M] in 0..N-1, int64.

        Returns:
            M labelled images, in the order of `indices`.
        """
        return LabelledImages(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class TaskImages:
    """One data set to learn: its official training set and its official test set.

    Args:
        name: The data set, as `sources.load` was asked for it.
        train: The official training images.
        test: The official test images.
        source: Where the images came from, in words for a table or a result file.
        mean: What is subtracted from pixels in 0..1.
        std: What they are divided by after that.
    """

    name: str
    train: LabelledImages
    test: LabelledImages
    source: str
    mean: float = MEAN
    std: float = STD

    @cached_property
    def fingerprint(self) -> str:
        """The hexadecimal SHA-256 of all pixels and labels: equal exactly when the data are."""
        return digest(self.train.images, self.train.labels, self.test.images, self.test.labels)


def normalised(
    pixels: Tensor, *, full: float = 255.0, mean: float = MEAN, std: float = STD
) -> Tensor:
    """Return pixels as networks read them: `(x / full - mean) / std`.

    Args:
        pixels: Of any shape; bytes, or floating point where the result is to be differentiated or
            exported.
        full: The value of full ink: 255, or 1 for pixels in 0..1.
        mean: Subtracted from pixels in 0..1; MNIST's mean.
        std: Divided by after that; MNIST's standard deviation.

    Returns:
        The values, float32, of the same shape.

    Example:
        >>> import torch
        >>> normalised(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
        [-0.4242129325866699, 2.821486473083496]
    """
    # as few passes over the pixels as can be: x / full / std - mean / std
    if pixels.is_floating_point():
        return pixels * (1 / (full * std)) - mean / std
    values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    return values.mul_(1 / (full * std)).sub_(mean / std)


def digest(*tensors: Tensor) -> str:
    """Return the SHA-256 of the tensors' types, shapes and bytes.

    Args:
        tensors: Tensors of any shape, on any device.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import torch
        >>> digest(torch.zeros(2, 3)) == digest(torch.zeros(2, 3))
        True
        >>> digest(torch.zeros(2, 3)) == digest(torch.zeros(3, 2))
        False
    """
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().data)
    return total.hexdigest()


def fill_frame(images: Tensor) -> Tensor:
    """Return the images scaled to fill 28×28, as bytes.

    Bilinear interpolation between pixel centres (`align_corners=False`), rounded to the nearest
    byte. The scale of grey does not change: a constant image stays the same constant.

    Args:
        images: Pixels in 0..255 [N, H, W], of any type.

    Returns:
        The pixels [N, 28, 28], uint8.

    Example:
        >>> import torch
        >>> fill_frame(torch.full((1, 16, 16), 7.0)).unique().tolist()
        [7]
    """
    scaled = functional.interpolate(
        images.float().unsqueeze(1), size=(SIDE, SIDE), mode="bilinear", align_corners=False
    )
    return scaled.squeeze(1).round().clamp(0, 255).to(torch.uint8)


def centre_in_frame(box: Tensor) -> Tensor:
    """Return an image placed in 28×28 as MNIST places its digits, as bytes.

    Its centre of mass comes to lie at row and column 14, as near as whole pixels and the frame
    allow. The scale of grey does not change: pixels are rounded to the nearest byte.

    Args:
        box: Pixels in 0..255 [H, W], H and W at most 28, of which some are above 0.

    Returns:
        The pixels [28, 28], uint8.

    Example:
        >>> import torch
        >>> centre_in_frame(torch.full((1, 1), 9.0)).nonzero().tolist()
        [[14, 14]]
    """
    height, width = box.shape
    ink = box.sum()
    centre = SIDE / 2  # the row and column that MNIST centres on: its means are 14.00 and 14.01
    corner = []
    for side, marks in ((height, box.sum(dim=1)), (width, box.sum(dim=0))):
        mean = float((marks * torch.arange(side)).sum() / ink)
        # six places: a symmetric digit's half must not round by the last bit of a sum
        corner.append(min(max(round(round(centre - mean, 6)), 0), SIDE - side))
    top, left = corner
    frame = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    frame[top : top + height, left : left + width] = box.round().to(torch.uint8)
    return frame
