"""Real handwriting that scikit-learn installs, as two tasks that need no network."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from lifelong.data.randomness import generator_for
from lifelong.data.sets.images import BOX, LabelledImages, TaskImages, centre_in_frame, fill_frame
from lifelong.data.split import stratified_split

TRAINING_IMAGES = 700  # of each half; the rest of the half is its official test set
_FULL_INK = 16.0  # load_digits counts the inked pixels of 4×4 blocks
_USPS_SIDE = 16
_USPS_BLUR = 0.75  # pixels of 16×16: the smoothing of the USPS files


@lru_cache(maxsize=1)
def embedded_mnist() -> TaskImages:
    """Return half A of the embedded digits, laid out as MNIST lays its digits out.

    The 8×8 image is scaled to 20×20 and placed in 28×28 so that its centre of mass lies at row
    and column 14, as near as whole pixels and the frame allow.

    Returns:
        700 training images and the rest of the half (199) as test images.

    Example:
        >>> digits = embedded_mnist()
        >>> len(digits.train), len(digits.test)
        (700, 199)
    """
    images, labels = _halves()[0]
    return _task("embedded_mnist", _as_mnist(images), labels, "half A laid out as MNIST")


@lru_cache(maxsize=1)
def embedded_usps() -> TaskImages:
    """Return half B of the embedded digits, laid out as USPS lays its digits out.

    The 8×8 image is scaled to fill 16×16, smoothed by a Gaussian of σ 0.75 and brought to 28×28.

    Returns:
        700 training images and the rest of the half (198) as test images.

    Example:
        >>> digits = embedded_usps()
        >>> len(digits.train), len(digits.test)
        (700, 198)
    """
    images, labels = _halves()[1]
    return _task("embedded_usps", _as_usps(images), labels, "half B laid out as USPS")


def _halves() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return two disjoint halves: grey in 0..255 [n, 8, 8] and labels [n], by class alike."""
    # seconds to import, and wanted by this one task
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float() * (255 / _FULL_INK)
    labels = torch.from_numpy(digits.target).long()
    first, second = stratified_split(
        labels, len(labels) // 2, generator_for("embedded digits", "halves")
    )
    return (images[first], labels[first]), (images[second], labels[second])


def _task(name: str, images: Tensor, labels: Tensor, layout: str) -> TaskImages:
    train, test = stratified_split(
        labels, len(labels) - TRAINING_IMAGES, generator_for("embedded digits", name)
    )
    half = LabelledImages(images, labels)
    return TaskImages(
        name,
        half.select(train),
        half.select(test),
        f"embedded digits (scikit-learn load_digits), {layout}",
    )


def _scaled(images: Tensor, side: int) -> Tensor:
    return functional.interpolate(
        images.unsqueeze(1), size=(side, side), mode="bilinear", align_corners=False
    ).squeeze(1)


def _as_mnist(images: Tensor) -> Tensor:
    return torch.stack([centre_in_frame(box) for box in _scaled(images, BOX)])


def _as_usps(images: Tensor) -> Tensor:
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(
        _scaled(images, _USPS_SIDE).numpy(),
        sigma=(0, _USPS_BLUR, _USPS_BLUR),
        mode="constant",  # paper beyond the frame
    )
    return fill_frame(torch.from_numpy(smooth))
