"""A data set of digits in memory as a task: training, validation and official test batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule

from lifelong.data.batches import TensorBatches
from lifelong.data.randomness import generator_for
from lifelong.data.sets.images import LabelledImages, TaskImages
from lifelong.data.sets.sources import load
from lifelong.data.split import stratified_split
from lifelong.errors import LifelongError

_Part = TypeVar("_Part")
_log = logging.getLogger(__name__)


class ImageTask(LightningDataModule):
    """A task to learn: images in memory, cut into training, validation and official test set.

    The validation set is cut from the official training set, each class in proportion; which images
    is a function of `seed` and `name` alone. The official test set is only ever tested on.

    Args:
        dataset: One of `sources.DATASETS`.
        data_dir: The folder of the data set's files.
        batch_size: Training images in a batch, for each process.
        eval_batch_size: Images in a batch where nothing is learnt.
        val_fraction: The part of the official training set that validates, between 0 and 1.
        name: The task, as it appears in tables and logs; by default the data set. A benchmark gives
            its own name for it.
        seed: Of the validation split and of the order of the training batches.
        download: Whether torchvision may fetch what is missing.
        announce: Told, a line each time, where the images come from; default the log at level INFO.

    Raises:
        LifelongError: A batch size is not 1 or more, or `val_fraction` is not between 0 and 1.

    Example:
        >>> task = ImageTask("embedded_mnist", "data", val_fraction=0.1)
        >>> task.setup()
        >>> len(task.train_images), len(task.val_images), len(task.test_images)
        (630, 70, 199)
    """

    name: str  # Lightning declares it as possibly None

    def __init__(
        self,
        dataset: str,
        data_dir: str | Path,
        *,
        name: str | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        val_fraction: float = 0.1,
        seed: int = 0,
        download: bool = True,
        announce: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        for key, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise LifelongError(f"{key}={size}: give 1 or more, such as {key}=128")
        if not 0 < val_fraction < 1:
            raise LifelongError(
                f"val_fraction={val_fraction}: give a number between 0 and 1, "
                "such as val_fraction=0.1"
            )
        self.name = dataset if name is None else name
        self.dataset = dataset
        self.data_dir = Path(data_dir)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = val_fraction
        self.seed = seed
        self.download = download
        self.announce = announce or _log.info
        self._task: TaskImages | None = None
        self._train: LabelledImages | None = None
        self._val: LabelledImages | None = None

    def prepare_data(self) -> None:
        """Download and parse once, in one process of each machine."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Load the images and cut the validation set; a second call does nothing.

        Args:
            stage: What Lightning is about to do; the images are the same for all of it.

        Raises:
            LifelongError: The data set cannot be loaded, or `val_fraction` leaves one part empty.
        """
        if self._task is not None:
            return
        task = load(self.dataset, self.data_dir, download=self.download, announce=self.announce)
        count = round(self.val_fraction * len(task.train))
        if not 0 < count < len(task.train):
            raise LifelongError(
                f"val_fraction={self.val_fraction} takes {count} of the {len(task.train)} training "
                f"images of {self.name}: give one that leaves some on both sides, such as 0.1"
            )
        kept, aside = stratified_split(
            task.train.labels, count, generator_for("validation", self.seed, self.name)
        )
        self._train, self._val = task.train.select(kept), task.train.select(aside)
        self._task = task

    @property
    def train_images(self) -> LabelledImages:
        """The official training images without those that validate."""
        return self._set_up(self._train)

    @property
    def val_images(self) -> LabelledImages:
        """The part of the official training images that validates."""
        return self._set_up(self._val)

    @property
    def test_images(self) -> LabelledImages:
        """The official test images."""
        return self._set_up(self._task).test

    @property
    def source(self) -> str:
        """Where the images came from, in words."""
        return self._set_up(self._task).source

    @property
    def num_classes(self) -> int:
        """One more than the highest label of the training images."""
        return int(self._set_up(self._task).train.labels.max()) + 1

    @property
    def fingerprint(self) -> str:
        """The hexadecimal SHA-256 of the official sets' pixels and labels."""
        return self._set_up(self._task).fingerprint

    def train_dataloader(self) -> TensorBatches:
        """Return the training images, in an order of its own for each epoch.

        Returns:
            Batches of this process's share, on the device that trains.
        """
        return self.train_batches()

    def train_batches(self, others: Sequence[Any] = ()) -> TensorBatches:
        """Return the training images of this task and of others, mixed.

        Args:
            others: Tasks that are set up.

        Returns:
            Batches of this process's share, on the device that trains; every image once an epoch.

        Raises:
            LifelongError: One of the others is no such task.
        """
        parts = []
        for task in (*others, self):
            if not isinstance(task, ImageTask):
                raise LifelongError(
                    f"the training images of task {task.name} cannot be mixed with those of "
                    f"{self.name}, which lie in memory; type another method, such as method=ewc"
                )
            parts.append(task.train_images)
        images = self.train_images
        if others:
            images = LabelledImages(
                torch.cat([part.images for part in parts]),
                torch.cat([part.labels for part in parts]),
            )
        return self._batches(images, self.batch_size, shuffle=True)

    def val_dataloader(self) -> TensorBatches:
        """Return the validation images in a fixed order.

        Returns:
            Batches of this process's share, on the device that trains.
        """
        return self._batches(self.val_images, self.eval_batch_size)

    def test_dataloader(self) -> TensorBatches:
        """Return the official test images in a fixed order.

        Returns:
            Batches of this process's share, on the device that trains.
        """
        return self._batches(self.test_images, self.eval_batch_size)

    def consolidation_batches(self, *, rank: int = 0, world_size: int = 1) -> TensorBatches:
        """Return the training images in a fixed order, for estimating importance.

        A mean over examples needs them all: by default every process gets all of them. Who adds up
        the processes' sums gives `rank` and `world_size`.

        Args:
            rank: This process.
            world_size: How many processes share the images.

        Returns:
            Batches of `eval_batch_size`, on the CPU.
        """
        images = self.train_images
        return TensorBatches(
            images.images,
            images.labels,
            batch_size=self.eval_batch_size,
            shuffle=False,
            mean=self._set_up(self._task).mean,
            std=self._set_up(self._task).std,
            rank=rank,
            world_size=world_size,
        )

    def _batches(
        self, images: LabelledImages, batch_size: int, *, shuffle: bool = False
    ) -> TensorBatches:
        # Lightning shards and moves a torch DataLoader only: here both are up to the loader
        trainer = self.trainer
        batches = TensorBatches(
            images.images,
            images.labels,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.seed,
            mean=self._set_up(self._task).mean,
            std=self._set_up(self._task).std,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        return batches.to(trainer.strategy.root_device) if trainer else batches

    def _set_up(self, value: _Part | None) -> _Part:
        if value is None:
            raise RuntimeError(
                f"call setup() of the task {self.name!r} before asking for its images"
            )
        return value
