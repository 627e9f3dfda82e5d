"""Penalties whose importance needs no pass over the data."""

from collections.abc import Iterable
from typing import Any

from lightning import LightningModule, Trainer
from torch import nn

from lifelong.core.fisher.traceless import traceless
from lifelong.core.importance import DiagonalImportance
from lifelong.core.protocols import Importance
from lifelong.errors import LifelongError
from lifelong.learning.progress import Progress
from lifelong.learning.quiet import QuietStep, kept_tensors
from lifelong.learning.seen import watched
from lifelong.methods.base import network_of
from lifelong.methods.penalty_method import PenaltyMethod
from lifelong.methods.refusals import refuse_parts_of_networks


class PasslessMethod(PenaltyMethod):
    """A penalty whose importance follows from the network, or from how it learnt, without examples.

    Every process of a DDP fit has the same weights and gradients, so that each finds the same.
    """

    _is_checked = True  # of a fit: that its step has one loss

    def importance_of(self, network: nn.Module) -> DiagonalImportance:
        """How much each parameter matters.

        Args:
            network: as learning the task left it.

        Returns:
            Parameter name → its importance.
        """
        raise NotImplementedError

    def estimate(
        self, network: nn.Module, batches: Iterable[Any], *, progress: Progress | None = None
    ) -> Importance:
        """The same, whatever the batches are.

        Args:
            network: as learning the task left it.
            batches: not looked at.
            progress: unused.

        Returns:
            What ``importance_of`` returns.
        """
        return self.importance_of(network)

    def learnt(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Importance, int]:
        """How much each parameter matters to the task whose fit ends.

        Args:
            trainer: unused.
            pl_module: with the weights that the fit leaves.

        Returns:
            The importance, and 0 examples.
        """
        return self.importance_of(network_of(pl_module)), 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse processes that have parts of the network only.

        Args:
            trainer: about to train.
            pl_module: the module that is to learn.
        """
        refuse_parts_of_networks(trainer, type(self).__name__)
        self._is_checked = pl_module.automatic_optimization
        super().on_fit_start(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Find the loss of a module that goes backward by itself, before its first step.

        Args:
            trainer: unused.
            pl_module: the module that is to learn.
            batch: as the step will see it.
            batch_idx: its place in the epoch.

        Raises:
            LifelongError: when it goes backward several times, or never.
        """
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._is_checked:
            return
        self._is_checked = True
        with traceless(pl_module), kept_tensors(pl_module):
            step = QuietStep(pl_module)
            watched(step, batch)
        if len(step.backwards) != 1 or self._attached is None:
            raise LifelongError(
                f"training_step calls manual_backward {len(step.backwards)} times for one batch, "
                f"and {type(self).__name__} adds to one loss; wanted one call for each batch"
            )
        self._attached.go_through_backward()
