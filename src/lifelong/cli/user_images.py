"""Image files of any size and polarity, laid out as MNIST lays its digits out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lifelong.data.sets.images import BOX, centre_in_frame
from lifelong.errors import LifelongError

Ink = Literal["dark", "light"]
_FAINTEST = 8.0  # shades of 255: an image with less contrast than this shows nothing
_EDGE = 0.05  # of the full ink: where the digit ends and the blur of a camera or of JPEG begins
_LARGEST = 280  # pixels a side


class PictureError(LifelongError):
    """A file that is no image, or an image that shows no digit.

    Args:
        path: The file, or a word for where the image came from.
        what: What is wrong with it, in a few words.
    """

    def __init__(self, path: Path | str, what: str) -> None:
        super().__init__(f"{path} {what}")
        self.what = what


@dataclass(frozen=True, eq=False)
class Picture:
    """An image laid out as MNIST's are.

    Args:
        pixels: 0 the paper and 255 full ink [28, 28], uint8.
        ink: Whether the digit was darker or lighter than its paper.
    """

    pixels: Tensor
    ink: Ink


def read_picture(path: Path, ink: Ink | None = None) -> Picture:
    """Return an image file's digit as MNIST lays its digits out.

    Args:
        path: PNG, JPEG, TIFF, BMP, GIF (its first frame), WebP, … of any size.
        ink: Whether the digit is darker or lighter than its paper; decided by `as_mnist` if None.

    Returns:
        The digit and the polarity that was found.

    Raises:
        PictureError: The file is no image, or it shows no digit.
    """
    grey = read_grey(path)
    try:
        return as_mnist(grey, ink)
    except PictureError as error:
        raise PictureError(path, error.what) from error


def read_grey(path: Path) -> Tensor:
    """Return the shades of an image file.

    Colours become their luma (ITU-R 601). Where the image is transparent, the paper is white if
    what is visible is dark on average, else black. The camera's note on how it was held is obeyed.

    Args:
        path: An image file that Pillow can open.

    Returns:
        The shades in 0..255 [H, W], float32.

    Raises:
        PictureError: The file is no image, is damaged, or cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            # no conversion keeps 16 bits: Pillow cuts them off at 255
            if image.mode.startswith(("I", "F")):
                return _stretch(np.array(image))
            seen = image.convert("RGBA").convert("LA") if image.has_transparency_data else None
            shades = np.array(image.convert("L") if seen is None else seen, dtype=np.float32)
    # Pillow's decoders raise whatever the bytes lead them to
    except OSError as error:
        raise PictureError(path, _reason(error)) from error
    except Exception as error:
        raise PictureError(path, f"is a damaged image ({error})") from error
    if seen is None:
        return torch.from_numpy(shades)
    visible, alpha = torch.from_numpy(shades).unbind(-1)
    opaque = alpha / 255
    paper = 255.0 if (visible * opaque).sum() < alpha.sum() / 2 else 0.0
    return visible * opaque + paper * (1 - opaque)


def as_mnist(grey: Tensor, ink: Ink | None = None) -> Picture:
    """Return a digit of any size and polarity as MNIST lays its digits out.

    0. An image of more than 280 pixels a side is shrunk to that: the camera's noise averages out.
    1. Polarity: the digit is lighter than its paper if the image is lighter on average than the
       median of its outermost rows and columns, else darker.
    2. The paper's shade is the quartile of the outermost pixels away from the ink's side, since
       some of them may hold ink; their 5 % quantile on that side is one standard deviation of
       normal noise away. What differs from the paper by at most four of those is paper.
    3. The image is cut to the rows and columns that hold a twentieth of the full ink or more; a
       pixel with less than two such neighbours is a speck and does not count.
    4. It is scaled so that its longer side is 20 pixels, proportions kept (bilinear; when it gets
       smaller, averaged over what each pixel covers), and so that full ink is 255.
    5. It is placed in 28×28 with its centre of mass at row and column 14.

    Thus the inverted image gives the same result, and an image that is laid out so already is
    changed little or not at all. A digit cut so tightly that it covers half of the outermost
    pixels may be taken for paper: give `ink` then.

    Args:
        grey: The shades [H, W], any scale of which 255 is the range.
        ink: Whether the digit is darker or lighter than its paper; decided as in 1. if None.

    Returns:
        The digit and its polarity.

    Raises:
        PictureError: There is no contrast.
        ValueError: `ink` is neither of the two.

    Example:
        >>> import torch
        >>> bar = torch.full((90, 90), 255.0)
        >>> bar[15:75, 42:48] = 0  # a one: 60 rows, 6 columns
        >>> one = as_mnist(bar)
        >>> one.ink, one.pixels.nonzero().amin(0).tolist(), one.pixels.nonzero().amax(0).tolist()
        ('dark', [4, 14], [23, 15])
    """
    if ink is not None and ink not in get_args(Ink):
        raise ValueError(f"ink is {ink!r}; it must be one of {', '.join(get_args(Ink))}")
    shades = _shrunk(grey.double())
    border = _border(shades)
    if ink is None:
        ink = "light" if (shades - _median(border)).sum() > 0 else "dark"
    sign = 1 if ink == "light" else -1
    paper, outlier = (sign * border).quantile(shades.new_tensor([0.25, 0.05]))
    marks = sign * shades - paper
    marks = marks * (marks > 4 * (paper - outlier))
    full = marks.amax()
    if full < _FAINTEST:
        raise PictureError("the image", "shows no digit: it is all of one shade")
    box = _scaled(_cut(marks / full))
    return Picture(centre_in_frame(box * (255 / box.amax())), ink)


def _shrunk(grey: Tensor) -> Tensor:
    scale = _LARGEST / max(grey.shape)
    return grey if scale >= 1 else _resized(grey, scale)


def _border(grey: Tensor) -> Tensor:
    if min(grey.shape) < 3:
        return grey.flatten()
    return torch.cat([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])


def _median(values: Tensor) -> Tensor:
    # the mean of the two middle values, so that an inverted image has the inverted median
    return values.quantile(0.5, interpolation="midpoint")


def _cut(marks: Tensor) -> Tensor:
    inked = marks >= _EDGE
    around = functional.conv2d(inked[None, None].double(), marks.new_ones(1, 1, 3, 3), padding=1)
    stroke = inked & (around[0, 0] > 2)  # itself and two neighbours
    rows, columns = (stroke if stroke.any() else inked).nonzero().unbind(1)
    return marks[rows.amin() : rows.amax() + 1, columns.amin() : columns.amax() + 1]


def _scaled(marks: Tensor) -> Tensor:
    return _resized(marks, BOX / max(marks.shape))


def _resized(image: Tensor, scale: float) -> Tensor:
    height, width = (max(1, round(side * scale)) for side in image.shape)
    resized = functional.interpolate(
        image[None, None], (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0, 0]


def _stretch(values: np.ndarray) -> Tensor:
    # 16-bit greys have a known range; other numbers only that of the image itself
    shades = torch.from_numpy(values.astype(np.float64))
    if values.dtype == np.uint16:
        return (shades / 257).float()
    low, high = shades.amin(), shades.amax()
    return (255 * (shades - low) / (high - low).clamp(min=1e-12)).float()


def _reason(error: OSError) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, FileNotFoundError):
        return "is not there"
    if isinstance(error, UnidentifiedImageError):
        return "is no image that Pillow can read"
    return f"cannot be read ({error.strerror or error})"
