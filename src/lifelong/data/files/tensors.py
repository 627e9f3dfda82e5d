"""Tensors in the safetensors format: a length, a JSON header, and the bare numbers.

Written and read here because the package of that name is no dependency of ours and the format is
this small. No code ever runs from such a file: what does not fit its own description is refused.

    8 bytes, little endian: the header's length
    the header: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, …,
                 "__metadata__": {"key": "text", …}}
    the numbers, one tensor after another, without gaps

Source: https://github.com/huggingface/safetensors, "Format".
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lifelong.data.files.whole import whole_file
from lifelong.errors import LifelongError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
METADATA = "__metadata__"
DIGEST = "sha256"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and texts, whole or not at all, with a digest of all of it.

    Args:
        path: where to.
        tensors: name → tensor, on any device.
        metadata: name → text.

    Raises:
        ValueError: when a tensor's type has no name in the format.
    """
    header: dict[str, Any] = {}
    end = 0
    # The widest first, so that each tensor begins at a multiple of its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in NAMES or name == METADATA:
            raise ValueError(f"{name!r} is {tensor.dtype}; wanted one of {', '.join(DTYPES)}")
        begin, end = end, end + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": shape,
            "data_offsets": [begin, end],
        }
    digest = _digest_of(header, metadata)
    for name in names:
        digest.update(_bytes_of(tensors[name]))
    header[METADATA] = {**metadata, DIGEST: digest.hexdigest()}
    words = json.dumps(header, ensure_ascii=False).encode()
    words += b" " * (-len(words) % 8)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(words)) + words)
        for name in names:
            file.write(_bytes_of(tensors[name]))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what ``write_tensors``, or another writer of the format, wrote.

    Args:
        path: where it lies.

    Returns:
        Tensors by name, on the CPU, and texts by name, without the digest.

    Raises:
        LifelongError: when there is no such file, it is cut off or changed, or it is none of these.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path.stat().st_size)
    except OSError as error:
        raise LifelongError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LifelongError(
            f"{path} is damaged, or no safetensors file: {error}; write it again"
        ) from None


def _read(file: BinaryIO, size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    length = _header_length(file.read(8), size)
    header = json.loads(file.read(length).decode(), object_pairs_hook=_once)
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    metadata = header.pop(METADATA, {})
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no texts")
    rows = sorted(header.items(), key=lambda row: row[1]["data_offsets"])
    told = metadata.pop(DIGEST, None)
    digest = _digest_of(header, metadata)
    tensors, end = {}, 0
    for name, about in rows:
        dtype, shape, count = _checked(name, about, end, size - 8 - length)
        end += count
        numbers = bytearray(file.read(count))
        digest.update(numbers)
        flat = torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(shape)
    if 8 + length + end != size:
        raise ValueError(f"it has {size} bytes and tells of {8 + length + end}")
    if told is not None and told != digest.hexdigest():
        raise ValueError("its content does not match its digest")
    return tensors, metadata


def _header_length(first: bytes, size: int) -> int:
    if len(first) < 8:
        raise ValueError(f"it has {size} bytes")
    length: int = struct.unpack("<Q", first)[0]
    if length > min(HEADER_LIMIT, size - 8):
        raise ValueError(f"its header is told to have {length} bytes")
    return length


def _checked(
    name: str, about: Mapping[str, Any], begin: int, room: int
) -> tuple[torch.dtype, list[int], int]:
    # Everything that would be allotted is checked against the bytes that are there.
    dtype, shape, offsets = DTYPES[about["dtype"]], about["shape"], about["data_offsets"]
    numbers = [*shape, *offsets]
    if len(offsets) != 2 or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f"{name!r} has the shape {shape} at {offsets}")
    count = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    if offsets != [begin, begin + count] or offsets[1] > room:
        raise ValueError(f"{name!r} is told to lie at {offsets} of {room} bytes")
    return dtype, shape, count


def _digest_of(header: Mapping[str, Any], metadata: Mapping[str, str]) -> Any:
    words = json.dumps([header, dict(metadata)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(words.encode())


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in its header")
    return found
