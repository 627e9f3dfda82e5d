"""Networks of which each process holds a part: what is followed, and what is refused."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lifelong.core import parameters_by_name
from lifelong.core.penalty.sharded import is_sharded
from lifelong.core.protocols import Penalty
from lifelong.errors import LifelongError

# Known by name, so that nothing is imported that the user has not.
STRATEGIES = ("FSDPStrategy", "DeepSpeedStrategy")
WRAPPERS = ("FullyShardedDataParallel", "DeepSpeedEngine")
SPREAD = "FSDPModule"  # what fully_shard makes of a module
FOLLOWED = ("Shard", "Replicate")
CURE = (
    "take DDP, or fully_shard of torch.distributed.fsdp (Lightning: "
    "Trainer(strategy=ModelParallelStrategy())) with EWC(anchor=FILE, consolidates=False)"
)


def refuse_other_parts(trainer: Any) -> None:
    """Refuse a strategy whose parameters cannot be followed.

    Args:
        trainer: about to train.

    Raises:
        LifelongError: under FSDP1 or DeepSpeed.
    """
    strategy = getattr(trainer, "strategy", None)
    if _is_a(strategy, STRATEGIES):
        raise LifelongError(
            f"the strategy is {type(strategy).__name__}, which keeps no parameter as it was "
            f"consolidated; {CURE}"
        )


def parameters_of(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an optimizer steps, by name.

    After a forward pass ``fully_shard`` leaves some of them whole; they are given their parts back
    first, which costs another gathering in the backward pass.

    Args:
        network: the bare one; whole, or after ``fully_shard``.

    Returns:
        Name → parameter.

    Raises:
        LifelongError: under FSDP1 or DeepSpeed.
    """
    spread = False
    for module in network.modules():
        spread = spread or _is_a(module, (SPREAD,))
        if _is_a(module, WRAPPERS):
            raise LifelongError(
                f"the network is a {type(module).__name__}, which keeps no parameter as it was "
                f"consolidated; {CURE}"
            )
    params = parameters_by_name(network)
    if any(hasattr(p, "ds_id") for p in params.values()):
        raise LifelongError(
            f"DeepSpeed has the parameters, and keeps none as it was consolidated; {CURE}"
        )
    if spread and not all(map(is_sharded, params.values())):
        for module in network.modules():
            if _is_a(module, (SPREAD,)):
                module.reshard()  # type: ignore[operator]
        params = parameters_by_name(network)
    return params


def hold_parts(penalty: Penalty, params: Mapping[str, Tensor]) -> None:
    """Keep in each process the part of a penalty that belongs to its part of the network.

    Args:
        penalty: Ω, whole or in such parts already.
        params: parameter name → θ.

    Raises:
        LifelongError: when the penalty, or the way in which they are spread, has no such parts.
    """
    for name, p in params.items():
        for placement in getattr(p, "placements", ()):
            if type(placement).__name__ not in FOLLOWED:
                raise LifelongError(
                    f"{name!r} is spread over processes as {placement}; wanted Shard or Replicate, "
                    "as fully_shard alone has it"
                )
    try:
        penalty.shard_like(params)
    except ValueError as error:
        raise LifelongError(f"{error}, or take EWC") from None


def refuse_estimate(params: Mapping[str, Tensor], name: str) -> None:
    """Refuse to consolidate a network that no process has as a whole.

    Args:
        params: parameter name → θ.
        name: of the method.

    Raises:
        LifelongError: when a parameter is spread over processes.
    """
    spread = [one for one, p in params.items() if is_sharded(p)]
    if spread:
        raise LifelongError(
            f"{spread[0]!r} is spread over processes (DTensor), and what matters is estimated on a "
            f"whole network: consolidate before fully_shard, save(FILE), and pass "
            f"{name}(anchor=FILE, consolidates=False)"
        )


def _is_a(one: Any, names: tuple[str, ...]) -> bool:
    return any(kind.__name__ in names for kind in type(one).__mro__)
