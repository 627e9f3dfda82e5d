"""The figure of the accuracy matrix: what was known after each task."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lifelong.report.numbers import as_typed
from lifelong.report.table import METHODS
from lifelong.run.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DARK = 55.0  # per cent below which the number is written in white: the colours are dark there


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
        name = METHODS.get(summary.method, summary.method)
        weight = f", λ = {as_typed(summary.ewc_lambda)}" if summary.ewc_lambda else ""
        axes.set_title(f"{name}{weight}", fontsize=10)
    return figure
