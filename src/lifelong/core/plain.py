"""Importances as plain dictionaries of tensors, for files that are read without trust."""

from typing import Any

from lifelong.core.fisher.factors import KroneckerFactors
from lifelong.core.importance import DiagonalImportance, as_importance
from lifelong.core.protocols import Importance

KINDS: dict[str, type[Importance]] = {
    "diagonal": DiagonalImportance,
    "kronecker": KroneckerFactors,
}


def to_plain(importance: Any) -> dict[str, Any]:
    """An importance as what ``torch.load(..., weights_only=True)`` reads.

    Args:
        importance: one of this package's, or a plain dictionary, which is a diagonal.

    Returns:
        ``{"kind": ..., "tensors": {name: mean}}``.

    Raises:
        ValueError: for an importance of another kind.

    Example:
        >>> import torch
        >>> to_plain({"w": torch.tensor([2.0])})
        {'kind': 'diagonal', 'tensors': {'w': tensor([2.])}}
    """
    whole = as_importance(importance)
    for kind, made in KINDS.items():
        if type(whole) is made:
            return {"kind": kind, "tensors": whole.tensors()}
    raise ValueError(
        f"the importance is a {type(whole).__name__}; only {' and '.join(KINDS)} ones are kept"
    )


def from_plain(content: dict[str, Any]) -> Importance:
    """The importance that ``to_plain`` took apart.

    Args:
        content: what it returned.

    Returns:
        The importance.

    Raises:
        ValueError: when the kind is unknown.
    """
    kind = content.get("kind")
    if kind not in KINDS:
        raise ValueError(f"the kind of importance is {kind!r}; it must be {' or '.join(KINDS)}")
    return KINDS[kind].from_tensors(content["tensors"])
