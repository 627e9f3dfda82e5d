"""The figure of which pixels matter: the first layer's importance, as a picture."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def per_pixel(importances: Mapping[str, Tensor]) -> Tensor | None:
    """The importance of the weights from each pixel, summed over the units of the first layer.

    Args:
        importances: parameter name → F, the first layer first.

    Returns:
        [side, side]; None where there are none, or the first layer does not take a square image.

    Example:
        >>> import torch
        >>> per_pixel({"w": torch.arange(8.0).view(2, 4)}).tolist()
        [[4.0, 6.0], [8.0, 10.0]]
    """
    if not importances:
        return None
    first = next(iter(importances.values()))
    side = math.isqrt(first.shape[-1])
    if first.ndim != 2 or side * side != first.shape[-1]:
        return None
    return first.sum(dim=0).view(side, side)


def importance_figure(importances: Mapping[str, Tensor], tasks: Sequence[str]) -> "Figure | None":
    """The picture of which pixels matter to what was learnt.

    Args:
        importances: parameter name → F, after the last of the tasks.
        tasks: that were consolidated.

    Returns:
        The square root of ``per_pixel``; None where that has none.
    """
    from matplotlib.figure import Figure

    pixels = per_pixel(importances)
    if pixels is None:
        return None
    figure = Figure(figsize=(4.2, 3.6), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(pixels.sqrt().numpy(force=True), cmap="cividis")
    axes.set_title(f"which pixels matter to {', '.join(tasks)}", fontsize=10)
    axes.axis("off")
    figure.colorbar(shown, label="√F of the pixel's weights")
    return figure
