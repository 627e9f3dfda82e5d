"""The callback that keeps the validation curves of a stage, and tells of each epoch."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

TellEpoch = Callable[[str, int, int, Mapping[str, float]], None]


def as_fraction(accuracy: Tensor) -> float:
    """A logged accuracy as a number to write down.

    Args:
        accuracy: a scalar in float32.

    Returns:
        Six places, which tell one image of 100,000; beyond them stands the rounding of float32.
    """
    return round(float(accuracy), 6)


class RecordCurves(Callback):
    """Collects the accuracies that the validation loop logs, one figure per epoch.

    ``curves`` maps ``val/<task>/accuracy`` and ``retained/<task>`` to their figures in order.

    Args:
        tell: called after each epoch, in the first process, with the task's name, the number of its
            epochs that are done, of those in all, and the newest figures. What it raises ends the
            fit.
    """

    def __init__(self, tell: TellEpoch | None = None) -> None:
        self.curves: dict[str, list[float]] = {}
        self._tell = tell

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the figures of this epoch.

        Args:
            trainer: holds the figures.
            pl_module: knows its task.
        """
        if trainer.sanity_checking:
            return
        figures = {
            name: as_fraction(figure)
            for name, figure in trainer.callback_metrics.items()
            if name.startswith(("val/", "retained/"))
        }
        for name, figure in figures.items():
            self.curves.setdefault(name, []).append(figure)
        if self._tell is not None and trainer.is_global_zero:
            epochs = (trainer.current_epoch + 1, trainer.max_epochs or 0)
            self._tell(str(pl_module.current_task), *epochs, figures)

    def state_dict(self) -> dict[str, Any]:
        """What the Trainer's checkpoint keeps of this callback.

        Returns:
            The curves.
        """
        return {"curves": self.curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the curves that a checkpoint kept.

        Args:
            state_dict: what ``state_dict`` returned.
        """
        self.curves = {name: list(curve) for name, curve in state_dict["curves"].items()}
