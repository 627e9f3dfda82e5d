"""Parameters of which each process holds a part: what ``fully_shard`` makes of them (DTensor)."""

import sys
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, distributed


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes.

    Args:
        tensor: any.

    Returns:
        True for a ``DTensor``.
    """
    # Where nobody has imported the type nothing can be of it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, the same memory.

    Args:
        tensor: any.

    Returns:
        The tensor itself where it is whole.
    """
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def entire(tensor: Any) -> Tensor:
    """A tensor as a whole, gathered where it is spread: then every process calls this.

    Args:
        tensor: any.

    Returns:
        The tensor itself where it is whole.
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def like(part: Tensor, whole: Any) -> Tensor:
    """The tensor whose part this is, spread as another one.

    Args:
        part: what this process holds of it.
        whole: spread, or not.

    Returns:
        A ``DTensor``, or the part itself.
    """
    if not is_sharded(whole):
        return part
    return type(whole).from_local(
        part,
        whole.device_mesh,
        whole.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def shard(tensor: Tensor, whole: Any) -> Tensor:
    """Of a tensor that every process has, the part that it has of another: nothing is sent.

    Args:
        tensor: whole, the same in every process.
        whole: a ``DTensor`` of the same shape.

    Returns:
        A ``DTensor`` that is spread as ``whole`` is, in memory of its own.
    """
    from torch.distributed.tensor import distribute_tensor

    spread = distribute_tensor(tensor, whole.device_mesh, whole.placements, src_data_rank=None)
    # A part of a whole that is no longer needed shall not keep it in memory.
    return like(spread.to_local().clone(), spread)


def over_parts(value: Tensor, tensor: Any, how: Literal["SUM", "MAX"] = "SUM") -> Tensor:
    """A number of the whole tensor from those of its parts; called by every process.

    Args:
        value: a scalar of this process's part; changed.
        tensor: whose part it is.
        how: sum or maximum.

    Returns:
        The same in every process; the value itself where the tensor is whole.
    """
    if is_sharded(tensor):
        for dim, placement in enumerate(tensor.placements):
            if placement.is_shard():
                group = tensor.device_mesh.get_group(dim)
                distributed.all_reduce(value, getattr(distributed.ReduceOp, how), group=group)
    return value


class Sum:
    """A sum over parameters, some of which may be spread over processes.

    Args:
        start: what is there before.
    """

    def __init__(self, start: Tensor) -> None:
        self._whole = start
        self._parts: dict[Any, tuple[Tensor, Tensor]] = {}

    def add(self, value: Tensor, tensor: Any) -> None:
        """Add a number.

        Args:
            value: of this process's part of a parameter, a scalar.
            tensor: the parameter.
        """
        if not is_sharded(tensor):
            self._whole = self._whole.to(value.device) + value
            return
        key = (tensor.device_mesh, tuple(tensor.placements))
        before = self._parts.get(key)
        self._parts[key] = (value if before is None else before[0] + value, tensor)

    def total(self) -> Tensor:
        """The sum over all parameters, whole; called by every process.

        Returns:
            A scalar.
        """
        whole = self._whole
        for value, tensor in self._parts.values():
            # The gradient stays that of this process's part: no other has entries of it.
            everywhere = over_parts(value.detach().clone(), tensor)
            whole = whole.to(value.device) + everywhere
            if value.requires_grad:
                whole = whole + (value - value.detach())
        return whole


def check_whole(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse parameters that are spread over processes.

    Args:
        tensors: parameter name → parameter.
        what: cannot be done with them.

    Raises:
        ValueError: when one of them is.
    """
    spread = [name for name, tensor in tensors.items() if is_sharded(tensor)]
    if spread:
        raise ValueError(
            f"{spread[0]!r} is spread over processes (DTensor), of which {what} needs the whole; "
            "do that before fully_shard"
        )
