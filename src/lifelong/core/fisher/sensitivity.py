"""How much each parameter moves the output, example by example, without any label."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.core.fisher.capture import Capture
from lifelong.core.fisher.diagonal import Diagonal, not_all_zero
from lifelong.core.fisher.evaluation import Evaluation, Forward, total
from lifelong.core.fisher.likelihoods.base import Likelihood
from lifelong.core.fisher.passes import Plan, Progress, chunks
from lifelong.core.fisher.rules import rule_for
from lifelong.core.fisher.traceless import thawed, traceless
from lifelong.core.importance import DiagonalImportance


class _SquaredNorm(Likelihood):
    # no likelihood: one direction an example, the gradient of ‖f‖² at the output f

    def empirical(self, output: Tensor, target: Tensor | None) -> Tensor:
        del target
        return 2 * output.detach()


def output_sensitivity(
    network: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    samples: int | None = None,
    progress: Progress | None = None,
    chunk: int | None = None,
    include_frozen: bool = False,
) -> DiagonalImportance:
    """Return how much each parameter moves the squared length of the network's output.

        S_i = (1/N) Σ_n |∂ ‖f(x_n)‖² / ∂θ_i|

    Scale: a mean over examples of magnitudes of single examples' gradients, in squared units of the
    output per unit of the parameter: not of nats, so that its λ compares with no Fisher
    information's. It does not grow with the number of examples, and how they are cut into batches
    makes no difference. One backward pass an example, no labels. Where an example has several
    outputs (tokens, pixels) ‖f‖² sums over all of them.

    The network is evaluated in eval mode, without autocast, and left as it was; layers are covered
    as in `fisher_diagonal`.

    Args:
        network: The network, on any device; its output as for `fisher_diagonal`.
        batches: Batches as for `fisher_diagonal`; targets are not looked at.
        forward: A function of `(network, batch)` or of the batch that returns the output.
        samples: How many examples to use, the first ones; all if None.
        progress: Called with the number of examples done and in all (None where unknown).
        chunk: How many examples are evaluated at once; by memory if None.
        include_frozen: Whether parameters that require no gradient now get a number, too.

    Returns:
        For the name of every parameter that requires a gradient a tensor of its shape.

    Raises:
        ValueError: If there is no example, an output does not fit, or every number is zero.

    Source: Aljundi et al. (2018), Memory aware synapses, eq. 3, with g of the squared l2 norm.

    >>> network = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(network.weight, 2.0)
    >>> batches = [(torch.tensor([[1.0], [-3.0]]), torch.tensor([0, 0]))]
    >>> output_sensitivity(network, batches)["weight"]  # mean of |2 w x²| = (4 + 36) / 2
    tensor([[20.]])
    """  # noqa: DOC502 - raised by what is called
    evaluation = Evaluation(network, forward, _SquaredNorm())
    plan = Plan("empirical", samples, progress=progress, chunk=chunk)
    plan.total = total(evaluation, batches, samples)
    with (
        traceless(evaluation.network),
        thawed(evaluation.network, include_frozen),
        Capture(evaluation, lambda m: rule_for(m) is not None) as capture,
    ):
        sums = Diagonal(evaluation, torch.abs)
        for part in chunks(capture, evaluation.pairs(batches), plan):
            sums.add(part)
        found = DiagonalImportance(sums.mean(plan.done))
    not_all_zero(found.values(), found)
    return found
