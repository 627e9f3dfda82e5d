"""What linear layers put out in a pass without gradients, handed out again in a pass with them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Replay:
    """Saves the products of the second evaluation of the same examples.

    The passes of an example are planned by its probabilities, so every example is evaluated twice:
    at first without a graph, then beside those that need as many passes. A linear layer takes its
    output the second time from memory; its backward pass is the usual one.

    Args:
        modules: Linear layers that are called once in an evaluation, with the examples in front.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._outputs: dict[nn.Module, Tensor] = {}
        self._filled: dict[nn.Module, int] = {}
        self._rows = 0

    @contextmanager
    def recording(self, rows: int) -> Iterator[None]:
        """Remember the outputs of all evaluations inside, one after another.

        Args:
            rows: How many examples there will be.

        Yields:
            Nothing.
        """
        self._outputs, self._filled, self._rows = {}, {}, rows
        handles = [m.register_forward_hook(self._see, prepend=True) for m in self._modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        # a module that an evaluation left out or called twice is evaluated again
        self._outputs = {m: z for m, z in self._outputs.items() if self._filled[m] == rows}

    @contextmanager
    def of(self, index: Tensor | slice) -> Iterator[None]:
        """Let the layers answer from memory inside.

        Args:
            index: Which of the remembered examples are evaluated.

        Yields:
            Nothing.
        """
        for module, z in self._outputs.items():
            module.forward = _Remembered(module, z[index])
        try:
            yield
        finally:
            for module in self._outputs:
                del module.forward

    def _see(self, module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        # a copy into one place: the next module may work in place
        start = self._filled.get(module, 0)
        stop = self._filled[module] = start + len(output)
        if not start:
            self._outputs[module] = output.new_empty(self._rows, *output.shape[1:])
        kept = self._outputs[module]
        if stop <= self._rows and kept.shape[1:] == output.shape[1:]:
            kept[start:stop] = output
        else:
            self._filled[module] = self._rows + 1


class _Remembered:
    """The forward of a linear layer whose output is known."""

    def __init__(self, module: nn.Module, z: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        self._module = module
        self._z: Tensor | None = z

    def __call__(self, a: Tensor) -> Tensor:
        weight, bias = self._module.weight, self._module.bias
        z, self._z = self._z, None
        if z is None or z.shape[:-1] != a.shape[:-1]:
            return nn.functional.linear(a, weight, bias)
        return _KnownProduct.apply(a, weight, bias, z)


class _KnownProduct(torch.autograd.Function):
    """`a Wᵀ + b` with a known value."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, weight: Tensor, bias: Tensor | None, z: Tensor) -> Tensor:
        ctx.save_for_backward(a, weight)
        ctx.mark_dirty(z)
        # needs_input_grad says no more than requires_grad: nobody asks for a leaf's gradient here
        ctx.asked = [t is not None and t.grad_fn is not None for t in (a, weight, bias)]
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        a, weight = ctx.saved_tensors
        rows = delta.flatten(0, -2)
        by_a = delta @ weight if ctx.asked[0] else None
        by_weight = rows.T @ a.flatten(0, -2) if ctx.asked[1] else None
        by_bias = rows.sum(dim=0) if ctx.asked[2] else None
        return by_a, by_weight, by_bias, None
