"""The callback that tells, epoch by epoch, how far a task is and what is kept of those before."""

from collections.abc import Callable, Mapping

from lightning import Callback, LightningModule, Trainer

from lifelong.learning.epochs import as_fraction

Tell = Callable[[str, int, int, Mapping[str, float]], None]


class TellEpochs(Callback):
    """Calls a function after the validation of each epoch.

    Args:
        tell: takes the task's name, the number of its epochs that are done, of those in all, and
            the newest ``val/<task>/accuracy`` and ``retained/<task>``. What it raises ends the fit.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the figures of this epoch.

        Args:
            trainer: holds the figures.
            pl_module: knows its task.
        """
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        figures = {
            name: as_fraction(figure)
            for name, figure in trainer.callback_metrics.items()
            if name.startswith(("val/", "retained/"))
        }
        task = str(pl_module.current_task)
        self._tell(task, trainer.current_epoch + 1, trainer.max_epochs or 0, figures)
