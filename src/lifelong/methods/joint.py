"""Joint training: what one could have if the old data were kept."""

from typing import ClassVar

from lifelong.methods.base import Method


class Joint(Method):
    """Each task is learnt along with the data of all before it: the upper bound.

    Example:
        >>> Joint().uses_old_data
        True
    """

    title: ClassVar[str] = "joint training"
    uses_old_data: ClassVar[bool] = True
