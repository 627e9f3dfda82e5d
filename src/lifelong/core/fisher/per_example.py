"""Squares of per-example gradients for parameters that no rule covers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lifelong.core.fisher.examples import Rows, call, map_rows, take
from lifelong.core.fisher.squares import BLOCK, widened


def looped_squares(
    network: nn.Module, params: dict[str, nn.Parameter], x: Rows, directions: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return the squared gradients summed over examples and directions, one example at a time.

    Args:
        network: The network.
        params: The parameters that are wanted, by name.
        x: The examples.
        directions: Weights of the network's outputs, each `[N, ..., C]`.

    Returns:
        The sums, in float64 where the device has it.
    """
    wide = torch.float32 if directions[0].device.type == "mps" else torch.float64
    total = {name: torch.zeros_like(p, dtype=wide) for name, p in params.items()}
    for i in range(len(directions[0])):
        output = call(network, take(x, slice(i, i + 1)))
        for direction in directions:
            gradients = torch.autograd.grad(
                output,
                list(params.values()),
                direction[i : i + 1],
                retain_graph=True,
                allow_unused=True,
            )
            for name, gradient in zip(params, gradients, strict=True):
                if gradient is not None:
                    dense = gradient.to_dense() if gradient.is_sparse else gradient
                    total[name] += dense.to(wide).square()
    return total


def vectorised_squares(
    network: nn.Module, params: dict[str, nn.Parameter], x: Rows, directions: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return what `looped_squares` returns, blocks of examples at a time by `torch.func.vmap`.

    Args:
        network: The network.
        params: The parameters that are wanted, by name.
        x: The examples.
        directions: Weights of the network's outputs, each `[N, ..., C]`.

    Returns:
        The sums.
    """
    values = {name: p.detach() for name, p in params.items()}

    def squares_of_one(one: Rows, weights: Tensor) -> dict[str, Tensor]:
        def output(some: dict[str, Tensor]) -> Tensor:
            alone = map_rows(lambda t: t.unsqueeze(0), one)
            if isinstance(alone, dict):
                return functional_call(network, some, (), alone)
            return functional_call(network, some, alone)

        pull = vjp(output, values)[1]
        (gradients,) = vmap(pull)(weights.unsqueeze(1))
        return {name: widened(g).square().sum(dim=0) for name, g in gradients.items()}

    numel = sum(p.numel() for p in params.values())
    rows = max(1, BLOCK // (numel * len(directions)))
    weights = torch.stack(list(directions), dim=1)
    total: dict[str, Tensor] = {}
    # the other parameters need no graph of their own
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the one that vmap knows
        for start in range(0, len(weights), rows):
            block = take(x, slice(start, start + rows))
            found = vmap(squares_of_one)(block, weights[start : start + rows])
            for name, squares in found.items():
                share = squares.sum(dim=0)
                total[name] = total[name] + share if name in total else share
    return total
