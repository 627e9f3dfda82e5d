"""By what factor gradients are scaled where they are seen before an optimizer step."""

import torch
from lightning import Trainer


def gradient_scale(trainer: Trainer, optimizer: torch.optim.Optimizer) -> float:
    """The factor on ``.grad`` in ``on_before_optimizer_step``.

    In ``16-mixed`` the loss is multiplied by a scale so that small gradients survive float16, and
    the gradients are divided by it before that hook, except for optimizers that do so in their own
    step (``fused=True``): there a gradient that is added must bear the scale too, or it would count
    65,536 times too little at first. Reading the scale waits for the device, in that one case only.

    Args:
        trainer: its precision plugin holds the scale.
        optimizer: the one that is about to step.

    Returns:
        The factor, 1 for gradients that are not scaled.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())


def skipped_its_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a fused optimizer just left its step out, for gradients that overflowed float16.

    Others are not even called then. After a first step that was left out Adam's step sizes are not
    defined yet.

    Args:
        optimizer: in a hook after its step.

    Returns:
        Whether nothing was changed.
    """
    found = getattr(optimizer, "found_inf", None)  # there during a scaler's step only
    return found is not None and bool(found)
