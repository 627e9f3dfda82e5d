"""What was learnt before: the results of stages, under keys made of all that shaped them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lifelong.run.resume.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

GIGABYTE = 1_000_000_000


class StageStore:
    """A folder of learnt stages that runs share, one after another and side by side.

    An entry is a checkpoint: written whole, with a digest; a damaged one is removed and learnt
    again. A run that learns holds the key's lock, which the system releases if the run dies; the
    others wait. Beyond the size bound the entries that were longest not used are removed.

    Args:
        folder: where the entries lie; it may be shared by machines.
        limit: the size bound, in bytes.
        tell: told, a line each time, what a user would want to know.
    """

    def __init__(self, folder: Path, limit: float, tell: Callable[[str], object]) -> None:
        self.folder = folder
        self.limit = limit
        self.tell = tell

    @contextmanager
    def exclusive(self, key: str, what: str) -> Iterator[None]:
        """Hold a key, so that others wait instead of learning the same.

        Args:
            key: of the stage.
            what: its task, for the line that says that we wait.

        Yields:
            Nothing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.tell(f"another run is learning {what}; waiting for its result")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def recall(self, kind: str, key: str) -> dict[str, Any] | None:
        """An entry's content.

        Args:
            kind: "fit" or "state".
            key: what shaped it.

        Returns:
            What was kept, or None.
        """
        path = self._path(kind, key)
        if not path.exists():
            return None
        try:
            content = load_checkpoint(path, kind)
            path.touch()  # the newest is the last to be pruned
        except FileNotFoundError:
            return None
        except CheckpointError as error:
            self.tell(f"{error}; it is removed from the stage store and learnt again")
            path.unlink(missing_ok=True)
            return None
        return content

    def keep(self, kind: str, key: str, content: Mapping[str, Any]) -> None:
        """Keep an entry, and the store within its bound.

        Args:
            kind: "fit" or "state".
            key: what shaped it.
            content: tensors, numbers, strings, and lists and dictionaries of them.
        """
        save_checkpoint(self._path(kind, key), kind, content)
        self._prune()

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / f"{key}.{kind}"

    def _prune(self) -> None:
        entries = []
        for path in (*self.folder.glob("*.fit"), *self.folder.glob("*.state")):
            try:
                facts = path.stat()
            except FileNotFoundError:  # pruned by another run
                continue
            entries.append((facts.st_mtime, facts.st_size, path))
        size = sum(entry[1] for entry in entries)
        for _, bytes_, path in sorted(entries)[:-1]:
            if size <= self.limit:
                return
            path.unlink(missing_ok=True)
            size -= bytes_


class NoStore(StageStore):
    """The store of a run that neither reuses nor keeps anything: ``stages=off``."""

    def __init__(self) -> None:
        super().__init__(Path(), 0.0, str)

    @contextmanager
    def exclusive(self, key: str, what: str) -> Iterator[None]:
        """Nothing to hold.

        Args:
            key: unused.
            what: unused.

        Yields:
            Nothing.
        """
        del key, what
        yield

    def recall(self, kind: str, key: str) -> None:
        """Nothing was kept.

        Args:
            kind: unused.
            key: unused.
        """

    def keep(self, kind: str, key: str, content: Mapping[str, Any]) -> None:
        """Keep nothing.

        Args:
            kind: unused.
            key: unused.
            content: unused.
        """
