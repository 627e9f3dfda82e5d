"""What a DataLoader goes through, and the same in other shares and orders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)


def examples(loader: Any) -> Dataset[Any] | None:
    """Return the examples that a loader goes through, each once.

    Args:
        loader: Any loader.

    Returns:
        Its data set, or the part that its sampler draws from; None where that cannot be known: no
        plain DataLoader, no map-style data set, a sampler of another's making.

    Example:
        >>> len(examples(DataLoader([1, 2, 3], sampler=SubsetRandomSampler([0, 2]))))
        2
        >>> examples([1, 2]) is None
        True
    """
    # a subclass may give other batches than its data set and sampler say
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return None
    sampler = _sampler(loader)
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(loader.dataset, list(sampler.indices))
    known = (SequentialSampler, RandomSampler, WeightedRandomSampler, DistributedSampler)
    return loader.dataset if isinstance(sampler, known) else None


def rebuilt(
    loader: DataLoader[Any],
    dataset: Dataset[Any],
    *,
    sampler: Any = None,
    shuffle: bool | None = None,
    drop_last: bool = False,
) -> DataLoader[Any]:
    """Return a DataLoader with the settings of another.

    Args:
        loader: Whose batch size, collation and workers are taken.
        dataset: What it goes through.
        sampler: The places of the examples, in order.
        shuffle: Whether they are shuffled, where there is no sampler.
        drop_last: Whether a last batch that is not full is left out.

    Returns:
        The new loader.
    """
    size = loader.batch_size
    if size is None and loader.batch_sampler is not None:
        size = getattr(loader.batch_sampler, "batch_size", 1)
    return DataLoader(
        dataset,
        batch_size=size,
        sampler=sampler,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
    )


def evaluation_share(loader: Any, rank: int, world_size: int) -> DataLoader[Any] | None:
    """Return a loader of one process's examples, in their order and without duplicates.

    Args:
        loader: The whole.
        rank: The process.
        world_size: How many there are.

    Returns:
        The loader of the examples rank, rank + world_size, …; None where the loader's examples are
        not known.

    Example:
        >>> share = evaluation_share(DataLoader([0, 1, 2, 3, 4], batch_size=2), 1, 2)
        >>> [batch.tolist() for batch in share]
        [[1, 3]]
    """
    dataset = examples(loader)
    if dataset is None:
        return None
    places: Iterable[int] = range(rank, len(dataset), world_size)  # type: ignore[arg-type]
    return rebuilt(loader, dataset, sampler=places)


def training_share(loader: Any, rank: int, world_size: int, seed: int) -> DataLoader[Any] | None:
    """Return a loader of one process's training examples, as many batches as in the others.

    Args:
        loader: The whole.
        rank: The process.
        world_size: How many there are.
        seed: Of the order, if the loader shuffles.

    Returns:
        The loader, whose sampler wants `set_epoch`; None where the loader's order is not known.
    """
    dataset = examples(loader)
    shuffle = None if dataset is None else _shuffles(_sampler(loader))
    if dataset is None or shuffle is None:
        return None
    sampler: DistributedSampler[Any] = DistributedSampler(
        dataset, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed
    )
    drops = bool(getattr(loader.batch_sampler, "drop_last", False))
    return rebuilt(loader, dataset, sampler=sampler, drop_last=drops)


def _sampler(loader: DataLoader[Any]) -> Any:
    if loader.batch_sampler is None:
        return loader.sampler
    # a batch sampler of another's making may leave its sampler's order
    return loader.batch_sampler.sampler if type(loader.batch_sampler) is BatchSampler else None


def _shuffles(sampler: Any) -> bool | None:
    if isinstance(sampler, RandomSampler):
        whole = not sampler.replacement and sampler.num_samples == len(sampler.data_source)
        return True if whole else None
    if isinstance(sampler, DistributedSampler):
        return sampler.shuffle
    known = {SequentialSampler: False, SubsetRandomSampler: True}
    return known.get(type(sampler))
