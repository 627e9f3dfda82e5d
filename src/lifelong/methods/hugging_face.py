"""A callback for Hugging Face's ``Trainer``. Only this file needs the ``transformers`` package."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lifelong.methods.holding import Holding
from lifelong.methods.protect import Guard, protect


class ProtectCallback(TrainerCallback):
    """Holds the model of a ``Trainer`` to what it knew: ``Trainer(…, callbacks=[this])``.

    A callback there cannot change the loss. So λΩ acts after every optimizer step, by its proximal
    step in the optimizer's own metric: the same fixed point, stable for every λ. The optimizer must
    be SGD, Adam or AdamW (``optim="adamw_torch"``, the default).

    Args:
        anchor: a file that ``EWC.save`` wrote, or an ``EWC`` that has consolidated.
        ewc_lambda: λ ≥ 0; by default that of the anchor.
        **settings: of a file's method, ``ignore="classifier.*"`` for one.
    """

    def __init__(
        self, anchor: str | Path | Holding, ewc_lambda: float | None = None, **settings: Any
    ) -> None:
        super().__init__()
        self.anchor, self.ewc_lambda, self.settings = anchor, ewc_lambda, settings
        self.guard: Guard | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Begin to hold.

        Args:
            args: unused.
            state: unused.
            control: unused.
            **others: the ``model`` that learns, and its ``optimizer`` as the Trainer prepared it.
        """
        self.guard = protect(
            others["model"],
            others["optimizer"],
            self.anchor,
            self.ewc_lambda,
            step="proximal",
            **self.settings,
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Let the model go.

        Args:
            args: unused.
            state: unused.
            control: unused.
            **others: unused.
        """
        if self.guard is not None:
            self.guard.remove()
            self.guard = None
