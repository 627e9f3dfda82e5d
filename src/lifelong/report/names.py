"""What reports call things: what was learnt, the old tasks, a method with its λ."""

from collections.abc import Sequence

from lifelong.report.numbers import as_typed
from lifelong.run.summary import Summary


def title(summary: Summary) -> str:
    """What was learnt, and from which images where they are not those that the tasks name.

    Args:
        summary: of a run.

    Returns:
        One line.
    """
    tasks = " → ".join(summary.tasks)
    if any("embedded" in source for source in summary.data_source.values()):
        return f"{tasks} (embedded digits of scikit-learn: NOT the MNIST and USPS archives)"
    return tasks


def label(name: str, ewc_lambda: float, *, has_lambda: bool) -> str:
    """A method, with λ where it has one.

    Args:
        name: the method in words.
        ewc_lambda: λ, 0 included.
        has_lambda: whether the method has a λ.

    Returns:
        Words.

    Example:
        >>> label("EWC", 0.0, has_lambda=True)
        'EWC, λ = 0'
        >>> label("fine-tuning", 0.0, has_lambda=False)
        'fine-tuning'
    """
    return f"{name}, λ = {as_typed(ewc_lambda)}" if has_lambda else name


def label_of(summary: Summary) -> str:
    """The method of a run, with λ where it has one.

    Args:
        summary: of the run.

    Returns:
        Words.
    """
    return label(summary.method_title, summary.ewc_lambda, has_lambda=summary.has_lambda)


def mean_of_old(count: int) -> str:
    """What a figure of all old tasks together is.

    Args:
        count: of old tasks: all but the last.

    Returns:
        Words; none where a single task is old, of which there is no mean.

    Example:
        >>> mean_of_old(1), mean_of_old(2)
        ('', 'mean of 2 old tasks')
    """
    return f"mean of {count} old tasks" if count > 1 else ""


def old_name(tasks: Sequence[str]) -> str:
    """Whose figure an old one is.

    Args:
        tasks: the names, in order.

    Returns:
        The first task's name, or that it is a mean where several are old.

    Example:
        >>> old_name(["mnist", "usps"]), old_name(["a", "b", "c"])
        ('mnist', 'mean of 2 old tasks')
    """
    return mean_of_old(len(tasks) - 1) or tasks[0]


def axis_names(tasks: Sequence[str]) -> tuple[str, str]:
    """The old and the new in a picture that has both.

    Args:
        tasks: the names, in order; at least two.

    Returns:
        Two names.

    Example:
        >>> axis_names(["mnist", "usps"]), axis_names(["a", "b", "c"])
        (('mnist (old)', 'usps (new)'), ('mean of 2 old tasks', 'c (new)'))
    """
    return mean_of_old(len(tasks) - 1) or f"{tasks[0]} (old)", f"{tasks[-1]} (new)"
