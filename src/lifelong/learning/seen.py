"""What a training step really does, as a likelihood: its loss functions are watched while it runs.

The Fisher information is that of the distribution whose −log p the training lowers. A step says it
by the loss function that it calls, and by what it gives to it, wherever that is made: in the step,
in a forward, inside a network that computes its own loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from lightning import LightningModule
from torch import Tensor

from lifelong.core import Likelihood
from lifelong.core.fisher.evaluation import AnyLikelihood, Evaluation, Forward
from lifelong.core.fisher.examples import count, take
from lifelong.core.fisher.likelihoods.base import Given
from lifelong.core.fisher.likelihoods.product import Product
from lifelong.core.fisher.traceless import thawed, traceless
from lifelong.errors import LifelongError
from lifelong.learning.dry_run import CURE, rehearsed
from lifelong.learning.explained import explain, left_out
from lifelong.learning.losses import LossCall, Order, Stop, Watch, arranged, grouped, without
from lifelong.learning.quiet import QuietStep, kept_tensors


@dataclass
class Seen:
    """How the outputs of a module's batches are had, and what they mean.

    Attributes:
        forward: of (module, batch): output and target; None for the network's plain output.
        likelihood: what the output says about the labels; None for a softmax over classes.
        directions: how many backward passes the exact expectation takes for one example.
        remarks: what the user ought to know, one line each.
    """

    forward: Forward | None
    likelihood: AnyLikelihood | None
    directions: int = 1
    remarks: list[str] = field(default_factory=list)


class StepForward:
    """Runs a module's step up to its last loss function, and returns what that was to compare.

    Args:
        step: the module's own.
        calls: which calls of loss functions count, by their number in the step.
        names: of these functions.
        joint: what joins the outputs of several calls; None for a single one.
        raw: whether output and target stay as they were given, for a likelihood of the user's.
        masked: whether the step multiplies labels that do not count by zero; then it is run to its
            end.

    Attributes:
        order: how the rows that the functions are given belong to the examples.
    """

    def __init__(
        self,
        step: QuietStep,
        calls: Sequence[int],
        names: Sequence[str],
        joint: Product | None = None,
        raw: bool = False,
        masked: bool = False,
    ) -> None:
        self._step, self._calls, self._names = step, list(calls), list(names)
        self._joint, self._raw, self._masked = joint, raw, masked
        self.order: Order = "examples"

    def __call__(self, network: Any, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Output and target of some examples.

        Args:
            network: unused: the step knows its module.
            batch: as the step sees it, cut to some examples.

        Returns:
            The output ``[N, ...]`` and the target.

        Raises:
            LifelongError: when the step calls other loss functions than it did at first.
        """
        with torch.set_grad_enabled(self._masked or torch.is_grad_enabled()):
            last = None if self._masked else max(self._calls)
            watch, loss = watched(self._step, batch, last)
        found = [watch.calls[i] for i in self._calls if i < len(watch.calls)]
        if [call.name for call in found] != self._names:
            came = ", ".join(call.name for call in watch.calls) or "none"
            raise LifelongError(
                f"training_step called {came} for this batch and, before, {self._names[-1]} as its "
                f"call {max(self._calls) + 1}; wanted the same loss functions for every batch: "
                "pass forward=lambda module, batch: (output, target)"
            )
        n = count(batch)
        masks: list[Tensor | None] = [None] * len(found)
        if self._masked:
            masks = _masks(watch.backwards[-1] if loss is None else loss, found)
        if self._raw:
            f, y = found[0].output, found[0].target
            if masks[0] is not None:
                f, y = without(found[0], f, y, masks[0], classes=1)  # type: ignore[assignment]
            return grouped(f, n, self.order), grouped(y, n, self.order)
        parts = [arranged(c, n, self.order, m) for c, m in zip(found, masks, strict=True)]
        if self._joint is None:
            return parts[0]
        return self._joint.join([f for f, _ in parts], [y for _, y in parts])


def _masks(loss: Tensor, calls: Sequence[LossCall]) -> list[Tensor | None]:
    results: Any = [call.result for call in calls]
    found = torch.autograd.grad(loss.sum(), results, retain_graph=True, allow_unused=True)
    zero = [None if w is None else left_out(c, w) for c, w in zip(calls, found, strict=True)]
    return [None if z is None else ~z for z in zero]


def watched(step: QuietStep, batch: Any, last: int | None = None) -> tuple[Watch, Tensor | None]:
    """Run a step and watch its loss functions.

    Args:
        step: the step.
        batch: as the step sees it.
        last: stop at the call of this number.

    Returns:
        What was watched, and the loss that the step returned; None where it was stopped or
        returned none.
    """
    watch = Watch(last)
    try:
        with watch:
            loss = step(batch)
    except Stop:
        return watch, None
    watch.backwards = [*step.backwards, *watch.backwards]
    return watch, loss


def see(
    module: LightningModule,
    batch: Any,
    *,
    labels: str = "exact",
    likelihood: AnyLikelihood | None = None,
    forward: Forward | None = None,
    include_frozen: bool = False,
) -> Seen:
    """Find out, on one batch, what a module's training step says about its labels, and check it.

    The step runs in eval mode; what it returns has to be the recorded loss, a constant times it, or
    the sum of several. Without a recorded function the network's plain output is tried as a
    softmax. The module, the random states and everything else stay as they were.

    Args:
        module: the one that learns.
        batch: as the step sees it.
        labels: the kind of labels that are wanted.
        likelihood: of the user's, which wins.
        forward: of the user's, which wins.
        include_frozen: whether parameters that require no gradient now count, too.

    Returns:
        How the batches are to be evaluated.

    Raises:
        LifelongError: when nothing fits; it says what came and what to pass.
    """
    with traceless(module), thawed(module, include_frozen), kept_tensors(module):
        try:
            _refuse_uncountable(batch)
            step = QuietStep(module)
            if forward is not None or _is_function(likelihood):
                seen = Seen(forward, likelihood)
                _compare(module, step, batch, seen)
            else:
                seen = _seen_in_step(module, step, batch, labels, likelihood)
            seen.directions = _in_some_order(module, batch, seen, labels)
        except ValueError as error:
            raise LifelongError(f"{type(module).__name__}: {error}") from error
    return seen


def _refuse_uncountable(batch: Any) -> None:
    try:
        count(batch)
    except ValueError as error:
        raise LifelongError(
            f"the examples of a training batch ({type(batch).__name__}) cannot be told apart: "
            f"{str(error).split(';')[0]}; wanted the examples along the first dimension of every "
            "tensor: collate them so (graphs padded to one size, loaders of one batch size), or "
            "pass such batches as batches=[...] and forward=lambda module, batch: (output, target)"
        ) from error


def _is_function(likelihood: AnyLikelihood | None) -> bool:
    return likelihood is not None and not hasattr(likelihood, "empirical")


def _seen_in_step(
    module: LightningModule,
    step: QuietStep,
    batch: Any,
    labels: str,
    likelihood: AnyLikelihood | None,
) -> Seen:
    watch, loss = watched(step, batch)
    loss = _one_loss(watch, loss, likelihood)
    calls = [call for call in watch.calls if call.edge is not None and call.result is not None]
    if likelihood is not None:
        return _as_told(module, step, batch, watch, loss, likelihood)
    if not loss.requires_grad:
        raise LifelongError(
            f"the loss of {type(module).__name__}.training_step carries no gradient; wanted one "
            "that depends on the parameters: take torch.no_grad() and detach() out of the step, "
            f"or {CURE}"
        )
    found = explain(loss, calls, labels, lambda: _again(step, batch))
    if found is None:
        seen = Seen(None, None)
        _refuse_unlike(module, step, batch)
        return seen
    joint = Product(found.likelihoods) if len(found.likelihoods) > 1 else None
    own: Likelihood = joint if joint is not None else found.likelihoods[0]
    places = [next(i for i, one in enumerate(watch.calls) if one is c) for c in found.calls]
    names = [call.name for call in found.calls]
    forward = StepForward(step, places, names, joint, masked=found.masked)
    return Seen(forward, own, remarks=found.remarks)


def _again(step: QuietStep, batch: Any) -> tuple[Tensor, list[LossCall]] | None:
    # the loss and the calls of half of the examples, for what does not depend on them
    n = count(batch)
    if n < 2:
        return None
    watch, loss = watched(step, take(batch, slice(0, n // 2)))
    loss = watch.backwards[0] if loss is None and watch.backwards else loss
    calls = [call for call in watch.calls if call.edge is not None and call.result is not None]
    return None if loss is None else (loss, calls)


def _one_loss(watch: Watch, loss: Tensor | None, likelihood: AnyLikelihood | None) -> Tensor:
    if loss is not None:
        return loss
    if len(watch.backwards) == 1 or (watch.backwards and likelihood is not None):
        return watch.backwards[-1]
    if watch.backwards:
        raise LifelongError(
            f"training_step goes backward from {len(watch.backwards)} losses by itself; wanted one "
            "of them to hold the network by: type loss = loss + ewc.term(self) where it is made, "
            "and pass likelihood= and forward=lambda module, batch: (output, target) of that loss"
        )
    raise LifelongError(
        "training_step returned no loss for the first batch; wanted a tensor, or a dict with "
        f"'loss': {CURE}"
    )


def _as_told(
    module: LightningModule,
    step: QuietStep,
    batch: Any,
    watch: Watch,
    loss: Tensor,
    likelihood: AnyLikelihood,
) -> Seen:
    # the likelihood is the user's, the output that of the last loss function
    places = [i for i, call in enumerate(watch.calls) if call.edge is not None]
    if not places:
        seen = Seen(None, likelihood)
    else:
        last = watch.calls[places[-1]]
        masked = loss.requires_grad and _masks(loss, [last])[0] is not None
        forward = StepForward(step, places[-1:], [last.name], raw=True, masked=masked)
        seen = Seen(forward, likelihood)
    _compare(module, step, batch, seen)
    return seen


def _compare(module: LightningModule, step: QuietStep, batch: Any, seen: Seen) -> None:
    # What was passed wins: a loss that pulls elsewhere is worth a remark.
    try:
        cosine = _cosine(module, step, batch, seen)
    except Exception:  # labels without a log-probability, several losses, batches of another form
        return
    if cosine is not None and cosine < 0.99:
        seen.remarks.append(
            "the gradient of the training loss and that of −log p of what was passed as "
            f"likelihood= or forward= differ (cosine {cosine:.2f}): F is of the latter"
        )


def _refuse_unlike(module: LightningModule, step: QuietStep, batch: Any) -> None:
    name = type(module).__name__
    came = f"{name}.training_step calls no loss function of torch.nn.functional that is known here"
    try:
        cosine = _cosine(module, step, batch, Seen(None, None))
    except Exception as error:
        raise LifelongError(
            f"{came}, and {name}(batch) cannot be read as the scores of a softmax "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); {CURE}"
        ) from error
    if cosine is None or cosine < 0.999:
        raise LifelongError(
            f"{came}, and its loss is not −log p of a softmax over {name}(batch): the cosine of "
            f"their gradients is {cosine if cosine is None else round(cosine, 3)}; {CURE}"
        )


def _cosine(module: LightningModule, step: QuietStep, batch: Any, seen: Seen) -> float | None:
    # between the gradients of the loss and of −Σ log p
    watch, loss = watched(step, batch)
    loss = _one_loss(watch, loss, None)
    evaluation = Evaluation(module, seen.forward, seen.likelihood)
    output, target = evaluation(*evaluation.pair(batch))
    given = isinstance(evaluation.likelihood, Given)
    log_p = output if given else evaluation.likelihood.log_prob(output, target)
    params = list(evaluation.parameters_by_name().values())
    one, other = _gradient(loss, params), _gradient(-log_p.sum(), params)
    length = one.norm() * other.norm()
    return float(one @ other / length) if length > 0 else None


def _gradient(of: Tensor, params: Sequence[Tensor]) -> Tensor:
    found = torch.autograd.grad(of, params, allow_unused=True, materialize_grads=True)
    dense = [g.to_dense() if g.is_sparse else g for g in found]
    return torch.cat([g.double().flatten() for g in dense])


def _in_some_order(module: LightningModule, batch: Any, seen: Seen, labels: str) -> int:
    # rows may be ordered by time: what an order gives for an example must not depend on the others
    forward = seen.forward
    if not isinstance(forward, StepForward):
        return rehearsed(module, batch, seen.forward, seen.likelihood, labels)
    errors: list[Exception] = []
    for order in get_args(Order):
        forward.order = order
        try:
            return rehearsed(module, batch, seen.forward, seen.likelihood, labels)
        except (LifelongError, ValueError) as error:
            errors.append(error)
    forward.order = "examples"
    raise errors[0]
