"""The figure of images with a line of text under each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def digits_figure(images: Tensor, captions: Sequence[str], *, columns: int = 8) -> "Figure":
    """Images in rows, dark ink on white paper, each with a caption.

    Args:
        images: grey values, the largest of all being full ink; [N, height, width].
        captions: one per image.
        columns: images in a row.

    Returns:
        The figure; empty places of the last row stay white.

    Raises:
        ValueError: when there is no image, or the captions are not as many.

    Example:
        >>> import torch
        >>> figure = digits_figure(torch.eye(28).repeat(3, 1, 1), ["a", "b", "c"], columns=2)
        >>> [axes.get_title() for axes in figure.axes]
        ['a', 'b', 'c', '']
    """
    from matplotlib.figure import Figure

    if not len(images) or len(images) != len(captions):
        raise ValueError(
            f"{len(images)} images and {len(captions)} captions; give as many of each, at least one"
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.15 * columns, 1.45 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    for axes, image, caption in zip(panels, images, captions, strict=False):
        axes.imshow(image.numpy(force=True), cmap="gray_r", vmin=0, vmax=float(images.max()))
        axes.set_title(caption, fontsize=8)
    return figure
