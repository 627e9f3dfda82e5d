"""Which examples of a loader belong to this process, each to one process only."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)


def share_of_loader(loader: Any, rank: int, world_size: int) -> Iterable[Any]:
    """The examples of a loader that process ``rank`` is to count, without padding duplicates.

    Training shares are padded with duplicates so that all processes make the same number of steps;
    a mean over examples must not count them. Of a DataLoader that is sequential, shuffled without
    replacement, or sharded by torch's ``DistributedSampler`` (which Lightning puts in), process r
    of W takes the examples r, r + W, r + 2W, … of the data set: each example exactly once in all,
    also those that ``drop_last`` leaves out. Of a sampler of one's own, which Lightning shards by
    its wrapper, the share is what the sampler gives, less the padding. Everything else is gone
    through as it is.

    Args:
        loader: the training loader, or any batches.
        rank: this process.
        world_size: how many processes there are; with one the loader is returned as it is.

    Returns:
        Batches.

    Example:
        >>> loader = DataLoader(list(range(5)), batch_size=2)
        >>> [[b.tolist() for b in share_of_loader(loader, rank, 2)] for rank in (0, 1)]
        [[[0, 2], [4]], [[1, 3]]]
    """
    if world_size == 1 or not isinstance(loader, DataLoader):
        return loader
    if isinstance(loader.dataset, IterableDataset):
        return loader
    # A DataLoader that was given a batch sampler keeps its sampler in there.
    batch_sampler = loader.batch_sampler
    sampler = getattr(batch_sampler, "sampler", loader.sampler)
    indices = _indices(sampler, len(loader.dataset), rank, world_size)  # type: ignore[arg-type]
    if indices is None:
        return loader
    size = loader.batch_size
    if size is None and batch_sampler is not None:
        size = getattr(batch_sampler, "batch_size", 1)
    return DataLoader(
        loader.dataset,
        batch_size=size,
        sampler=indices,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
    )


def _indices(sampler: Any, size: int, rank: int, world_size: int) -> Iterable[int] | None:
    if isinstance(sampler, DistributedSamplerWrapper):
        return _Unpadded(sampler)
    with_replacement = isinstance(sampler, RandomSampler) and (
        sampler.replacement or sampler.num_samples != size
    )
    known = isinstance(sampler, DistributedSampler | SequentialSampler | RandomSampler)
    if not known or with_replacement:
        return None
    if isinstance(sampler, DistributedSampler):
        rank, world_size = sampler.rank, sampler.num_replicas
    return range(rank, size, world_size)


class _Unpadded(Sampler[int]):
    """The share of a sharded sampler without the padding, which stands at its end."""

    def __init__(self, sampler: DistributedSampler[Any]) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        return islice(iter(self.sampler), len(self))

    def __len__(self) -> int:
        examples = len(self.sampler.dataset)  # type: ignore[arg-type]
        own = len(range(self.sampler.rank, examples, self.sampler.num_replicas))
        return min(own, self.sampler.num_samples)
