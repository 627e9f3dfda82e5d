"""The order of batches is a pure function of seed and epoch; shards and resumption lose nothing."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from lifelong.data.batches import TensorBatches
from lifelong.errors import LifelongError


def numbered(count: int, **options: Any) -> TensorBatches:
    """Batches whose labels number the examples, and whose first pixel does too."""
    images = torch.zeros(count, 28, 28, dtype=torch.uint8)
    images[:, 0, 0] = torch.arange(count)
    given = {"batch_size": 4, "shuffle": True} | options
    return TensorBatches(images, torch.arange(count), **given)


def order(batches: TensorBatches) -> list[int]:
    return [number for _, labels in batches for number in labels.tolist()]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("count", [12, 13, 14, 24])
def test_the_length_is_the_number_of_batches(
    shuffle: bool, drop_last: bool, rank: int, count: int
) -> None:
    batches = numbered(count, shuffle=shuffle, drop_last=drop_last, rank=rank, world_size=3)
    sizes = [len(labels) for _, labels in batches]
    assert len(sizes) == len(batches)
    assert all(size == 4 for size in (sizes if drop_last else sizes[:-1]))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_pixels_are_normalised_and_stay_with_their_labels(shuffle: bool, rank: int) -> None:
    batches = numbered(30, shuffle=shuffle, rank=rank, world_size=2)
    for images, labels in batches:
        assert images.shape == (len(labels), 1, 28, 28)
        assert images.dtype == torch.float32
        assert images.is_contiguous()
        first = (labels.double() / 255 - 0.1307) / 0.3081
        torch.testing.assert_close(images[:, 0, 0, 0].double(), first, atol=1e-6, rtol=0)
    assert batches.images.dtype == torch.uint8
    assert int(batches.images[:, 0, 0].sum()) == sum(range(30))


def test_the_order_of_an_epoch_is_a_pure_function_of_seed_and_epoch() -> None:
    walked = numbered(50, seed=3)
    orders = [order(walked) for _ in range(4)]
    torch.rand(7)
    jumped = numbered(50, seed=3)
    jumped.set_epoch(3)
    assert order(jumped) == orders[3]
    jumped.set_epoch(1)
    assert order(jumped) == orders[1]
    assert order(jumped) == orders[2]
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert len({tuple(one) for one in orders}) == 4


def test_seed_and_epoch_are_not_added_up() -> None:
    one, other = numbered(50, seed=0), numbered(50, seed=1)
    one.set_epoch(1)
    other.set_epoch(0)
    assert order(one) != order(other)


def test_the_global_random_state_is_neither_used_nor_changed() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = order(numbered(20))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert order(numbered(20)) == first


def test_a_pass_broken_off_is_followed_by_the_next_epoch() -> None:
    broken, whole = numbered(20), numbered(20)
    next(iter(broken))
    order(whole)
    assert order(broken) == order(whole)


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("given", [0, 1, 3, 5])
@pytest.mark.parametrize("told", [True, False])
def test_a_resumed_pass_gives_what_the_saved_one_lacked(epoch: int, given: int, told: bool) -> None:
    saved = numbered(18)
    saved.set_epoch(epoch)
    passing = iter(saved)
    seen = [number for _ in range(given) for number in next(passing)[1].tolist()]
    state = saved.state_dict()

    resumed = numbered(18)
    resumed.load_state_dict(state)
    iter(resumed)  # an iterator that is made and never read takes nothing away
    finished = given == len(saved)
    if told:
        resumed.set_epoch(epoch + finished)
    after = order(resumed)
    if finished:
        saved.set_epoch(epoch + 1)
        assert after == order(saved)
    else:
        whole = numbered(18)
        whole.set_epoch(epoch)
        assert seen + after == order(whole)
        assert order(whole) == order(resumed)


def test_another_epoch_begins_at_its_start_whatever_was_loaded() -> None:
    resumed, fresh = numbered(18), numbered(18)
    resumed.load_state_dict({**resumed.state_dict(), "epoch": 0, "position": 2})
    resumed.set_epoch(4)
    fresh.set_epoch(4)
    assert order(resumed) == order(fresh)


@pytest.mark.parametrize(
    ("other", "said"), [({"batch_size": 5}, "batch_size=4"), ({"seed": 1}, "seed=0")]
)
def test_a_state_of_other_batches_is_refused(other: dict[str, int], said: str) -> None:
    with pytest.raises(LifelongError, match=said):
        numbered(18, **other).load_state_dict(numbered(18).state_dict())


@pytest.mark.parametrize("count", [1, 7, 12, 13, 25])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_shards_of_an_evaluation_cover_every_example_exactly_once(
    count: int, world_size: int
) -> None:
    shards = [
        order(numbered(count, shuffle=False, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert sorted(chain(*shards)) == list(range(count))
    assert shards[0] == list(range(0, count, world_size))


@pytest.mark.parametrize("count", [1, 7, 12, 13, 25])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_shards_of_training_cover_every_example_in_equally_many_batches(
    count: int, world_size: int
) -> None:
    loaders = [numbered(count, rank=rank, world_size=world_size) for rank in range(world_size)]
    shards = [order(loader) for loader in loaders]
    assert set(chain(*shards)) == set(range(count))
    assert len({len(shard) for shard in shards}) == 1
    assert sum(map(len, shards)) - count < world_size
    assert len({len(loader) for loader in loaders}) == 1


def test_moving_the_store_changes_no_order() -> None:
    here, moved = numbered(20), numbered(20).to("meta")
    assert moved.images.is_meta
    assert moved._order(0).is_meta  # type: ignore[union-attr]
    assert order(here.to("cpu")) == order(numbered(20))


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_no_examples_is_refused(size: int) -> None:
    with pytest.raises(LifelongError, match=f"batch_size={size}: give 1 or more"):
        numbered(5, batch_size=size)


def test_a_rank_outside_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match="rank=2 of world_size=2"):
        numbered(5, rank=2, world_size=2)


class Recorder(LightningModule):
    """Learns nothing and remembers which examples each step was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps: list[tuple[int, list[int]]] = []

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.steps.append((self.current_epoch, batch[1].tolist()))
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, *callbacks: Callback) -> Trainer:
    return Trainer(
        max_epochs=3, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), default_root_dir=folder,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_a_fit_of_lightning_resumed_in_mid_epoch_is_a_fit_without_interruption(
    tmp_path: Path,
) -> None:
    whole = Recorder()
    every_step = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, every_step).fit(whole, numbered(18))
    assert [epoch for epoch, _ in whole.steps] == [0] * 5 + [1] * 5 + [2] * 5
    loader = numbered(18)
    for epoch in range(3):
        loader.set_epoch(epoch)
        seen = [number for at, step in whole.steps if at == epoch for number in step]
        assert seen == order(loader)

    for done in (1, 3, 5, 7, 10):
        resumed = Recorder()
        saved = tmp_path / f"step={done}.ckpt"
        trainer(tmp_path).fit(resumed, numbered(18), ckpt_path=str(saved))
        assert whole.steps[:done] + resumed.steps == whole.steps
