"""Cut and join batches of examples, whatever tensors an example is made of."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

# a tensor whose first dimension counts examples, or a tuple, list or dict of such
Rows: TypeAlias = Any


def map_rows(function: Callable[[Tensor], Tensor], x: Rows) -> Rows:
    """Apply a function to every tensor of a batch, keeping its structure.

    Args:
        function: What to do with each tensor.
        x: A tensor, or tuples, lists and dicts of tensors.

    Returns:
        The same structure with the results.

    Raises:
        TypeError: If something in the structure is no tensor.
    """
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, dict):
        return {key: map_rows(function, value) for key, value in x.items()}
    if isinstance(x, tuple | list):
        return tuple(map_rows(function, value) for value in x)
    raise TypeError(
        f"a batch holds a {type(x).__name__}; wanted a tensor, or a tuple or dict of tensors: "
        "pass batches as (x, y)"
    )


def take(x: Rows, index: Tensor | slice) -> Rows:
    """Return some examples of a batch."""
    return map_rows(lambda t: t[index], x)


def tensors_of(x: Rows) -> list[Tensor]:
    """Return the tensors of a batch in a fixed order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_rows(keep, x)
    return found


def count(x: Rows) -> int:
    """Return the number of examples of a batch.

    Args:
        x: The batch.

    Returns:
        The length of the first dimension.

    Raises:
        ValueError: If the tensors disagree, or one has no dimension.
    """
    tensors = tensors_of(x)
    lengths = {t.shape[0] if t.ndim else -1 for t in tensors}
    if len(lengths) != 1 or -1 in lengths:
        raise ValueError(
            f"a batch holds tensors of shapes {[tuple(t.shape) for t in tensors]}; wanted the "
            "examples along the first dimension of each"
        )
    return lengths.pop()


def bytes_per_row(x: Rows) -> int:
    """Return the memory that one example takes."""
    return sum(t[:1].numel() * t.element_size() for t in tensors_of(x))


def call(network: nn.Module, x: Rows) -> Tensor:
    """Return the network's output: a tuple becomes arguments, a dict keyword arguments.

    Args:
        network: The network.
        x: The examples.

    Returns:
        The output `[N, ..., C]`.

    Raises:
        TypeError: If the output is no tensor of floating point numbers.
    """
    if isinstance(x, dict):
        output = network(**x)
    elif isinstance(x, tuple):
        output = network(*x)
    else:
        output = network(x)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        came = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(
            f"the network returned {came}; wanted one tensor of class scores [N, ..., C]: "
            "pass a network whose forward returns the logits"
        )
    return output


def regroup(
    batches: Iterable[Any], size: Callable[[Rows], int], limit: int | None
) -> Iterator[tuple[Rows, Tensor | None]]:
    """Yield the examples of all batches, in order, in groups of one size.

    Args:
        batches: Pairs `(x, y)`.
        size: The wanted number of examples of a group, given the first batch.
        limit: Stop after so many examples; all if None.

    Yields:
        Groups of that size; the last one, and one before a change of the examples' shape, may be
        smaller.

    Raises:
        TypeError: If a batch is no pair.
    """
    waiting: list[Rows] = []
    wanted, held, seen = 0, 0, 0
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"a batch is a {type(batch).__name__}; wanted a pair (x, y)")
        x, y = batch
        y = y if isinstance(y, Tensor) else None
        pair = (x,) if y is None else (x, y)
        n = count(pair)
        if n == 0:
            continue
        wanted = wanted or size(x)
        if limit is not None and seen + n > limit:
            n = limit - seen
            pair = _cut(pair, 0, n)
        seen += n
        if waiting and _layout(waiting[-1]) != _layout(pair):
            yield _joined(waiting)
            waiting, held = [], 0
        start = 0
        while held + n - start >= wanted:
            stop = start + wanted - held
            yield _joined([*waiting, _cut(pair, start, stop)])
            waiting, held, start = [], 0, stop
        if start < n:
            waiting.append(_cut(pair, start, n))
            held += n - start
        if limit is not None and seen >= limit:
            break
    if waiting:
        yield _joined(waiting)


def _cut(pair: Rows, start: int, stop: int) -> Rows:
    return take(pair, slice(start, stop))


def _layout(x: Rows) -> Any:
    if isinstance(x, Tensor):
        return (x.shape[1:], x.dtype)
    if isinstance(x, dict):
        return {key: _layout(value) for key, value in x.items()}
    return tuple(_layout(value) for value in x)


def _joined(pairs: list[Rows]) -> tuple[Rows, Tensor | None]:
    joined = pairs[0] if len(pairs) == 1 else _concatenated(pairs)
    return joined[0], joined[1] if len(joined) == 2 else None


def _concatenated(parts: list[Rows]) -> Rows:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return {key: _concatenated([part[key] for part in parts]) for key in first}
    return tuple(_concatenated(list(column)) for column in zip(*parts, strict=True))
