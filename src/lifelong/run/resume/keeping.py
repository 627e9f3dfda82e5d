"""Keeping the middle of a stage: the callback that saves it and the files that hold it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO

from lifelong.run.resume.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from lifelong.run.resume.journal import Journal
from lifelong.run.resume.random_state import random_state, restore_random_state


class KeepProgress(Callback):
    """Saves the training every so many seconds, between two optimizer steps.

    The Trainer's checkpoint (network, penalty, optimizer, schedule, loops, position in the epoch)
    with what it leaves out: the random state, the journal of figures, the seconds that were spent.
    The last batch of an epoch is left out, for validation follows and would be lost.

    Args:
        path: the checkpoint; the one before is kept beside it.
        every: seconds between two saves.
        journal: what was logged so far.
    """

    def __init__(self, path: Path, every: float, journal: Journal) -> None:
        self.path = path
        self.every = every
        self.journal = journal
        self.first = len(journal.entries)  # where the stage's own part of the journal begins
        self._before = 0.0  # seconds of the interrupted runs
        self._begin = self._saved = time.monotonic()
        self._random: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """What the stage took so far, interruptions left out."""
        return self._before + time.monotonic() - self._begin

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Go on with the random numbers where the checkpoint stood.

        Args:
            *args: unused.
            **kwargs: unused.
        """
        if self._random is not None:
            restore_random_state(self._random)
            self._random = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if it is time to.

        Args:
            trainer: what is saved.
            pl_module: unused.
            outputs: unused.
            batch: unused.
            batch_idx: its place in the epoch.
        """
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if progress.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if self._is_due(trainer, batch_idx):
            trainer.save_checkpoint(self.path)
            self._saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """What the Trainer's checkpoint keeps of this callback.

        Returns:
            Random state, journal and where the stage begins in it, seconds.
        """
        return {
            "random": random_state(),
            "journal": self.journal.entries,
            "first": self.first,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint kept.

        Args:
            state_dict: what ``state_dict`` returned.
        """
        self._random = state_dict["random"]
        self.first = state_dict["first"]
        self._before = state_dict["seconds"]
        self._begin = time.monotonic()

    def _is_due(self, trainer: Trainer, batch_idx: int) -> bool:
        if trainer.world_size == 1:
            return time.monotonic() - self._saved >= self.every
        # The processes must save at the same step, and asking in every step would slow it.
        if (batch_idx + 1) % 50:
            return False
        due = time.monotonic() - self._saved >= self.every
        return bool(trainer.strategy.broadcast(due))


class WholeCheckpoints(CheckpointIO):
    """Writes the Trainer's checkpoints as ours: whole, with a digest, the one before kept.

    Args:
        stage: the place of the task that is learnt.
        about: what made them; part of the file.
    """

    def __init__(self, stage: int, about: Mapping[str, Any]) -> None:
        self.stage = stage
        self.about = dict(about)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: what the Trainer collected.
            path: where to.
            storage_options: unused.
        """
        path = Path(path)
        if path.exists():
            path.replace(previous(path))
        content = {"stage": self.stage, "about": self.about, "trainer": checkpoint}
        save_checkpoint(path, "progress", content)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: where it lies.
            map_location: unused; the Trainer moves what it restores.
            weights_only: unused; nothing but plain values is ever read.

        Returns:
            What the Trainer collected.
        """
        content: dict[str, Any] = load_checkpoint(Path(path), "progress")["trainer"]
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint.

        Args:
            path: where it lies.
        """
        Path(path).unlink(missing_ok=True)


def previous(path: Path) -> Path:
    """Where the checkpoint before a checkpoint lies.

    Args:
        path: the newest.

    Returns:
        Its neighbour.
    """
    return path.with_stem(f"{path.stem}-before")


def read_progress(path: Path) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest intact checkpoint of the middle of a stage.

    Args:
        path: as given to ``KeepProgress``.

    Returns:
        Its path (None if there is none), its content, and a line about each damaged one.
    """
    complaints: list[str] = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            return candidate, load_checkpoint(candidate, "progress"), complaints
        except CheckpointError as error:
            complaints.append(str(error))
    return None, {}, complaints
