"""Early stopping that follows the task."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from lifelong.learning.learner import ContinualLearner


class EarlyStoppingPerTask(EarlyStopping):
    """Lightning's EarlyStopping on a figure that has the current task in its name.

    One instance watches one task: give every task's Trainer a fresh one. The importance is
    estimated where training stopped, at the last epoch, not at the best one.

    Args:
        monitor: the figure; ``{task}`` becomes the name of the task that is learnt.
        **also: what ``lightning.pytorch.callbacks.EarlyStopping`` takes.
    """

    def __init__(self, monitor: str = "val/{task}/accuracy", **also: object) -> None:
        super().__init__(monitor, **also)  # type: ignore[arg-type]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fill the task into the figure's name.

        Args:
            trainer: of one task.
            pl_module: the learner.
            stage: Lightning's word for what comes.
        """
        if isinstance(pl_module, ContinualLearner):
            self.monitor = self.monitor.format(task=pl_module.current_task)
        super().setup(trainer, pl_module, stage)
