"""The files that MNIST and USPS are distributed as: their names, their places, their bytes."""

from __future__ import annotations

import bz2
import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

from lifelong.errors import LifelongError


class DamagedArchiveError(LifelongError):
    """A file that is there but does not hold what it should.

    Args:
        path: The file.
        what: What is wrong with it, in a few words.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path} is truncated or corrupt ({what}): "
            "delete it and run again to download it, or copy it anew"
        )


@dataclass(frozen=True)
class Archive:
    """One file of a data set, under the names it is found by.

    Args:
        role: What it holds, such as `train_images`.
        name: Its path below the data folder, as torchvision lays it out.
        places: Every path below the data folder where it may lie, best first.
    """

    role: str
    name: str
    places: tuple[str, ...]


def _mnist(role: str, stem: str) -> Archive:
    # the compressed file first: its check sum tells damage that the plain one would hide
    places = tuple(
        f"{folder}{stem}{suffix}"
        for folder in ("MNIST/raw/", "MNIST/", "")
        for suffix in (".gz", "")
    )
    return Archive(role, places[0], places)


def _usps(role: str, stem: str) -> Archive:
    places = tuple(f"{folder}{stem}{suffix}" for folder in ("", "USPS/") for suffix in (".bz2", ""))
    return Archive(role, places[0], places)


ARCHIVES = {
    "mnist": (
        _mnist("train_images", "train-images-idx3-ubyte"),
        _mnist("train_labels", "train-labels-idx1-ubyte"),
        _mnist("test_images", "t10k-images-idx3-ubyte"),
        _mnist("test_labels", "t10k-labels-idx1-ubyte"),
    ),
    "usps": (_usps("train", "usps"), _usps("test", "usps.t")),
}


def find(dataset: str, data_dir: Path) -> dict[str, Path]:
    """Return the files of a data set that lie in a folder.

    Args:
        dataset: A key of `ARCHIVES`.
        data_dir: The folder to look in; it need not exist.

    Returns:
        Role → path, without the roles whose file is not there.

    Raises:
        LifelongError: The folder may not be looked into.
    """
    found = {}
    try:
        for archive in ARCHIVES[dataset]:
            for path in (data_dir / place for place in archive.places):
                if path.is_file():
                    found[archive.role] = path
                    break
    except OSError as error:
        raise LifelongError(
            f"{data_dir} cannot be looked into ({error.strerror or error}): mend its permissions "
            "or name another folder with data_dir=DIR"
        ) from error
    return found


def missing(dataset: str, data_dir: Path) -> list[Archive]:
    """Return the files of a data set that a folder lacks.

    Args:
        dataset: A key of `ARCHIVES`.
        data_dir: The folder to look in; it need not exist.

    Returns:
        The files not found, in the order of `ARCHIVES`; empty when the data set is whole.
    """
    found = find(dataset, data_dir)
    return [archive for archive in ARCHIVES[dataset] if archive.role not in found]


def read(path: Path) -> bytes:
    """Return a file's bytes as they are stored.

    Args:
        path: The file.

    Returns:
        Its bytes, still compressed if they are.

    Raises:
        LifelongError: The file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise LifelongError(
            f"{path} cannot be read ({error.strerror or error}): "
            "mend its permissions or copy it anew"
        ) from error


def unpack(path: Path, stored: bytes) -> bytes:
    """Return what a file holds once decompressed; a plain file is returned as it is.

    Args:
        path: Where the bytes came from: its suffix tells the compression.
        stored: The bytes as they are stored.

    Returns:
        The decompressed bytes.

    Raises:
        DamagedArchiveError: The archive is truncated or corrupt.
    """
    try:
        if path.suffix == ".gz":
            return gzip.decompress(stored)
        if path.suffix == ".bz2":
            return bz2.decompress(stored)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DamagedArchiveError(path, str(error)) from error
    return stored
