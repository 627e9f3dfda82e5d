"""A few examples of a stream: the same ones, in whatever order and shares it is gone through."""

import heapq
import math
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, distributed

from lifelong.core.fisher.examples import Rows, count, map_tensors, regroup, take, tensors_of
from lifelong.errors import LifelongError

PIECE = 256  # examples that are evaluated together


class Sample:
    r"""A draw without replacement of ``size`` examples, likelier ones first: priority sampling.

    An example's priority is w / u with its weight w and a number u in (0, 1] that is a hash of its
    content and a salt; those of the highest priority are kept. With τ the priority of the first
    that was left out,

        Σ_all x ≈ Σ_kept x · max(1, τ / w) · c,   c = Σ_all w / Σ_kept max(w, τ)

    for any x: without c there is no bias, with it (1 in the mean) less noise where x goes with w,
    and none for x = w. Which examples are kept depends on neither their order nor the batches,
    nor on how many processes share them, and no random state is used up. An example that comes
    twice counts once.

    Args:
        size: how many to keep, at most.
        salt: draws others.

    Source:
        Duffield, Lund and Thorup 2007, Priority sampling for estimation of arbitrary subset sums.
    """

    def __init__(self, size: int, salt: int = 0) -> None:
        self.size = size
        self.population = 0  # examples that came
        self.weight = 0.0  # of all of them
        self._key = salt.to_bytes(16, "little", signed=True)
        # (priority, digest, weight, example), the lowest priority first, one more than is kept
        self._kept: list[tuple[float, bytes, float, Rows]] = []
        self._digests: set[bytes] = set()

    def add(self, batch: Rows, weights: Tensor | None = None) -> None:
        """Take a batch's turn in the draw.

        Args:
            batch: of examples, along the first dimension of each tensor.
            weights: above 0, one for each example [N]; None for equal ones.
        """
        columns = [t.detach().cpu().contiguous() for t in tensors_of(batch)]
        n = count(batch)
        rows = [t.reshape(n, -1).view(torch.uint8).numpy() for t in columns if t.numel()]
        each = [1.0] * n if weights is None else weights.double().tolist()
        self.population += n
        self.weight += math.fsum(each)
        for place, weight in enumerate(each):
            hashed = blake2b(key=self._key, digest_size=16)
            for row in rows:
                hashed.update(row[place].data)
            digest = hashed.digest()
            unit = (int.from_bytes(digest[:7], "big") + 1) / 2**56
            if len(self._kept) <= self.size or weight / unit > self._kept[0][0]:
                self._take(weight / unit, digest, weight, take(batch, slice(place, place + 1)))

    def merge(self, others: Iterable["Sample"]) -> None:
        """Take up what other processes have drawn with the same salt.

        Args:
            others: from other examples.
        """
        for other in others:
            self.population += other.population
            self.weight += other.weight
            for entry in other._kept:
                self._take(*entry)

    def drawn(self) -> tuple[list[Rows], Tensor]:
        """What was drawn.

        Returns:
            Batches of at most 256 examples of one shape, the highest priority first; and for each
            example the number m [n] with which the mean of m · x over them estimates the mean of x
            over all that came.
        """
        ordered = sorted(self._kept, key=lambda entry: (-entry[0], entry[1]))
        kept = ordered[: self.size]
        if len(ordered) > self.size:
            bound = ordered[self.size][0]
            whole = math.fsum(max(weight, bound) for _, _, weight, _ in kept)
            alone = len(kept) / self.population * self.weight / whole
            numbers = [alone * max(1.0, bound / weight) for _, _, weight, _ in kept]
        else:
            numbers = [1.0] * len(kept)
        pieces = regroup(((one, None) for *_, one in kept), lambda *_: PIECE, None)
        return [piece for piece, _ in pieces], torch.tensor(numbers, dtype=torch.float64)

    def _take(self, priority: float, digest: bytes, weight: float, one: Rows) -> None:
        if digest in self._digests:
            return
        self._digests.add(digest)
        heapq.heappush(self._kept, (priority, digest, weight, plain(one)))
        if len(self._kept) > self.size + 1:
            self._digests.discard(heapq.heappop(self._kept)[1])


def plain(batch: Rows) -> Rows:
    """A copy of a batch that can be kept: tensors on the CPU in dicts, lists and tuples.

    Args:
        batch: of examples.

    Returns:
        The copy.

    Raises:
        LifelongError: when it holds something else, which no checkpoint could carry.
    """
    if isinstance(batch, Tensor):
        return batch.detach().cpu().clone()
    if isinstance(batch, Mapping):
        return {key: plain(value) for key, value in batch.items()}
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        return type(batch)(plain(part) for part in batch)
    if batch is None or isinstance(batch, str | int | float | bool):
        return batch
    raise LifelongError(
        f"a batch holds a {type(batch).__name__}, which cannot be kept in a checkpoint; wanted "
        "tensors in tuples, lists or dicts"
    )


def moved(batch: Rows, device: Any) -> Rows:
    """A batch on a device.

    Args:
        batch: of examples.
        device: where to.

    Returns:
        The batch there.
    """
    return map_tensors(lambda t: t.to(device), batch)


def bytes_of(pieces: Iterable[Rows]) -> int:
    """The memory that batches take.

    Args:
        pieces: the batches.

    Returns:
        Bytes of their tensors.
    """
    return sum(t.numel() * t.element_size() for piece in pieces for t in tensors_of(piece))


def drawn_together(sample: Sample) -> Sample:
    """What the samples of all processes come to, each of a share of its own.

    Args:
        sample: of this process's share; what several processes had counts once.

    Returns:
        A sample, the same in each process.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return sample
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, sample)
    whole = Sample(sample.size)
    whole.merge(found)
    return whole
