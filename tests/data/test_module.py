"""The validation set comes from the official training set, the test set is only ever tested on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.data.batches import TensorBatches
from lifelong.data.image_task import ImageTask
from lifelong.data.sets.images import LabelledImages
from lifelong.data.split import stratified_split
from lifelong.errors import LifelongError


def rows(images: Tensor) -> list[bytes]:
    return [bytes(image.flatten().tolist()) for image in images]


def rows_of(batches: TensorBatches) -> list[bytes]:
    return [
        bytes(image)
        for x, _ in batches
        for image in ((x * 0.3081 + 0.1307) * 255).round().int().flatten(1).tolist()
    ]


def task(name: str = "MNIST", folder: Path | str = "nowhere", **options: Any) -> ImageTask:
    made = ImageTask(options.pop("dataset", "embedded_mnist"), folder, name=name, **options)
    made.setup()
    return made


def test_validation_is_cut_from_training_and_testing_is_the_official_set(mnist_dir: Path) -> None:
    from lifelong.data.sets.sources import load

    official = load("mnist", mnist_dir, announce=lambda _: None)
    cut = task(dataset="mnist", folder=mnist_dir, val_fraction=0.25)
    train, val = rows(cut.train_images.images), rows(cut.val_images.images)
    assert len(val) == 10
    assert sorted(train + val) == sorted(rows(official.train.images))
    assert not set(train) & set(val)
    assert rows_of(cut.test_dataloader()) == rows(official.test.images)
    for batches in (cut.train_dataloader(), cut.val_dataloader(), cut.consolidation_batches()):
        assert not set(rows_of(batches)) & set(rows(official.test.images))


def test_the_batches_are_those_of_their_sets() -> None:
    cut = task(batch_size=32, eval_batch_size=100)
    assert sorted(rows_of(cut.train_dataloader())) == sorted(rows(cut.train_images.images))
    assert rows_of(cut.consolidation_batches()) == rows(cut.train_images.images)
    assert rows_of(cut.val_dataloader()) == rows(cut.val_images.images)
    assert (len(cut.train_dataloader()), len(cut.consolidation_batches())) == (20, 7)


def test_consolidation_meets_every_training_image_once_over_all_ranks() -> None:
    cut = task()
    shared = [rows_of(cut.consolidation_batches(rank=rank, world_size=2)) for rank in range(2)]
    assert sorted(shared[0] + shared[1]) == sorted(rows(cut.train_images.images))


def test_the_split_is_a_function_of_seed_and_name() -> None:
    first = task(seed=1).val_images.images
    torch.rand(3)
    assert torch.equal(task(seed=1).val_images.images, first)
    assert not torch.equal(task(seed=2).val_images.images, first)
    assert not torch.equal(task("other", seed=1).val_images.images, first)


def test_every_class_has_its_share_of_the_validation_set() -> None:
    labels = torch.arange(10).repeat_interleave(torch.arange(11, 101, 9))
    kept, aside = stratified_split(labels, 101, torch.Generator().manual_seed(0))
    assert len(aside) == 101
    assert sorted(kept.tolist() + aside.tolist()) == list(range(len(labels)))
    exact = labels.bincount() * 101 / len(labels)
    assert float((labels[aside].bincount(minlength=10) - exact).abs().max()) < 1


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_split_may_leave_one_side_empty(count: int) -> None:
    kept, aside = stratified_split(torch.arange(7) % 3, count, torch.Generator())
    assert (len(kept), len(aside)) == (7 - count, count)


def test_a_second_setup_does_nothing_and_images_are_shared() -> None:
    announced: list[str] = []
    cut = task(announce=announced.append)
    images = cut.train_images
    cut.prepare_data()
    cut.setup("fit")
    assert cut.train_images is images
    assert announced == ["embedded_mnist: " + cut.source]
    assert task("again").test_images is cut.test_images
    assert task("again").fingerprint == cut.fingerprint
    assert task(dataset="embedded_usps").fingerprint != cut.fingerprint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"eval_batch_size": -1}, "eval_batch_size=-1"),
        ({"val_fraction": 0.0}, "val_fraction=0.0"),
        ({"val_fraction": 1}, "val_fraction=1"),
        ({"val_fraction": float("nan")}, "val_fraction=nan"),
        ({"val_fraction": 1e-9}, "takes 0 of the 700 training images"),
        ({"dataset": "cifar"}, "'cifar'"),
    ],
)
def test_what_makes_no_sense_is_refused_on_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LifelongError, match=said) as caught:
        task(**options)
    assert "\n" not in str(caught.value)


def test_images_are_not_to_be_had_before_setup() -> None:
    with pytest.raises(RuntimeError, match=r"call setup\(\)"):
        _ = ImageTask("embedded_mnist", "nowhere").train_images


def test_labelled_images_refuse_other_types_and_shapes() -> None:
    good = torch.zeros(3, 28, 28, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"torch\.float32 \[3, 28, 28\]"):
        LabelledImages(good.float(), torch.arange(3))
    with pytest.raises(ValueError, match=r"give torch\.int64 \[3\]"):
        LabelledImages(good, torch.arange(2))


def test_tasks_are_mixed_and_every_image_comes_once_an_epoch() -> None:
    first, second = task("A"), task("B", dataset="embedded_usps")
    mixed = second.train_batches([first])
    expected = rows(first.train_images.images) + rows(second.train_images.images)
    assert sorted(rows_of(mixed)) == sorted(expected)
    images, _ = next(iter(mixed))
    share = sum(row in set(rows(first.train_images.images)) for row in rows_of([(images, None)]))
    assert 0 < share < len(images)
    assert rows_of(second.train_batches()) == rows_of(second.train_dataloader())
