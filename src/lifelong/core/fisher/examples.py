"""Cut and join batches of examples, whatever an example is made of."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

# A tensor whose first dimension counts examples, or nested tuples, named tuples, lists and mappings
# of such. Anything else in them, and a tensor without dimensions, belongs to no single example and
# is left alone; a list of strings as long as the batch is cut like a tensor.
Rows: TypeAlias = Any


def map_tensors(function: Callable[[Tensor], Tensor], x: Rows) -> Rows:
    """Apply a function to every tensor of a batch, keeping its structure.

    Args:
        function: What to do with each tensor.
        x: A batch.

    Returns:
        The same structure with the results.
    """
    if isinstance(x, Tensor):
        return function(x)
    parts = _parts(x)
    return x if parts is None else _rebuilt(x, [map_tensors(function, part) for part in parts])


def take(x: Rows, index: Tensor | slice) -> Rows:
    """Return some examples of a batch."""
    n: int | None = None

    def cut(x: Rows) -> Rows:
        nonlocal n
        if isinstance(x, Tensor):
            return x[index] if x.ndim else x
        if _is_words(x):
            n = count(whole) if n is None else n
            if len(x) != n:
                return x
            return x[index] if isinstance(index, slice) else [x[i] for i in index.tolist()]
        parts = _parts(x)
        return x if parts is None else _rebuilt(x, [cut(part) for part in parts])

    whole = x
    return cut(x)


def tensors_of(x: Rows) -> list[Tensor]:
    """Return the tensors of a batch that count examples, in a fixed order."""
    if isinstance(x, Tensor):
        return [x] if x.ndim else []
    return [tensor for part in _parts(x) or () for tensor in tensors_of(part)]


def with_tensors(x: Rows, tensors: Iterable[Tensor]) -> Rows:
    """Return the batch with other tensors in the places of `tensors_of(x)`."""
    others = iter(tensors)
    return map_tensors(lambda t: next(others) if t.ndim else t, x)


def has_words(x: Rows) -> bool:
    """Return whether a batch holds lists of strings."""
    return _is_words(x) or any(has_words(part) for part in _parts(x) or ())


def count(x: Rows) -> int:
    """Return the number of examples of a batch.

    Args:
        x: The batch.

    Returns:
        The length of the first dimension.

    Raises:
        ValueError: If the tensors disagree, or there is none.
    """
    tensors = tensors_of(x)
    lengths = {len(t) for t in tensors}
    if not lengths:
        raise ValueError(
            f"a batch holds a {type(x).__name__} without a tensor that counts examples; wanted a "
            "tensor, or a tuple or dict of tensors: pass batches as (x, y)"
        )
    if len(lengths) != 1:
        raise ValueError(
            f"a batch holds tensors of shapes {[tuple(t.shape) for t in tensors]}; wanted the "
            "examples along the first dimension of each: pass batches that have them there, of one "
            "example each if need be"
        )
    return lengths.pop()


def bytes_per_row(x: Rows) -> int:
    """Return the memory that one example takes."""
    return sum(t[:1].numel() * t.element_size() for t in tensors_of(x))


def regroup(
    pairs: Iterable[tuple[Rows, Tensor | None]],
    size: Callable[[Rows, Tensor | None], int],
    limit: int | None,
) -> Iterator[tuple[Rows, Tensor | None]]:
    """Yield the examples of all batches, in order, in groups of one size.

    Args:
        pairs: Inputs and targets of the batches.
        size: The wanted number of examples of a group, given the first batch.
        limit: Stop after so many examples; all if None.

    Yields:
        Groups of that size; the last one, and one before a change of the examples' shape, may be
        smaller.
    """
    waiting: list[Rows] = []
    wanted, held, seen = 0, 0, 0
    for x, y in pairs:
        pair = (x,) if y is None else (x, y)
        n = count(pair)
        if n == 0:
            continue
        wanted = wanted or size(x, y)
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


def _parts(x: Rows) -> list[Rows] | None:
    # what a container holds; None for what is no container
    if isinstance(x, PackedSequence):
        raise ValueError(
            "a batch holds a PackedSequence, whose examples lie across its rows; wanted padded "
            "tensors and lengths: pack them in the network's forward"
        )
    if isinstance(x, Mapping):
        return list(x.values())
    return list(x) if isinstance(x, tuple | list) and not _is_words(x) else None


def _rebuilt(x: Rows, parts: list[Rows]) -> Rows:
    if isinstance(x, Mapping):
        named = dict(zip(x, parts, strict=True))
        if type(x) is dict or not hasattr(x, "update"):
            return named
        other = copy.copy(x)  # with whatever else its class knows
        other.update(named)
        return other
    if hasattr(x, "_fields"):
        return type(x)(*parts)
    return tuple(parts) if isinstance(x, tuple) else parts


def _is_words(x: Rows) -> bool:
    return isinstance(x, list) and bool(x) and all(isinstance(word, str) for word in x)


def _cut(pair: Rows, start: int, stop: int) -> Rows:
    return take(pair, slice(start, stop))


def _layout(x: Rows) -> Any:
    # equal where two batches can be joined
    if isinstance(x, Tensor):
        return (x.shape[1:], x.dtype) if x.ndim else (x.item(), x.dtype)
    if isinstance(x, Mapping):
        return {key: _layout(value) for key, value in x.items()}
    if _is_words(x):
        return list
    parts = _parts(x)
    if parts is not None:
        return tuple(_layout(part) for part in parts)
    return x if x is None or isinstance(x, str | int | float) else id(x)


def _joined(pairs: list[Rows]) -> tuple[Rows, Tensor | None]:
    joined = pairs[0] if len(pairs) == 1 else _concatenated(pairs)
    return joined[0], joined[1] if len(joined) == 2 else None


def _concatenated(batches: list[Rows]) -> Rows:
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(batches) if first.ndim else first
    if isinstance(first, Mapping):
        columns: list[list[Rows]] = [[batch[key] for batch in batches] for key in first]
    elif _is_words(first):
        return [word for batch in batches for word in batch]
    elif _parts(first) is None:
        return first
    else:
        columns = [list(column) for column in zip(*batches, strict=True)]
    return _rebuilt(first, [_concatenated(column) for column in columns])
