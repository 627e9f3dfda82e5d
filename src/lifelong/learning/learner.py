"""The LightningModule that learns one task after another."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from lifelong.learning.distributed import follow_first_process
from lifelong.learning.objective import Objective, TaskLoss

Batch = tuple[Tensor, Tensor]


class ContinualLearner(LightningModule):
    r"""A network that learns one task at a time with the loss L(θ) + λ Ω(θ).

    L is the mean cross-entropy of the batch in nats; what is added to it, and how, is the method's:
    ``training_step`` returns the whole objective, in value and in gradient, so that accumulation,
    clipping, mixed precision and several processes follow from autograd.

    The validation loop reads one loader per learnt task, the newest last, and logs
    ``val/<task>/accuracy`` for the newest and ``retained/<task>`` for those before it.

    Args:
        network: images to logits.
        optimizer: parameters to optimizer, called afresh for each task.
        tasks: the names of all tasks, in order.
        method: turns the task's loss into the objective; without one it is the task's loss alone.
        scheduler: optimizer and ``total_iters``, the steps of one task, to a learning-rate
            schedule that is stepped after each optimizer step; without one the rate is constant.
        compile_network: whether the training steps go through ``torch.compile``.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        tasks: Sequence[str],
        *,
        method: Objective | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        compile_network: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        # In a list, so that it is no second copy in the state. What looks into the layers (the
        # Fisher information) and what tests have the network itself.
        self._trained = [torch.compile(network) if compile_network else network]
        self.make_scheduler = scheduler
        self.make_optimizer = optimizer
        self.tasks = tuple(tasks)
        self.method = TaskLoss() if method is None else method
        self.current_task = self.tasks[0]
        # The steps of the stages before: with it the curves of a sequence follow one another.
        self.steps_before = 0
        self.accuracies = nn.ModuleList(MeanMetric() for _ in self.tasks)
        self.step_logits: Tensor | None = None  # of the latest training step

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the one that Lightning sets 46 times in a step, fast.

        Args:
            name: its name.
            value: its value.
        """
        # What nn.Module looks for in every value that is set takes 2 % of a training step.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def sequence_step(self) -> int:
        """The optimizer steps since the first task began: the horizontal axis of every curve."""
        return self.steps_before + int(self.trainer.global_step)

    def forward(self, images: Tensor) -> Tensor:
        """The network's logits.

        Args:
            images: a batch; [batch, ...].

        Returns:
            Logits; [batch, classes].
        """
        return self.network(images)

    def setup(self, stage: str) -> None:
        """Let several processes send each other gradients in a step, and no buffers.

        Those of the penalty are equal in all of them and as large as the network; those of the
        network are sent before they are read, at validation and consolidation. In evaluations
        of uneven shares the processes would wait for each other.

        Args:
            stage: Lightning's word for what comes.
        """
        buffers = [name for name, _ in self.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, buffers)

    def on_train_start(self) -> None:
        """Begin with one network in all processes; its parameters are one already."""
        follow_first_process(self.network)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective L(θ) + λΩ(θ) of one batch.

        Args:
            batch: images [batch, ...] and labels [batch].
            batch_idx: its place in the epoch.

        Returns:
            The objective; its ``backward()`` leaves its whole gradient.
        """
        task_loss, logits = self.loss_and_logits(batch)
        # Not by nn.Module's way, which takes its time.
        object.__setattr__(self, "step_logits", logits)
        return self.method.objective(task_loss, self, batch, batch_idx)

    def loss_and_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """L of one batch, and the logits that it is of.

        Args:
            batch: images [batch, ...] and labels [batch].

        Returns:
            The mean cross-entropy in nats, and the logits [batch, classes], with their graph.
        """
        images, labels = batch
        logits = self._trained[0](images)
        return cross_entropy(logits, labels), logits

    def on_validation_epoch_start(self) -> None:
        """Start the counts of right answers anew, with one network in all processes."""
        follow_first_process(self.network)
        self._reset_accuracies()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the right answers of a batch.

        Args:
            batch: images and labels.
            batch_idx: its place in the loader.
            dataloader_idx: the task, by its place in the sequence.
        """
        self._count(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy of the current task and what is retained of those before it."""
        figures = {
            f"val/{name}/accuracy" if name == self.current_task else f"retained/{name}": figure
            for name, figure in self._accuracies_by_task(self.trainer.num_val_batches).items()
        }
        self.log_dict(figures, logger=False, prog_bar=True)
        self._write(figures | {"epoch": float(self.current_epoch)})

    def on_test_epoch_start(self) -> None:
        """Start the counts of right answers anew."""
        self._reset_accuracies()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the right answers of a batch of an official test set.

        Args:
            batch: images and labels.
            batch_idx: its place in the loader.
            dataloader_idx: the task, by its place in the sequence.
        """
        self._count(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Publish ``test/<task>/accuracy`` as the Trainer's metrics."""
        tested = self._accuracies_by_task(self.trainer.num_test_batches)
        figures = {f"test/{task}/accuracy": accuracy for task, accuracy in tested.items()}
        self.log_dict(figures, logger=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """A fresh optimizer, and schedule, for the task that begins.

        Returns:
            The optimizer over the network's parameters, alone or with its schedule.
        """
        optimizer = self.make_optimizer(self.network.parameters())
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer, total_iters=self._steps_of_a_task())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _steps_of_a_task(self) -> int:
        # Not `trainer.estimated_stepping_batches`: once asked, Lightning forgets the state of a
        # resumed loader (its issue 20550).
        trainer = self.trainer
        batches = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        limit = trainer.limit_train_batches
        if limit is not None:
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        updates = -(-batches // trainer.accumulate_grad_batches)
        return updates * (trainer.max_epochs or 1)

    def _write(self, figures: dict[str, Any]) -> None:
        if not self.trainer.sanity_checking:
            for logger in self.loggers:
                logger.log_metrics(figures, step=self.sequence_step)

    def _reset_accuracies(self) -> None:
        for accuracy in self.accuracies:
            accuracy.reset()  # type: ignore[operator]

    def _count(self, batch: Batch, task: int) -> None:
        images, labels = batch
        right = (self.network(images).argmax(dim=-1) == labels).float()
        self.accuracies[task].update(right)  # type: ignore[operator]

    def _accuracies_by_task(self, loaders: Sequence[float]) -> dict[str, float]:
        # By the loaders, not by what this process has counted: all processes have to ask for the
        # same sums, also one whose share of a small set is empty.
        figures = {}
        for name, accuracy, _ in zip(self.tasks, self.accuracies, loaders, strict=False):
            figures[name] = float(accuracy.compute())  # type: ignore[operator]
        return figures
