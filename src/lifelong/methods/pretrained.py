"""Whether a network's weights show that somebody has trained them."""

import math

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

# Weights at ±1/√fan_in are torch's own; this much beyond is no rounding.
BEYOND = 1.01


def told_of_learnt(name: str, network: nn.Module) -> bool:
    """Say that a method which holds nothing does not protect what a network has learnt.

    Args:
        name: of the method.
        network: about to learn.

    Returns:
        Whether there was something to say.
    """
    found = looks_learnt(network)
    if found is not None:
        rank_zero_warn(
            f"{name} holds nothing yet, and these weights have learnt something already ({found}): "
            "it is not protected in this fit, which is plain. To protect it call "
            "consolidate(module, batches) with old data before the fit, or pass "
            f"{name}(anchor=FILE) with what save(FILE) wrote, or load the state that a checkpoint "
            "has of it"
        )
    return found is not None


@torch.no_grad()
def looks_learnt(network: nn.Module) -> str | None:
    """Look for what no initialisation leaves.

    A batch norm counts the batches that it saw. The scales of norms begin alike, at one or zero.
    The biases of linear layers and convolutions begin alike too, or, by torch's default, within
    ±1/√fan_in. Weights are no evidence: they are drawn in many ways.

    Args:
        network: of any kind.

    Returns:
        What was found, in a few words; None where nothing was.
    """
    if any(p.is_meta for p in network.parameters()):  # no numbers to look at
        return None
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.num_batches_tracked is not None:
            if int(module.num_batches_tracked) > 0:
                return f"{name} has seen {int(module.num_batches_tracked)} batches"
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
            if _differ(module.weight):
                return f"{name}.weight is no longer constant"
        elif isinstance(module, nn.Linear | _ConvNd) and module.bias is not None:
            bound = 1 / math.sqrt(max(1, module.weight[0].numel()))
            if _differ(module.bias) and float(module.bias.abs().max()) > BEYOND * bound:
                return f"{name}.bias is beyond where it begins"
    return None


def _differ(values: torch.Tensor | None) -> bool:
    return values is not None and not bool((values == values.flatten()[0]).all())
