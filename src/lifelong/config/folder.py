"""A folder belongs to one run: a name of its own, and a lock for as long as the run goes on.

Imports nothing heavy: Hydra makes the callback before anything is learnt.
"""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lifelong.config.console import run_command, say
from lifelong.config.processes import is_one_of_several
from lifelong.errors import LifelongError

HIDDEN, LOCK = ".hydra", "run.lock"
HELD = (errno.EAGAIN, errno.EACCES)  # what systems say of a lock that another process has

_held: dict[Path, int] = {}  # folder → the open lock file


def claim(wanted: Path) -> Path:
    """Make a folder that no other run has, be it begun in the same moment.

    Args:
        wanted: its name if that is free; else ``_02`` is added, ``_03`` and so on.

    Returns:
        The folder, empty.
    """
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number:02}")
        # The system makes a folder once: of several that try, one succeeds.
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    return folder


def hold(directory: str | Path, key: str = "hydra.run.dir") -> bool:
    """Lock a run's folder for this process, until ``let_go`` or its end, however it ends.

    The lock is the system's (``flock``), which dies with its owner. What it says of the owner
    stands in the locked file itself, which a library's lock would empty.

    Args:
        directory: the run's or the sweep's; it is made.
        key: names the folder on the command line.

    Returns:
        Whether it was locked just now; False where this process has it already, or where there are
        no locks.

    Raises:
        LifelongError: when a run that is still going on has it.
    """
    folder = Path(directory).resolve()
    if folder in _held or _rank() > 0:
        return False
    path = folder / HIDDEN / LOCK
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(descriptor)
            os.close(descriptor)
            if error.errno in HELD:
                raise LifelongError(
                    f"{folder} belongs to a run that is still going on{owner}; let it come to its "
                    f"end, or choose another folder with {key}=DIR"
                ) from error
            _say_once(f"{folder} cannot be locked ({error.strerror}): nothing keeps a second run "
                      "out of it")  # fmt: skip
            return False
        if _is_still(path, descriptor):
            break
        os.close(descriptor)  # its owner took the file away as it ended
    since = datetime.now().isoformat(" ", "seconds")
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(facts).encode(), 0)
    _held[folder] = descriptor
    return True


def let_go(directory: str | Path | None = None) -> None:
    """Unlock a folder, and leave nothing of the lock.

    Args:
        directory: as given to ``hold``; all that this process holds if None.
    """
    for folder in list(_held) if directory is None else [Path(directory).resolve()]:
        descriptor = _held.pop(folder, None)
        if descriptor is None:
            continue
        path = folder / HIDDEN / LOCK
        with contextlib.suppress(OSError):
            if _is_still(path, descriptor):
                path.unlink()
                # Where nothing was begun, an empty folder would stay; others are kept by rmdir.
                path.parent.rmdir()
                folder.rmdir()
        os.close(descriptor)


@contextmanager
def own_folder(directory: str | Path) -> Iterator[None]:
    """Hold a run's folder for a block.

    Args:
        directory: the run's.

    Yields:
        Nothing.
    """
    mine = hold(directory)
    try:
        yield
    finally:
        if mine:
            let_go(directory)


class OneRunOneFolder(Callback):
    """Hydra's callback that gives each command a folder of its own, before Hydra writes there."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Claim or lock the run's folder.

        Args:
            config: of the run.
            **_: unused.
        """
        # Hydra turns a callback's errors into warnings; what the user can mend ends the command.
        run_command(lambda: _own(config, "run"))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Claim or lock the sweep's folder.

        Args:
            config: of the sweep.
            **_: unused.
        """
        run_command(lambda: _own(config, "sweep"))


def _own(config: DictConfig, kind: str) -> None:
    key = f"hydra.{kind}.dir"
    wanted = Path(_resolved(config, key))
    typed = any(word.lstrip("+").startswith(f"{key}=") for word in config.hydra.overrides.hydra)
    if typed or is_one_of_several():
        hold(wanted, key)
        return
    folder = claim(wanted)
    hold(folder, key)
    if folder == wanted:
        return
    with read_write(config), open_dict(config):
        OmegaConf.update(config, key, str(folder))
        # The jobs of a sweep compose their configuration anew from these words.
        quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        config.hydra.overrides.hydra.append(f"{key}='{quoted}'")


def _resolved(config: DictConfig, key: str) -> str:
    # A name may use ${hydra:…}, which Hydra sets only later.
    before = HydraConfig.instance().cfg
    HydraConfig.instance().cfg = config  # type: ignore[assignment]
    try:
        return str(OmegaConf.select(config, key, throw_on_missing=True))
    finally:
        HydraConfig.instance().cfg = before


def _rank() -> int:
    # Of several processes that were started elsewhere, the first one holds the folder for all.
    if not is_one_of_several():
        return 0
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
        return f" (process {int(owner['pid'])} on {owner['host']}, since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # it is just being written


_said: set[str] = set()


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        say(line)
