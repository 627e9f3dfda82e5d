"""Optimizers that take sparse gradients alone."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lifelong.errors import LifelongError


def refuse_sparse_only(
    optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor], held: Iterable[str]
) -> None:
    """Refuse, before a step, a SparseAdam for what is held: λΩ pulls every row.

    Args:
        optimizer: that is to step.
        params: parameter name → θ.
        held: the names of what is held.

    Raises:
        LifelongError: when the optimizer has one of them.
    """
    if not isinstance(optimizer, torch.optim.SparseAdam):
        return
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name in held:
        if name in params and id(params[name]) in own:
            raise LifelongError(
                f"{name!r} is held and has a SparseAdam, which takes sparse gradients alone, and "
                "λΩ pulls every row; take SGD (with sparse=True) or Adam for it, or let go of it "
                f"with ignore={name!r}"
            )
