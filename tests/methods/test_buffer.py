"""What a buffer keeps: bounded, fair, and the same however it was filled."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.errors import LifelongError
from lifelong.methods.buffer import Buffer


def task(first: int, count: int, size: int = 7, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    places = torch.arange(first, first + count)
    return [(p.double().unsqueeze(1), p % classes) for p in places.split(size)]


def numbers(buffer: Buffer) -> list[int]:
    return buffer.columns[0][:, 0].long().tolist()


@pytest.mark.parametrize("fill", ["reservoir", "balanced"])
@pytest.mark.parametrize("size", [0, 1, 10, 5000])
def test_it_never_holds_more_than_it_may_and_as_much_as_it_can(fill: Any, size: int) -> None:
    buffer = Buffer(size, fill)
    for t in range(3):
        buffer.add(task(1000 * t, 1500))
        assert len(buffer) == min(size, 1500 * (t + 1))
    assert len(set(zip(numbers(buffer), buffer.task.tolist(), strict=True)) if size else ()) == len(
        buffer
    )


def test_every_example_of_every_task_is_kept_with_the_same_probability() -> None:
    counts = torch.zeros(160)
    for seed in range(600):
        buffer = Buffer(16, seed=seed)
        for first, count in ((0, 100), (100, 20), (120, 40)):
            buffer.add(task(first, count))
        counts[numbers(buffer)] += 1
    # binomial: 600 draws of probability 1/10 each, ± 5 standard deviations
    assert float(counts.sum()) == 600 * 16
    assert 60 - 5 * 7.4 < float(counts.min()) < float(counts.max()) < 60 + 5 * 7.4
    of_tasks = torch.tensor([counts[:100].mean(), counts[100:120].mean(), counts[120:].mean()])
    assert ((of_tasks - 60).abs() < 5).all()


def test_balanced_is_as_many_of_each_class_of_each_task() -> None:
    buffer = Buffer(24, "balanced")
    buffer.add(task(0, 100, classes=4))
    buffer.add(task(500, 30, classes=2))
    pairs = torch.stack([buffer.task, buffer.label]).unique(dim=1, return_counts=True)
    assert pairs[0].T.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1]]
    assert pairs[1].tolist() == [4] * 6
    # a class that has fewer leaves its room to the others
    few = Buffer(24, "balanced")
    few.add([(torch.zeros(40, 1), torch.tensor([0] * 38 + [1] * 2))])
    assert few.label.bincount().tolist() == [22, 2]


@pytest.mark.parametrize("fill", ["reservoir", "balanced"])
def test_batches_processes_and_order_do_not_matter(
    fill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Buffer(20, fill, seed=3)
    for first in (0, 3000):
        whole.add(task(first, 2500))
    cut = Buffer(20, fill, seed=3)
    for first in (0, 3000):
        cut.add(task(first, 2500, size=411))
    shares = [Buffer(20, fill, seed=3) for _ in range(2)]
    every: list[Any] = []

    def gather(found: list[Any], own: Any) -> None:
        every.append(own)
        raise InterruptedError  # the other process's share comes later

    def give(found: list[Any], own: Any) -> None:
        found[:] = every

    for first in (0, 3000):
        every.clear()
        monkeypatch.setattr("torch.distributed.all_gather_object", gather)
        for rank, share in enumerate(shares):
            places = torch.arange(first + rank, first + 2500, 2)
            data = [(p.double().unsqueeze(1), p % 3) for p in places.split(30)]
            with pytest.raises(InterruptedError):
                share.add(data, rank=rank, world_size=2, trainer=object())  # type: ignore[arg-type]
        monkeypatch.setattr(
            "torch.distributed.all_gather_object",
            lambda found, _: found.__setitem__(slice(2), every),
        )
        for share in shares:
            share.add([], rank=0, world_size=2, trainer=object())  # type: ignore[arg-type]
    for other in (cut, *shares):
        for name, tensor in enumerate(whole.columns):
            assert torch.equal(other.columns[name], tensor)
        assert torch.equal(other.keys, whole.keys)
        assert torch.equal(other.label, whole.label)


def test_another_seed_keeps_and_draws_others() -> None:
    one, other = Buffer(20, seed=0), Buffer(20, seed=1)
    for buffer in (one, other):
        buffer.add(task(0, 500))
    assert numbers(one) != numbers(other)
    assert one.draw(5, 0).tolist() != other.draw(5, 0).tolist()


def test_draws_are_without_replacement_and_follow_from_their_salt() -> None:
    buffer = Buffer(40)
    buffer.add(task(0, 500))
    drawn = buffer.draw(30, 4, 2)
    assert len(set(drawn.tolist())) == 30
    assert drawn.tolist() == buffer.draw(30, 4, 2).tolist()
    assert drawn.tolist() != buffer.draw(30, 2, 4).tolist() != buffer.draw(30, 4, 3).tolist()
    assert len(buffer.draw(99, 0)) == 40
    seen = torch.cat([buffer.draw(10, step) for step in range(400)]).bincount()
    assert 60 < int(seen.min()) <= int(seen.max()) < 140  # of 100 each


def test_examples_come_as_the_batch_that_they_stand_beside() -> None:
    buffer, rows = Buffer(4), torch.arange(8.0).view(4, 2)
    buffer.add([{"x": rows, "y": {"tags": torch.arange(4)}, "of": 7}])
    batch = {"x": torch.full((3, 2), -1.0).double(), "y": {"tags": torch.full((3,), 9)}, "of": 8}
    both = buffer.mixed_into(batch, torch.tensor([2, 0]))
    assert both["x"].dtype == torch.float64
    assert both["x"][:3].tolist() == [[-1.0, -1.0]] * 3
    assert both["x"][3:].tolist() == buffer.columns[0][[2, 0]].tolist()
    assert both["y"]["tags"].tolist() == [9, 9, 9, *buffer.columns[1][[2, 0]].tolist()]
    assert both["of"] == 8


def test_its_state_is_plain_tensors_of_real_examples(tmp_path: Any) -> None:
    buffer = Buffer(6, seed=5)
    buffer.add(task(0, 50))
    torch.save(buffer.state(), tmp_path / "kept.pt")
    again = Buffer(6, seed=5)
    again.load(torch.load(tmp_path / "kept.pt", weights_only=True))
    assert numbers(again) == numbers(buffer)
    assert set(numbers(buffer)) < set(range(50))
    assert buffer.columns[1].tolist() == [n % 3 for n in numbers(buffer)]
    assert buffer.bytes == 6 * (8 + 8 + 3 * 8)
    for one in (buffer, again):
        one.add(task(50, 50))
    assert numbers(again) == numbers(buffer)


@pytest.mark.parametrize(
    ("batch", "fill", "said"),
    [
        ((torch.zeros(2, 1), ["one", "two"]), "reservoir", "holds words"),
        ((torch.zeros(2, 1), torch.zeros(3)), "reservoir", "cannot be told apart"),
        ((torch.zeros(2, 1), torch.zeros(2)), "balanced", r"labels are torch.float32 .*reservoir"),
        ((torch.zeros(2, 1),), "balanced", "labels are none; take fill=reservoir"),
    ],
)
def test_what_cannot_be_kept_is_refused(batch: Any, fill: Any, said: str) -> None:
    with pytest.raises(LifelongError, match=said) as error:
        Buffer(5, fill).add([batch])
    assert "\n" not in str(error.value)


def test_tasks_of_other_shapes_are_refused() -> None:
    buffer = Buffer(5)
    buffer.add([(torch.zeros(9, 1, 28, 28), torch.zeros(9))])
    batch = (torch.zeros(9, 1, 32, 32), torch.zeros(9))
    for use in (lambda: buffer.add([batch]), lambda: buffer.like(batch, torch.arange(2))):
        with pytest.raises(LifelongError, match=r"\[1, 32, 32\].*kept.*\[1, 28, 28\]"):
            use()


@pytest.mark.parametrize("wrong", [{"size": -1}, {"size": 2.5}, {"size": True}, {"fill": "fifo"}])
def test_what_is_out_of_range_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"(buffer_size|fill) is .*; it must be"):
        Buffer(**{"size": 3, **wrong})
