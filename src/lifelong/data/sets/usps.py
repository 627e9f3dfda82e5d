"""The format of the USPS files: LIBSVM text, one image a line."""

import warnings
from pathlib import Path

import numpy as np
import torch

from lifelong.data.files.archives import DamagedArchiveError
from lifelong.data.sets.images import CLASSES, LabelledImages, fill_frame

_SIDE = 16
_PIXELS = _SIDE * _SIDE
_NUMBERS = 1 + 2 * _PIXELS  # the label, then index and value of each pixel
_ROUNDING = 1e-3  # grey just outside -1..1 is rounding of the text, more is damage


# Not sklearn's load_svmlight_file: with its import it takes 2.0 s for the training set where this
# takes 1.0, and it accepts a line that is cut off or lacks a pixel.
def parse_usps(content: bytes, path: Path) -> LabelledImages:
    """Return one of the two USPS sets, brought to 28×28.

    Each line is `label 1:v 2:v … 256:v` with label 1..10 for the digits 0..9 and grey v in -1..1.
    The byte of a pixel is `⌊(v + 1) / 2 · 255⌋` in single precision, as torchvision computes it;
    then the 16×16 images are scaled by `fill_frame`.

    Args:
        content: The decompressed text.
        path: Where it came from, for errors.

    Returns:
        The labelled images.

    Raises:
        DamagedArchiveError: A line is cut off or is not such a line, a value is outside -1..1, or a
            label is not a digit.
    """
    lines = content.count(b"\n") + (not content.endswith(b"\n"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy only warns where the text is no number
            numbers = np.fromstring(content.replace(b":", b" "), dtype=np.float32, sep=" ")
    except (ValueError, DeprecationWarning) as error:
        raise DamagedArchiveError(path, "it holds something that is no number") from error
    if not numbers.size or numbers.size != lines * _NUMBERS:
        raise DamagedArchiveError(
            path, f"its {lines} lines are not all a label and {_PIXELS} pixels"
        )

    table = torch.from_numpy(numbers).view(lines, _NUMBERS)
    labels, indices, grey = table[:, 0], table[:, 1::2], table[:, 2::2]
    if not bool((indices == torch.arange(1.0, _PIXELS + 1)).all()):
        raise DamagedArchiveError(path, f"the pixels of a line are not numbered 1 to {_PIXELS}")
    if not bool((grey.abs() <= 1 + _ROUNDING).all()):
        raise DamagedArchiveError(path, "a pixel is outside -1..1")
    wrong = (labels != labels.round()) | (labels < 1) | (labels > CLASSES)
    if bool(wrong.any()):
        raise DamagedArchiveError(
            path, f"the label {labels[wrong][0]:g} is outside 1..10, the digits 0..9"
        )

    pixels = ((grey.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8).view(lines, _SIDE, _SIDE)
    return LabelledImages(fill_frame(pixels), labels.long() - 1)
