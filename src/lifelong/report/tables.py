"""Tables of results: in the terminal, and to copy as Markdown and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lifelong.report.accuracies import columns, final_test, final_validation
from lifelong.report.best import Rule, candidate_of, choose_from
from lifelong.report.groups import Group
from lifelong.report.names import label_of, title
from lifelong.report.numbers import as_typed, mean_of, means
from lifelong.run.summary import Summary

WIDTH_OF_A_FILE = 140  # at least: a wide table has what it needs


def print_results(
    summaries: Sequence[Summary], directory: Path, *, picture: Path | None = None
) -> None:
    """Print accuracies by stage and method, and where the results lie.

    Args:
        summaries: one per method, with the same tasks.
        directory: where the results lie.
        picture: the retention picture, if one was drawn.
    """
    first = summaries[0]
    seconds = sum(sum(stage.values()) for one in summaries for stage in one.seconds.values())
    lines = [
        f"seed {first.seed}, {first.max_epochs} epochs a task, "
        f"{seconds:.0f} s of learning and testing"
    ]
    if picture is not None:
        lines.append(f"picture      {picture}")
    lines.append(f"results      {directory} (summary.json, checkpoints/, …)")
    if any(directory.rglob("events.out.tfevents.*")):
        lines.append(f"TensorBoard  tensorboard --logdir {directory}")
    print_wide(results_table(summaries), *lines)


def results_table(summaries: Sequence[Summary]) -> Table:
    """The accuracy matrices of runs, one below the other; what all share is shown once.

    Args:
        summaries: one per method, with the same tasks.

    Returns:
        A row per stage and method, a column per task; where several tasks are old, their mean too.
    """
    first = summaries[0]
    table = Table(title=f"Test accuracy: {title(first)}")
    table.add_column("")
    for name in columns(final_test(first)):
        table.add_column(f"{name} %", justify="right")
    last = len(first.tasks) - 1
    for index, task in enumerate(first.tasks):
        shared = index < last and all(s.accuracy[index] == first.accuracy[index] for s in summaries)
        for summary in summaries[:1] if shared else summaries:
            row = dict(zip(first.tasks, summary.accuracy[index], strict=True))
            # Before the last stage not all of them were learnt: they have no mean of old ones.
            cells = columns(row) if index == last else dict.fromkeys(columns(row), None) | row
            name = f"after {task}" + ("" if shared else f" ({label_of(summary)})")
            table.add_row(name, *("" if x is None else f"{100 * x:.2f}" for x in cells.values()))
    return table


def sweep_table(groups: Mapping[str, Sequence[Summary]], rule: Rule) -> Table:
    """λ by λ, mean ± standard error over seeds; validation figures, and the test figures beside.

    Args:
        groups: what else was swept → its runs, over the same tasks; one group named "" if λ and
            seeds alone were.
        rule: marks the best λ of each group.

    Returns:
        The table, by λ within each group: a column per task, and where several are old their mean.
    """
    first = next(iter(groups.values()))[0]
    *old, new = columns(final_test(first))
    headings = [*(f"{name} kept" for name in old), f"{new} new"]
    table = Table(title=f"λ on {title(first)}: mean ± standard error over seeds")
    if set(groups) != {""}:
        table.add_column("")
    table.add_column("λ", justify="right")
    table.add_column("seeds", justify="right")
    for heading in (*headings, "average"):
        table.add_column(f"{heading} %\nvalidation", justify="right")
    for heading in headings:
        table.add_column(f"{heading} %\ntest", justify="right", style="dim")
    table.add_column("")
    for label, summaries in groups.items():
        best = choose_from(summaries, rule).ewc_lambda
        several = len({one.ewc_lambda for one in summaries}) > 1
        for ewc_lambda in sorted({one.ewc_lambda for one in summaries}):
            same = [one for one in summaries if one.ewc_lambda == ewc_lambda]
            kept = means([columns(final_validation(one)) for one in same])
            average = mean_of([candidate_of(one).average for one in same])
            table.add_row(
                *([label] if set(groups) != {""} else []),
                as_typed(ewc_lambda) if same[0].has_lambda else "–",
                str(len(same)),
                *map(str, (*kept.values(), average)),
                *map(str, means([columns(final_test(one)) for one in same]).values()),
                "← best" if several and ewc_lambda == best else "",
            )
        table.add_section()
    return table


def print_wide(*parts: Table | str) -> None:
    """Print to standard output; a file gets whole columns, whatever a terminal's width.

    Args:
        *parts: tables and lines.
    """
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        tables = [part for part in parts if isinstance(part, Table)]
        endless = Console(width=10_000)
        wide = [endless.measure(table).maximum for table in tables]
        width = max([WIDTH_OF_A_FILE, *wide])
        console = Console(highlight=False, soft_wrap=True, width=width)
    for part in parts:
        console.print(part, markup=False) if isinstance(part, str) else console.print(part)


def as_markdown(groups: Sequence[Group]) -> str:
    """The table in Markdown.

    Args:
        groups: its rows.

    Returns:
        Per cent, mean ± standard error over seeds.
    """
    headings = [f"{heading} %" for heading in groups[0].figures]
    lines = [f"| method | λ | seeds | {' | '.join(headings)} |"]
    lines.append("|---|---:|---:|" + "---:|" * len(headings))
    for group in groups:
        cells = [group.family, group.lambda_cell, str(len(group.runs))]
        cells += map(str, group.figures.values())
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def as_csv(groups: Sequence[Group]) -> str:
    """The table as comma-separated values, unrounded, with the command of each row.

    Args:
        groups: its rows.

    Returns:
        A line of headings and a line per point; the standard error of a single seed is empty, and
        so is the λ of a method without one.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    pairs = [part for name in groups[0].figures for part in (name, f"{name} standard error")]
    writer.writerow(["method", "setting", "lambda", "seeds", *pairs, "command"])
    for group in groups:
        means = group.figures.values()
        cells = [x for m in means for x in (repr(m.value), repr(m.error) if m.count > 1 else "")]
        ewc_lambda = repr(group.ewc_lambda) if group.has_lambda else ""
        seeds = " ".join(map(str, group.seeds))
        writer.writerow([group.method, group.setting, ewc_lambda, seeds, *cells, group.command])
    return text.getvalue()
