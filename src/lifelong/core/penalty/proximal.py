"""The proximal step on the penalty, in the metric of the optimizer that stepped on the loss."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

StepSize = float | Tensor
_Settings = Mapping[str, Any]


def shrinkage(curvature: Tensor, step: StepSize, weight: float) -> Tensor:
    """The share of the way to the anchor that a proximal step goes, in [0, 1].

    w = sλF / (1 + sλF), written as 1 / (1 + 1/(λFs)), which no finite s, λ and F can make NaN: a
    product that overflows gives 1, one that underflows gives 0.

    Args:
        curvature: F ≥ 0, [*shape].
        step: s ≥ 0, a number or [*shape].
        weight: λ ≥ 0.

    Returns:
        w, [*shape].

    Example:
        >>> shrinkage(torch.tensor([0.0, 1.0, 3.0, 1e38]), 0.5, 2.0)
        tensor([0.0000, 0.5000, 0.7500, 1.0000])
        >>> shrinkage(torch.tensor([0.0, 1e-30]), 1e5, 1e38)
        tensor([0., 1.])
    """
    # F is the first factor: 0 · s and 0 · λ stay 0, while s · λ alone may overflow to ∞ and 0 · ∞
    # is NaN. λF may overflow too, and ∞ · s is NaN only for s = 0, hence the larger of s and tiny.
    tiny = torch.finfo(curvature.dtype).tiny
    floor = step.clamp(min=tiny) if isinstance(step, Tensor) else max(float(step), tiny)
    return (curvature * weight).mul_(floor).reciprocal_().add_(1.0).reciprocal_()


@torch.no_grad()
def proximal_step_(
    param: Tensor, anchor: Tensor, importance: Tensor, step: StepSize, weight: float
) -> None:
    """Move a parameter to the minimum of λ ½F(θ' − θ̄)² + ½(θ' − θ)²/s, entry by entry.

    θ ← (θ + sλF θ̄) / (1 + sλF), computed as θ += w (θ̄ − θ) with w = sλF / (1 + sλF).

    Scale: s in units of θ² a nat, F in nats over θ² (a mean over examples), λ without unit. The
    step is stable for every λ ≥ 0; λ = 0 leaves θ as it is, bit by bit.

    Args:
        param: θ, [*shape], changed in place; after the optimizer's own step on the loss.
        anchor: θ̄, [*shape].
        importance: F ≥ 0, [*shape].
        step: s, the optimizer's step size for this parameter: a number or [*shape].
        weight: λ ≥ 0.

    Raises:
        ValueError: when ``weight`` is negative or not finite.

    Source:
        Parikh and Boyd 2014, "Proximal algorithms", section 6.1.1.

    Example:
        >>> theta = torch.tensor([4.0, 4.0])
        >>> proximal_step_(theta, torch.zeros(2), torch.tensor([1.0, 0.0]), step=0.5, weight=2.0)
        >>> theta  # (4 + 0.5·2·1·0) / (1 + 0.5·2·1) and 4
        tensor([2., 4.])
    """
    if not 0.0 <= weight < float("inf"):
        raise ValueError(f"weight is {weight}; it must be a finite number of at least 0")
    if weight == 0.0:
        return
    param.add_(shrinkage(importance, step, weight).mul_(anchor - param))


class StepSizes(dict[Tensor, StepSize]):
    """How far an optimizer moves each parameter per unit of gradient, and where each one came from.

    Parameter → s: a float for SGD, a tensor in the parameter's shape for Adam and AdamW. Made by
    ``step_sizes``; valid until the optimizer's next step.

    Args:
        optimizer: SGD, Adam or AdamW, after its ``step()``.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__()
        self._groups: dict[Tensor, _Settings] = {}
        self._states = optimizer.state
        adam = _is_adam(optimizer)
        # since torch 2.6 AdamW is an Adam with this setting
        self._decoupled = isinstance(optimizer, AdamW) or any(
            group.get("decoupled_weight_decay", False) for group in optimizer.param_groups
        )
        for group in optimizer.param_groups:
            if group.get("maximize", False):
                raise ValueError(
                    "the optimizer maximizes (maximize=True) and a proximal step minimizes; "
                    "set maximize=False, or take the explicit step"
                )
            for param in group["params"]:
                state = optimizer.state.get(param, {})
                if adam and "step" in state:
                    self[param] = _adam_step_size(group, state)
                elif not adam and param.grad is not None:
                    self[param] = _sgd_step_size(group)
                else:
                    continue
                self._groups[param] = group

    @torch.no_grad()
    def before(self, param: Tensor) -> Tensor:
        """The parameter as it was before the optimizer's latest step, from the optimizer's state.

        Exact to rounding. For SGD ``.grad`` must still hold the gradient of that step.

        Args:
            param: A parameter that was stepped, [*shape].

        Returns:
            θ before the step, [*shape].
        """
        group, state, size = self._groups[param], self._states.get(param, {}), self[param]
        lr, decay = float(group["lr"]), float(group["weight_decay"])
        if isinstance(size, Tensor):
            mean = state["exp_avg"] / (1.0 - float(group["betas"][0]) ** float(state["step"]))
            start = torch.addcmul(param.detach(), size, mean)
            return start.div_(1.0 - lr * decay) if self._decoupled else start
        buffer = state.get("momentum_buffer")
        if buffer is not None and not group["nesterov"]:
            return torch.add(param.detach(), buffer, alpha=lr)
        start = torch.add(param.detach(), _gradient(param), alpha=lr)
        if buffer is not None:
            start.add_(buffer, alpha=lr * float(group["momentum"]))
        return start.div_(1.0 - lr * decay)


def step_sizes(optimizer: Optimizer) -> StepSizes:
    r"""How far the optimizer moves each parameter per unit of gradient, at its latest step.

    s = lr for SGD, s = lr / (√v̂ + ε) for Adam and AdamW (v̂ the bias-corrected second moment; with
    amsgrad its running maximum).

    This is the metric in which a proximal step on λΩ after the optimizer's step on the loss L has
    the fixed point ∇L + λ∇Ω = 0: at rest the first moment m equals ∇L, the optimizer moves θ by
    −s ⊙ m and the proximal step moves it back by −s ⊙ λ∇Ω. With momentum μ SGD sums the gradients:
    at rest its buffer is ∇L (1 − dampening) / (1 − μ), so that s = lr (1 − dampening) / (1 − μ),
    the step per unit of a gradient that stays; Nesterov's form has the same s. Weight decay adds to
    the gradient (SGD, Adam) or to the move (AdamW): it is part of L here.

    Args:
        optimizer: SGD, Adam or AdamW, after its ``step()``.

    Returns:
        Parameter → s, for every parameter that has been stepped.

    Source:
        Kingma and Ba 2015, algorithm 1, for v̂; Reddi et al. 2018 for amsgrad.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.5)
        >>> weight.sum().backward(); sgd.step()
        >>> step_sizes(sgd)[weight]  # 0.1 / (1 − 0.5)
        0.2
    """
    return StepSizes(optimizer)


def _is_adam(optimizer: Optimizer) -> bool:
    if isinstance(optimizer, Adam | AdamW):
        return True
    if isinstance(optimizer, SGD):
        return False
    raise ValueError(
        f"no proximal step is known for {type(optimizer).__name__}; "
        "use SGD, Adam or AdamW, or take the explicit step"
    )


def _gradient(param: Tensor) -> Tensor:
    if param.grad is None:
        raise ValueError(
            "a parameter's .grad is gone before its proximal step; "
            "call zero_grad() before the next backward pass, not after the step"
        )
    return param.grad


def _sgd_step_size(group: _Settings) -> float:
    lr, momentum = float(group["lr"]), float(group["momentum"])
    return lr * (1.0 - float(group["dampening"])) / (1.0 - momentum) if momentum else lr


def _adam_step_size(group: _Settings, state: _Settings) -> Tensor:
    correction = 1.0 - float(group["betas"][1]) ** float(state["step"])
    second: Tensor = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    root = (second / correction).sqrt_().add_(group["eps"])
    return root.reciprocal_().mul_(float(group["lr"]))
