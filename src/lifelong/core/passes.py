"""Cut a stream of batches into chunks of examples, each with the directions to be pulled back.

This is the loop that every estimate of the Fisher information shares: `fisher_diagonal` squares what
comes back, the Kronecker factors take outer products.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.core.capture import Call, Capture
from lifelong.core.labels import Contrasts, Labels, directions, kept_directions
from lifelong.core.rows import Rows, bytes_per_row, call, count, map_rows, regroup, tensors_of
from lifelong.core.traceless import device_of

Progress = Callable[[int, int | None], None]

# examples whose passes are planned together, and their memory; what their graph may take
_BUFFER_ROWS, _BUFFER_BYTES, _GRAPH_BYTES, _CHUNK_ROWS = 8192, 2**24, 2**25, 1024


@dataclass
class Chunk:
    """Some examples with their graph.

    Attributes:
        x: The examples.
        output: The network's output `[N, ..., C]`.
        calls: The recorded calls.
        directions: The directions in the output whose pullbacks `J^T u` make up the Fisher
            information: per example `F = Σ_r (Jᵀ u_r)(Jᵀ u_r)ᵀ`, to be divided by the number of
            examples. To be walked through once.
        example_dim: For each module that was recorded, the dimension of its output that counts
            examples; a module that is missing has no such dimension in some call.
    """

    x: Rows
    output: Tensor
    calls: Sequence[Call]
    directions: Iterator[Tensor]
    example_dim: dict[nn.Module, int]

    def __len__(self) -> int:
        return len(self.output)


@dataclass
class Plan:
    """What is wanted of a pass over the data.

    Attributes:
        labels: Over which labels the score is averaged.
        samples: How many examples to use, all if None.
        threshold: The share of the labels' variance that may be left out, see `fisher_diagonal`.
        generator: The randomness of sampled labels.
        progress: Called with the number of examples done and in all (None where unknown).
        chunk: The number of examples in one graph; chosen by memory if None.
    """

    labels: Labels = "exact"
    samples: int | None = None
    threshold: float = 0.0
    generator: torch.Generator | None = None
    progress: Progress | None = None
    chunk: int | None = None


def chunks(capture: Capture, batches: Iterable[Any], plan: Plan) -> Iterator[Chunk]:
    """Yield chunks of examples that together cover the batches, once each.

    How the examples were cut into batches makes no difference. To be used inside `traceless` and
    the capture's `with` block. A chunk's graph is gone when the next one is asked for.

    Args:
        capture: The network, and what to record of it.
        batches: Pairs `(x, y)`.
        plan: What is wanted.

    Yields:
        The chunks. Examples that need no pass at all (a network that is certain) come in none:
        divide by the number of examples that `plan.progress` counts, or use `counted`.

    Raises:
        ValueError: If there are no examples, or an output is no finite `[N, ..., C]`.
    """
    network = capture.network
    device = device_of(network)
    layout = None
    done, total = 0, _total(batches, plan.samples)

    def buffer_rows(x: Rows) -> int:
        return max(2, min(_BUFFER_ROWS, _BUFFER_BYTES // max(1, bytes_per_row(x))))

    for x, y in regroup(batches, buffer_rows, plan.samples):
        n = count(x)
        if n == 0:
            continue
        x = map_rows(lambda t: t.to(device), x)
        layout = layout or _Layout(capture, x)
        rows = plan.chunk or layout.chunk_rows
        for index, needed in _order(network, x, plan, rows):
            part = x if index is None else map_rows(lambda t, i=index: t[i], x)
            output = checked(capture.run(part), count(part))
            targets = None if y is None else y.to(device) if index is None else y.to(device)[index]
            found = directions(output, plan.labels, targets, plan.generator, needed)
            yield Chunk(part, output, capture.calls, found, layout.example_dim)
        done += n
        if plan.progress is not None:
            plan.progress(done, total)
    if not done:
        raise ValueError(
            "the batches hold no example; wanted at least one: an iterator that was used up is "
            "empty, pass a list or a DataLoader"
        )


def checked(output: Tensor, n: int) -> Tensor:
    """Return the network's output if it can be the logits of n examples.

    Args:
        output: What the network returned.
        n: The number of examples it was given.

    Returns:
        The output.

    Raises:
        ValueError: If its shape does not fit, or a number in it is not finite.
    """
    if output.ndim < 2 or len(output) != n or output.shape[-1] < 2:
        raise ValueError(
            f"the network's output has shape {tuple(output.shape)} for {n} examples; wanted "
            f"[{n}, ..., C] with the scores of C ≥ 2 classes in the last dimension"
        )
    finite = output.detach().isfinite()
    if not finite.all():
        bad = (~finite).flatten(1).any(dim=1)
        first = output.detach()[~finite][0].item()
        raise ValueError(
            f"the network's output is {first} for {int(bad.sum())} of {n} examples; wanted finite "
            "logits: look for a diverged network or bad inputs"
        )
    return output


def _total(batches: Iterable[Any], samples: int | None) -> int | None:
    if isinstance(batches, list | tuple):
        held = sum(count(b[0]) for b in batches if isinstance(b, tuple | list) and len(b) == 2)
        return held if samples is None else min(held, samples)
    return samples


def _order(
    network: nn.Module, x: Rows, plan: Plan, rows: int
) -> Iterator[tuple[Tensor | slice | None, int | None]]:
    """Yield which examples go into one chunk, and how many directions they need."""
    n = count(x)
    if plan.labels != "exact" or plan.threshold == 0:
        for start in range(0, n, rows):
            yield slice(start, start + rows), None
        return
    weights = []
    with torch.no_grad():
        for start in range(0, n, rows):
            part = map_rows(lambda t, start=start: t[start : start + rows], x)
            output = checked(call(network, part), count(part))
            weights.append(Contrasts(output).weights)
    needed = kept_directions(torch.cat(weights), plan.threshold)
    # examples of about equal need share a chunk: a pass serves all of it
    needed, order = needed.sort(descending=True, stable=True)
    for start in range(0, n, rows):
        most = int(needed[start])
        if most:
            yield order[start : start + rows], most


class _Layout:
    """Learn from two tiny batches which dimension counts examples, and what an example's graph takes.

    Two and three examples tell the two apart from every other dimension, whatever the sizes of the
    chunks to come: a `[T, N, d]` input with T = N must not be taken for examples first.
    """

    def __init__(self, capture: Capture, x: Rows) -> None:
        self._own = {t.untyped_storage().data_ptr() for t in _state(capture.network)}
        device = tensors_of(x)[0].device
        shapes, sizes = [], []
        for n in (2, 3):
            index = torch.arange(n, device=device) % count(x)
            self._held: dict[int, int] = {}
            with torch.autograd.graph.saved_tensors_hooks(self._weigh, lambda t: t):
                output = capture.run(map_rows(lambda t, index=index: t[index], x))
                checked(output, n)
            self._weigh(output)
            shapes.append([(c.module, c.output_shape) for c in capture.calls])
            sizes.append(sum(self._held.values()))
        capture.calls.clear()
        each = max(1, sizes[1] - sizes[0])
        self.chunk_rows = max(1, min(_CHUNK_ROWS, _GRAPH_BYTES // each))
        self.example_dim = self._example_dims(*shapes)

    def _weigh(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._held[storage.data_ptr()] = storage.nbytes()
        return tensor

    @staticmethod
    def _example_dims(
        two: list[tuple[nn.Module, torch.Size]], three: list[tuple[nn.Module, torch.Size]]
    ) -> dict[nn.Module, int]:
        if [module for module, _ in two] != [module for module, _ in three]:
            return {}
        found: dict[nn.Module, set[int]] = {}
        for (module, small), (_, large) in zip(two, three, strict=True):
            changed = {d for d, (a, b) in enumerate(zip(small, large, strict=False)) if a != b}
            counts = len(small) == len(large) and all(
                (small[d], large[d]) == (2, 3) for d in changed
            )
            # not one dimension, or one that does not count examples: no rule may use the module
            dims = changed if counts and len(changed) == 1 else {-1, -2}
            found.setdefault(module, set()).update(dims)
        return {module: dims.pop() for module, dims in found.items() if len(dims) == 1}


def _state(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()
