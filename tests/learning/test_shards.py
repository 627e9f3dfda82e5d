"""Every example of a loader belongs to one process, whatever the sampler pads."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from lifelong.learning.shards import share_of_loader

Make = Callable[[list[int], int, int], DataLoader[Any]]


def sharded(**also: Any) -> Make:
    def make(data: list[int], rank: int, world: int) -> DataLoader[Any]:
        sampler = DistributedSampler(data, world, rank, **also)  # type: ignore[arg-type]
        return DataLoader(data, batch_size=3, sampler=sampler)  # type: ignore[arg-type]

    return make


def wrapped(data: list[int], rank: int, world: int) -> DataLoader[Any]:
    own = DistributedSamplerWrapper(range(len(data)), num_replicas=world, rank=rank, shuffle=False)
    return DataLoader(data, batch_size=3, sampler=own)  # type: ignore[arg-type]


def batch_sampled(data: list[int], rank: int, world: int) -> DataLoader[Any]:
    sampler = DistributedSampler(data, world, rank)  # type: ignore[arg-type]
    return DataLoader(data, batch_sampler=BatchSampler(sampler, 4, drop_last=True))  # type: ignore[arg-type]


MAKERS: dict[str, Make] = {
    "sequential": lambda data, rank, world: DataLoader(data, batch_size=3),  # type: ignore[arg-type]
    "shuffled": lambda data, rank, world: DataLoader(data, batch_size=3, shuffle=True),  # type: ignore[arg-type]
    "dropping": lambda data, rank, world: DataLoader(data, batch_size=3, drop_last=True),  # type: ignore[arg-type]
    "sharded": sharded(),
    "sharded in order": sharded(shuffle=False),
    "sharded and dropping": sharded(drop_last=True),
    "a sampler of one's own": wrapped,
    "batch sampler": batch_sampled,
    "unbatched": lambda data, rank, world: DataLoader(data, batch_size=None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("size", "world"), [(13, 2), (12, 2), (7, 4), (2, 3)])
def test_the_shares_hold_every_example_once(name: str, size: int, world: int) -> None:
    if "batch sampler" in name and size < 4:
        pytest.skip("no full batch")
    counts: Counter[int] = Counter()
    for rank in range(world):
        loader = MAKERS[name](list(range(size)), rank, world)
        for batch in share_of_loader(loader, rank, world):
            counts.update(torch.as_tensor(batch).flatten().tolist())
    assert counts == Counter(range(size))


def test_padding_would_have_been_counted() -> None:
    data = list(range(13))
    seen = [x for r in (0, 1) for batch in sharded()(data, r, 2) for x in batch.tolist()]
    assert len(seen) == 14


def test_what_cannot_be_shared_is_gone_through_as_it_is() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    drawn = RandomSampler(range(9), replacement=True)
    for loader in (
        [1, 2, 3],
        DataLoader(Stream()),
        DataLoader(range(9), sampler=drawn),  # type: ignore[arg-type]
    ):
        assert share_of_loader(loader, 1, 2) is loader
    alone: Any = DataLoader(range(9), sampler=SequentialSampler(range(9)))  # type: ignore[arg-type]
    assert share_of_loader(alone, 0, 1) is alone


def test_the_share_is_loaded_as_the_loader_loads() -> None:
    def collate(parts: list[int]) -> str:
        return "".join(map(str, parts))

    loader: Any = DataLoader(range(6), batch_size=2, collate_fn=collate, num_workers=0)  # type: ignore[arg-type]
    assert list(share_of_loader(loader, 1, 2)) == ["13", "5"]
