"""Squares of per-example gradients for parameters that no rule covers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lifelong.core.fisher.evaluation import Evaluation
from lifelong.core.fisher.examples import Rows, has_words, take, tensors_of, with_tensors
from lifelong.core.fisher.squares import BLOCK, Measure, widened


def looped_squares(
    evaluation: Evaluation,
    params: dict[str, nn.Parameter],
    x: Rows,
    directions: Sequence[Tensor],
    measure: Measure = torch.square,
) -> dict[str, Tensor]:
    """Return the squared gradients summed over examples and directions, one example at a time.

    Args:
        evaluation: The network, and how it is evaluated.
        params: The parameters that are wanted, by name.
        x: The examples.
        directions: Weights of the network's outputs, each `[N, ...]`.
        measure: What becomes of each gradient, `torch.square` or `torch.abs`.

    Returns:
        The sums, in float64 where the device has it.
    """
    wide = torch.float32 if directions[0].device.type == "mps" else torch.float64
    total = {name: torch.zeros_like(p, dtype=wide) for name, p in params.items()}
    for i in range(len(directions[0])):
        output, _ = evaluation(take(x, slice(i, i + 1)))
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
                    total[name] += measure(dense.to(wide))
    return total


def vectorised_squares(
    evaluation: Evaluation,
    params: dict[str, nn.Parameter],
    x: Rows,
    directions: Sequence[Tensor],
    measure: Measure = torch.square,
) -> dict[str, Tensor]:
    """Return what `looped_squares` returns, blocks of examples at a time by `torch.func.vmap`.

    Args:
        evaluation: The network, and how it is evaluated.
        params: The parameters that are wanted, by name.
        x: The examples.
        directions: Weights of the network's outputs, each `[N, ...]`.
        measure: What becomes of each gradient, `torch.square` or `torch.abs`.

    Returns:
        The sums.

    Raises:
        ValueError: If the batch holds what vmap cannot hand out.
    """
    if has_words(x):
        raise ValueError("strings cannot be handed out to vmap")
    full = {p: name for name, p in evaluation.named_parameters()}
    values = {name: p.detach() for name, p in params.items()}

    def squares_of_one(one: list[Tensor], weights: Tensor) -> dict[str, Tensor]:
        def output(some: dict[str, Tensor]) -> Tensor:
            alone = with_tensors(x, [t.unsqueeze(0) for t in one])
            named = {full[params[name]]: value for name, value in some.items()}
            return functional_call(evaluation, named, (alone,))[0]

        pull = vjp(output, values)[1]
        (gradients,) = vmap(pull)(weights.unsqueeze(1))
        return {name: measure(widened(g)).sum(dim=0) for name, g in gradients.items()}

    numel = sum(p.numel() for p in params.values())
    rows = max(1, BLOCK // (numel * len(directions)))
    weights = torch.stack(list(directions), dim=1)
    total: dict[str, Tensor] = {}
    # the other parameters need no graph of their own
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the one that vmap knows
        for start in range(0, len(weights), rows):
            block = [t[start : start + rows] for t in tensors_of(x)]
            found = vmap(squares_of_one)(block, weights[start : start + rows])
            for name, squares in found.items():
                share = squares.sum(dim=0)
                total[name] = total[name] + share if name in total else share
    return total
