"""A task: anything with a name, a fingerprint and batches; any LightningDataModule becomes one."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from lightning import LightningDataModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import ConcatDataset, DataLoader

from lifelong.data.fingerprint import fingerprint_of, plain_settings
from lifelong.data.loaders import examples, rebuilt
from lifelong.data.randomness import OwnRandomness, seed_for
from lifelong.data.resumable import ResumableBatches
from lifelong.data.seeded import SeededLoader
from lifelong.errors import LifelongError

_HOOKS = ("on_before_batch_transfer", "on_after_batch_transfer")
_PARTS = ("train", "val", "test")


class Task(Protocol):
    """What a benchmark learns one after another.

    Every pass over its batches is a function of seed and epoch alone, and those for training can be
    taken up in the middle of an epoch. Batches are (images [B, ...], labels [B]).
    """

    name: str
    trainer: Trainer | None

    @property
    def fingerprint(self) -> str:
        """Equal exactly when the data are, as far as can be told."""

    @property
    def source(self) -> str:
        """Where the data came from, in words."""

    @property
    def num_classes(self) -> int | None:
        """How many classes there are, where it is known."""

    def setup(self, stage: str) -> None:
        """Make the data ready; a second call does nothing.

        Args:
            stage: What Lightning is about to do.
        """

    def train_batches(self, others: Sequence[Any] = ()) -> ResumableBatches:
        """Return the training examples of this task and of others, mixed.

        Args:
            others: Tasks that are set up.
        """

    def val_dataloader(self) -> ResumableBatches:
        """Return the validation examples in a fixed order."""

    def test_dataloader(self) -> ResumableBatches:
        """Return the official test examples in a fixed order."""

    def consolidation_batches(self, *, rank: int = 0, world_size: int = 1) -> ResumableBatches:
        """Return all training examples once in a fixed order.

        Args:
            rank: This process.
            world_size: How many processes share them.
        """


class ModuleTask:
    """A LightningDataModule of a user's own as a task.

    Its training, validation and test loader give (images, labels), or more after these: images of
    any shape, floating point, and labels from 0. Its `prepare_data` and `setup` ("fit" and "test")
    are called once in each process, one process after another; what they draw at random is a
    function of seed and name. Its hooks `on_before_batch_transfer` and `on_after_batch_transfer`
    are applied to batches on the CPU. It may also have: `fingerprint`, `source` and `num_classes`,
    and a `consolidation_dataloader` where the training examples are to be gone through otherwise
    than its training loader does, such as without augmentation.

    Args:
        name: The task, as it appears in tables and logs.
        module: The data module.
        seed: Of all that its loaders draw.
        settings: Its arguments, for the fingerprint; by default its plain attributes.
    """

    def __init__(
        self,
        name: str,
        module: LightningDataModule,
        *,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.module = module
        self.seed = seed
        self.trainer: Trainer | None = None
        self._settings = dict(plain_settings(module) if settings is None else settings)
        self._is_set_up = False
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """The module's own, else a hash of its class, its settings and its data in memory.

        Raises:
            LifelongError: Its own is no text.
        """
        own = getattr(self.module, "fingerprint", None)
        if own is not None:
            if not isinstance(own, str):
                raise LifelongError(f"fingerprint of task {self.name} is {own!r}; give a text")
            return own
        if self._fingerprint is None:
            loaders = [self._loader(part) for part in _PARTS]
            self._fingerprint = fingerprint_of(type(self.module), self._settings, loaders)
        return self._fingerprint

    @property
    def source(self) -> str:
        """The module's own word for it, else its class."""
        cls = type(self.module)
        return str(getattr(self.module, "source", None) or f"{cls.__module__}.{cls.__qualname__}")

    @property
    def num_classes(self) -> int | None:
        """The module's own number of classes, if it has one."""
        own = getattr(self.module, "num_classes", None)
        return own if isinstance(own, int) else None

    def setup(self, stage: str = "fit") -> None:
        """Prepare and set up the module; a second call does nothing.

        Args:
            stage: What Lightning is about to do; the module is made ready for all of it.
        """
        self.module.trainer = self.trainer
        if self._is_set_up:
            return
        cls = type(self.module)
        drawn = OwnRandomness("prepare", self.seed, self.name)
        with _one_process_at_a_time(f"{cls.__module__}.{cls.__qualname__}"), drawn.swapped():
            self.module.prepare_data()
        with OwnRandomness("setup", self.seed, self.name).swapped():
            for stage in ("fit", "test"):
                self.module.setup(stage)
        self._is_set_up = True

    def train_batches(self, others: Sequence[Any] = ()) -> SeededLoader:
        """Return the training examples of this task and of others, mixed.

        Args:
            others: Tasks that are set up.

        Returns:
            Batches of this process's share, on the CPU.

        Raises:
            LifelongError: They cannot be mixed.
        """  # noqa: DOC502
        loader = self._loader("train")
        return self._seeded(self._joint(loader, others) if others else loader, "train")

    def train_dataloader(self) -> SeededLoader:
        """Return the training examples.

        Returns:
            Batches of this process's share, on the CPU.
        """
        return self.train_batches()

    def val_dataloader(self) -> SeededLoader:
        """Return the validation examples, alike in all passes.

        Returns:
            Batches of this process's share, on the CPU.
        """
        return self._seeded(self._loader("val"), "val")

    def test_dataloader(self) -> SeededLoader:
        """Return the official test examples, alike in all passes.

        Returns:
            Batches of this process's share, on the CPU.
        """
        return self._seeded(self._loader("test"), "test")

    def consolidation_batches(self, *, rank: int = 0, world_size: int = 1) -> SeededLoader:
        """Return the training examples in a fixed order, for estimating importance.

        Of a DataLoader over a map-style data set it is all examples, also those that `drop_last`
        leaves out; from any other loader it is what the loader gives. What a data set augments is
        augmented here too, always alike.

        Args:
            rank: This process.
            world_size: How many processes share the examples.

        Returns:
            Batches, on the CPU.
        """
        if hasattr(self.module, "consolidation_dataloader"):
            loader = self._loader("consolidation")
        else:
            loader = self._loader("train")
            dataset = examples(loader)
            if dataset is not None:
                loader = rebuilt(loader, dataset)
        return self._seeded(loader, "consolidation", rank=rank, world_size=world_size)

    def _loader(self, part: str) -> Any:
        cls, method = type(self.module).__qualname__, f"{part}_dataloader"
        with OwnRandomness(method, self.seed, self.name).swapped():
            try:
                loader = getattr(self.module, method)()
            except MisconfigurationException as error:
                raise LifelongError(
                    f"task {self.name}: {cls} has no {method}; a task needs train_dataloader, "
                    "val_dataloader and test_dataloader"
                ) from error
        if isinstance(loader, list | tuple) and len(loader) == 1:
            (loader,) = loader
        if not hasattr(loader, "__iter__") or isinstance(loader, list | tuple | dict):
            raise LifelongError(
                f"task {self.name}: {method} of {cls} gave a {type(loader).__name__}; "
                "give one loader of (images, labels)"
            )
        return loader

    def _seeded(self, loader: Any, part: str, **share: int) -> SeededLoader:
        trainer = self.trainer
        if not share and trainer is not None:
            share = {"rank": trainer.global_rank, "world_size": trainer.world_size}
        words = {"train": "training", "val": "validation"}.get(part, part)
        return SeededLoader(
            loader,
            name=f"the {words} loader of task {self.name}",
            purpose=f"{self.name} {part}",
            seed=self.seed,
            train=part == "train",
            prepare=self._hooks if self._has_hooks() else None,
            **share,
        )

    def _has_hooks(self) -> bool:
        return any(is_overridden(hook, self.module, LightningDataModule) for hook in _HOOKS)

    def _hooks(self, batch: Any) -> Any:
        for hook in _HOOKS:
            batch = getattr(self.module, hook)(batch, 0)
        return batch

    def _joint(self, loader: Any, others: Sequence[Any]) -> DataLoader[Any]:
        parts = []
        for task in (*others, self):
            if not isinstance(task, ModuleTask) or task._has_hooks():
                raise _not_joint(task)
            own = task._loader("train")
            dataset = examples(own)
            if dataset is None or own.collate_fn is not loader.collate_fn:
                raise _not_joint(task)
            parts.append(dataset)
        drops = bool(getattr(loader.batch_sampler, "drop_last", False))
        return rebuilt(loader, ConcatDataset(parts), shuffle=True, drop_last=drops)


def as_task(
    name: str,
    module: LightningDataModule | Task,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Task:
    """Return a data module as a task of that name.

    Args:
        name: The task.
        module: A task, which is given the name, or any LightningDataModule.
        seed: Of all that the loaders of a module draw.
        settings: The module's arguments, for its fingerprint.
        announce: Told, a line each time, where the data come from, by a task that speaks of it.

    Returns:
        The task.

    Raises:
        LifelongError: It is neither.
    """
    # by the class: what a task has may be asked of it only when it is set up
    if all(hasattr(type(module), method) for method in ("train_batches", "consolidation_batches")):
        task = cast("Any", module)
        task.name = name
        if announce is not None and hasattr(task, "announce"):
            task.announce = announce
        return cast("Task", task)
    if not isinstance(module, LightningDataModule):
        raise LifelongError(
            f"benchmark.tasks.{name} is a {type(module).__name__}; give a LightningDataModule"
        )
    return ModuleTask(name, module, seed=seed, settings=settings)


def _not_joint(task: Any) -> LifelongError:
    return LifelongError(
        f"the training examples of task {task.name} cannot be mixed with those of others: joint "
        "training wants DataLoaders over map-style data sets, with one way to collate and without "
        "transfer hooks; type another method, such as method=ewc"
    )


@contextmanager
def _one_process_at_a_time(what: str) -> Iterator[None]:
    # who comes second finds what the first has downloaded
    path = Path(tempfile.gettempdir()) / f"lifelong-{os.getuid()}-{seed_for(what):08x}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
