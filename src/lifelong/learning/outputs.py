"""What a training step gives to its loss functions: of this batch, of others, with old weights."""

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lifelong.core.fisher.evaluation import plain_name
from lifelong.core.fisher.examples import count
from lifelong.errors import LifelongError
from lifelong.learning.learner import ContinualLearner
from lifelong.learning.losses import OTHER, LossCall, Watch, arranged
from lifelong.learning.quiet import QuietStep, kept_tensors
from lifelong.learning.seen import watched


class StepOutputs:
    """The outputs of a module's training step, as its loss functions are given them.

    A stranger's step is watched while it runs, for the length of a fit; a ``ContinualLearner`` says
    its logits by itself.

    Args:
        module: the one that learns; if it is watched, its step is not given to a method yet.
        who: needs the outputs, for the words of an error.
        watches: whether its own steps are watched, for ``latest``.
    """

    def __init__(self, module: LightningModule, who: str, *, watches: bool = True) -> None:
        self._module, self._who = module, who
        self._calls: list[LossCall] = []
        self._last: int | None = None  # the place of the last call that counts
        self._watching: Any = None
        self._before = vars(module).get("training_step")
        if not watches or isinstance(module, ContinualLearner):
            return
        own = module.training_step

        @functools.wraps(own)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            with _Listening() as watch:
                found = own(*args, **kwargs)
            self._calls = watch.calls
            return found

        training_step.task_step = own  # type: ignore[attr-defined]
        self._watching = module.training_step = training_step  # type: ignore[method-assign]

    def detach(self) -> None:
        """Give the module its own step back; a second call does nothing."""
        module = self._module
        if self._watching is not None and vars(module).get("training_step") is self._watching:
            if self._before is None:
                del module.__dict__["training_step"]
            else:
                module.training_step = self._before  # type: ignore[method-assign]
        self._watching, self._calls = None, []

    def latest(self, batch: Any) -> list[LossCall]:
        """What the step that has just run gave to its loss functions, with its graph.

        Args:
            batch: what it was run on.

        Returns:
            One entry a call.
        """
        if isinstance(self._module, ContinualLearner):
            logits = self._module.step_logits
            assert logits is not None
            return [_cross_entropy(logits, batch[1])]
        calls, self._calls = self._calls, []
        found = self._known(calls)
        self._last = max(i for i, call in enumerate(calls) if call.name not in OTHER)
        return found

    def of(self, batch: Any) -> tuple[Tensor, list[LossCall]]:
        """Run the module's own step on other examples, without its logs.

        Args:
            batch: as the step sees it.

        Returns:
            The loss, and what its loss functions were given, with the graph.
        """
        loss, calls = self._run(batch)
        return loss, self._known(calls)

    def loss_of(self, batch: Any) -> Tensor:
        """The loss of the module's own step on other examples, without its logs.

        Args:
            batch: as the step sees it.

        Returns:
            The loss, with its graph.
        """
        return self._run(batch)[0]

    @torch.no_grad()
    def with_weights(self, state: Mapping[str, Tensor], batch: Any) -> list[LossCall]:
        """What the step would give to its loss functions with other weights, in eval mode.

        The last of them is not called: an old output layer may not know the labels of the batch.

        Args:
            state: plain name → parameter or buffer of ``network_of(module)``; what it lacks stays.
            batch: as the step sees it.

        Returns:
            One entry a call, without a graph.
        """
        module = self._module
        with ExitStack() as stack:
            if isinstance(module, ContinualLearner):
                stack.enter_context(_in_eval_mode(module.network))
                named = _named(module.network, state)
                logits = functional_call(module.network, named, (batch[0],))
                return [_cross_entropy(logits, batch[1])]
            if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
                # compiled code keeps the parameters that it was compiled with
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(_in_eval_mode(module))
            stack.enter_context(kept_tensors(module))
            runner = _Runner(module, self._last)
            named = {f"module.{name}": t for name, t in _named(module, state).items()}
            calls: list[LossCall] = functional_call(runner, named, (batch,))
        return self._known(calls)

    def _run(self, batch: Any) -> tuple[Tensor, list[LossCall]]:
        if isinstance(self._module, ContinualLearner):
            loss, logits = self._module.loss_and_logits(batch)
            return loss, [_cross_entropy(logits, batch[1])]
        with kept_tensors(self._module):
            watch, found = watched(QuietStep(self._module), batch)
        if found is None:
            raise LifelongError(
                f"training_step returned no loss for {count(batch)} examples that {self._who} "
                "keeps; wanted a tensor, or a dict with 'loss'"
            )
        return found, watch.calls

    def _known(self, calls: Sequence[LossCall]) -> list[LossCall]:
        found = [call for call in calls if call.name not in OTHER]
        if not found:
            came = ", ".join(call.name for call in calls) or "none"
            raise LifelongError(
                f"{type(self._module).__name__}.training_step calls no loss function of "
                f"torch.nn.functional that {self._who} can read the output from ({came} came); "
                "wanted cross_entropy, nll_loss, mse_loss or binary_cross_entropy(_with_logits)"
            )
        return found


def laid_out(calls: Sequence[LossCall], examples: int) -> Tensor:
    """The outputs of several calls in one row an example.

    Args:
        calls: of loss functions, by a step.
        examples: N, how many its batch holds.

    Returns:
        The row of outputs ``[N, D]``.
    """
    parts = [arranged(call, examples)[0] for call in calls]
    return torch.cat([part.reshape(examples, -1) for part in parts], dim=1)


class _Listening(Watch):
    # a step that is really made goes backward where it does

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.backward:
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


class _Runner(nn.Module):
    # a step as a forward, for functional_call

    def __init__(self, module: LightningModule, last: int | None) -> None:
        super().__init__()
        self.module, self.last = module, last

    def forward(self, batch: Any) -> list[LossCall]:
        watch, _ = watched(QuietStep(self.module), batch, self.last)
        return watch.calls


def _named(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    places = chain(module.named_parameters(), module.named_buffers())
    names = {plain_name(name): name for name, _ in places}
    return {names[name]: tensor for name, tensor in state.items() if name in names}


def _cross_entropy(logits: Tensor, labels: Tensor) -> LossCall:
    options = {"ignore_index": -100, "label_smoothing": 0.0}
    return LossCall(cross_entropy.__name__, logits, labels, options, False)


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    training = [one for one in module.modules() if one.training]
    for one in training:
        one.training = False
    try:
        yield
    finally:
        for one in training:
            one.training = True
