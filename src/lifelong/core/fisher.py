"""The diagonal of the Fisher information, exact and in batches, for every network."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.core.capture import Call, Capture, uses_of_parameters
from lifelong.core.labels import Labels, check_labels
from lifelong.core.passes import Chunk, Plan, Progress, chunks
from lifelong.core.per_example import looped_squares, vectorised_squares
from lifelong.core.rules import rule_for
from lifelong.core.squares import BlockSquares, LinearSquares, Source, Squares, TokenSquares
from lifelong.core.traceless import traceless

THRESHOLD = 1e-7


def fisher_diagonal(
    network: nn.Module,
    batches: Iterable[Any],
    *,
    labels: Labels = "exact",
    samples: int | None = None,
    threshold: float = THRESHOLD,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """TODO."""
    check_labels(labels)
    seen = _Seen(progress)
    plan = Plan(labels, samples, threshold, generator, seen, chunk)
    with traceless(network), Capture(network, lambda m: rule_for(m) is not None) as capture:
        diagonal = _Diagonal(network)
        for part in chunks(capture, batches, plan):
            diagonal.add(part)
        return diagonal.mean(seen.done)


class _Seen:
    """Counts the examples and passes the news on."""

    def __init__(self, progress: Progress | None) -> None:
        self.done = 0
        self._progress = progress

    def __call__(self, done: int, total: int | None) -> None:
        self.done = done
        if self._progress is not None:
            self._progress(done, total)


class _Diagonal:
    """The sum of squared scores over the chunks that it was given."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._params = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self._name = {p: n for n, p in self._params.items()}
        self._vectorise = True
        self._total = {
            n: torch.zeros_like(p, dtype=_wide(p), memory_format=torch.contiguous_format)
            for n, p in self._params.items()
        }

    def add(self, chunk: Chunk) -> None:
        """Add the squared scores of a chunk."""
        used, rest = self._sources(chunk)
        squares = self._squares(used)
        calls = list(chunk.calls)
        kept = []
        for direction in chunk.directions:
            if squares:
                deltas = Capture.gradients(chunk.output, direction, calls)
                for one in squares:
                    one.add(deltas)
            if rest:
                kept.append(direction)
        for one in squares:
            one.finish(self._total)
        if kept:
            self._fall_back(chunk, rest, kept)

    def mean(self, n: int) -> dict[str, Tensor]:
        """Return the sums divided by the number of examples, in the parameters' precision."""
        return {name: (t / n).to(self._params[name].dtype) for name, t in self._total.items()}

    def _sources(
        self, chunk: Chunk
    ) -> tuple[dict[str, list[Source]], dict[str, nn.Parameter]]:
        """Find the parameters whose every use is a call that a rule covers, and the rest."""
        uses, nodes = uses_of_parameters(chunk.output)
        sources: dict[str, list[Source]] = {}
        for index, one in enumerate(chunk.calls):
            if one.edge.node not in nodes:
                continue
            for local, parameter in one.module.named_parameters(recurse=False):
                source = _source(chunk, one, index, local)
                if source is not None and parameter in self._name:
                    sources.setdefault(self._name[parameter], []).append(source)
        used = {p: k for p, k in uses.items() if p in self._name}
        covered = {
            name: found
            for name, found in sources.items()
            if used.get(self._params[name]) == len(found)
        }
        rest = {self._name[p]: p for p in used if self._name[p] not in covered}
        return covered, rest

    def _squares(self, sources: dict[str, list[Source]]) -> list[Squares]:
        squares: list[Squares] = []
        linear: dict[int, dict[str, tuple[str, Source]]] = {}
        for name, found in sources.items():
            first = found[0]
            alone = len(found) == 1
            if alone and isinstance(first.module, nn.Linear) and first.a[0].numel() == first.a.shape[-1]:
                linear.setdefault(first.index, {})[first.name] = (name, first)
            elif alone and isinstance(first.module, nn.Embedding):
                squares.append(TokenSquares(first, name))
            else:
                squares.append(BlockSquares(found, name, self._params[name].numel()))
        for parts in linear.values():
            weight_name, weight = parts.get("weight", ("", None))
            bias_name, bias = parts.get("bias", ("", None))
            squares.append(LinearSquares(weight, bias, (weight_name, bias_name)))
        return squares

    def _fall_back(
        self, chunk: Chunk, rest: dict[str, nn.Parameter], kept: Sequence[Tensor]
    ) -> None:
        found = None
        if self._vectorise:
            try:
                found = vectorised_squares(self._network, rest, chunk.x, kept)
            except (RuntimeError, NotImplementedError, TypeError, ValueError):
                self._vectorise = False  # vmap does not know some operation: one by one, then
        if found is None:
            found = looped_squares(self._network, rest, chunk.x, kept)
        for name, squares in found.items():
            self._total[name] += squares


def _source(chunk: Chunk, one: Call, index: int, local: str) -> Source | None:
    """Return a use of a parameter if the rule of its module holds for this call."""
    rule = rule_for(one.module)
    dim = chunk.example_dim.get(one.module)
    if rule is None or dim is None or not one.input_is_intact:
        return None
    if local not in ("weight", "bias") or (dim and not rule.any_leading_dimension):
        return None
    if one.output_shape[dim] != len(chunk) or one.input.shape[dim] != len(chunk):
        return None
    return Source(index, one.module, local, rule, one.input.movedim(dim, 0), dim)


def _wide(p: Tensor) -> torch.dtype:
    return torch.float32 if p.device.type == "mps" else torch.float64
