"""The objective of a training step, and what the loggers are told of its parts."""

from collections.abc import Iterable
from typing import Any, Protocol

from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lifelong.learning.distributed import mean_over_processes
from lifelong.learning.progress import is_logging_step


class Objective(Protocol):
    """What makes the objective of a training step out of the task's loss."""

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
            What ``backward()`` is called on.
        """
        ...


class TaskLoss:
    """The task's loss alone."""

    def objective(
        self, loss: Tensor, module: LightningModule, batch: Any, batch_idx: int
    ) -> Tensor:
        """The loss as it is.

        Args:
            loss: the task's own.
            module: unused.
            batch: unused.
            batch_idx: unused.

        Returns:
            The very same tensor.
        """
        return loss


def begins_logging_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a batch is the first of an optimizer step that logs.

    Args:
        trainer: while it trains.
        batch_idx: the batch's place in the epoch.

    Returns:
        False without loggers.
    """
    begins = batch_idx % trainer.accumulate_grad_batches == 0
    return begins and bool(trainer.loggers) and is_logging_step(trainer)


def log_objective(
    module: LightningModule, task_loss: Tensor, omega: float, ewc_lambda: float
) -> None:
    """Log the parts of the objective: L, Ω without λ, and λΩ.

    Straight to the loggers: ``self.log`` costs half a millisecond in every step.

    Args:
        module: the one that learns.
        task_loss: L of this process's batch; the mean over the processes is logged.
        omega: Ω, in nats.
        ewc_lambda: λ.
    """
    trainer = module.trainer
    figures = {
        "train/task_loss": float(mean_over_processes(task_loss, trainer)),
        "train/penalty": omega,
        "train/penalty_weighted": ewc_lambda * omega,
    }
    write_figures(trainer.loggers, figures, step_of(module))


def write_figures(loggers: Iterable[Logger], figures: dict[str, float], step: int) -> None:
    """Write figures to loggers.

    Args:
        loggers: where to.
        figures: name → value.
        step: where on the horizontal axis they stand.
    """
    for logger in loggers:
        logger.log_metrics(figures, step=step)


def step_of(module: LightningModule) -> int:
    """Where on the horizontal axis of the curves a module stands.

    Args:
        module: while it is trained.

    Returns:
        The optimizer steps since its first task, where it counts them; else those of this fit.
    """
    return int(getattr(module, "sequence_step", module.trainer.global_step))
