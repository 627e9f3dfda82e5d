"""A stranger's loader gives the same bits whatever was drawn before, in one process or more."""

import random
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lifelong.data.loaders import examples
from lifelong.data.seeded import SeededLoader
from lifelong.errors import LifelongError


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Examples that carry their number, and draws of all three libraries."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        drawn = [float(torch.rand(())), float(np.random.rand()), random.random()]
        return torch.tensor([index, *drawn]), torch.tensor(index)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __init__(self, count: int, *, sized: bool = True) -> None:
        self.count = count
        if sized:
            Stream.__len__ = lambda self: self.count  # type: ignore[attr-defined]
        elif hasattr(Stream, "__len__"):
            del Stream.__len__

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (Noisy(self.count)[index] for index in range(self.count))


def seeded(loader: Any, **options: Any) -> SeededLoader:
    return SeededLoader(loader, **{"name": "it", "purpose": "train", "seed": 0} | options)


def noisy(count: int = 18, **options: Any) -> SeededLoader:
    own = {k: options.pop(k) for k in ("seed", "train", "rank", "world_size") if k in options}
    return seeded(DataLoader(Noisy(count), **{"batch_size": 4, "shuffle": True} | options), **own)


def bits(batches: Any) -> list[list[list[float]]]:
    return [images.tolist() for images, _ in batches]


def numbers(batches: Any) -> list[int]:
    return [number for _, labels in batches for number in labels.tolist()]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("given", [0, 2, 5])
def test_a_resumed_pass_has_the_bits_of_the_uninterrupted_one(num_workers: int, given: int) -> None:
    saved = noisy(num_workers=num_workers)
    saved.set_epoch(1)
    passing = iter(saved)
    seen = [next(passing)[0].tolist() for _ in range(given)]
    state = saved.state_dict()
    passing.close()

    torch.manual_seed(99)
    resumed = noisy(num_workers=num_workers)
    resumed.load_state_dict(state)
    after = bits(resumed)
    whole = noisy(num_workers=num_workers)
    whole.set_epoch(1)
    if given == len(whole):
        whole.set_epoch(2)
        assert after == bits(whole)
    else:
        assert seen + after == bits(whole)
        assert len(after) == 5 - given
        assert bits(resumed) == bits(whole)  # and the epoch after it


def test_an_epoch_is_a_pure_function_of_seed_and_epoch() -> None:
    walked = noisy()
    passes = [bits(walked) for _ in range(3)]
    jumped = noisy()
    jumped.set_epoch(2)
    assert bits(jumped) == passes[2]
    assert passes[0] != passes[1]
    assert bits(noisy(seed=1)) != passes[0]
    assert sorted(numbers(noisy())) == list(range(18))
    # three libraries, none of them the same in two examples
    drawn = torch.tensor(list(chain(*passes[0])))[:, 1:]
    assert len(drawn.unique()) == 3 * 18


def test_the_outer_random_states_are_neither_used_nor_changed() -> None:
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = []
    for images, _ in (batches := noisy()):
        first.append(images.tolist())
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.random.get_state()[1].tolist() == states[1]
        assert random.getstate() == states[2]
    assert len(first) == len(batches)
    torch.manual_seed(4), np.random.seed(4), random.seed(4)
    interleaved = []
    for images, _ in noisy():
        torch.rand(3), np.random.rand(), random.random()
        interleaved.append(images.tolist())
    assert interleaved == first


def test_generators_that_the_loader_holds_are_seeded_too() -> None:
    def loader() -> SeededLoader:
        generator = torch.Generator().manual_seed(int(torch.randint(9999, ())))
        return noisy(generator=generator)

    first = loader()
    passes = [bits(first), bits(first)]
    second = loader()
    second.set_epoch(1)
    assert bits(second) == passes[1] != passes[0]


def test_workers_that_outlive_an_epoch_do_not_go_on_with_its_random_numbers() -> None:
    kept = noisy(num_workers=1, persistent_workers=True)
    passes = [bits(kept), bits(kept)]
    jumped = noisy(num_workers=1)
    jumped.set_epoch(1)
    assert bits(jumped) == passes[1]


def test_evaluations_are_alike_in_every_pass() -> None:
    evaluated = noisy(train=False)
    assert bits(evaluated) == bits(evaluated) == bits(noisy(train=False))


LOADERS = {
    "in order": lambda data: DataLoader(data, 4),
    "shuffled": lambda data: DataLoader(data, 4, shuffle=True),
    "a subset": lambda data: DataLoader(data, 4, sampler=SubsetRandomSampler(range(len(data)))),
    "batch sampler": lambda data: DataLoader(
        data, batch_sampler=BatchSampler(RandomSampler(data), 4, drop_last=False)
    ),
    "no DataLoader": lambda data: list(DataLoader(data, 4)),
    "a stream": lambda data: DataLoader(Stream(len(data)), 4),
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_of_an_evaluation_have_every_example_once(kind: str, world_size: int) -> None:
    shares = [
        seeded(LOADERS[kind](Noisy(22)), train=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert sorted(chain(*map(numbers, shares))) == list(range(22))
    assert [len(share) for share in shares] == [len(bits(share)) for share in shares]


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_of_training_are_equally_long_and_cover_the_examples(
    kind: str, world_size: int
) -> None:
    shares = [
        seeded(LOADERS[kind](Noisy(22)), rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    given = [bits(share) for share in shares]
    assert len({len(one) for one in given} | {len(share) for share in shares}) == 1
    met = [int(example[0]) for one in given for batch in one for example in batch]
    if kind in ("no DataLoader", "a stream"):  # shared by batches, less the incomplete round
        assert len(met) == len(set(met))
        assert len(set(met)) >= 22 - 4 * world_size
    else:
        assert set(met) == set(range(22))
        assert len(met) - 22 < world_size
    draws = [example[1] for one in given for batch in one for example in batch]
    assert len(set(draws)) == len(draws)  # no process repeats the augmentations of another
    assert bits(shares[0]) != given[0] or kind == "no DataLoader"  # the next epoch is another


def test_a_sampler_that_gives_fewer_examples_is_shared_as_it_is() -> None:
    def share(rank: int) -> list[int]:
        fewer = DataLoader(Noisy(18), 3, sampler=RandomSampler(range(18), num_samples=6))
        return numbers(seeded(fewer, rank=rank, world_size=2))

    assert len(share(0)) == len(share(1)) == 3
    assert not set(share(0)) & set(share(1))


def test_a_share_of_shuffled_training_is_another_one_in_each_epoch() -> None:
    def share(epoch: int) -> list[int]:
        one = noisy(rank=0, world_size=2)
        one.set_epoch(epoch)
        return numbers(one)

    assert share(0) == share(0)
    assert sorted(share(0)) != sorted(share(1))


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"x": torch.zeros(2)}, "a dict of x"),
        (torch.zeros(2, 3), r"float32 \[2, 3\]"),
        ([torch.zeros(2, 3)], r"\(float32 \[2, 3\]\)"),
        ((torch.zeros(2, 3), torch.zeros(2)), r"float32 \[2\]\)"),
        ((torch.zeros(2, 3), torch.zeros(2, 1).long()), r"int64 \[2, 1\]"),
        ((torch.zeros(2, 3).byte(), torch.zeros(2).long()), r"uint8 \[2, 3\]"),
        (("a", torch.zeros(2).long()), r"\(a str, int64"),
    ],
)
def test_a_batch_of_something_else_is_refused_on_one_line(batch: Any, said: str) -> None:
    with pytest.raises(LifelongError, match=rf"^it gave .*{said}.*; wanted \(images, labels\)"):
        list(seeded([batch]))


def test_a_longer_batch_and_other_whole_labels_are_understood() -> None:
    images, labels = next(iter(seeded([[torch.zeros(2, 3), torch.ones(2).int(), "weights"]])))
    assert (images.shape, labels.dtype, labels.tolist()) == ((2, 3), torch.int64, [1, 1])


def test_training_without_a_length_or_a_batch_for_each_process_is_refused() -> None:
    with pytest.raises(LifelongError, match="it has no length"):
        seeded(DataLoader(Stream(4, sized=False)))
    assert len(bits(seeded(DataLoader(Stream(4, sized=False)), train=False))) == 4
    with pytest.raises(LifelongError, match="gives 1 batches to 2 processes"):
        seeded([(torch.zeros(1, 1), torch.zeros(1).long())], rank=0, world_size=2)


def test_a_state_of_another_loader_is_refused() -> None:
    with pytest.raises(LifelongError, match="batches=5, now it is 3"):
        noisy(12).load_state_dict(noisy(18).state_dict())


def test_a_sampler_that_repeats_is_seen_through_to_its_data_set() -> None:
    data = TensorDataset(torch.arange(6))
    weighted = DataLoader(data, sampler=WeightedRandomSampler([1.0] * 6, 20))
    assert examples(weighted) is data
    part = examples(DataLoader(data, sampler=SubsetRandomSampler([1, 4])))
    assert [int(part[i][0]) for i in range(len(part))] == [1, 4]  # type: ignore[index, arg-type]
    assert examples(DataLoader(Stream(4))) is None


class Recorder(LightningModule):
    """Learns nothing and remembers which examples each step was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps: list[tuple[int, list[list[float]]]] = []

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        torch.rand(3)  # a step that draws, such as dropout
        self.steps.append((self.current_epoch, batch[0].tolist()))
        return self.weight * 0

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        torch.rand(3)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("error:.*(shuffl|workers|sampler|replace|stateful).*")
def test_lightning_resumes_it_in_mid_epoch_to_the_same_bits_and_says_nothing(
    tmp_path: Path,
) -> None:
    def fit(module: Recorder, *callbacks: Any, resume: str | None = None) -> None:
        trainer = Trainer(
            max_epochs=3, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=list(callbacks), default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, noisy(), noisy(train=False), ckpt_path=resume)

    whole = Recorder()
    every_step = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(whole, every_step)
    assert [epoch for epoch, _ in whole.steps] == [0] * 5 + [1] * 5 + [2] * 5
    for done in (2, 5, 8):
        resumed = Recorder()
        fit(resumed, resume=str(tmp_path / f"step={done}.ckpt"))
        assert whole.steps[:done] + resumed.steps == whole.steps
