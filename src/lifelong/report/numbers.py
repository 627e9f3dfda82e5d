"""Numbers as people type them."""


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
