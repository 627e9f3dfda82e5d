"""Consolidated weights that a public file has already: an anchor file keeps their digests."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lifelong.data.files.tensors import DTYPES, NAMES, read_tensors
from lifelong.errors import LifelongError

# θ* by name → the tensor of the public file that equals it, its type here, its digest
Referred = dict[str, dict[str, str]]
DIGEST = "sha256"


def without_known(
    anchors: Mapping[str, Tensor], reference: Path
) -> tuple[dict[str, Tensor], Referred]:
    """Leave out the weights that a public file holds, whatever it calls them.

    Args:
        anchors: name → θ*.
        reference: a safetensors file, or a folder of such.

    Returns:
        Those that it does not hold, and of the others what is needed to find them again.

    Raises:
        LifelongError: when it cannot be read, or holds none of them.
    """
    wanted = {name: _digest(tensor) for name, tensor in anchors.items()}
    sizes = {(tensor.shape, tensor.dtype) for tensor in anchors.values()}
    found: dict[str, tuple[str, str]] = {}
    for public, tensor in _tensors(reference):
        for shape, dtype in sizes:
            # Weights are often read into a wider type than they are published in.
            if shape == tensor.shape and torch.can_cast(tensor.dtype, dtype):
                found.setdefault(_digest(tensor.to(dtype)), (public, NAMES[dtype]))
    known: Referred = {
        name: {"tensor": found[digest][0], "dtype": found[digest][1], DIGEST: digest}
        for name, digest in wanted.items()
        if digest in found
    }
    if not known:
        raise LifelongError(
            f"{reference} holds none of the {len(anchors)} consolidated tensors bit for bit; "
            "wanted the file that the weights came from, consolidated before any training: give "
            "that one, or save without reference="
        )
    return {name: tensor for name, tensor in anchors.items() if name not in known}, known


def known_from(referred: Referred, reference: Path, file: Path) -> dict[str, Tensor]:
    """The weights that were left out of a file, from the public one.

    Args:
        referred: what ``without_known`` noted.
        reference: a safetensors file, or a folder of such.
        file: the one that they were left out of.

    Returns:
        Name → θ*, bit for bit.

    Raises:
        LifelongError: when the public file cannot be read, or is another one.
    """
    names = {one["tensor"] for one in referred.values()}
    public = {name: tensor for name, tensor in _tensors(reference) if name in names}
    found = {}
    for name, one in referred.items():
        tensor = public.get(one["tensor"])
        whole = None if tensor is None else tensor.to(DTYPES[one["dtype"]])
        if whole is None or _digest(whole) != one[DIGEST]:
            what = "lacks" if whole is None else "has another"
            raise LifelongError(
                f"{reference} {what} {one['tensor']!r} than {file} was saved with (sha256 "
                f"{one[DIGEST][:12]}…); pass reference= with the file of that time"
            )
        found[name] = whole
    return found


def _tensors(reference: Path) -> Iterator[tuple[str, Tensor]]:
    files = sorted(reference.glob("*.safetensors")) if reference.is_dir() else [reference]
    if not files:
        raise LifelongError(f"{reference} holds no safetensors file; give one, or its folder")
    for file in files:
        yield from read_tensors(file)[0].items()


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    about = f"{NAMES[tensor.dtype]} {list(tensor.shape)} ".encode()
    digest = hashlib.sha256(about)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
