"""The LightningModule that learns a task while a penalty holds it to those before."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from lifelong.core import KroneckerPenalty, QuadraticPenalty, step_sizes
from lifelong.learning.distributed import follow_first_process, mean_over_processes
from lifelong.learning.progress import is_logging_step
from lifelong.learning.scaling import gradient_scale, skipped_its_step

Batch = tuple[Tensor, Tensor]
Step = Literal["explicit", "proximal"]


class ContinualLearner(LightningModule):
    r"""A network that learns one task at a time with the loss L(θ) + λ Ω(θ).

    L is the mean cross-entropy of the batch in nats, Ω the penalty of the tasks before. λΩ stands
    in ``training_step`` as in the formula; its gradient λF̄ ⊙ (θ − θ̄) is closed-form and reaches
    ``.grad`` once per optimizer step, on the gradients' own scale and before clipping, so that
    gradient accumulation, mixed precision and several processes leave it as it is. With
    ``step="proximal"`` the optimizer steps on L alone and λΩ acts after it, by its proximal step in
    the optimizer's own metric: the same fixed point, stable for every λ. λ = 0 touches nothing, bit
    for bit.

    The validation loop reads one loader per learnt task, the newest last, and logs
    ``val/<task>/accuracy`` for the newest and ``retained/<task>`` for those before it.

    Args:
        network: images to logits.
        optimizer: parameters to optimizer, called afresh for each task.
        penalty: Ω; empty until a callback consolidates the first task.
        tasks: the names of all tasks, in order.
        ewc_lambda: λ ≥ 0.
        step: how λΩ reaches the parameters.
        scheduler: optimizer and ``total_iters``, the steps of one task, to a learning-rate
            schedule that is stepped after each optimizer step; without one the rate is constant.
        num_classes: the number of logits.
        compile_network: whether the training steps go through ``torch.compile``.

    Raises:
        ValueError: when λ is negative or not finite, or ``step`` is unknown.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        penalty: QuadraticPenalty | KroneckerPenalty,
        tasks: Sequence[str],
        *,
        ewc_lambda: float = 0.0,
        step: Step = "explicit",
        scheduler: Callable[..., LRScheduler] | None = None,
        num_classes: int = 10,
        compile_network: bool = False,
    ) -> None:
        super().__init__()
        if not 0.0 <= ewc_lambda < float("inf"):
            raise ValueError(
                f"ewc_lambda is {ewc_lambda}; it must be a finite number of at least 0"
            )
        if step not in get_args(Step):
            raise ValueError(f"step is {step!r}; it must be one of {', '.join(get_args(Step))}")
        self.network = network
        # In a list, so that it is no second copy in the state. What looks into the layers (the
        # Fisher information) and what tests have the network itself.
        self._trained = [torch.compile(network) if compile_network else network]
        self.step = step
        self.make_scheduler = scheduler
        self.penalty = penalty
        self.make_optimizer = optimizer
        self.tasks = tuple(tasks)
        self.ewc_lambda = ewc_lambda
        self.current_task = self.tasks[0]
        # The steps of the stages before: with it the curves of a sequence follow one another.
        self.steps_before = 0
        self.accuracies = nn.ModuleList(
            MulticlassAccuracy(num_classes, average="micro") for _ in self.tasks
        )

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
            The objective, whose gradient by autograd is that of L; that of λΩ is added in
            ``on_before_optimizer_step``.
        """
        images, labels = batch
        task_loss = cross_entropy(self._trained[0](images), labels)
        if not self._logs_this_step(batch_idx):
            return task_loss
        with torch.autocast(self.device.type, enabled=False):
            omega = self.penalty.value(self._params())
        self._log_objective(task_loss, omega)
        return task_loss + (self.ewc_lambda * omega).to(task_loss.dtype)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the gradient of λΩ.

        Args:
            optimizer: the one that is about to step.
        """
        if self.step == "explicit" and self._is_held():
            scale = gradient_scale(self.trainer, optimizer)
            self.penalty.add_gradient_(self._params(), self.ewc_lambda * scale)

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
        if self.step == "proximal":
            optimizer.register_step_post_hook(self._proximal_step)
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

    def _proximal_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._is_held() and not skipped_its_step(optimizer):
            self.penalty.proximal_step_(self._params(), step_sizes(optimizer), self.ewc_lambda)

    def _is_held(self) -> bool:
        return self.ewc_lambda > 0 and not self.penalty.is_empty

    def _params(self) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    def _logs_this_step(self, batch_idx: int) -> bool:
        # Of the batches that are accumulated to one step, the first.
        begins = batch_idx % self.trainer.accumulate_grad_batches == 0
        return begins and bool(self.loggers) and is_logging_step(self.trainer)

    def _log_objective(self, task_loss: Tensor, omega: Tensor) -> None:
        # Straight to the loggers: `self.log` costs half a millisecond in every step (design 7).
        weighted = self.ewc_lambda * omega
        self._write(
            {
                "train/task_loss": float(mean_over_processes(task_loss, self.trainer)),
                "train/penalty": float(omega),
                "train/penalty_weighted": float(weighted),
            }
        )

    def _write(self, figures: dict[str, Any]) -> None:
        if not self.trainer.sanity_checking:
            for logger in self.loggers:
                logger.log_metrics(figures, step=self.sequence_step)

    def _reset_accuracies(self) -> None:
        for accuracy in self.accuracies:
            accuracy.reset()  # type: ignore[operator]

    def _count(self, batch: Batch, task: int) -> None:
        images, labels = batch
        self.accuracies[task].update(self.network(images), labels)  # type: ignore[operator]

    def _accuracies_by_task(self, loaders: Sequence[float]) -> dict[str, float]:
        # By the loaders, not by what this process has counted: all processes have to ask for the
        # same sums, also one whose share of a small set is empty.
        figures = {}
        for name, accuracy, _ in zip(self.tasks, self.accuracies, loaders, strict=False):
            figures[name] = float(accuracy.compute())  # type: ignore[operator]
        return figures
