"""Whether a batch's examples can be evaluated one by one, as the estimate of F will."""

from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from lifelong.core.fisher.capture import Capture, uses_of_parameters
from lifelong.core.fisher.evaluation import AnyLikelihood, Evaluation, Forward
from lifelong.core.fisher.examples import count, take
from lifelong.core.fisher.probe import Layout
from lifelong.core.fisher.rules import rule_for
from lifelong.errors import LifelongError

CURE = (
    "pass likelihood=Categorical(), Gaussian() or Bernoulli() to say what the output means, or "
    "forward=lambda module, batch: (output, target) with it"
)


def rehearsed(
    module: LightningModule,
    batch: Any,
    forward: Forward | None,
    likelihood: AnyLikelihood | None,
    labels: str,
) -> int:
    """Evaluate three examples of a batch, and two of them, as the estimate will.

    Args:
        module: the one that learns.
        batch: as the step sees it.
        forward: of (module, batch): output and target; None for the network's plain output.
        likelihood: what the output says about the labels.
        labels: the kind of labels that are wanted.

    Returns:
        How many directions one example has.

    Raises:
        LifelongError: when they cannot be evaluated, or depend on each other.
        ValueError: when the likelihood does not take them.
    """
    evaluation = Evaluation(module, forward, likelihood)
    x, y = evaluation.pair(batch)
    n = count(x)
    some = torch.arange(3) % n

    def run(index: Tensor) -> tuple[Tensor, Tensor | None]:
        return evaluation(take(x, index), None if y is None else y[index])

    try:
        three, two = run(some)[0], run(some[1:])[0]
        repeatable = _same(three, run(some)[0])
    except (LifelongError, ValueError):
        raise
    except Exception as error:
        raise LifelongError(
            f"{type(module).__name__}.training_step fails on 3 of the {n} examples of its batch "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); wanted examples that are "
            "independent of each other, along the first dimension of every tensor of the batch: "
            "pass forward=lambda module, batch: (output, target) that takes any number of them"
        ) from error
    if repeatable and not _same(three[1:], two):
        raise LifelongError(
            "what the loss function is given for an example depends on the other examples of its "
            "batch (a loss over pairs, rows that are not ordered by example, or a BatchNorm "
            "without running statistics); wanted independent examples along the first dimension "
            "of every tensor of the batch (where that is time, swap the two in collate_fn, and "
            "back in the step): pass forward=lambda module, batch: (output, target)"
        )
    with Capture(evaluation, lambda m: rule_for(m) is not None) as capture:
        layout = Layout(capture, take(x, some), None if y is None else y[some], labels)
    output, _ = run(some)
    if not uses_of_parameters(output)[0]:
        raise LifelongError(
            "no parameter that requires a gradient enters the output that the loss function is "
            f"given; wanted one at least: unfreeze what is to be held, or {CURE}"
        )
    return layout.directions


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    tolerance = torch.finfo(a.dtype).eps ** 0.5 * (1 + float(a.detach().abs().max()))
    return float((a - b).detach().abs().max()) <= tolerance
