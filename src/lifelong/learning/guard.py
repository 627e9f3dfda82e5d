"""The callback that stops a training whose loss is no longer a number."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lifelong.core import QuadraticPenalty
from lifelong.errors import LifelongError
from lifelong.learning.progress import is_logging_step


class StopOnNonFiniteLoss(Callback):
    """Raises as soon as it is seen that a step's loss was NaN or infinite.

    On the CPU that is at once; elsewhere on the steps that log and at the epoch's end, so that no
    step waits for the device.

    Args:
        stage: the task's name, for the message.
        ewc_lambda: λ, for the likely cause.
    """

    def __init__(self, stage: str, ewc_lambda: float = 0.0) -> None:
        self.stage = stage
        self.ewc_lambda = ewc_lambda
        self._broken: Tensor | None = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look at the loss of the step that was just taken.

        Args:
            trainer: says which step this is.
            pl_module: the learner.
            outputs: holds the loss.
            batch: unused.
            batch_idx: unused.
        """
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is None:
            return
        broken = ~torch.isfinite(loss.detach())
        self._broken = broken if self._broken is None else self._broken | broken
        if loss.device.type == "cpu" or is_logging_step(trainer):
            self._raise_if_broken(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the epoch left unread.

        Args:
            trainer: says which step this is.
            pl_module: the learner.
        """
        self._raise_if_broken(trainer, pl_module)

    def _raise_if_broken(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._broken is None or not bool(self._broken):
            return
        penalty = getattr(pl_module, "penalty", None)
        if self.ewc_lambda > 0 and isinstance(penalty, QuadraticPenalty) and not penalty.is_empty:
            largest = max(float(f.max()) for f in penalty.importances().values())
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            stiffness = rate * self.ewc_lambda * largest
            cause = (
                f"a penalty too stiff for the step: lr·λ·F_max is {stiffness:.2g} and an explicit "
                "step needs it below 2; type method.step=proximal or a smaller optimizer.lr"
            )
        elif self.ewc_lambda > 0 and penalty is not None and not penalty.is_empty:
            cause = (
                "a penalty too stiff for an explicit step; "
                "type method.step=proximal or a smaller method.ewc_lambda"
            )
        else:
            cause = "a learning rate that is too large; type a smaller optimizer.lr"
        raise LifelongError(
            f"the loss became NaN or infinite while learning {self.stage}, at step "
            f"{trainer.global_step}; the likely cause is {cause}"
        )
