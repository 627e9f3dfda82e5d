"""Layers that Kronecker factors stand for, and the rows that the factors are made of."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lifelong.core.fisher.capture import Capture, uses_of_parameters
from lifelong.core.fisher.evaluation import plain_name
from lifelong.core.fisher.examples import Rows
from lifelong.core.fisher.likelihoods.base import Labels
from lifelong.core.fisher.probe import Layout
from lifelong.core.fisher.rules import rule_for
from lifelong.core.fisher.squares import widened


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution that is called once.

    Attributes:
        name: Its name in the network.
        module: The module.
        parameters: Its weight, and its bias if that is folded in.
        example_dim: The dimension of its output that counts examples.
    """

    name: str
    module: nn.Linear | nn.Conv2d
    parameters: tuple[nn.Parameter, ...]
    example_dim: int

    @property
    def rows(self) -> int:
        """The size of G."""
        return len(self.module.weight)

    @property
    def columns(self) -> int:
        """The size of A."""
        return self.module.weight[0].numel() + self._folds_bias

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weight."""
        return self.module.weight.dtype

    def input_rows(self, a: Tensor) -> Tensor:
        """What meets the weight at every position of every example, with a 1 for the bias.

        Args:
            a: what enters the layer, [N, ..., in] or [N, channels, height, width].

        Returns:
            The rows, [N · positions, in (+ 1)].
        """
        if isinstance(self.module, nn.Conv2d):
            rule = rule_for(self.module)
            assert rule is not None
            a = rule.features(self.module, widened(a)).squeeze(1).mT
        rows = widened(a).reshape(-1, a.shape[-1])
        return nn.functional.pad(rows, (0, 1), value=1.0) if self._folds_bias else rows

    def gradient_rows(self, delta: Tensor) -> tuple[Tensor, int]:
        """The gradients at the output, position by position.

        Args:
            delta: [N, ..., out] or [N, out, height, width], examples along ``example_dim``.

        Returns:
            The rows, [N · positions, out], and the number of positions.
        """
        n = delta.shape[self.example_dim]
        if isinstance(self.module, nn.Conv2d):
            delta = delta.movedim(1, -1)
        rows = widened(delta).reshape(-1, delta.shape[-1])
        return rows, len(rows) // n

    @property
    def _folds_bias(self) -> bool:
        return len(self.parameters) == 2


def covered_layers(
    capture: Capture, x: Rows, y: Tensor | None, labels: Labels
) -> dict[nn.Module, Layer]:
    """Find the layers that a pair of factors can stand for.

    Args:
        capture: The network, recording its layers.
        x: Up to three examples.
        y: Their targets.
        labels: Over which labels the score is averaged.

    Returns:
        Module → layer, in the order of ``named_modules``.
    """
    layout = Layout(capture, x, y, labels)
    uses, nodes = uses_of_parameters(capture.run(x, y)[0])
    called = [one.module for one in capture.calls if one.edge.node in nodes]
    capture.calls.clear()
    found: dict[nn.Module, Layer] = {}
    for name, module in capture.network.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or rule_for(module) is None:
            continue
        dim = layout.example_dim.get(module)
        grouped = isinstance(module, nn.Conv2d) and (module.groups > 1 or dim != 0)
        if called.count(module) != 1 or dim is None or grouped:
            continue
        own = dict(module.named_parameters(recurse=False))
        alone = {part: p for part, p in own.items() if uses.get(p) == 1}
        if "weight" in alone:
            found[module] = Layer(plain_name(name), module, tuple(alone.values()), dim)
    return found
