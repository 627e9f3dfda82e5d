"""The table of a report, to copy: Markdown and CSV."""

import csv
import io
from collections.abc import Sequence

from lifelong.report.groups import (
    Group,
    Mean,
    new_test,
    new_validation,
    old_test,
    old_validation,
)
from lifelong.report.numbers import as_typed

FIGURES = {"test": (old_test, new_test), "validation": (old_validation, new_validation)}


def figures_of(group: Group, names: tuple[str, str]) -> dict[str, Mean]:
    """The four figures of a point.

    Args:
        group: the point.
        names: of the old and of the new task.

    Returns:
        Heading → mean over seeds.
    """
    return {
        f"{name} {images}": group.mean(pick)
        for images, picks in FIGURES.items()
        for name, pick in zip(names, picks, strict=True)
    }


def as_markdown(groups: Sequence[Group], names: tuple[str, str]) -> str:
    """The table in Markdown.

    Args:
        groups: its rows.
        names: of the old and of the new task.

    Returns:
        Per cent, mean ± standard error over seeds.
    """
    headings = [f"{heading} %" for heading in figures_of(groups[0], names)]
    lines = [f"| method | λ | seeds | {' | '.join(headings)} |"]
    lines.append("|---|---:|---:|" + "---:|" * len(headings))
    for group in groups:
        cells = [group.family, as_typed(group.ewc_lambda), str(len(group.runs))]
        cells += [str(mean) for mean in figures_of(group, names).values()]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def as_csv(groups: Sequence[Group], names: tuple[str, str]) -> str:
    """The table as comma-separated values, unrounded, with the command of each row.

    Args:
        groups: its rows.
        names: of the old and of the new task.

    Returns:
        A line of headings and a line per point; the standard error of a single seed is empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    headings = list(figures_of(groups[0], names))
    pairs = [part for heading in headings for part in (heading, f"{heading} standard error")]
    writer.writerow(["method", "setting", "lambda", "seeds", *pairs, "command"])
    for group in groups:
        means = figures_of(group, names).values()
        cells = [x for m in means for x in (repr(m.value), repr(m.error) if m.count > 1 else "")]
        seeds = " ".join(map(str, group.seeds))
        begin = [group.method, group.setting, repr(group.ewc_lambda), seeds]
        writer.writerow([*begin, *cells, group.command])
    return text.getvalue()
