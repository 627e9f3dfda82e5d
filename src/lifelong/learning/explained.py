"""Whether a training step's loss is −log p of what its loss functions were given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lifelong.core import Likelihood
from lifelong.errors import LifelongError
from lifelong.learning.losses import CATEGORICAL, OTHER, LossCall, likelihood_of

# A term that is a smaller share of the loss is named and left out.
SMALL = 0.005
Again = Callable[[], tuple[Tensor, list[LossCall]] | None]
_CURE = (
    "pass likelihood=Categorical(), Gaussian() or Bernoulli() if the output of the last loss "
    "function is to be held as it is, or forward=lambda module, batch: (output, target) with it"
)


@dataclass
class Explained:
    """The calls that make up a loss.

    Attributes:
        calls: one for each output.
        likelihoods: of their outputs.
        masked: whether some labels are multiplied by zero.
        remarks: what the user ought to know.
    """

    calls: list[LossCall]
    likelihoods: list[Likelihood]
    masked: bool = False
    remarks: list[str] = field(default_factory=list)


def explain(loss: Tensor, calls: Sequence[LossCall], labels: str, again: Again) -> Explained | None:
    """Read a loss as −log p, up to a constant factor.

    The loss L has to be s Σ ℓ_k, with ℓ_k the recorded losses and one s > 0 for all: s is dL/dℓ_k,
    no other path leads from the outputs to L, and what remains of L does not depend on the
    examples.

    Args:
        loss: L, with its graph.
        calls: the recorded calls whose output has a graph.
        labels: the kind of labels that are wanted.
        again: the same for half of the examples.

    Returns:
        The calls that count, None where L depends on none of them.

    Raises:
        LifelongError: when the loss is something else; it says what came and what to pass.
    """
    used, weights = _used(loss, calls)
    if not used:
        return None
    for call in used:
        _refuse_unknown(call, labels)
    explained = Explained([], [])
    explained.masked = any(
        left_out(call, w) is not None for call, w in zip(used, weights, strict=True)
    )
    scalars = [_uniform(call, w) for call, w in zip(used, weights, strict=True)]
    tolerance = _tolerance(loss)
    if min(scalars) <= 0:
        raise LifelongError(
            f"training_step raises {used[0].name} instead of lowering it; wanted a loss: {_CURE}"
        )
    outputs = {id(call.output): call for call in used}
    for key, call in outputs.items():
        same = [one for one in used if id(one.output) == key]
        if len(same) > 1 and not (call.name in CATEGORICAL and labels != "empirical"):
            raise LifelongError(_several(same))
        explained.calls.append(same[-1])
        explained.likelihoods.append(likelihood_of(same[-1]))
    if len(outputs) == len(used) and max(scalars) > min(scalars) * (1 + tolerance):
        shown = ", ".join(f"{s:.3g} · {c.name}" for s, c in zip(scalars, used, strict=True))
        raise LifelongError(
            f"training_step returns the weighted sum {shown}, which is −log p of no likelihood; "
            f"wanted weights of one size: {_CURE}"
        )
    if len(outputs) != len(used) and len(outputs) > 1:
        raise LifelongError(_several(used))
    _refuse_other_paths(loss, used, weights, tolerance)
    _weigh_rest(loss, used, weights, tolerance, again, explained)
    if any(call.options.get("weight") is not None for call in used) or any(
        call.options.get("pos_weight") is not None for call in used
    ):
        explained.remarks.append(
            f"{used[-1].name} has weights: F is of the predictions, each label counts once"
        )
    return explained


def _used(loss: Tensor, calls: Sequence[LossCall]) -> tuple[list[LossCall], list[Tensor]]:
    if not calls:
        return [], []
    found = _gradients(loss.sum(), [call.result for call in calls])
    pairs = [(c, w) for c, w in zip(calls, found, strict=True) if w is not None and w.any()]
    return [c for c, _ in pairs], [w for _, w in pairs]


def _gradients(of: Any, at: Any, weights: Any = None) -> Sequence[Tensor | None]:
    # outputs and places may be edges of the graph
    return torch.autograd.grad(of, at, weights, retain_graph=True, allow_unused=True)


def _refuse_unknown(call: LossCall, labels: str) -> None:
    if call.name in OTHER:
        raise LifelongError(
            f"training_step's loss is {call.name}, which is −log p of no likelihood that is known "
            f"here; {_CURE}"
        )
    if call.both:
        raise LifelongError(
            f"both arguments of {call.name} carry a gradient; wanted an output and a fixed target: "
            f"{_CURE}"
        )
    if labels == "empirical" and call.takes_soft_labels:
        raise LifelongError(
            f"{call.name} was given class probabilities or label_smoothing, and labels='empirical' "
            "takes classes; wanted labels='exact' or labels='sampled': type one of them"
        )
    one_shape = ("mse_loss", "poisson_nll_loss")
    if call.name in one_shape and call.output.shape != call.target.shape:
        raise LifelongError(
            f"{call.name} was given shapes {tuple(call.output.shape)} and "
            f"{tuple(call.target.shape)}, which it spreads out over each other; wanted one shape: "
            "take squeeze() or unsqueeze() in the step"
        )
    if call.name == "nll_loss":
        total = call.output.detach().double().logsumexp(dim=1 if call.output.ndim > 1 else 0)
        if float(total.abs().max()) > 10 * _tolerance(call.output):
            raise LifelongError(
                "nll_loss was given numbers that are no log-probabilities; wanted log_softmax of "
                f"the scores: {_CURE}"
            )


def left_out(call: LossCall, weight: Tensor) -> Tensor | None:
    """Which labels a step multiplies by zero, of those that its loss function counts.

    Args:
        call: of a loss function.
        weight: dL/dℓ in the shape of what it returned.

    Returns:
        True where a label is left out; None where none is.
    """
    if not weight.ndim:
        return None
    # without any label the sum of a mask, by which is divided, is zero
    zero = (weight == 0) | ~weight.isfinite()
    if call.name in CATEGORICAL and not call.takes_soft_labels:
        zero = zero & (call.target != call.options["ignore_index"])
    return zero if bool(zero.any()) else None


def _uniform(call: LossCall, weight: Tensor) -> float:
    # dL/dℓ, one number for all labels that count
    zero = left_out(call, weight)
    counts = torch.ones_like(weight, dtype=torch.bool) if zero is None else ~zero
    if weight.ndim and call.name in CATEGORICAL and not call.takes_soft_labels:
        counts = counts & (call.target != call.options["ignore_index"])
    weight = weight[counts]
    low, high = (float(f(weight)) for f in (torch.min, torch.max)) if weight.numel() else (1.0, 1.0)
    if high - low > _tolerance(weight) * max(abs(high), abs(low)):
        raise LifelongError(
            f"training_step weighs the labels of {call.name} from {low:.3g} to {high:.3g} by "
            "itself; wanted one weight for all that count, and 0 for the others (a mask): "
            f"{_CURE}"
        )
    return high


def _refuse_other_paths(
    loss: Tensor, used: Sequence[LossCall], weights: Sequence[Tensor], tolerance: float
) -> None:
    outputs = [call.edge for call in used]
    results = [call.result for call in used]
    whole = _gradients(loss.sum(), outputs)
    through = _gradients(results, outputs, list(weights))
    for call, a, b in zip(used, whole, through, strict=True):
        if a is None or b is None:
            continue
        if float((a - b).double().norm()) > 3 * tolerance * float(b.double().norm()):
            raise LifelongError(
                f"training_step's loss depends on the output of {call.name} in another way, too; "
                f"wanted that function alone: {_CURE}"
            )


def _weigh_rest(
    loss: Tensor,
    used: Sequence[LossCall],
    weights: Sequence[Tensor],
    tolerance: float,
    again: Again,
    explained: Explained,
) -> None:
    rest, size = _rest(loss, used, weights)
    exact = tolerance**2 * 64
    if abs(rest) <= exact * size:
        return
    names = " + ".join(call.name for call in used)
    other = again()
    if other is not None:
        some, their_weights = _used(*other)
        half, half_size = _rest(other[0], some, their_weights)
        if abs(rest - half) <= exact * max(size, half_size):
            explained.remarks.append(
                f"training_step adds {rest:.4g} to {names} that does not depend on the examples "
                "(a weight decay?): F is of the loss function alone"
            )
            return
    if abs(rest) < SMALL * size:
        explained.remarks.append(
            f"training_step adds {rest:.2g} to {names}, {abs(rest) / size:.2%} of the loss: F is "
            "of the loss function alone"
        )
        return
    raise LifelongError(
        f"training_step returns {float(loss.detach()):.4g}, of which {names} explains "
        f"{float(loss.detach()) - rest:.4g}; the rest depends on the examples, so that the loss is "
        f"−log p of no likelihood that is known here; {_CURE}"
    )


def _rest(loss: Tensor, used: Sequence[LossCall], weights: Sequence[Tensor]) -> tuple[float, float]:
    # L − Σ s ℓ, and the size of what was subtracted
    parts = [
        float((w.double() * call.value.double()).sum())
        for call, w in zip(used, weights, strict=True)
        if call.value is not None
    ]
    whole = float(loss.detach().double().sum())
    return whole - sum(parts), abs(whole) + sum(map(abs, parts))


def _tolerance(t: Tensor) -> float:
    return float(torch.finfo(t.dtype).eps) ** 0.5


def _several(calls: Sequence[LossCall]) -> str:
    names = ", ".join(call.name for call in calls)
    return (
        f"training_step gives one output to several loss functions ({names}), whose sum is −log p "
        f"of no likelihood that is known here; {_CURE}"
    )
