"""The diagonal importance, and importances as plain tensors for files."""

from collections.abc import Mapping
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
