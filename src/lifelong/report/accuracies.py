"""What a run knows at its end, task by task, and what is left of the old ones together.

Old are all tasks but the last. What is said of them together, wherever results are shown, is the
mean over them; each has its own column in the tables.
"""

from collections.abc import Mapping
from statistics import fmean

from lifelong.report.names import mean_of_old
from lifelong.run.summary import Summary


def final_test(summary: Summary) -> dict[str, float]:
    """What was known at the end, on the official test images.

    Args:
        summary: of a run.

    Returns:
        Task → fraction, in order.
    """
    return dict(zip(summary.tasks, summary.accuracy[-1], strict=True))


def final_validation(summary: Summary) -> dict[str, float]:
    """What was known at the end, on validation images.

    Args:
        summary: of a run.

    Returns:
        Task → fraction, in order.
    """
    *old, new = summary.tasks
    last = summary.curves[-1]
    kept = {task: last[f"retained/{task}"][-1] for task in old}
    return kept | {new: last[f"val/{new}/accuracy"][-1]}


def old_mean(accuracy: Mapping[str, float]) -> float:
    """What is left of the old tasks: the mean over all but the last.

    Args:
        accuracy: task → fraction, in order; at least two.

    Returns:
        A fraction.

    Example:
        >>> round(old_mean({"a": 0.5, "b": 0.7, "c": 0.9}), 6)
        0.6
    """
    return fmean(list(accuracy.values())[:-1])


def columns(accuracy: Mapping[str, float]) -> dict[str, float]:
    """The columns of a table: each task, and where several are old their mean before the new one.

    Args:
        accuracy: task → fraction, in order.

    Returns:
        Name → fraction.

    Example:
        >>> columns({"a": 0.25, "b": 0.75, "c": 1.0})
        {'a': 0.25, 'b': 0.75, 'mean of 2 old tasks': 0.5, 'c': 1.0}
        >>> columns({"a": 0.25, "b": 0.75})
        {'a': 0.25, 'b': 0.75}
    """
    *old, new = accuracy
    mean = mean_of_old(len(old))
    together = {mean: old_mean(accuracy)} if mean else {}
    return {task: accuracy[task] for task in old} | together | {new: accuracy[new]}


def retention(summary: Summary) -> list[float]:
    """What is left of the old tasks on validation images while the last one is learnt.

    Args:
        summary: of a run over at least two tasks.

    Returns:
        Fractions, the mean over the old tasks: before the last task, and after each epoch of it.
    """
    *earlier, newest = summary.tasks[:-1]
    *_, before, last = summary.curves
    names = [*(f"retained/{task}" for task in earlier), f"val/{newest}/accuracy"]
    epochs = zip(*(last[f"retained/{task}"] for task in summary.tasks[:-1]), strict=True)
    return [fmean(before[name][-1] for name in names), *map(fmean, epochs)]
