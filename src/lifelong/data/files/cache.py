"""Parsed tensors kept on disk, so that only the first start parses the archives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from lifelong.data.files.folders import is_writable
from lifelong.data.sets.images import LabelledImages, digest

# raise it whenever the same archives are to give other tensors
FORMAT = 1

_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")
Sets = tuple[LabelledImages, LabelledImages]


def key(dataset: str, contents: Iterable[bytes]) -> str:
    """Return the name under which a data set's tensors are kept.

    It changes with any byte of any archive and with `FORMAT`: a cache entry is never out of date,
    only unused.

    Args:
        dataset: The data set's name.
        contents: The bytes of its archives, in a fixed order.

    Returns:
        A file name.

    Example:
        >>> key("mnist", [b"a", b"b"]) == key("mnist", [b"ab", b""])
        False
    """
    total = hashlib.sha256(f"{FORMAT}\n".encode())
    for content in contents:
        total.update(hashlib.sha256(content).digest())
    return f"{dataset}-{total.hexdigest()[:32]}.pt"


def folders(data_dir: Path) -> tuple[Path, Path]:
    """Return the folders where entries are kept, in the order they are tried.

    Args:
        data_dir: The folder of the archives.

    Returns:
        The folder beside the archives, and the user's own (`$XDG_CACHE_HOME` or `~/.cache`).
    """
    # the XDG specification: empty counts as unset, and a relative path is to be ignored
    user = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not user.is_absolute():
        user = Path("~/.cache").expanduser()
    return data_dir / ".lifelong-cache", user / "lifelong"


def read(name: str, data_dir: Path, announce: Callable[[str], None]) -> Sets | None:
    """Return the kept training and test set, if they are there and undamaged.

    Args:
        name: What `key` returned.
        data_dir: The folder of the archives.
        announce: Told, in a line, of a damaged entry.

    Returns:
        The two sets; None when no folder holds them whole.
    """
    for folder in folders(data_dir):
        path = folder / name
        try:
            file = path.open("rb")
        except OSError:  # not there, or not to be read
            continue
        try:
            with file:
                entry = torch.load(file, map_location="cpu", weights_only=True)
            tensors: list[Tensor] = [entry[tensor] for tensor in _TENSORS]
            if entry["checksum"] == digest(*tensors):
                return LabelledImages(*tensors[:2]), LabelledImages(*tensors[2:])
        except Exception:
            # damaged bytes can make the unpickler raise nearly anything
            pass
        announce(f"{path} is damaged and is not used")
    return None


def write(name: str, data_dir: Path, sets: Sets) -> Path | None:
    """Keep a training and a test set in the first folder that can be written.

    The file is written under a name of this process's own, flushed to the disk and then renamed:
    other processes see the whole entry or none, and the last of two writers replaces equal content.

    Args:
        name: What `key` returned.
        data_dir: The folder of the archives.
        sets: The training and the test set.

    Returns:
        The file; None when no folder could be written, which costs time at the next start only.
    """
    train, test = sets
    tensors = (train.images, train.labels, test.images, test.labels)
    entry = dict(zip(_TENSORS, tensors, strict=True)) | {"checksum": digest(*tensors)}
    for folder in folders(data_dir):
        if not is_writable(folder):
            continue
        draft = folder / f".{name}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with draft.open("wb") as file:
                    torch.save(entry, file)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(folder / name)
            finally:
                draft.unlink(missing_ok=True)
        except (OSError, RuntimeError):  # torch reports a full disk as a RuntimeError
            continue
        return folder / name
    return None
