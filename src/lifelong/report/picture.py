"""The picture of what is retained while a later task is learnt."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lifelong.data.files.whole import whole_file
from lifelong.report.table import METHODS, title
from lifelong.run.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by the colour-blind; the markers tell them apart in print.
STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")]


def draw_retention(summaries: Sequence[Summary], path: Path) -> Path:
    """Draw how much of the first task each run retains over the epochs of the last.

    Args:
        summaries: runs over the same tasks, which begin at the same learnt first task.
        path: the PNG to write.

    Returns:
        The path.
    """
    with whole_file(path) as temporary:
        retention_figure(summaries).savefig(temporary, format="png", dpi=150)
    return path


def retention_figure(summaries: Sequence[Summary]) -> "Figure":
    """The figure of what each run retains of the first task over the epochs of the last.

    Args:
        summaries: runs over the same tasks, which begin at the same learnt first task.

    Returns:
        Per cent right on the validation images of the first task, from the end of its own stage.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    old, new = summaries[0].tasks[0], summaries[0].tasks[-1]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for summary, (colour, marker) in zip(summaries, STYLES, strict=False):
        start = summary.curves[0][f"val/{old}/accuracy"][-1]
        curve = [start, *summary.curves[-1][f"retained/{old}"]]
        name = METHODS.get(summary.method, summary.method)
        label = f"{name}, λ = {summary.ewc_lambda:g}" if summary.ewc_lambda else name
        every = max(1, len(curve) // 10)
        axes.plot(
            range(len(curve)),
            [100 * accuracy for accuracy in curve],
            color=colour,
            marker=marker,
            markevery=every,
            label=label,
        )
    axes.set_xlabel(f"epochs of {new}")
    axes.set_ylabel(f"accuracy on {old}\n% of its validation images")
    learnt = title(summaries[0]).replace(" (", "\n(")  # too long for one line where it warns
    axes.set_title(f"What is retained of {old}\n{learnt}", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center right")
    return figure
