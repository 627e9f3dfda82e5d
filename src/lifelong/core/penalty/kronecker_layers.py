"""The parameters of a layer as the one matrix that its Kronecker factors speak of."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lifelong.core.penalty.kronecker_term import KroneckerTerm


def weight_of(layer: str) -> str:
    """Name the weight of a layer.

    Args:
        layer: the layer's own name; empty for the network itself.

    Returns:
        The parameter's name.
    """
    return f"{layer}.weight" if layer else "weight"


def names_of(key: str) -> tuple[str, str]:
    """Name the parameters of a layer.

    Args:
        key: the weight's name, with / for . since module names have none.

    Returns:
        The names of weight and bias.
    """
    weight = key.replace("/", ".")
    return weight, weight.removesuffix("weight") + "bias"


def as_matrix(parts: list[Tensor]) -> Tensor:
    """Put a layer's parameters into one matrix.

    Args:
        parts: its weight [out, ...], and its bias [out] if the factors cover it.

    Returns:
        [W, b]; [out, in] or [out, in + 1].
    """
    flat = [part.reshape(len(part), -1) for part in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


def matched_term(params: Mapping[str, Tensor], layer: str, A: Tensor, G: Tensor) -> KroneckerTerm:  # noqa: N803
    """Make a layer's term, once its factors are known to fit its parameters.

    Args:
        params: parameter name → θ*.
        layer: its name.
        A: the mean of ā āᵀ over examples; [in, in].
        G: the mean of the expected δ δᵀ; [out, out].

    Returns:
        The term.

    Raises:
        ValueError: when they do not fit.
    """
    weight = weight_of(layer)
    bias = weight.removesuffix("weight") + "bias"
    if weight not in params:
        raise ValueError(f"importance names {weight!r}, which params lacks")
    parts = [params[weight].detach()]
    if len(A) == parts[0][0].numel() + 1 and bias in params:
        parts.append(params[bias].detach())
    anchor = as_matrix(parts).clone()
    if (len(G), len(A)) != tuple(anchor.shape):
        raise ValueError(
            f"the factors of {layer!r} are for a matrix of shape {(len(G), len(A))}; "
            f"its parameters make one of {tuple(anchor.shape)}"
        )
    if not bool(torch.isfinite(A).all() & torch.isfinite(G).all()):
        raise ValueError(f"the factors of {layer!r} have non-finite entries")
    # copies, for the term may change its own
    own = [m.detach().to(anchor.device, anchor.dtype, copy=True) for m in (A, G)]
    return KroneckerTerm(anchor, own[0], own[1])
