"""The callback that consolidates a task when its training ends."""

from collections.abc import Callable, Iterable
from typing import Literal

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lifelong.core import fisher_diagonal
from lifelong.learning.learner import ContinualLearner
from lifelong.learning.progress import pass_progress

Labels = Literal["exact", "sampled", "empirical"]


class ConsolidateFisher(Callback):
    """Folds a task's Fisher information and parameters into the learner's penalty as training ends.

    The callback decides when; ``lifelong.core.fisher_diagonal`` says what: the mean over the task's
    training images, in eval mode, not shuffled and not augmented.

    Args:
        labels: whose labels the Fisher information takes; ``exact`` is the expectation over the
            network's own class probabilities.
        decay: γ in [0, 1], what the tasks before keep of their weight; 1 is the plain sum.
    """

    def __init__(self, labels: Labels = "exact", decay: float = 1.0) -> None:
        self.labels: Labels = labels
        self.decay = decay

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Consolidate the task that was just learnt.

        Args:
            trainer: its datamodule gives the images.
            pl_module: the learner whose penalty takes them up.

        Raises:
            TypeError: when the module is not a ``ContinualLearner``.
        """
        if not isinstance(pl_module, ContinualLearner):
            raise TypeError(
                f"ConsolidateFisher works on a ContinualLearner, not {type(pl_module).__name__}; "
                "for a LightningModule of your own use lifelong.EWC(ewc_lambda=...)"
            )
        batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
        batches = trainer.datamodule.consolidation_batches  # type: ignore[attr-defined]
        with pass_progress(f"Fisher information of {pl_module.current_task}") as progress:
            fisher = fisher_diagonal(
                pl_module.network, batches(), labels=self.labels, progress=progress
            )
        pl_module.penalty.fold(dict(pl_module.network.named_parameters()), fisher, self.decay)
        trace = sum(float(f.sum()) for f in fisher.values())
        for logger in trainer.loggers:
            logger.log_metrics({"fisher/trace": trace}, step=pl_module.sequence_step)
