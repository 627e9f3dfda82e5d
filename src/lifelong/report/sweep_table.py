"""The tables at the end of a sweep and of a search: λ by λ, what was kept and what was gained."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from lifelong.report.best import Candidate, Rule, candidate_of
from lifelong.report.numbers import as_typed
from lifelong.report.table import title
from lifelong.report.trade_off import standard_error, trade_off
from lifelong.run.summary import Summary

WIDTH_OF_A_FILE = 140


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


def read_summaries(directories: Iterable[Path]) -> list[Summary]:
    """The summaries of those runs that have one.

    Args:
        directories: of the runs.

    Returns:
        In the same order.
    """
    found = []
    for directory in directories:
        path = directory / "summary.json"
        if path.is_file():
            found.append(Summary.read(path))
    return found


def choose_from(summaries: Iterable[Summary], rule: Rule) -> Candidate:
    """The best λ of a sweep, from validation images alone.

    Args:
        summaries: any number of seeds for each λ.
        rule: how to choose.

    Returns:
        The best, as the mean over its seeds.
    """
    return rule.choose(candidate_of(summary) for summary in summaries)


def sweep_table(groups: Mapping[str, Sequence[Summary]], rule: Rule) -> Table:
    """λ by λ, mean ± standard error over seeds; validation figures, and the test figures beside.

    Args:
        groups: what else was swept → its runs; one group named "" if λ and seeds alone were.
        rule: marks the best λ of each group.

    Returns:
        The table, by λ within each group.
    """
    first = next(iter(groups.values()))[0]
    old, new = first.tasks[0], first.tasks[-1]
    table = Table(title=f"λ on {title(first)}: mean ± standard error over seeds")
    if set(groups) != {""}:
        table.add_column("")
    table.add_column("λ", justify="right")
    table.add_column("seeds", justify="right")
    for heading in (f"{old} kept", f"{new} new", "average"):
        table.add_column(f"{heading} %\nvalidation", justify="right")
    for heading in (f"{old} kept", f"{new} new"):
        table.add_column(f"{heading} %\ntest", justify="right", style="dim")
    table.add_column("")
    for label, summaries in groups.items():
        best = choose_from(summaries, rule).ewc_lambda
        several = len({one.ewc_lambda for one in summaries}) > 1
        for point in trade_off(summaries):
            same = [one for one in summaries if one.ewc_lambda == point.ewc_lambda]
            average = [100 * candidate_of(one).average for one in same]
            tests = [[100 * one.accuracy[-1][task] for one in same] for task in (0, -1)]
            table.add_row(
                *([label] if set(groups) != {""} else []),
                as_typed(point.ewc_lambda),
                str(len(same)),
                _with_error(point.old, point.old_error, len(same)),
                _with_error(point.new, point.new_error, len(same)),
                *(_with_error(fmean(x), standard_error(x), len(x)) for x in (average, *tests)),
                "← best" if several and point.ewc_lambda == best else "",
            )
        table.add_section()
    return table


def verdict(best: Candidate, rule: Rule) -> str:
    """The choice in one sentence.

    Args:
        best: what the rule chose.
        rule: how it chose.

    Returns:
        The sentence.
    """
    ewc_lambda = as_typed(best.ewc_lambda)
    if not rule.keeps_its_bound(best):
        return (
            f"no λ has {rule.words}: {ewc_lambda} loses least, {best.lost:.2f} points "
            "(validation images)"
        )
    return (
        f"best λ = {ewc_lambda} by the rule: {rule.words}. It kept {100 * best.old:.2f} % "
        f"(lost {best.lost:.2f} points) and reached {100 * best.new:.2f} % on the new task, on "
        "validation images; the test images played no part"
    )


def search_table(trials: Sequence[Trial], best: float) -> Table:
    """The trials of a search, by λ.

    Args:
        trials: finished, given up or failed.
        best: the λ to mark.

    Returns:
        The table.
    """
    table = Table(title="trials; accuracies on validation images")
    for heading in ("λ", "trial", "epochs", "old kept %", "new %", "average %"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for trial in sorted(trials, key=lambda trial: (trial.ewc_lambda, trial.number)):
        found = trial.found
        shown = (found.old, found.new, found.average) if found is not None else ()
        mark = "← best" if trial.ewc_lambda == best and trial.state == "finished" else ""
        table.add_row(
            as_typed(trial.ewc_lambda),
            str(trial.number),
            str(trial.epochs),
            *([f"{100 * fraction:.2f}" for fraction in shown] or [""] * 3),
            mark or ("" if trial.state == "finished" else trial.state),
            style="" if trial.state == "finished" else "dim",
        )
    return table


def print_wide(*parts: Table | str) -> None:
    """Print to standard output; a file gets whole columns, whatever a terminal's width.

    Args:
        *parts: tables and lines.
    """
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=WIDTH_OF_A_FILE)
    for part in parts:
        console.print(part, markup=False) if isinstance(part, str) else console.print(part)


def _with_error(mean: float, error: float, count: int) -> str:
    return f"{mean:.2f} ± {error:.2f}" if count > 1 else f"{mean:.2f}"
