"""The figure of which pixels matter: the first layer's importance, as a picture."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lifelong.core import KroneckerPenalty, QuadraticPenalty

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def per_pixel(penalty: QuadraticPenalty | KroneckerPenalty) -> Tensor | None:
    """The importance of the weights from each pixel, summed over the units of the first layer.

    Args:
        penalty: with something consolidated.

    Returns:
        [side, side]; None where nothing is consolidated, the penalty has no diagonal, or the first
        layer does not take a square image.

    Example:
        >>> import torch
        >>> penalty = QuadraticPenalty()
        >>> penalty.fold({"w": torch.zeros(2, 4)}, {"w": torch.arange(8.0).view(2, 4)})
        >>> per_pixel(penalty).tolist()
        [[4.0, 6.0], [8.0, 10.0]]
    """
    if not isinstance(penalty, QuadraticPenalty) or penalty.is_empty:
        return None
    first = next(iter(penalty.importances().values()))
    side = math.isqrt(first.shape[-1])
    if first.ndim != 2 or side * side != first.shape[-1]:
        return None
    return first.sum(dim=0).view(side, side)


def importance_figure(
    penalty: QuadraticPenalty | KroneckerPenalty, tasks: Sequence[str]
) -> "Figure | None":
    """The picture of which pixels matter to what was learnt.

    Args:
        penalty: after the last of the tasks.
        tasks: that were consolidated.

    Returns:
        The square root of ``per_pixel``; None where that has none.
    """
    from matplotlib.figure import Figure

    pixels = per_pixel(penalty)
    if pixels is None:
        return None
    figure = Figure(figsize=(4.2, 3.6), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(pixels.sqrt().numpy(force=True), cmap="cividis")
    axes.set_title(f"which pixels matter to {', '.join(tasks)}", fontsize=10)
    axes.axis("off")
    figure.colorbar(shown, label="√F of the pixel's weights")
    return figure
