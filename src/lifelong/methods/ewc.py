"""The drop-in callback: Elastic Weight Consolidation for any LightningModule."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from lifelong.core import KroneckerFactors, QuadraticPenalty, fisher_diagonal
from lifelong.learning.distributed import estimate_over_processes
from lifelong.learning.progress import is_logging_step, pass_progress
from lifelong.learning.scaling import gradient_scale
from lifelong.learning.shards import share_of_loader
from lifelong.methods.consolidate import Labels


class EWC(Callback):
    r"""Holds any LightningModule to what it learnt in the fits before: L(θ) + λ Ω(θ).

    Give the same callback to the Trainer of every task. As each fit ends the Fisher information of
    its training data is folded into Ω(θ) = ½ Σ F̄ (θ − θ̄)²; during the next fits λF̄ ⊙ (θ − θ̄)
    is added to the gradients just before each optimizer step (once per step whatever the
    accumulation, on the gradients' own scale, before clipping). Nothing of the module is changed:
    its ``training_step``, its loss and its data stay its own. F is a mean over examples, so λ does
    not depend on the batch size or on how many examples there are.

    The penalty is part of the Trainer's checkpoints. Without the old data, consolidate once where
    it still is, keep ``state_dict()`` or the checkpoint, and load it where the new data are.

    Under DDP F is the mean over the examples of all processes, the same bits on each. Of a torch
    DataLoader (sequential, shuffled without replacement, or sharded by ``DistributedSampler``, as
    Lightning does) every example of its data set counts once, whatever the sampler pads or drops;
    see ``share_of_loader``. Any other loader is gone through as it is in each process: all examples
    in each give the same mean, at W times the work, but padding of your own would count.

    Args:
        ewc_lambda: λ ≥ 0; 0 is fine-tuning, bit for bit.
        labels: ``exact`` (expectation over the module's own class probabilities), ``sampled`` or
            ``empirical``.
        damping: d in F + d · mean(F).
        decay: γ in [0, 1], what earlier tasks keep of their weight at each consolidation.
        batches: (x, y) pairs to estimate the Fisher information on; by default the training
            loader of the fit that ends, as it is: give unshuffled, unaugmented ones if yours
            augments. ``module(x)`` must return logits over the last dimension.

    Raises:
        ValueError: when λ is negative or not finite, or another argument does not fit.

    Source:
        Kirkpatrick et al. 2017, eq. 3.

    Example:
        >>> EWC(ewc_lambda=1e3).penalty.is_empty
        True
    """

    def __init__(
        self,
        ewc_lambda: float,
        *,
        labels: Labels = "exact",
        damping: float = 0.0,
        decay: float = 1.0,
        batches: Iterable[Any] | None = None,
    ) -> None:
        if not 0.0 <= ewc_lambda < float("inf"):
            raise ValueError(
                f"ewc_lambda is {ewc_lambda}; it must be a finite number of at least 0"
            )
        self.ewc_lambda = ewc_lambda
        self.labels: Labels = labels
        self.decay = decay
        self.batches = batches
        self.penalty = QuadraticPenalty(damping)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the penalty to the module's device.

        Args:
            trainer: unused.
            pl_module: the module that begins to learn.
        """
        self.penalty.to(pl_module.device)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the gradient of λΩ, and log Ω on the steps that log.

        Args:
            trainer: says which step this is.
            pl_module: the module whose gradients are complete.
            optimizer: the one that is about to step.
        """
        if self.penalty.is_empty:
            return
        params = dict(pl_module.named_parameters())
        if self.ewc_lambda > 0:
            scale = gradient_scale(trainer, optimizer)
            self.penalty.add_gradient_(params, self.ewc_lambda * scale)
        if trainer.loggers and is_logging_step(trainer):
            omega = float(self.penalty.value(params))
            figures = {"train/penalty": omega, "train/penalty_weighted": self.ewc_lambda * omega}
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Consolidate the task that was just learnt.

        Args:
            trainer: its training loader gives the examples, unless ``batches`` was set.
            pl_module: the module that learnt.
        """
        batches = trainer.train_dataloader if self.batches is None else self.batches
        assert batches is not None
        share = share_of_loader(batches, trainer.global_rank, trainer.world_size)
        estimator = partial(fisher_diagonal, labels=self.labels)
        with pass_progress("Fisher information") as progress:
            fisher = estimate_over_processes(trainer, estimator, pl_module, share, progress)
        assert not isinstance(fisher, KroneckerFactors)
        self.penalty.fold(dict(pl_module.named_parameters()), fisher, self.decay)

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps of the callback.

        Returns:
            The penalty's buffers.
        """
        return {"penalty": self.penalty.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint kept.

        Args:
            state_dict: what ``state_dict`` returned.
        """
        self.penalty.load_state_dict(state_dict["penalty"])
