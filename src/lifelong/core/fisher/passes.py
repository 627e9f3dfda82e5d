"""Cut a stream of batches into chunks of examples, each with the directions to be pulled back.

This is the loop that every estimate of the Fisher information shares: `fisher_diagonal` squares
what comes back, the Kronecker factors take outer products.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.core.fisher.capture import Call, Capture
from lifelong.core.fisher.examples import Rows, bytes_per_row, count, map_tensors, regroup, take
from lifelong.core.fisher.forward_cache import Replay
from lifelong.core.fisher.likelihoods.base import Labels, check_labels, directions
from lifelong.core.fisher.likelihoods.directions import kept_directions
from lifelong.core.fisher.probe import Layout, checked
from lifelong.core.fisher.traceless import device_of

Progress = Callable[[int, int | None], None]

# of the examples whose passes are planned together: their number, and the memory of their inputs,
# of what linear layers put out for them, and of the weights of their directions
_BUFFER_ROWS, _INPUT_BYTES, _REPLAY_BYTES, _WEIGHT_BYTES = 8192, 2**24, 2**25, 2**23


@dataclass
class Chunk:
    """Some examples with their graph.

    Attributes:
        x: The examples.
        output: The network's output `[N, ...]`.
        calls: The recorded calls.
        directions: The directions in the output whose pullbacks make up the Fisher information: per
            example `F = Σ_r (Jᵀ u_r)(Jᵀ u_r)ᵀ`, to be summed over the chunks and divided by the
            number of examples. To be walked through once.
        example_dim: For each recorded module, the dimension of its output that counts examples; a
            module that is missing has no such dimension in some call.
    """

    x: Rows
    output: Tensor
    calls: Sequence[Call]
    directions: Iterator[Tensor]
    example_dim: dict[nn.Module, int]

    def __len__(self) -> int:
        return len(self.output)

    def release(self) -> None:
        """Let go of the graph."""
        self.output, self.calls, self.directions = self.output.detach(), (), iter(())


@dataclass
class Plan:
    """What is wanted of a pass over the data.

    Attributes:
        labels: Over which labels the score is averaged.
        samples: How many examples to use, the first ones; all if None.
        threshold: The share of the labels' variance that may be left out, see `fisher_diagonal`.
        generator: The randomness of sampled labels.
        progress: Called with the number of examples done and in all (None where unknown).
        chunk: The number of examples in one graph; chosen by memory if None.
        total: How many examples there will be, None if unknown.
        done: The number of examples that the pass has covered so far.
    """

    labels: Labels = "exact"
    samples: int | None = None
    threshold: int | float = 0.0
    generator: torch.Generator | None = None
    progress: Progress | None = None
    chunk: int | None = None
    total: int | None = None
    done: int = 0

    def __post_init__(self) -> None:
        check_labels(self.labels)
        if not 0 <= self.threshold < 1:
            raise ValueError(
                f"threshold={self.threshold} came; wanted a share from 0 up to 1: type threshold=0"
            )
        for name, value in (("samples", self.samples), ("chunk", self.chunk)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} came; wanted at least 1: type {name}=None")


def chunks(
    capture: Capture, pairs: Iterable[tuple[Rows, Tensor | None]], plan: Plan
) -> Iterator[Chunk]:
    """Yield chunks of examples that together cover the batches, and count them in `plan.done`.

    How the examples were cut into batches makes no difference. To be used inside `traceless` and
    the capture's `with` block. A chunk's graph is gone when the next one is asked for. Examples
    that need no pass (the network is certain of them) are counted and come in no chunk: divide sums
    by `plan.done`.

    Args:
        capture: The network, and what to record of it.
        pairs: The batches' inputs and targets, see `Evaluation.pairs`.
        plan: What is wanted.

    Yields:
        The chunks.

    Raises:
        ValueError: If there are no examples, or an output does not fit the likelihood.
    """
    device = device_of(capture.network)
    likelihood = capture.evaluation.likelihood
    layouts: list[Layout] = []

    def buffer_rows(x: Rows, y: Tensor | None) -> int:
        some = map_tensors(lambda t: t.to(device), take(x, slice(0, 3)))
        few = None if y is None else y[:3].to(device)
        layouts.append(Layout(capture, some, few, plan.labels))
        weights = 8 * layouts[0].directions
        return max(
            1,
            min(
                _BUFFER_ROWS,
                _INPUT_BYTES // max(1, bytes_per_row(x)),
                _REPLAY_BYTES // max(1, layouts[0].replay_bytes),
                _WEIGHT_BYTES // weights,
            ),
        )

    for x, y in regroup(pairs, buffer_rows, plan.samples):
        x = map_tensors(lambda t: t.to(device), x)
        y = None if y is None else y.to(device)
        before, layout = plan.done, layouts[0]
        for part in _planned(capture, x, y, plan, layout):
            with part.replay or nullcontext():
                some = take(x, part.index)
                output, targets = capture.run(some, None if y is None else y[part.index])
            checked(output, count(some), likelihood)
            labels = plan.labels, targets, plan.generator
            found = directions(likelihood, output, *labels, part.needed)
            chunk = Chunk(some, output, tuple(capture.calls), found, layout.example_dim)
            capture.calls.clear()
            del output, targets, labels, found
            yield chunk
            chunk.release()
            plan.done = before + part.stop
            if plan.progress is not None and part.stop < count(x):
                plan.progress(plan.done, plan.total)
        plan.done = before + count(x)
        if plan.progress is not None:
            plan.progress(plan.done, plan.total)
    if not plan.done:
        raise ValueError(
            "the batches hold no example; wanted at least one: an iterator that was used up is "
            "empty, pass a list or a DataLoader"
        )


@dataclass
class _Part:
    """Examples of a buffer that are evaluated together: which, how far, and their directions."""

    index: Tensor | slice
    stop: int
    needed: int | None = None
    replay: Any = None


def _planned(
    capture: Capture, x: Rows, y: Tensor | None, plan: Plan, layout: Layout
) -> Iterator[_Part]:
    n, rows = count(x), plan.chunk or layout.chunk_rows
    starts = range(0, n, rows)
    if plan.labels != "exact" or plan.threshold == 0 or layout.directions < 3:
        for start in starts:
            yield _Part(slice(start, start + rows), min(n, start + rows))
        return
    replay = Replay(layout.replayed)
    likelihood = capture.evaluation.likelihood
    weights = []
    with torch.no_grad(), replay.recording(n):
        for start in starts:
            rows_here = slice(start, start + rows)
            some = take(x, rows_here)
            output, targets = capture.evaluation(some, None if y is None else y[rows_here])
            checked(output, count(some), likelihood)
            weights.append(likelihood.exact(output, targets).weights)
    needed = kept_directions(torch.cat(weights), plan.threshold)
    # examples of about equal need share a chunk, for a pass serves all of it
    needed, order = needed.sort(descending=True, stable=True)
    for start, most in zip(starts, needed[::rows].tolist(), strict=True):
        if most:
            index = order[start : start + rows]
            yield _Part(index, min(n, start + rows), most, replay.of(index))
