"""What a method is: the one place where it lives, in a run and as a drop-in callback."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.wrappers import _FabricModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lifelong.learning import ContinualLearner
from lifelong.learning.guard import NonFiniteLoss
from lifelong.learning.objective import begins_logging_step, log_objective
from lifelong.methods.attach import AttachedStep
from lifelong.methods.end_of_fit import EndOfFit


class Method(Callback):
    """What is added to learning a task, and what is kept when it is learnt.

    A Lightning callback: one instance goes to the Trainer of every task, one after another. A run
    gives it to its own learner; as a drop-in it takes any LightningModule, whose ``training_step``
    it gives the objective for the length of a fit. This class adds nothing and keeps nothing: it is
    fine-tuning.

    What it keeps from task to task is in ``state_dict()``: it is part of the Trainer's checkpoints,
    of a run's, and of the stage store.

    Attributes:
        title: its name in tables and pictures.
        has_lambda: whether a strength λ is its own; without one ``ewc_lambda`` is 0.
        uses_old_data: whether each task is learnt along with the data of all before it.
        needs_task_at_test: whether it must be told which task an example belongs to.
        first_task_is_plain: whether it leaves the learning of the first task as it is.
        keeps_state: whether ``consolidate`` keeps anything.
        state_follows_from_network: whether what it keeps of a task can be had from the learnt
            network and the task's data alone.
    """

    title: ClassVar[str] = "fine-tuning"
    has_lambda: ClassVar[bool] = False
    uses_old_data: ClassVar[bool] = False
    needs_task_at_test: ClassVar[bool] = False
    first_task_is_plain: ClassVar[bool] = True
    keeps_state: ClassVar[bool] = False
    state_follows_from_network: bool = True

    ewc_lambda: float = 0.0
    # Who gives the advice decides in which words: arguments, or the keys of the command line.
    speaks: Literal["arguments", "keys"] = "arguments"

    def __init__(self) -> None:
        self.consolidates = self.keeps_state
        self.figures: dict[str, float] = {}  # of the last consolidation
        self.warnings: list[str] = []  # of the last fit
        self._attached: AttachedStep | None = None
        self._end: EndOfFit | None = None
        self._guard = NonFiniteLoss(self.likely_cause)

    def objective(
        self, loss: Tensor, module: LightningModule, batch: Any, batch_idx: int
    ) -> Tensor:
        """The objective of one batch.

        Args:
            loss: the task's own, with a graph.
            module: the one that learns.
            batch: what the loss is of.
            batch_idx: its place in the epoch.

        Returns:
            The loss itself.
        """
        if begins_logging_step(module.trainer, batch_idx):
            log_objective(module, loss, 0.0, 0.0)
        return loss

    def consolidate(
        self, module: nn.Module, batches: Iterable[Any], held_out: Iterable[Any] | None = None
    ) -> None:
        """Take up what a task has taught; nothing here.

        Args:
            module: as learning the task left it.
            batches: of the task's training data.
            held_out: of its data that were not learnt, where there are such.
        """

    def facts(self) -> dict[str, Any]:
        """What a run's summary says of the method.

        Returns:
            Fields of ``Summary``.
        """
        return {
            "method_title": self.title,
            "has_lambda": self.has_lambda,
            "ewc_lambda": self.ewc_lambda,
        }

    def single_importances(self) -> Mapping[str, Tensor]:
        """How much each single parameter matters, where the method knows.

        Returns:
            Parameter name → importance, in the parameter's shape; empty here.
        """
        return {}

    def likely_cause(self, trainer: Trainer) -> str:
        """Why a loss is probably not finite, and what to do about it.

        Args:
            trainer: while it trains.

        Returns:
            The end of a sentence.
        """
        smaller = "optimizer.lr" if self.speaks == "keys" else "learning rate"
        return f"a learning rate that is too large; {self.advice(f'a smaller {smaller}')}"

    def advice(self, words: str) -> str:
        """Advice in the words of whoever reads it.

        Args:
            words: what to take.

        Returns:
            ``type …`` on the command line, ``take …`` elsewhere.
        """
        return f"type {words}" if self.speaks == "keys" else f"take {words}"

    def called(self, name: str) -> str:
        """What one of its settings is called where it is typed.

        Args:
            name: of the argument.

        Returns:
            ``method.ewc_lambda`` or ``ewc_lambda``.
        """
        return f"method.{name}" if self.speaks == "keys" else name

    def setting(self, name: str, value: Any) -> str:
        """One of its settings, as it is typed.

        Args:
            name: of the argument.
            value: its value.

        Returns:
            ``method.step=proximal`` or ``EWC(step='proximal')``.
        """
        if self.speaks == "keys":
            return f"method.{name}={value}"
        return f"{type(self).__name__}({name}={value!r})"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module's step the objective.

        Args:
            trainer: about to train.
            pl_module: the module that is to learn.
        """
        self.warnings = []
        if self.consolidates:
            take_up = functools.partial(self.finish, trainer, pl_module)
            self._end = EndOfFit(trainer, pl_module, self, take_up)
        self._attached = AttachedStep(pl_module, self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the training begins.

        Args:
            trainer: about to take the first step.
            pl_module: unused.
        """
        if self._end is not None:
            self._end.begin()

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Consolidate the task that was just learnt; nothing here.

        Called once a fit that took a step is over, after every other ``on_train_end``: see
        ``EndOfFit``.

        Args:
            trainer: its data give the examples.
            pl_module: with the weights that the fit leaves.
        """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where nothing was learnt, so that nothing was consolidated.

        Args:
            trainer: unused.
            pl_module: unused.
        """
        if self._end is not None and not self._end.took_a_step:
            rank_zero_warn(
                f"{type(self).__name__}: the fit took no optimizer step, so nothing was "
                "consolidated; to consolidate the weights as they are, call "
                "consolidate(module, batches)"
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop where the loss is no longer a number.

        Args:
            trainer: says which step this was.
            pl_module: the module that learns.
            outputs: holds the loss.
            batch: unused.
            batch_idx: unused.
        """
        if self.answers_for(pl_module):
            self._guard.look(trainer, pl_module, outputs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the losses that were not looked at step by step.

        Args:
            trainer: says which step this was.
            pl_module: the module that learns.
        """
        if self.answers_for(pl_module):
            self._guard.raise_if_broken(trainer, pl_module)

    def answers_for(self, module: LightningModule) -> bool:
        """Whether a loss that is not finite is this method's affair.

        Args:
            module: the module that learns.

        Returns:
            True for our own learner; what a stranger's module does with it is left to its owner.
        """
        return isinstance(module, ContinualLearner)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was.

        Args:
            trainer: unused.
            pl_module: unused.
            exception: unused.
        """
        self.detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was.

        Args:
            trainer: unused.
            pl_module: unused.
            stage: unused.
        """
        self.detach()

    def detach(self) -> None:
        """Take away what was attached to the module; a second call does nothing."""
        if self._attached is not None:
            self._attached.detach()
            self._attached = None
        if self._end is not None:
            self._end.detach()
            self._end = None

    def state_dict(self) -> dict[str, Any]:
        """What it keeps from task to task.

        Returns:
            Tensors and plain values.
        """
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned.

        Args:
            state_dict: tensors and plain values.
        """


def network_of(module: nn.Module) -> nn.Module:
    """The network whose parameters a method speaks of.

    Args:
        module: the one that learns.

    Returns:
        A ``ContinualLearner``'s network; of others the module itself, without what ``compile``,
        Fabric or DDP have wrapped around it, since that renames its parameters.
    """
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, DistributedDataParallel | _FabricModule):
            inner = module.module
        if not isinstance(inner, nn.Module):
            break
        module = inner
    return module.network if isinstance(module, ContinualLearner) else module


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter.

    Args:
        module: any.

    Returns:
        The device; the CPU where it has none.
    """
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def checked_lambda(ewc_lambda: float) -> float:
    """A strength that can be one.

    Args:
        ewc_lambda: λ.

    Returns:
        The same.

    Raises:
        ValueError: when it is negative or not finite.
    """
    if not 0.0 <= ewc_lambda < float("inf"):
        raise ValueError(f"ewc_lambda is {ewc_lambda}; it must be a finite number of at least 0")
    return float(ewc_lambda)
