"""The callback that consolidates a task when its training ends."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from lifelong.core import KroneckerFactors, fisher_diagonal
from lifelong.learning.distributed import estimate_over_processes
from lifelong.learning.learner import ContinualLearner
from lifelong.learning.progress import Progress, pass_progress

Labels = Literal["exact", "sampled", "empirical"]


class Consolidate(Callback):
    """Folds what matters for a task, and its parameters, into the penalty as training ends.

    The callback decides when; the estimator says what: a mean over the task's training images, in
    eval mode, not shuffled and not augmented. Of several processes each takes a share of the
    images, without the duplicates that pad training shares, and all fold the same bits.

    Args:
        estimator: of ``(network, batches, progress=...)``: what the learner's penalty folds.
        decay: γ in [0, 1], what the tasks before keep of their weight; 1 is the plain sum.
    """

    def __init__(self, estimator: Callable[..., Any] = fisher_diagonal, decay: float = 1.0) -> None:
        self.estimator = estimator
        self.decay = decay
        self.importance: Any = None  # of the task that was consolidated last

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
                f"Consolidate works on a ContinualLearner, not {type(pl_module).__name__}; "
                "for a LightningModule of your own use lifelong.EWC(ewc_lambda=...)"
            )
        data, rank = trainer.datamodule, trainer.global_rank  # type: ignore[attr-defined]
        batches = data.consolidation_batches(rank=rank, world_size=trainer.world_size)
        with _shown(pl_module) as shown:
            importance = estimate_over_processes(
                trainer, self.estimator, pl_module.network, batches, shown
            )
        self.fold(pl_module, importance, trainer.loggers, pl_module.sequence_step)

    def estimate(self, learner: ContinualLearner, batches: Iterable[Any]) -> Any:
        """The importance of a task that was learnt before, in this process alone.

        Args:
            learner: as learning the task left it.
            batches: the task's training images.

        Returns:
            What the estimator returns.
        """
        with _shown(learner) as shown:
            return self.estimator(learner.network, batches, progress=shown)

    def fold(
        self, learner: ContinualLearner, importance: Any, loggers: Iterable[Logger], step: int
    ) -> None:
        """Take an importance and the parameters up into the penalty; log its trace, layer by layer.

        Args:
            learner: as learning the task left it.
            importance: what the estimator returned.
            loggers: where the trace goes.
            step: where on the horizontal axis it stands.
        """
        self.importance = importance
        learner.penalty.fold(dict(learner.network.named_parameters()), importance, self.decay)
        traces = _traces(importance)
        trace = sum(traces.values())
        figures = {"fisher/trace": trace}
        if trace > 0:
            figures |= {f"fisher/share/{name}": part / trace for name, part in traces.items()}
        for logger in loggers:
            logger.log_metrics(figures, step=step)


def _traces(importance: Any) -> dict[str, float]:
    # By parameter; of Kronecker factors a layer has tr A · tr G.
    if isinstance(importance, KroneckerFactors):
        layers = {name: float(a.trace()) * float(g.trace()) for name, (a, g) in importance.items()}
        return layers | _traces(dict(importance.diagonal))
    return {name: float(f.double().sum()) for name, f in importance.items()}


def _shown(learner: ContinualLearner) -> AbstractContextManager[Progress | None]:
    return pass_progress(f"importance of the parameters for {learner.current_task}")
