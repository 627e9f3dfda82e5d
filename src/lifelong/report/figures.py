"""Figures by matplotlib: retention, accuracy matrices, images, importances, sweeps over λ."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.report.accuracies import retention
from lifelong.report.best import TradeOffPoint
from lifelong.report.names import axis_names, label_of, old_name, title
from lifelong.report.palette import PALETTE, Style, styles
from lifelong.run.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

DARK = 55.0  # per cent below which the number is written in white: the colours are dark there


def draw_retention(summaries: Sequence[Summary], path: Path) -> Path:
    """Draw how much of the old task each run retains over the epochs of the last.

    Args:
        summaries: runs over the same tasks.
        path: the PNG to write.

    Returns:
        The path.
    """
    from lifelong.data.files.whole import whole_file

    with whole_file(path) as temporary:
        retention_figure(summaries).savefig(temporary, format="png", dpi=150)
    return path


def retention_figure(summaries: Sequence[Summary]) -> "Figure":
    """The figure of what each run retains of the old task over the epochs of the last.

    Args:
        summaries: runs over the same tasks.

    Returns:
        Per cent right on the validation images of the old task, from the end of the stage before
        the last; where several are old, the mean over them.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    tasks = summaries[0].tasks
    old, its = old_name(tasks), "its" if len(tasks) == 2 else "their"
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    looks = styles(map(label_of, summaries))
    for summary in summaries:
        curve, style = retention(summary), looks[label_of(summary)]
        axes.plot(
            range(len(curve)),
            [100 * accuracy for accuracy in curve],
            color=style.colour,
            marker=style.marker,
            markevery=max(1, len(curve) // 10),
            label=label_of(summary),
        )
    axes.set_xlabel(f"epochs of {tasks[-1]}")
    axes.set_ylabel(f"accuracy: {old}\n% of {its} validation images")
    learnt = title(summaries[0]).replace(" (", "\n(")  # too long for one line where it warns
    axes.set_title(f"What is retained: {old}\n{learnt}", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center right")
    return figure


def accuracy_matrix_figure(summaries: Sequence[Summary]) -> "Figure":
    """The accuracy matrices of runs side by side, in per cent of the official test images.

    Row i is the state after task i, column j the accuracy on task j. Below the diagonal stands what
    is retained, above it what the tasks before give to one that was not learnt yet.

    Args:
        summaries: runs over the same tasks.

    Returns:
        One panel per run.

    Source:
        Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory", section 2.
    """
    from matplotlib.figure import Figure

    tasks = summaries[0].tasks
    size = 1.6 + 0.9 * len(tasks)
    figure = Figure(figsize=(size * len(summaries), size), layout="constrained")
    panels = figure.subplots(1, len(summaries), squeeze=False)[0]
    for axes, summary in zip(panels, summaries, strict=True):
        percent = [[100 * fraction for fraction in row] for row in summary.accuracy]
        axes.imshow(percent, cmap="cividis", vmin=0, vmax=100)
        for i, row in enumerate(percent):
            for j, value in enumerate(row):
                ink = "white" if value < DARK else "black"
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=ink)
        axes.set_xticks(range(len(tasks)), [f"on\n{task}" for task in tasks], fontsize=8)
        axes.set_yticks(range(len(tasks)), [f"after\n{task}" for task in tasks], fontsize=8)
        axes.set_title(label_of(summary), fontsize=10)
    return figure


def digits_figure(images: "Tensor", captions: Sequence[str], *, columns: int = 8) -> "Figure":
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


def per_pixel(importances: Mapping[str, "Tensor"]) -> "Tensor | None":
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


def importance_figure(importances: Mapping[str, "Tensor"], tasks: Sequence[str]) -> "Figure | None":
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


def lambda_figure(sweeps: Mapping[str, Sequence[TradeOffPoint]], tasks: Sequence[str]) -> "Figure":
    """λ against the accuracy on the old and on the new task, one panel per sweep.

    Args:
        sweeps: title → its points.
        tasks: their names, in order.

    Returns:
        The figure; λ is on a logarithmic axis with a place for 0.
    """
    from matplotlib.figure import Figure

    names = axis_names(tasks)
    figure = Figure(figsize=(1 + 4.2 * len(sweeps), 3.8), layout="constrained")
    panels = figure.subplots(1, len(sweeps), squeeze=False, sharey=True)[0]
    for axes, (heading, points) in zip(panels, sweeps.items(), strict=True):
        lambdas = [point.ewc_lambda for point in points]
        rows = [(p.old, p.old_error) for p in points], [(p.new, p.new_error) for p in points]
        for name, row, style in zip(names, rows, PALETTE, strict=False):
            means, errors = zip(*row, strict=True)
            axes.errorbar(
                lambdas,
                means,
                errors,
                color=style.colour,
                marker=style.marker,
                capsize=3,
                label=name,
            )
        smallest = min((x for x in lambdas if x > 0), default=1.0)
        axes.set_xscale("symlog", linthresh=smallest, linscale=0.6)
        axes.set_xlim(left=-smallest / 4)
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel("λ")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, % of validation images")
    panels[0].legend(frameon=False)
    return figure


def trade_off_figure(
    sweeps: Mapping[str, Sequence[TradeOffPoint]],
    tasks: Sequence[str],
    *,
    single: Mapping[str, TradeOffPoint] | None = None,
) -> "Figure":
    """The old task's accuracy against the new one's, a curve per sweep, λ written at its points.

    Args:
        sweeps: label → its points.
        tasks: their names, in order.
        single: label → a point without λ, such as joint training.

    Returns:
        The figure; the upper right corner keeps all and gains all.
    """
    from matplotlib.figure import Figure

    old, new = axis_names(tasks)
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    single = single or {}
    looks = styles([*sweeps, *single])
    for name, points in sweeps.items():
        _trace(axes, points, looks[name], name, linestyle="-")
    for name, point in single.items():
        _trace(axes, [point], looks[name], name, linestyle="none", markersize=10)
    _write_lambdas(axes, sweeps, looks)
    axes.set_xlabel(f"{new}, % of validation images")
    axes.set_ylabel(f"{old}, % of validation images")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower left")
    return figure


def _trace(
    axes: "Axes", points: Sequence[TradeOffPoint], style: Style, name: str, **also: Any
) -> None:
    axes.errorbar(
        [p.new for p in points],
        [p.old for p in points],
        yerr=[p.old_error for p in points],
        xerr=[p.new_error for p in points],
        color=style.colour,
        marker=style.marker,
        elinewidth=0.8,
        label=name,
        **also,
    )


def _write_lambdas(
    axes: "Axes", sweeps: Mapping[str, Sequence[TradeOffPoint]], looks: Mapping[str, Style]
) -> None:
    every = [p for points in sweeps.values() for p in points]
    near_x, near_y = (
        0.05 * (max(v) - min(v)) for v in zip(*((p.new, p.old) for p in every), strict=True)
    )
    written: list[TradeOffPoint] = []
    sides = [(7, "left"), (-7, "right")]
    for (name, points), (offset, align) in zip(sweeps.items(), cycle(sides), strict=False):
        for p in points:
            # curves that begin at one learnt first task meet at small λ: write it there once
            if any(
                p.ewc_lambda == q.ewc_lambda
                and abs(p.new - q.new) <= near_x
                and abs(p.old - q.old) <= near_y
                for q in written
            ):
                continue
            written.append(p)
            axes.annotate(
                _power_of_ten(p.ewc_lambda),
                (p.new, p.old),
                xytext=(offset, 5),
                textcoords="offset points",
                horizontalalignment=align,
                fontsize=9,
                color=looks[name].colour,
            )
    axes.margins(x=0.1)


def _power_of_ten(ewc_lambda: float) -> str:
    exponent = round(math.log10(ewc_lambda)) if ewc_lambda > 0 else 0
    if ewc_lambda >= 10 and math.isclose(ewc_lambda, 10.0**exponent):
        return f"$10^{{{exponent}}}$"
    return f"λ = {ewc_lambda:g}"
