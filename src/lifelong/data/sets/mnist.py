"""The format of MNIST's files: a header of big-endian sizes, then the bytes."""

from math import prod
from pathlib import Path

import torch
from torch import Tensor

from lifelong.data.files.archives import DamagedArchiveError
from lifelong.data.sets.images import CLASSES, SIDE, LabelledImages

_UNSIGNED_BYTE = 8


def parse_idx(content: bytes, path: Path, dimensions: int) -> Tensor:
    """Return the array of bytes that an idx file holds.

    The header is `0, 0, type, dimensions` and one big-endian 32-bit size for each dimension.

    Args:
        content: The decompressed file.
        path: Where it came from, for errors.
        dimensions: How many dimensions it must have: 3 for images, 1 for labels.

    Returns:
        The array, uint8.

    Raises:
        DamagedArchiveError: The header is not that of such an array, or bytes are missing or
            too many.

    Example:
        >>> from pathlib import Path
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), Path("labels"), dimensions=1).tolist()
        [7, 9]
    """
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DamagedArchiveError(path, f"{len(content)} bytes, its header alone has {start}")
    if content[:4] != bytes([0, 0, _UNSIGNED_BYTE, dimensions]):
        raise DamagedArchiveError(path, f"no idx file of bytes in {dimensions} dimensions")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) - start != prod(shape):
        raise DamagedArchiveError(
            path, f"{len(content) - start} bytes where its header says {prod(shape)}"
        )
    if not prod(shape):
        raise DamagedArchiveError(path, "it is empty")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)


def parse_mnist(
    images: bytes, labels: bytes, images_path: Path, labels_path: Path
) -> LabelledImages:
    """Return one of MNIST's two sets from its pair of idx files.

    Args:
        images: The decompressed file of images.
        labels: The decompressed file of labels.
        images_path: Where the images came from, for errors.
        labels_path: Where the labels came from, for errors.

    Returns:
        The labelled images.

    Raises:
        DamagedArchiveError: A file is damaged, the images are not 28×28, the counts differ, or a
            label is not a digit.
    """
    pixels = parse_idx(images, images_path, dimensions=3)
    digits = parse_idx(labels, labels_path, dimensions=1)
    if pixels.shape[1:] != (SIDE, SIDE):
        raise DamagedArchiveError(
            images_path, f"images of {pixels.shape[1]}×{pixels.shape[2]}, not 28×28"
        )
    if len(pixels) != len(digits):
        raise DamagedArchiveError(
            labels_path, f"{len(digits)} labels for the {len(pixels)} images of {images_path.name}"
        )
    if int(digits.max()) >= CLASSES:
        raise DamagedArchiveError(labels_path, f"the label {int(digits.max())} is outside 0..9")
    return LabelledImages(pixels, digits.long())
