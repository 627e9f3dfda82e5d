"""The live overview of a sweep: a table on a terminal, elsewhere a line for each finished run."""

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lifelong.search.notes import FAILED, FINISHED, PRUNED, RUNNING, Note, read_notes

SECONDS_BETWEEN_LOOKS = 0.5


class Overview:
    """Watches the notes of a sweep and shows them, from a thread of its own.

    Args:
        folder: the sweep's.
        total: the number of runs, if it is known.
        say: prints one line.
        console: for the live table; without one it is shown on standard error if that is a
            terminal.
    """

    def __init__(
        self,
        folder: Path,
        *,
        total: int | None,
        say: Callable[[str], None],
        console: Console | None = None,
    ) -> None:
        self._folder = folder
        self._total = total
        self._say = say
        self._said: set[int] = set()
        self._stop = threading.Event()
        self._live: Live | None = None
        if console is None and sys.stderr.isatty():
            console = Console(stderr=True)
        if console is not None:
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()
        self._thread = threading.Thread(target=self._watch, name="sweep overview", daemon=True)
        self._thread.start()

    def close(self) -> list[Note]:
        """Look a last time and end the display; a second call does nothing more.

        Returns:
            The notes as they stand.
        """
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._look()
            if self._live is not None:
                self._live.stop()
        return read_notes(self._folder)

    def _watch(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN_LOOKS):
            self._look()

    def _look(self) -> None:
        notes = read_notes(self._folder)
        if self._live is not None:
            self._live.update(overview_table(notes, self._total), refresh=True)
        for note in notes:
            if note.state == RUNNING or note.number in self._said:
                continue
            self._said.add(note.number)
            if self._live is None or note.state == FAILED:
                count = f"[{len(self._said)}/{self._total or '?'}] "
                self._say(count + note_line(note))


def overview_table(notes: Sequence[Note], total: int | None) -> Table:
    """How far the runs of a sweep are: those at work first, then the finished, the newest first.

    Args:
        notes: of the runs that have begun.
        total: the number of runs, if it is known.

    Returns:
        The table.
    """
    done = sum(note.state != RUNNING for note in notes)
    title = f"{done} of {total or '?'} runs done; accuracies on validation images"
    if any(note.kept_by for note in notes):
        title += "; kept: the mean of the old tasks"
    table = Table(title=title)
    table.add_column("run", overflow="fold")
    for heading in ("learns", "epoch", "kept %", "new %"):
        table.add_column(heading, justify="right")
    for note in sorted(notes, key=lambda note: (note.state != RUNNING, -note.number)):
        what = note.task if note.state == RUNNING else note.state
        epoch = f"{note.epoch}/{note.epochs}" if note.epochs else ""
        style = {RUNNING: "bold", FAILED: "red", PRUNED: "dim"}.get(note.state, "")
        table.add_row(note.name, what, epoch, _percent(note.kept), _percent(note.new), style=style)
    return table


def note_line(note: Note) -> str:
    """A run that has ended, in one line.

    Args:
        note: of the run.

    Returns:
        Its name and what it kept, or why it failed.
    """
    if note.state == FAILED:
        return f"{note.name} failed: {note.message}"
    mean = f" ({note.kept_by})" if note.kept_by else ""
    figures = [
        f"{word} {_percent(value)} %{about}"
        for word, value, about in (("kept", note.kept, mean), ("new", note.new, ""))
        if value is not None
    ]
    if note.state == PRUNED:
        figures.append(f"given up after epoch {note.epoch} of {note.epochs}")
    return f"{note.name}: {', '.join(figures) or FINISHED}"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f}"
