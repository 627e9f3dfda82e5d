"""A benchmark: an ordered list of tasks with a scenario."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from lightning import LightningDataModule
from torch import Tensor

from lifelong.data.batches import TensorBatches
from lifelong.data.task import ImageTask

Scenario = Literal["domain", "task", "class"]


class Benchmark:
    """The tasks that a network learns one after another.

    Args:
        name: as on the command line.
        tasks: task name → data set, in the order of learning.
        scenario: what changes from task to task (van de Ven and Tolias 2019): the images'
            ``domain``, the ``task`` with a head of its own, or the ``class``.
        data_dir: the folder of the archives.
        batch_size: training images in a batch.
        val_fraction: the share of the official training images kept for validation.
        seed: of the split and of the order of the batches.
        announce: told, a line each time, where the images come from.
    """

    def __init__(
        self,
        name: str,
        tasks: Mapping[str, str],
        data_dir: str | Path,
        *,
        scenario: Scenario = "domain",
        batch_size: int = 128,
        val_fraction: float = 0.1,
        seed: int = 0,
        announce: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.scenario = scenario
        self.tasks = [
            ImageTask(
                task,
                dataset,
                data_dir,
                batch_size=batch_size,
                val_fraction=val_fraction,
                seed=seed,
                announce=announce,
            )
            for task, dataset in tasks.items()
        ]

    @property
    def task_names(self) -> list[str]:
        """The tasks' names in order."""
        return [task.name for task in self.tasks]

    def stage(self, index: int, *, joint: bool = False) -> "StageData":
        """The loaders of one stage.

        Args:
            index: the place of the task that is learnt.
            joint: whether the training images of the tasks before it are learnt along.

        Returns:
            A datamodule for the Trainer.
        """
        return StageData(self.tasks, index, joint=joint)


class StageData(LightningDataModule):
    """What the Trainer reads while one task is learnt.

    Training batches of that task, validation images of every task up to it, and the official test
    set of every task.

    Args:
        tasks: all tasks in order.
        current: the place of the task that is learnt.
        joint: whether the training images of the tasks before it are learnt along.
    """

    def __init__(self, tasks: list[ImageTask], current: int, *, joint: bool = False) -> None:
        super().__init__()
        self.tasks = tasks
        self.current = tasks[current]
        self.learnt = tasks[: current + 1]
        self.joint = joint

    def setup(self, stage: str) -> None:
        """Load the images of every task.

        Args:
            stage: Lightning's word for what comes.
        """
        for task in self.tasks:
            task.trainer = self.trainer
            task.setup(stage)

    def train_dataloader(self) -> TensorBatches:
        """The training images of the task that is learnt, or of all up to it.

        Returns:
            Shuffled batches.
        """
        return self.current.train_batches(self.learnt[:-1] if self.joint else [])

    def val_dataloader(self) -> list[TensorBatches]:
        """The validation images of every task learnt so far, the newest last.

        Returns:
            One loader per task.
        """
        return [task.val_dataloader() for task in self.learnt]

    def test_dataloader(self) -> list[TensorBatches]:
        """The official test set of every task.

        Returns:
            One loader per task.
        """
        return [task.test_dataloader() for task in self.tasks]

    def consolidation_batches(
        self, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The training images of the task that is learnt, as consolidation wants them.

        Args:
            rank: this process.
            world_size: how many processes share the images, each image in one share only.

        Returns:
            Batches that are neither shuffled nor augmented.
        """
        return iter(self.current.consolidation_batches(rank=rank, world_size=world_size))
