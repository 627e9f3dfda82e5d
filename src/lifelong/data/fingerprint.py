"""What makes a stranger's task the same task: its class, its settings, its data in memory."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

_PACKAGES = ("torch", "torchvision", "lightning", "builtins")  # their versions count elsewhere
_PLAIN = (str, int, float, bool, type(None))


def class_code(cls: type) -> dict[str, str]:
    """Return a hash of the file of a class and of each of its bases that a package did not bring.

    Args:
        cls: The class.

    Returns:
        Dotted name → hexadecimal SHA-256; the empty string where there is no file, as in a
        notebook.
    """
    found = {}
    for one in cls.__mro__:
        if one.__module__.partition(".")[0] not in _PACKAGES:
            found[f"{one.__module__}.{one.__qualname__}"] = _file_hash(one)
    return found


def plain_settings(value: Any) -> dict[str, Any]:
    """Return the attributes of an object that are plain values.

    Args:
        value: The object.

    Returns:
        Name → number, text, or a list or mapping of such.
    """
    return {name: item for name, item in vars(value).items() if _is_plain(item)}


def fingerprint_of(cls: type, settings: Mapping[str, Any], loaders: Sequence[Any]) -> str:
    """Return a hash of a class's source, its settings and what its loaders hold in memory.

    Of a data set all tensors and arrays are hashed, and all plain values; of anything else
    in it (transforms, open files) the type's name. Settings count always: they may change what no
    tensor shows, such as an augmentation.

    Args:
        cls: The data module's class.
        settings: Its arguments.
        loaders: What it gave.

    Returns:
        64 hexadecimal digits.
    """
    total = hashlib.sha256()
    about = {"code": class_code(cls), "settings": settings}
    total.update(json.dumps(about, sort_keys=True, default=repr).encode())
    for loader in loaders:
        _add(total, getattr(loader, "dataset", None), set())
    return total.hexdigest()


def _add(total: Any, value: Any, seen: set[int]) -> None:
    total.update(f"<{type(value).__module__}.{type(value).__qualname__}>".encode())
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        total.update(f"{value.dtype} {list(value.shape)}".encode())
        total.update(value.flatten().view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        total.update(f"{value.dtype} {value.shape}".encode())
        total.update(np.ascontiguousarray(value).data.cast("B") if value.size else b"")
    elif isinstance(value, _PLAIN):
        total.update(f"{value!r};".encode())
    elif id(value) not in seen:
        # an object without an end, such as one that holds itself
        seen = seen | {id(value)}
        if isinstance(value, Mapping):
            for key, item in value.items():
                total.update(f"{key!r}=".encode() if isinstance(key, _PLAIN) else b"?=")
                _add(total, item, seen)
        elif isinstance(value, list | tuple):
            for item in value:
                _add(total, item, seen)
        elif isinstance(value, Dataset):
            _add(total, vars(value), seen)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, (*_PLAIN, Path))


def _file_hash(cls: type) -> str:
    try:
        file = inspect.getsourcefile(cls)
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    except (TypeError, OSError):
        return ""
