"""Stopping a training whose loss is no longer a number."""

from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from lifelong.errors import LifelongError
from lifelong.learning.progress import is_logging_step


class NonFiniteLoss:
    """Raises as soon as it is seen that a step's loss was NaN or infinite.

    On the CPU that is at once; elsewhere on the steps that log and at the epoch's end, so that no
    step waits for the device.

    Args:
        cause: says, of the Trainer, what the likely cause is and what to do about it.
    """

    def __init__(self, cause: Callable[[Trainer], str]) -> None:
        self._cause = cause
        self._broken: Tensor | None = None

    def look(self, trainer: Trainer, module: LightningModule, outputs: Any) -> None:
        """Look at the loss of the step that was just taken.

        Args:
            trainer: says which step this is.
            module: the one that learns.
            outputs: holds the loss.
        """
        # A step that returned nothing left its batch out.
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is None:
            return
        broken = ~torch.isfinite(loss.detach())
        self._broken = broken if self._broken is None else self._broken | broken
        if loss.device.type == "cpu" or is_logging_step(trainer):
            self.raise_if_broken(trainer, module)

    def raise_if_broken(self, trainer: Trainer, module: LightningModule) -> None:
        """Look at what was left unread.

        Args:
            trainer: says which step this is.
            module: the one that learns.

        Raises:
            LifelongError: when a loss was NaN or infinite.
        """
        if self._broken is None or not bool(self._broken):
            return
        self._broken = None
        task = getattr(module, "current_task", None)
        while_ = f" while learning {task}" if task else ""
        raise LifelongError(
            f"the loss became NaN or infinite{while_}, at step {trainer.global_step}; "
            f"the likely cause is {self._cause(trainer)}"
        )


def left_its_step_out(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer has just left its step out.

    Args:
        optimizer: in its step's post hook.

    Returns:
        True where a scaler found infinite gradients.
    """
    # A fused optimizer does so by itself for gradients that overflowed float16; others are not
    # even called then. After a first step that was left out Adam's step sizes are not defined yet.
    found = getattr(optimizer, "found_inf", None)  # there during a scaler's step only
    return found is not None and bool(found)
