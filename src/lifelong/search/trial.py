"""One λ that a search tried, and the table of all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from lifelong.report.best import Candidate
from lifelong.report.names import mean_of_old
from lifelong.report.numbers import as_typed
from lifelong.search.notes import FINISHED


@dataclass(frozen=True)
class Trial:
    """One λ that a search tried.

    Args:
        number: from 0.
        ewc_lambda: λ.
        state: ``finished``, ``given up`` or ``failed``.
        epochs: of the last task that were learnt.
        found: what it kept and gained so far, if an epoch was done.
        score: by the rule; none for what was not learnt to the end.
        directory: the run's.
        message: why it failed.
    """

    number: int
    ewc_lambda: float
    state: str
    epochs: int
    found: Candidate | None
    score: float | None
    directory: str
    message: str = ""


def search_table(trials: Sequence[Trial], best: float) -> Table:
    """The trials of a search, by λ.

    Args:
        trials: finished, given up or failed.
        best: the λ to mark.

    Returns:
        The table.
    """
    old = max((trial.found.old_tasks for trial in trials if trial.found), default=1)
    kept = f"{mean_of_old(old) or 'old'} kept %"
    table = Table(title="trials; accuracies on validation images")
    for heading in ("λ", "trial", "epochs", kept, "new %", "average %"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for trial in sorted(trials, key=lambda trial: (trial.ewc_lambda, trial.number)):
        found = trial.found
        shown = (found.old, found.new, found.average) if found is not None else ()
        mark = "← best" if trial.ewc_lambda == best and trial.state == FINISHED else ""
        table.add_row(
            as_typed(trial.ewc_lambda),
            str(trial.number),
            str(trial.epochs),
            *([f"{100 * fraction:.2f}" for fraction in shown] or [""] * 3),
            mark or ("" if trial.state == FINISHED else trial.state),
            style="" if trial.state == FINISHED else "dim",
        )
    return table
