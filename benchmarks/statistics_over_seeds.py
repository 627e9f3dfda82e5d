"""Means and standard errors over seeds, as Markdown."""

import statistics
from collections.abc import Sequence

from lifelong.report.numbers import Mean, standard_error


def mean_and_error(column: Sequence[float]) -> str:
    """``mean ± standard error``, two places; the error is left out for a single seed."""
    return str(Mean(statistics.mean(column), standard_error(column), len(column)))


def markdown_row(name: str, rows: Sequence[Sequence[float]]) -> str:
    """One row of a table: a name and the mean of each column of ``rows``, one row per seed."""
    return f"| {name} | {' | '.join(mean_and_error(c) for c in zip(*rows, strict=True))} |"
