"""What each λ of a sweep keeps and gains on validation images: figures and their two plots."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lifelong.report.picture import STYLES
from lifelong.run.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SINGLE = [("#000000", "*"), ("#CC79A7", "D")]  # as STYLES: colour-blind readers tell them apart


@dataclass(frozen=True)
class TradeOffPoint:
    """One λ: accuracies on validation images in per cent, mean and standard error over seeds.

    Args:
        ewc_lambda: λ.
        old: on the first task, after the last.
        new: on the last task.
        old_error: the standard error of ``old``; 0 for one seed.
        new_error: the standard error of ``new``; 0 for one seed.
    """

    ewc_lambda: float
    old: float
    new: float
    old_error: float = 0.0
    new_error: float = 0.0

    @property
    def average(self) -> float:
        """The mean of the old and the new task's accuracy."""
        return (self.old + self.new) / 2


def trade_off(summaries: Iterable[Summary]) -> list[TradeOffPoint]:
    """The points of a sweep over λ, by λ, from validation images alone.

    Args:
        summaries: runs over the same tasks, with any number of seeds for each λ.

    Returns:
        One point per λ, the smallest first. The official test sets take no part.
    """
    found: dict[float, list[tuple[float, float]]] = {}
    for summary in summaries:
        old, new = summary.tasks[0], summary.tasks[-1]
        last = summary.curves[-1]
        pair = (last[f"retained/{old}"][-1], last[f"val/{new}/accuracy"][-1])
        found.setdefault(summary.ewc_lambda, []).append(pair)
    points = []
    for ewc_lambda, pairs in sorted(found.items()):
        olds, news = ([100 * fraction for fraction in task] for task in zip(*pairs, strict=True))
        points.append(
            TradeOffPoint(
                ewc_lambda,
                statistics.mean(olds),
                statistics.mean(news),
                standard_error(olds),
                standard_error(news),
            )
        )
    return points


def lambda_figure(sweeps: Mapping[str, Sequence[TradeOffPoint]], *, old: str, new: str) -> "Figure":
    """λ against the accuracy on the old and on the new task, one panel per sweep.

    Args:
        sweeps: title → its points.
        old: the first task's name.
        new: the last task's name.

    Returns:
        The figure; λ is on a logarithmic axis with a place for 0.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 4.2 * len(sweeps), 3.8), layout="constrained")
    panels = figure.subplots(1, len(sweeps), squeeze=False, sharey=True)[0]
    for axes, (name, points) in zip(panels, sweeps.items(), strict=True):
        lambdas = [point.ewc_lambda for point in points]
        for task, rows, (colour, marker) in (
            (f"{old} (old)", [(p.old, p.old_error) for p in points], STYLES[0]),
            (f"{new} (new)", [(p.new, p.new_error) for p in points], STYLES[1]),
        ):
            means, errors = zip(*rows, strict=True)
            axes.errorbar(
                lambdas, means, errors, color=colour, marker=marker, capsize=3, label=task
            )
        smallest = min((x for x in lambdas if x > 0), default=1.0)
        axes.set_xscale("symlog", linthresh=smallest, linscale=0.6)
        axes.set_xlim(left=-smallest / 4)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("λ")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, % of validation images")
    panels[0].legend(frameon=False)
    return figure


def trade_off_figure(
    sweeps: Mapping[str, Sequence[TradeOffPoint]],
    *,
    old: str,
    new: str,
    single: Mapping[str, TradeOffPoint] | None = None,
) -> "Figure":
    """The old task's accuracy against the new one's, a curve per sweep, λ written at its points.

    Args:
        sweeps: label → its points.
        old: the first task's name.
        new: the last task's name.
        single: label → a point without λ, such as joint training.

    Returns:
        The figure; the upper right corner keeps all and gains all.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for (name, points), (colour, marker) in zip(sweeps.items(), STYLES, strict=False):
        axes.errorbar(
            [p.new for p in points],
            [p.old for p in points],
            yerr=[p.old_error for p in points],
            xerr=[p.new_error for p in points],
            color=colour,
            marker=marker,
            elinewidth=0.8,
            label=name,
        )
    for (name, point), (colour, marker) in zip((single or {}).items(), SINGLE, strict=False):
        axes.errorbar(
            point.new,
            point.old,
            yerr=point.old_error,
            xerr=point.new_error,
            color=colour,
            marker=marker,
            markersize=11,
            linestyle="none",
            elinewidth=0.8,
            label=name,
        )
    _write_lambdas(axes, sweeps)
    axes.set_xlabel(f"accuracy on {new} (new), % of validation images")
    axes.set_ylabel(f"accuracy on {old} (old), % of validation images")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower left")
    return figure


def _write_lambdas(axes: "Axes", sweeps: Mapping[str, Sequence[TradeOffPoint]]) -> None:
    every = [p for points in sweeps.values() for p in points]
    near_x, near_y = (
        0.05 * (max(v) - min(v)) for v in zip(*((p.new, p.old) for p in every), strict=True)
    )
    written: list[TradeOffPoint] = []
    sides = [(7, "left"), (-7, "right")] * 2
    for points, (colour, _), (offset, align) in zip(sweeps.values(), STYLES, sides, strict=False):
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
                color=colour,
            )
    axes.margins(x=0.1)


def _power_of_ten(ewc_lambda: float) -> str:
    exponent = round(math.log10(ewc_lambda)) if ewc_lambda > 0 else 0
    if ewc_lambda >= 10 and math.isclose(ewc_lambda, 10.0**exponent):
        return f"$10^{{{exponent}}}$"
    return f"λ = {ewc_lambda:g}"


def standard_error(values: Sequence[float]) -> float:
    """The standard error of a mean: the standard deviation (by n − 1) over √n.

    Args:
        values: one per seed.

    Returns:
        The error in the values' unit; 0 for a single value, which has none to show.

    Example:
        >>> round(standard_error([1.0, 3.0]), 6)
        1.0
    """
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
