"""Dark Experience Replay++ (Buzzega et al. 2020)."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from lifelong.core.fisher.evaluation import Evaluation
from lifelong.core.fisher.examples import count, map_tensors, tensors_of
from lifelong.core.fisher.traceless import traceless
from lifelong.errors import LifelongError
from lifelong.learning import ContinualLearner
from lifelong.learning.distributed import follow_first_process
from lifelong.learning.objective import begins_logging_step, log_objective
from lifelong.learning.outputs import StepOutputs, laid_out
from lifelong.learning.quiet import has_step
from lifelong.methods.base import device_of
from lifelong.methods.buffer import Buffer, Fill
from lifelong.methods.refusals import refuse_manual
from lifelong.methods.rehearsal import RehearsalMethod

AT_ONCE = 256  # examples whose logits are computed together


class DERpp(RehearsalMethod):
    r"""Keeps old examples with the logits that they had: L(θ) + α M(θ) + β L_old(θ).

        M(θ) = mean over kept x' of (1/C) ‖z' − f(x'; θ)‖²,   L_old = the loss of kept x'', y''

    x' and x'' are two draws from the buffer, z' the logits as they were when x' was kept. Of a
    LightningModule f is what its ``training_step`` gives to its loss function, L_old its own loss.
    Scale: M is a mean over examples and logits, as in the authors' code; the paper's equation sums
    over logits.

    The paper fills its buffer while it learns, since it knows no end of a task; here examples and
    logits are kept as a task ends, in eval mode.

    Args:
        buffer_size: how many examples are kept at most; 0 is fine-tuning, bit for bit.
        alpha: α ≥ 0, the weight of the logits.
        beta: β ≥ 0, the weight of the labels; with α = β = 0 it is fine-tuning, bit for bit.
        minibatch_size: how many are drawn for each of the two terms, by all processes together.
        fill: ``reservoir`` or ``balanced``; see ``Buffer``.
        seed: of what is kept and drawn.
        batches: what to keep examples of; by default the training data of the fit that ends.
        consolidates: whether examples are kept as a fit ends.

    Raises:
        ValueError: when an argument is out of its range.

    Source:
        Buzzega et al. 2020, "Dark experience for general continual learning", eq. 6 and
        algorithm 2.

    Example:
        >>> DERpp(alpha=0.5).beta
        0.5
    """

    title: ClassVar[str] = "DER++"

    def __init__(
        self,
        buffer_size: int = 500,
        *,
        alpha: float = 1.0,
        beta: float = 0.5,
        minibatch_size: int = 64,
        fill: Fill = "reservoir",
        seed: int = 0,
        batches: Iterable[Any] | None = None,
        consolidates: bool = True,
    ) -> None:
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be a finite number of at least 0")
        super().__init__(
            buffer_size,
            minibatch_size=minibatch_size,
            fill=fill,
            seed=seed,
            batches=batches,
            consolidates=consolidates,
        )
        self.alpha, self.beta = float(alpha), float(beta)
        self._outputs: StepOutputs | None = None

    def objective(
        self, loss: Tensor, module: LightningModule, batch: Any, batch_idx: int
    ) -> Tensor:
        """L + αM + βL_old of one batch.

        Args:
            loss: L, the task's own, with a graph.
            module: the one that learns.
            batch: what the loss is of.
            batch_idx: its place in the epoch.

        Returns:
            The objective.
        """
        added = None
        if self._outputs is not None:
            terms = (self.alpha, self._of_logits), (self.beta, self._of_labels)
            for which, (weight, term) in enumerate(terms):
                places = self.drawn(module.trainer, batch_idx, which)
                if weight and len(places):
                    one = weight * term(self._outputs, batch, places).to(loss.device, loss.dtype)
                    added = one if added is None else added + one
        if begins_logging_step(module.trainer, batch_idx):
            log_objective(module, loss, 0.0 if added is None else float(added.detach()), 1.0)
        return loss if added is None else loss + added

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a module that goes backward by itself.

        Args:
            trainer: about to train.
            pl_module: the module that is to learn.
        """
        name = type(self).__name__
        refuse_manual(pl_module, name)
        super().on_fit_start(trainer, pl_module)
        self._outputs = StepOutputs(pl_module, name, watches=False)

    def detach(self) -> None:
        """Take away what was attached to the module; a second call does nothing."""
        super().detach()
        self._outputs = None

    def keep(self, module: nn.Module, batches: Iterable[Any], **share: Any) -> None:
        """Keep some examples of these batches, with their logits.

        Args:
            module: as learning left it.
            batches: as its step sees them.
            **share: see ``Buffer.add``.
        """
        buffer, seen = self.buffer, _Last(batches)
        buffer.add(seen, **share)
        new = (buffer.task == buffer.tasks - 1).nonzero()[:, 0]
        if not len(new):
            return
        if isinstance(module, ContinualLearner):
            follow_first_process(module.network)
        template = seen.last if seen.last is not None else tuple(buffer.columns)
        template = map_tensors(lambda t: t.to(device_of(module)), template)
        width = len(tensors_of(template))
        for some in new.split(AT_ONCE):
            logits = _logits(module, buffer.like(template, some)).cpu()
            _put(buffer, width, some, logits)

    def _of_logits(self, outputs: StepOutputs, batch: Any, places: Tensor) -> Tensor:
        _, calls = outputs.of(self.buffer.like(batch, places))
        now = laid_out(calls, len(places))
        then = self.buffer.columns[len(tensors_of(batch))][places].to(now.device, now.dtype)
        _same_size(now.shape[1], then.shape[1])
        return (now - then).square().mean()

    def _of_labels(self, outputs: StepOutputs, batch: Any, places: Tensor) -> Tensor:
        return outputs.loss_of(self.buffer.like(batch, places))


class _Last:
    # remembers what a batch looks like

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches, self.last = batches, None

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            self.last = batch
            yield batch


def _logits(module: nn.Module, batch: Any) -> Tensor:
    with traceless(module), torch.no_grad():
        if not has_step(module):
            evaluation = Evaluation(module)
            return evaluation(*evaluation.pair(batch))[0].flatten(1)
        assert isinstance(module, LightningModule)
        _, calls = StepOutputs(module, "DERpp", watches=False).of(batch)
        return laid_out(calls, count(batch))


def _put(buffer: Buffer, width: int, places: Tensor, logits: Tensor) -> None:
    if len(buffer.columns) == width:
        buffer.columns.append(logits.new_zeros(len(buffer), logits.shape[1]))
    column = buffer.columns[width]
    _same_size(logits.shape[1], column.shape[1])
    column[places] = logits.to(column.dtype)


def _same_size(now: int, then: int) -> None:
    if now != then:
        raise LifelongError(
            f"the output has {now} numbers an example and those that are kept have {then}; wanted "
            "an output of one size for all tasks: make it as wide as it will be, or take Replay"
        )
