"""What the commands say: a line on standard error, and errors in one line with the cure.

Imports nothing heavy: help and errors of configuration come before torch is loaded.
"""

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NoReturn, TypeVar

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from lifelong.errors import LifelongError
from lifelong.run.keys import moved

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TRACE = os.environ.get("HYDRA_FULL_ERROR", "0") != "0"

_silent: ContextVar[bool] = ContextVar("silent", default=False)

Result = TypeVar("Result")


def run_command(command: Callable[[], Result]) -> Result:
    """Run a command; turn what the user can mend into one line and exit code 1.

    Set ``HYDRA_FULL_ERROR=1`` to see the whole trace instead.

    Args:
        command: the work.

    Returns:
        What the command returned.
    """
    if TRACE:
        return command()
    try:
        with _hydra_raises():
            return command()
    except KeyboardInterrupt as error:
        _exit(str(error) or "interrupted; what was finished lies in the run's folder", 130)
    except (LifelongError, HydraException, OmegaConfBaseException, OSError) as error:
        _exit(one_line(error), 1)


@contextmanager
def remove_if_empty(directory: str) -> Iterator[None]:
    """Take a run's folder away again if the run failed before it had a result.

    Args:
        directory: Hydra made it and put the configuration there.

    Yields:
        Nothing.
    """
    finished = False
    try:
        yield
        finished = True
    finally:
        folder = Path(directory)
        results = (f for f in folder.rglob("*") if f.is_file() and ".hydra" not in f.parts)
        if not finished and next(results, None) is None:
            shutil.rmtree(folder, ignore_errors=True)


def one_line(error: BaseException) -> str:
    """The message of an error that the user can mend, on one line with the cure.

    Args:
        error: ours, Hydra's, OmegaConf's or the system's.

    Returns:
        One line.
    """
    text = str(error)
    if isinstance(error, MissingConfigException):
        missing = re.search(r"Could not find '([^']*)'", text)
        options = re.search(r"Available options in '[^']*':\n((?:\t[^\n]*\n?)*)", text)
        if missing and options:
            group, _, name = missing[1].rpartition("/")
            known = ", ".join(options[1].split())
            return f"{group}={name} is not known; type {group}= with one of: {known}"
    if isinstance(error, OSError) and error.errno in FULL:
        return (
            f"{error.filename or 'a file'} could not be written ({error.strerror}); what was saved "
            "before is whole: free some space and go on with resume=true"
        )
    if isinstance(error, OSError) and error.filename:
        return (
            f"{error.filename}: {error.strerror}; "
            "choose a folder that can be written with hydra.run.dir=DIR"
        )
    key = re.search(r"Could not override '([^']*)'", text) or re.search(r"full_key: (\S+)", text)
    if key and moved(key[1]):
        said = re.search(rf"\+{re.escape(key[1])}=(\S+)", text)
        return moved_line(key[1], said[1] if said else "VALUE")
    if key and "override" in key[0] and key[1] == "method.ewc_lambda":
        return (
            "this method has no penalty, so no method.ewc_lambda; leave it out, or type method=ewc"
        )
    if key and "override" in key[0]:
        return f"{key[1]} is no key of the configuration; `lifelong-train --cfg job` lists the keys"
    return " ".join(text.split())


def moved_line(key: str, value: str) -> str:
    """What to type instead of a key of an earlier version.

    Args:
        key: one that moved.
        value: what it was given.

    Returns:
        One line.

    Example:
        >>> moved_line("method.consolidation.decay", "0.9")
        'method.consolidation.decay is method.decay now; type method.decay=0.9'
    """
    new = moved(key)
    return f"{key} is {new} now; type {new}" + ("" if "=" in str(new) else f"={value}")


def say(line: str) -> None:
    """One line on standard error, so that the table alone is on standard output.

    Args:
        line: the words.
    """
    if not _silent.get():
        print(f"lifelong: {line}", file=sys.stderr, flush=True)


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is said in here, by this thread: a sweep's first run has said it.

    Yields:
        Nothing.
    """
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Hydra prints its errors and exits by itself, unless this variable is set while it runs."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _exit(message: str, code: int) -> NoReturn:
    say(message)
    sys.exit(code)
