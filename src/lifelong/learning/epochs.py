"""The callback that keeps the validation curves of a stage."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor


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
    """

    def __init__(self) -> None:
        self.curves: dict[str, list[float]] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the figures of this epoch.

        Args:
            trainer: holds the figures.
            pl_module: unused.
        """
        if trainer.sanity_checking:
            return
        for name, figure in trainer.callback_metrics.items():
            if name.startswith(("val/", "retained/")):
                self.curves.setdefault(name, []).append(as_fraction(figure))

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
