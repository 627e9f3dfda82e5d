"""Checkpoints that say what they are, and show whether they are whole."""

import hashlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelong.data.files.whole import whole_file
from lifelong.errors import LifelongError

FORMAT = 3
DEEPEST = 64  # levels of lists and dictionaries; ours have six


class CheckpointError(LifelongError):
    """A file that cannot be taken up: damaged, of another kind, or of another format."""


def save_checkpoint(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    It is a plain dictionary for ``torch.load(path, weights_only=True)``: the content, with ``kind``
    and ``format``, and a SHA-256 ``digest`` of all of it, tensors included.

    Args:
        path: the file.
        kind: what it is, "stage" for instance.
        content: tensors, numbers, strings, and lists and dictionaries of them.
    """
    whole = {"kind": kind, "format": FORMAT, **content}
    # In memory first: torch's own writer hides why a file could not be written.
    buffer = io.BytesIO()
    torch.save(whole | {"digest": digest(whole)}, buffer)
    with whole_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint on the CPU and check it.

    Args:
        path: a file that ``save_checkpoint`` wrote.
        kind: what it must be.

    Returns:
        Its content.

    Raises:
        CheckpointError: when it is damaged (cut short, a bit flipped), or none of ours.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of what is refused below
            whole = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not there") from error
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged or no checkpoint ({type(error).__name__})"
        ) from error
    if not isinstance(whole, dict) or whole.get("kind") != kind:
        raise CheckpointError(f"{path} is no {kind} checkpoint of lifelong")
    if whole.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {whole.get('format')}; this version reads format {FORMAT}"
        )
    if not _is_plain(whole):
        raise CheckpointError(f"{path} is damaged: it holds what no checkpoint of lifelong does")
    if whole.pop("digest", None) != digest(whole):
        raise CheckpointError(f"{path} is damaged (its digest does not fit its content)")
    return whole


def digest(content: Any) -> str:
    """The SHA-256 of tensors, numbers and strings in nested lists and dictionaries.

    Args:
        content: the value; dictionaries count in their own order.

    Returns:
        Hexadecimal.
    """
    hashed = hashlib.sha256()
    _take_up(hashed, content)
    return hashed.hexdigest()


def _is_plain(value: Any, depth: int = 0) -> bool:
    # Before anything is done with it: an expanded tensor asks for any memory, a sparse one and one
    # without storage have no bytes.
    if depth > DEEPEST:
        return False
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            return False
        return value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return all(
            isinstance(key, str | int) and _is_plain(item, depth + 1) for key, item in value.items()
        )
    if isinstance(value, list | tuple):
        return all(_is_plain(item, depth + 1) for item in value)
    return True


def _take_up(hashed: "hashlib._Hash", value: Any) -> None:
    if isinstance(value, Tensor):
        hashed.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        hashed.update(flat.view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        hashed.update(f"mapping {len(value)}".encode())
        for key, item in value.items():
            _take_up(hashed, key)
            _take_up(hashed, item)
    elif isinstance(value, list | tuple):
        hashed.update(f"list {len(value)}".encode())
        for item in value:
            _take_up(hashed, item)
    else:
        hashed.update(f"{type(value).__name__} {value!r};".encode())
