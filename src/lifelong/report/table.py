"""The table of a run's results in the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lifelong.run.summary import Summary

METHODS = {
    "ewc": "EWC",
    "online_ewc": "online EWC",
    "kronecker_ewc": "Kronecker EWC",
    "finetune": "fine-tuning",
    "joint": "joint training",
}


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


def print_results(
    summaries: Sequence[Summary], directory: Path, *, picture: Path | None = None
) -> None:
    """Print accuracies by stage and method, and where the results lie.

    Args:
        summaries: one per method, with the same tasks; stages but the last are shown once.
        directory: where the results lie.
        picture: the retention picture, if one was drawn.
    """
    first = summaries[0]
    table = Table(title=f"Test accuracy: {title(first)}")
    table.add_column("")
    for task in first.tasks:
        table.add_column(f"{task} %", justify="right")
    for index, row in enumerate(first.accuracy[:-1]):
        table.add_row(f"after {first.tasks[index]}", *_percent(row))
    for summary in summaries:
        name = METHODS.get(summary.method, summary.method)
        weight = f", λ = {summary.ewc_lambda:g}" if summary.ewc_lambda else ""
        table.add_row(
            f"after {summary.tasks[-1]} ({name}{weight})", *_percent(summary.accuracy[-1])
        )
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    # The stages before the last are shared: they were learnt once.
    stages = [*first.seconds.values(), *(s.seconds[s.tasks[-1]] for s in summaries[1:])]
    seconds = sum(sum(stage.values()) for stage in stages)
    console.print(
        f"seed {first.seed}, {first.max_epochs} epochs a task, "
        f"{seconds:.0f} s of learning and testing"
    )
    if picture is not None:
        console.print(f"picture      {picture}")
    console.print(f"results      {directory} (summary.json, checkpoints/, …)")
    if any(directory.rglob("events.out.tfevents.*")):
        console.print(f"TensorBoard  tensorboard --logdir {directory}")


def _percent(row: Sequence[float]) -> list[str]:
    return [f"{100 * accuracy:.2f}" for accuracy in row]
