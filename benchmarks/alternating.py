"""Ratios that a noisy machine cannot bend: alternating runs in one process, and their medians."""

import statistics
import time
from collections.abc import Callable

Run = Callable[[], object]


def seconds_of(run: Run) -> float:
    """Wall-clock seconds of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def alternate(*runs: Run, rounds: int = 7, warmup: int = 1) -> list[list[float]]:
    """Seconds of each run, called in turn: A B … A B …; ``warmup`` rounds are not counted."""
    for _ in range(warmup):
        for run in runs:
            run()
    rows = [[seconds_of(run) for run in runs] for _ in range(rounds)]
    return [list(column) for column in zip(*rows, strict=True)]


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """The median of the ratios round by round: a drift of the machine's speed cancels."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))
