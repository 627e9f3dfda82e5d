"""Sums over examples of squared per-example gradients, for one chunk of examples.

Each sum takes the output gradients of one direction after another (`add`) and hands over what it
gathered (`finish`): the squares add up over directions, the gradients of several calls before.
Instead of squares it may be magnitudes, `torch.abs`: both are even and multiplicative.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lifelong.core.fisher.rules import Rule

# how many numbers a temporary may hold: 8 MB in float32
BLOCK = 2**21
# so many gradients of large parameters are squared into the sum one by one, in one walk through the
# memory instead of three
_FEW = 4
# what becomes of each gradient before it is summed: torch.square or torch.abs
Measure = Callable[[Tensor], Tensor]


@dataclass
class Source:
    """One use of a parameter: a call of a module that a rule covers.

    Attributes:
        index: The call's place in the list of output gradients.
        module: The module.
        name: The parameter's name within the module.
        rule: The module's rule.
        a: What entered the call, examples in front.
        example_dim: The dimension of the output that counts examples.
        meets_once: Whether the parameter meets each example at one position, as one product of
            features and output gradient.
    """

    index: int
    module: nn.Module
    name: str
    rule: Rule
    a: Tensor
    example_dim: int
    meets_once: bool = False

    def delta(self, deltas: Sequence[Tensor | None]) -> Tensor | None:
        """Return this call's output gradient, examples in front, in at least float32."""
        found = deltas[self.index]
        return None if found is None else widened(found.movedim(self.example_dim, 0))


@runtime_checkable
class Squares(Protocol):
    """What gathers squares of per-example gradients over directions."""

    def add(self, deltas: Sequence[Tensor | None]) -> None:
        """Take the output gradients of one direction, one for each call."""

    def finish(self, total: dict[str, Tensor]) -> None:
        """Add what was gathered to the totals, by the parameters' names."""


def widened(t: Tensor) -> Tensor:
    """Return half precision as float32, anything else as it is."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


class LinearSquares:
    """A linear layer or convolution that meets each example at one position.

    There `Σ_n Σ_r (δ_rn a_nᵀ)² = Σ_n (Σ_r δ_rn²) (a_n²)ᵀ`, one product in all.

    Args:
        weight: The use of the weight, None where only the bias is wanted.
        bias: The use of the bias, None where only the weight is wanted.
        names: The names of weight and bias in the totals.
        measure: What becomes of each gradient.
    """

    def __init__(
        self,
        weight: Source | None,
        bias: Source | None,
        names: tuple[str, str],
        measure: Measure = torch.square,
    ) -> None:
        self._weight, self._bias, self._names = weight, bias, names
        self._measure = measure
        self._sum: Tensor | None = None

    def add(self, deltas: Sequence[Tensor | None]) -> None:
        """Take the output gradients of one direction, one for each call."""
        source = self._weight or self._bias
        assert source is not None
        delta = source.delta(deltas)
        if delta is None:
            return
        delta = delta.reshape(len(delta), -1)
        if self._sum is None:
            self._sum = self._measure(delta)
        elif self._measure is torch.square:
            self._sum.addcmul_(delta, delta)
        else:
            self._sum.add_(self._measure(delta))

    def finish(self, total: dict[str, Tensor]) -> None:
        """Add what was gathered to the totals, by the parameters' names."""
        if self._sum is None:
            return
        if self._bias is not None:
            total[self._names[1]] += self._sum.sum(dim=0)
        if self._weight is not None:
            a = self._weight.rule.features(self._weight.module, widened(self._weight.a))
            a = a.reshape(len(self._sum), -1)
            into = total[self._names[0]]
            into += (self._sum.T @ self._measure(a)).view_as(into)


class TokenSquares:
    """An embedding: squares of the rows that an example meets, never a whole table an example.

    Args:
        source: The use of the embedding's weight.
        name: Its name in the totals.
        measure: What becomes of each gradient.
    """

    def __init__(self, source: Source, name: str, measure: Measure = torch.square) -> None:
        self._source, self._name, self._measure = source, name, measure
        module = source.module
        assert isinstance(module, nn.Embedding)
        tokens = source.a.reshape(len(source.a), -1)
        example = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
        pairs = (example * module.num_embeddings + tokens).flatten()
        pairs, self._pair_of = pairs.unique(return_inverse=True)
        self._token = pairs % module.num_embeddings
        self._sum: Tensor | None = None

    def add(self, deltas: Sequence[Tensor | None]) -> None:
        """Take the output gradients of one direction, one for each call."""
        delta = self._source.delta(deltas)
        if delta is None:
            return
        delta = delta.reshape(-1, delta.shape[-1])
        gradient = delta.new_zeros(len(self._token), delta.shape[-1])
        gradient.index_add_(0, self._pair_of, delta)
        square = self._measure(gradient)
        self._sum = square if self._sum is None else self._sum.add_(square)

    def finish(self, total: dict[str, Tensor]) -> None:
        """Add what was gathered to the totals, by the parameters' names."""
        if self._sum is None:
            return
        padding = self._source.module.padding_idx
        if padding is not None:
            self._sum[self._token == padding] = 0
        table = total[self._name]
        table.index_add_(0, self._token, self._sum.to(table.dtype))


class BlockSquares:
    """Any parameter whose every use a rule covers: gradients of a block of examples at a time.

    Args:
        sources: The uses of the parameter.
        name: Its name in the totals.
        numel: The number of its elements.
        room: How many numbers may be kept from one direction to the next.
        measure: What becomes of each gradient.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        name: str,
        numel: int,
        room: int,
        measure: Measure = torch.square,
    ) -> None:
        self._sources, self._name, self._measure = sources, name, measure
        # unfolded patches may be larger than the parameter: one row tells
        first = slice(0, 1)
        widest = max(s.rule.features(s.module, widened(s.a[first])).numel() for s in sources)
        self._rows = max(1, BLOCK // max(numel, widest))
        self._features: dict[tuple[int, int], Tensor] = {}
        self._room = room
        self._sum: Tensor | None = None

    def add(self, deltas: Sequence[Tensor | None]) -> None:
        """Take the output gradients of one direction, one for each call."""
        met = [(source, source.delta(deltas)) for source in self._sources]
        reached = [(source, delta) for source, delta in met if delta is not None]
        if not reached:
            return
        for start in range(0, len(reached[0][1]), self._rows):
            rows = slice(start, start + self._rows)
            gradient: Tensor | None = None
            for source, delta in reached:
                features = self._features_of(source, rows)
                one = source.rule.gradient(source.module, features, delta[rows], source.name)
                gradient = one if gradient is None else gradient + one
            assert gradient is not None
            if self._sum is None:
                self._sum = torch.zeros_like(gradient[0])
            if len(gradient) <= _FEW and self._measure is torch.square:
                for one in gradient:
                    self._sum.addcmul_(one, one)
            else:
                self._sum.add_(self._measure(gradient).sum(dim=0))

    def finish(self, total: dict[str, Tensor]) -> None:
        """Add what was gathered to the totals, by the parameters' names."""
        if self._sum is not None:
            total[self._name] += self._sum

    def _features_of(self, source: Source, rows: slice) -> Tensor:
        key = (source.index, rows.start)
        if key in self._features:
            return self._features[key]
        features = source.rule.features(source.module, widened(source.a[rows]))
        if features.numel() <= self._room:  # keep for the next direction what there is room for
            self._room -= features.numel()
            self._features[key] = features
        return features
