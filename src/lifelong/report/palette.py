"""Colours and markers of curves: one list, handed out in order."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle


@dataclass(frozen=True)
class Style:
    """How one curve is drawn.

    Args:
        colour: as in HTML.
        marker: matplotlib's letter.
        symbol: plotly's name of the same form.
    """

    colour: str
    marker: str
    symbol: str


# Okabe and Ito's palette: told apart by the colour-blind; the markers tell them apart in print.
PALETTE = (
    Style("#0072B2", "o", "circle"),
    Style("#D55E00", "s", "square"),
    Style("#009E73", "^", "triangle-up"),
    Style("#CC79A7", "D", "diamond"),
    Style("#000000", "*", "star"),
    Style("#E69F00", "P", "cross"),
    Style("#56B4E9", "X", "x"),
    Style("#999999", "h", "hexagon"),
)


def styles(curves: Iterable[str]) -> dict[str, Style]:
    """A style for each curve.

    Args:
        curves: their names, in the order in which they are drawn.

    Returns:
        Name → style; beyond the palette's length it begins anew.

    Example:
        >>> [style.marker for style in styles(["EWC", "fine-tuning", "EWC"]).values()]
        ['o', 's']
    """
    return dict(zip(dict.fromkeys(curves), cycle(PALETTE), strict=False))
