"""Numbers as people type them, and means with their standard errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Args:
        value: in per cent.
        error: the standard error of the mean in points; 0 for a single seed.
        count: how many seeds.
    """

    value: float
    error: float
    count: int

    def __str__(self) -> str:
        """What a table shows.

        Returns:
            ``mean ± standard error``; for a single seed the value alone.
        """
        if self.count == 1:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ± {self.error:.2f}"


def mean_of(fractions: Sequence[float]) -> Mean:
    """The mean of a figure over seeds.

    Args:
        fractions: one per seed.

    Returns:
        In per cent.
    """
    values = [100 * fraction for fraction in fractions]
    return Mean(fmean(values), standard_error(values), len(values))


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, Mean]:
    """The mean of each of several figures over seeds.

    Args:
        rows: one per seed: name of the figure → a fraction, with the same names.

    Returns:
        Name → mean in per cent, in the order of the first row.
    """
    return {name: mean_of([row[name] for row in rows]) for name in rows[0]}


def standard_error(values: Sequence[float]) -> float:
    """The standard error of a mean: the standard deviation (by n − 1) over √n.

    Args:
        values: one per seed.

    Returns:
        The error in the values' unit; 0 for a single value, which has none to show.

    Example:
        >>> round(standard_error([1.0, 3.0]), 6)
        1.0
    """
    if len(values) == 1:
        return 0.0
    from scipy.stats import sem

    return float(sem(values))


def as_typed(number: float) -> str:
    """A number in the shortest way that people write it.

    Args:
        number: finite.

    Returns:
        Round thousands by their power of ten; everything else in full, so that it can be typed
        again to the same value.

    Example:
        >>> [as_typed(x) for x in (0.0, 0.01, 100.0, 1e4, 5e6, 25000.0, 1e20)]
        ['0', '0.01', '100', '1e4', '5e6', '25000', '1e20']
    """
    if number != int(number) or abs(number) >= 1e16:
        return repr(number).replace("e+", "e")
    digits = str(int(number))
    first = digits.rstrip("0")
    zeros = len(digits) - len(first)
    return f"{first}e{zeros}" if zeros >= 3 and len(first) == 1 else digits
