"""A benchmark: an ordered list of tasks with a scenario."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lightning import LightningDataModule
from torch import Tensor

from lifelong.data.resumable import ResumableBatches
from lifelong.data.scenario import check_scenario
from lifelong.data.task import Task, as_task


class Benchmark:
    """The tasks that a network learns one after another.

    Args:
        name: As on the command line.
        tasks: Task name → any LightningDataModule with training, validation and test loaders, or a
            `Task`; in the order of learning.
        scenario: What is known at test; "domain".
        seed: Of all that the loaders of data modules draw.
        settings: Task name → the arguments of its data module, for its fingerprint; by default its
            plain attributes.
        announce: Told, a line each time, where the images come from.

    Raises:
        LifelongError: The scenario cannot be run, or a task is no data module.
    """

    def __init__(
        self,
        name: str,
        tasks: Mapping[str, LightningDataModule | Task],
        *,
        scenario: str = "domain",
        seed: int = 0,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        announce: Callable[[str], None] | None = None,
    ) -> None:
        check_scenario(scenario)
        self.name = name
        self.scenario = scenario
        self.tasks = [
            as_task(task, module, seed=seed, settings=(settings or {}).get(task), announce=announce)
            for task, module in tasks.items()
        ]

    @property
    def task_names(self) -> list[str]:
        """The tasks' names in order."""
        return [task.name for task in self.tasks]

    def stage(self, index: int, *, joint: bool = False) -> StageData:
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

    def __init__(self, tasks: Sequence[Task], current: int, *, joint: bool = False) -> None:
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

    def train_dataloader(self) -> ResumableBatches:
        """The training images of the task that is learnt, or of all up to it.

        Returns:
            Shuffled batches.
        """
        return self.current.train_batches(self.learnt[:-1] if self.joint else [])

    def val_dataloader(self) -> list[ResumableBatches]:
        """The validation images of every task learnt so far, the newest last.

        Returns:
            One loader per task.
        """
        return [task.val_dataloader() for task in self.learnt]

    def test_dataloader(self) -> list[ResumableBatches]:
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

    def held_out_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The validation images of the task that is learnt: like it, and not learnt.

        Returns:
            Batches of this process's share.
        """
        return iter(self.current.val_dataloader())
