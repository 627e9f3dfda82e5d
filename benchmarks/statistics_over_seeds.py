"""Means and standard errors over seeds, as Markdown."""

import statistics
from collections.abc import Sequence


def mean_and_error(column: Sequence[float]) -> str:
    """``mean ± standard error``, two places; the error is left out for a single seed."""
    mean = statistics.mean(column)
    if len(column) == 1:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {statistics.stdev(column) / len(column) ** 0.5:.2f}"


def markdown_row(name: str, rows: Sequence[Sequence[float]]) -> str:
    """One row of a table: a name and the mean of each column of ``rows``, one row per seed."""
    return f"| {name} | {' | '.join(mean_and_error(c) for c in zip(*rows, strict=True))} |"
