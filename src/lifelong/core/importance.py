"""The diagonal importance, and importances as plain tensors for files."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lifelong.core.protocols import Importance


class DiagonalImportance(dict[str, Tensor]):
    """Parameter name → F ≥ 0 in the parameter's shape, a mean over examples.

    A dictionary in every other respect. To save it, save ``dict(importance)``.

    Example:
        >>> import torch
        >>> DiagonalImportance({"w": torch.tensor([1.0, 2.0])}).traces()
        {'w': 3.0}
    """

    def tensors(self) -> dict[str, Tensor]:
        """The means that it is made of.

        Returns:
            Parameter name → F.
        """
        return dict(self)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "DiagonalImportance":
        """The importance that ``tensors`` took apart.

        Args:
            tensors: parameter name → F.

        Returns:
            The importance.
        """
        return cls(tensors)

    def restricted(self, chosen: Callable[[str], bool]) -> "DiagonalImportance":
        """The importance of some parameters alone.

        Args:
            chosen: says of a parameter's name whether it stays.

        Returns:
            A new importance.
        """
        return DiagonalImportance({name: f for name, f in self.items() if chosen(name)})

    def traces(self) -> dict[str, float]:
        """What each parameter holds of the trace.

        Returns:
            Parameter name → Σ F.
        """
        return {name: float(f.double().sum()) for name, f in self.items()}


def as_importance(importance: Any) -> Importance:
    """An importance as one; a plain dictionary is a diagonal.

    Args:
        importance: what an estimator returned.

    Returns:
        The same object, or a diagonal of the same tensors.
    """
    return importance if isinstance(importance, Importance) else DiagonalImportance(importance)
