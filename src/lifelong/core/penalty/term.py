"""λΩ as a part of any loss, by autograd, at little more than the cost of reading F̄ and θ̄ once."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.core.protocols import Penalty


class PenaltyTerm:
    r"""Adds λΩ(θ) to a loss, in value and in gradient.

    ``term(loss, weight)`` is L + λΩ(θ) with the gradient ∂L/∂θ + λ ∂Ω/∂θ, as if the formula had
    been written down. One pass gives Ω and, in closed form, λ ∂Ω/∂θ, which waits for the backward
    pass: there it is one more gradient among those that autograd adds up, times whatever reaches
    the loss. So a division by the number of micro-batches, the scale of 16-bit precision, clipping,
    DDP, ``retain_graph``, ``torch.autograd.grad`` and ``create_graph`` need nothing of their own,
    and nothing is kept from one call to the next: a loss that is never backpropagated leaves no
    trace.

    Scale: Ω is without λ, in nats where the importance is a Fisher information; the loss in nats.

    With weight 0, or before anything was consolidated, the very loss comes back. A parameter that
    does not require a gradient counts in Ω and gets none. One that L does not reach is still pulled
    to its anchor, as by the formula; with DDP's ``find_unused_parameters=True`` the term must then
    be made inside the wrapped module's ``forward`` (as it is in Lightning's ``training_step``).
    Between the two passes the gradients take as much memory as the parameters. Of a penalty that
    stays on another device (``QuadraticPenalty(device="cpu")``) nothing waits: each gradient is
    made as the backward pass leaves its parameter, and added then.

    Args:
        penalty: Ω. What is folded into it later counts from the next call on.
        params: parameter name → θ, at least those that are consolidated.

    Example:
        >>> from lifelong.core import QuadraticPenalty
        >>> w = nn.Parameter(torch.tensor([3.0]))
        >>> penalty = QuadraticPenalty()
        >>> penalty.fold({"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])})
        >>> term = PenaltyTerm(penalty, {"w": w})
        >>> loss = term(w.sum(), weight=10.0)  # 3 + 10 · ½ · 2 · (3 − 1)²
        >>> loss.backward()
        >>> loss.item(), w.grad.item()  # 1 + 10 · 2 · (3 − 1)
        (43.0, 41.0)
    """

    def __init__(self, penalty: Penalty, params: Mapping[str, nn.Parameter]) -> None:
        self.penalty = penalty
        self.params = dict(params)
        self._omega: Tensor | None = None

    @property
    def omega(self) -> Tensor:
        """Ω of the latest call, a scalar in float64 without λ and without a graph.

        With weight 0 no call computes it: it is then Ω at the parameters as they are now.
        """
        return self.penalty.value(self.params) if self._omega is None else self._omega

    def __call__(self, loss: Tensor, weight: float) -> Tensor:
        """L + λΩ(θ).

        Args:
            loss: L, one number.
            weight: λ ≥ 0.

        Returns:
            The objective, in the loss's shape and type.

        Raises:
            ValueError: when the loss is not one number, or ``weight`` is negative or not finite.
        """
        if loss.numel() != 1:
            raise ValueError(
                f"the loss has shape {tuple(loss.shape)}; it must be one number: take its mean"
            )
        if not 0.0 <= weight < float("inf"):
            raise ValueError(f"weight is {weight}; it must be a finite number of at least 0")
        self._omega = None
        if weight == 0.0 or self.penalty.is_empty:
            return loss
        # Matrix products of the penalty are exact also where those of the network are not.
        with torch.autocast(loss.device.type, enabled=False):
            if torch.is_grad_enabled():
                total, self._omega = _Sum.apply(
                    loss, self.penalty, weight, tuple(self.params), *self.params.values()
                )
                return total
            self._omega = self.penalty.value(self.params)
            return _sum(loss, self._omega, weight)


class _Sum(torch.autograd.Function):
    # The parameters are inputs so that their gradients pass through autograd's own adding-up.

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        penalty: Penalty,
        weight: float,
        names: tuple[str, ...],
        *params: Tensor,
    ) -> tuple[Tensor, Tensor]:
        by_name = dict(zip(names, params, strict=True))
        ctx.pull = penalty.pull_of(by_name, weight)
        if ctx.pull is None:
            omega, gradients = penalty.value_and_gradient(by_name, weight)
        else:
            omega, gradients = penalty.value(by_name), {}
        ctx.penalty, ctx.weight, ctx.names, ctx.gradients = penalty, weight, names, gradients
        ctx.save_for_backward(*params)
        ctx.mark_non_differentiable(omega)
        ctx.set_materialize_grads(False)
        return _sum(loss, omega, weight), omega

    @staticmethod
    def backward(ctx: Any, scale: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if scale is None:
            return (None,) * (4 + len(ctx.names))
        if torch.is_grad_enabled():
            gradients = _differentiable(ctx, scale)
        elif ctx.pull is not None:
            gradients = _one_by_one(ctx, scale)
        else:
            gradients = _scaled(_waiting(ctx), scale)
        return (scale, None, None, None, *(gradients.get(name) for name in ctx.names))


def _sum(loss: Tensor, omega: Tensor, weight: float) -> Tensor:
    return loss + (weight * omega).to(loss.device, loss.dtype)


def _waiting(ctx: Any) -> dict[str, Tensor]:
    # Autograd may add to these in place and keep them as .grad, so that each can be given once.
    gradients, ctx.gradients = ctx.gradients, None
    if gradients is None:  # a second pass through a graph that was retained
        params = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        _, gradients = ctx.penalty.value_and_gradient(params, ctx.weight)
    return gradients


def _scaled(gradients: dict[str, Tensor], scale: Tensor) -> dict[str, Tensor]:
    if scale.device.type == "cpu" and float(scale) == 1.0:
        return gradients
    # A number on another device is not asked for its value: that would wait for the device.
    factor = scale.detach().reshape(())
    for gradient in gradients.values():
        gradient.mul_(factor.to(gradient.device))
    return gradients


def _one_by_one(ctx: Any, scale: Tensor) -> dict[str, Tensor]:
    # Each parameter's own hook adds its pull to what has reached it, in this backward pass alone.
    params = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
    factor, pull = scale.detach().reshape(()), ctx.pull
    handles: list[Any] = []
    nothing: dict[str, Tensor] = {}

    def adding(name: str) -> Callable[[Tensor], Tensor]:
        return lambda grad: pull(name).mul_(factor.to(grad.device)).add_(grad)

    for name in ctx.penalty.held(params):
        param = params[name]
        if param.requires_grad:
            handles.append(param.register_hook(adding(name)))
            # Zeros without memory: a hook is called only where some gradient comes.
            nothing[name] = param.new_zeros(()).expand_as(param)

    def end() -> None:
        for handle in handles:
            handle.remove()

    torch.autograd.Variable._execution_engine.queue_callback(end)
    return nothing


def _differentiable(ctx: Any, scale: Tensor) -> dict[str, Tensor]:
    params = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
    moving = {name: p for name, p in params.items() if p.requires_grad}
    omega = ctx.penalty(params)
    found = torch.autograd.grad(omega, list(moving.values()), create_graph=True, allow_unused=True)
    factor = ctx.weight * scale.reshape(())
    return {n: factor * g for n, g in zip(moving, found, strict=True) if g is not None}
