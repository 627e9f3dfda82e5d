"""Whether an explicit step along a penalty's gradient is stable: lr · λ · F_max below 2."""

import torch

from lifelong.core.protocols import Penalty


def stiffness(penalty: Penalty, optimizer: torch.optim.Optimizer, ewc_lambda: float) -> float:
    """How stiff a penalty is for an optimizer's explicit step.

    Args:
        penalty: Ω.
        optimizer: steps the parameters; its largest learning rate counts.
        ewc_lambda: λ.

    Returns:
        lr · λ · F_max: gradient descent oscillates above 1 and diverges above 2.
    """
    rate = max(float(group["lr"]) for group in optimizer.param_groups)
    return rate * ewc_lambda * penalty.largest_curvature()


def stiffest(penalty: Penalty, optimizer: torch.optim.Optimizer) -> float | None:
    """The largest λ with which gradient descent does not oscillate.

    Args:
        penalty: Ω.
        optimizer: gradient descent.

    Returns:
        λ; None where nothing is held.
    """
    of_one = stiffness(penalty, optimizer, 1.0)
    return 1.0 / of_one if of_one > 0 else None
