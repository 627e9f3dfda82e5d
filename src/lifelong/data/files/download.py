"""torchvision's download, made to give up within seconds and to leave whole files or none."""

from __future__ import annotations

import contextlib
import io
import socket
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from lifelong.data.files import archives
from lifelong.data.files.folders import is_writable

PATIENCE = (
    5.0  # seconds without an answer, or without a byte, after which the network counts as away
)
_OTHER_PROCESS = 600.0  # seconds to wait for another process that downloads the same files


class DownloadError(Exception):
    """The files could not be downloaded; the message says why, in a few words."""


def download(dataset: str, data_dir: Path) -> None:
    """Download what a folder lacks of a data set, from the addresses that torchvision knows.

    The files are fetched into a temporary folder and checked there before they are renamed into
    place: whoever looks meanwhile sees whole files only. Nothing is made where no server answers.

    Args:
        dataset: `mnist` or `usps`.
        data_dir: The folder to complete; made if it is not there.

    Raises:
        DownloadError: The folder is read-only, no server answers, or a file did not arrive whole.
    """
    if not is_writable(data_dir):
        raise DownloadError(f"{data_dir} is read-only")
    if not _answers(_addresses(dataset)):
        raise DownloadError(f"no server answered within {PATIENCE:g} s")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / ".lifelong-download.lock", timeout=_OTHER_PROCESS):
            _complete(dataset, data_dir)
    except (OSError, RuntimeError, EOFError, ValueError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DownloadError(reason) from error


def _complete(dataset: str, data_dir: Path) -> None:
    lacking = archives.missing(dataset, data_dir)
    if not lacking:
        return
    with tempfile.TemporaryDirectory(prefix=".lifelong-download-", dir=data_dir) as folder:
        # torchvision draws progress bars, and older releases tell of each mirror that fails
        silence = io.StringIO()
        with (
            _impatient(),
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            _fetch(dataset, folder, [archive.role for archive in lacking])
        for archive in lacking:
            target = data_dir / archive.name
            target.parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / archive.name).replace(target)


def _fetch(dataset: str, folder: str, roles: Sequence[str]) -> None:
    # torchvision takes seconds to import: only who downloads pays for it
    from torchvision.datasets import MNIST, USPS

    if dataset == "mnist":
        MNIST(folder, download=True)
        return
    for role in roles:
        USPS(folder, train=role == "train", download=True)


def _addresses(dataset: str) -> list[str]:
    from torchvision.datasets import MNIST, USPS

    if dataset == "mnist":
        return [mirror + MNIST.resources[0][0] for mirror in MNIST.mirrors]
    return [USPS.split_list["train"][0]]


def _answers(addresses: Sequence[str]) -> bool:
    """Return whether any server answers, after `PATIENCE` seconds at most.

    A socket's timeout does not bound the look-up of a name, which can hang for much longer where
    there is no network: so each address is tried in a thread of its own, left behind if it hangs.
    """
    answered = threading.Event()
    finished = threading.Semaphore(0)

    def ask(address: str) -> None:
        try:
            urllib.request.urlopen(
                urllib.request.Request(address, method="HEAD"), timeout=PATIENCE
            ).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()  # a refusal is an answer too: torchvision then says what is wrong
        except (OSError, ValueError, HTTPException):
            pass
        finally:
            finished.release()

    for address in addresses:
        threading.Thread(target=ask, args=(address,), daemon=True).start()
    for _ in addresses:
        if not finished.acquire(timeout=PATIENCE) or answered.is_set():
            break
    return answered.is_set()


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
