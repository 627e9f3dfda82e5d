"""What the runs of a sweep say about themselves while they run: a small file for each.

Files, so that it does not matter whether a run is in this process, in another or on another machine
with the same folder.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lifelong.data.files.whole import whole_file
from lifelong.report.names import mean_of_old

FOLDER = ".progress"
RUNNING, FINISHED, FAILED, PRUNED = "running", "finished", "failed", "given up"


@dataclass(frozen=True)
class Note:
    """How far one run is.

    Args:
        number: its place in the sweep, from 0.
        name: its folder below the sweep's.
        state: ``running``, ``finished``, ``failed`` or ``given up``.
        task: what it learns just now.
        epoch: the epochs of it that are done.
        epochs: its epochs in all.
        figures: the newest ``retained/<task>`` and ``val/<task>/accuracy``, in [0, 1].
        message: why it failed.
    """

    number: int
    name: str
    state: str = RUNNING
    task: str = ""
    epoch: int = 0
    epochs: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    message: str = ""

    @property
    def kept(self) -> float | None:
        """The mean accuracy on the tasks before the current one, if there are any."""
        return sum(self._old) / len(self._old) if self._old else None

    @property
    def kept_by(self) -> str:
        """That what was kept is a mean over several tasks, if it is."""
        return mean_of_old(len(self._old))

    @property
    def _old(self) -> list[float]:
        return [value for name, value in self.figures.items() if name.startswith("retained/")]

    @property
    def new(self) -> float | None:
        """The accuracy on the current task, if an epoch of it is done."""
        return self.figures.get(f"val/{self.task}/accuracy")


class Notebook:
    """The note of one run, written anew at each change.

    Args:
        folder: the sweep's.
        note: how the run begins.
    """

    def __init__(self, folder: Path, note: Note) -> None:
        self._path = folder / FOLDER / f"{note.number}.json"
        self.note = note
        self.write()

    def write(self, **changes: Any) -> None:
        """Change the note.

        Args:
            **changes: fields of ``Note``.
        """
        self.note = replace(self.note, **changes)
        with whole_file(self._path) as temporary:
            text = json.dumps(asdict(self.note), ensure_ascii=False)
            temporary.write_text(text, encoding="utf-8")

    def epoch(self, task: str, epoch: int, epochs: int, figures: Mapping[str, float]) -> None:
        """Note the end of an epoch.

        Args:
            task: what is learnt.
            epoch: the epochs of it that are done.
            epochs: its epochs in all.
            figures: the newest accuracies on validation images.
        """
        self.write(task=task, epoch=epoch, epochs=epochs, figures=dict(figures))


def read_notes(folder: Path) -> list[Note]:
    """The notes of a sweep as they stand.

    Args:
        folder: the sweep's.

    Returns:
        By number; a note that cannot be read just now is left out.
    """
    notes = []
    for path in (folder / FOLDER).glob("*.json"):
        try:
            notes.append(Note(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue
    return sorted(notes, key=lambda note: note.number)


def remove_notes(folder: Path) -> None:
    """Take the notes of a sweep away.

    Args:
        folder: the sweep's.
    """
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
