"""The file that carries a penalty to where the new data are: θ*, F, and whose they are."""

import inspect
import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from lifelong.core.penalty.storage import Storage, to_log8
from lifelong.data.files.tensors import read_tensors, write_tensors
from lifelong.errors import LifelongError
from lifelong.methods.reference import Referred, known_from, without_known

Precision = Storage
FORMAT = "lifelong anchor 1"
# Of this fit or this place, not of what was learnt.
PASSING = {
    *("self", "ewc_lambda", "anchor", "batches", "consolidates", "diagnostics"),
    *("reference", "device", "at_most", "watch", "unit", "seed"),
}


@dataclass(frozen=True)
class Anchor:
    """What such a file holds.

    Args:
        penalty: the class of the penalty.
        state: its buffers.
        method: the class of the method that saved it.
        ewc_lambda: λ of that method.
        settings: its other settings.
        remembered: see ``Remembered``.
        likelihood: the name of the likelihood that F was estimated with.
        versions: of the packages that wrote it.
    """

    penalty: str
    state: dict[str, Tensor]
    method: str
    ewc_lambda: float
    settings: dict[str, Any] = field(default_factory=dict)
    remembered: dict[str, Any] = field(default_factory=dict)
    likelihood: str = "categorical"
    versions: dict[str, str] = field(default_factory=dict)


def write_anchor(
    path: Path, anchor: Anchor, precision: Precision, reference: Path | None = None
) -> None:
    """Write what a method holds, whole or not at all.

    F takes 4 bytes an entry as it is, 2 as ``bfloat16`` (each entry off by at most 0.4 %) and 1 as
    ``log8``: logarithms in 255 steps over at most 48 octaves, each entry off by at most 6.8 %,
    below them 0. F that is kept in memory in fewer bytes is written as it is kept. θ* stays as it
    is; where a public file has it, its digest takes its place.

    Args:
        path: where to.
        anchor: what to write.
        precision: of F.
        reference: a safetensors file, or a folder of such, that has θ*.

    Raises:
        LifelongError: when ``reference`` cannot be read, or holds none of θ*.
        ValueError: when the precision is none of these, or not one for factors.
    """  # noqa: DOC502
    if precision not in get_args(Precision):
        wanted = ", ".join(get_args(Precision))
        raise ValueError(f"precision is {precision!r}; it must be one of {wanted}")
    tensors: dict[str, Tensor] = {}
    state, referred = anchor.state, Referred()
    if reference is not None:
        values = {name: tensor for name, tensor in state.items() if _is_anchor(name)}
        left, referred = without_known(values, reference)
        state = {n: t for n, t in state.items() if n not in values or n in left}
    for name, tensor in state.items():
        if _is_importance(name) and tensor.dtype == torch.uint8:
            tensors[f"{name}:log8"] = tensor
        elif ".scale." in f".{name}":
            tensors[f"{name.replace('scale.', 'importance.', 1)}:range"] = tensor
        elif precision == "float32" or not _is_importance(name):
            tensors[name] = tensor
        elif precision == "bfloat16":
            tensors[name] = tensor.bfloat16()
        elif name.endswith((".A", ".G")):
            raise ValueError(
                "log8 is for diagonals, and Kronecker factors have negative entries; "
                "take precision='bfloat16'"
            )
        else:
            tensors[f"{name}:log8"], tensors[f"{name}:range"] = to_log8(tensor)
    about = {
        "penalty": anchor.penalty,
        "method": anchor.method,
        "ewc_lambda": anchor.ewc_lambda,
        "settings": anchor.settings,
        "remembered": anchor.remembered,
        "likelihood": anchor.likelihood,
        "referred": referred,
        "versions": {"lifelong": version("lifelong-lightning"), "torch": str(torch.__version__)},
    }
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in about.items()}
    write_tensors(path, tensors, {"format": FORMAT, **texts})


def read_anchor(path: Path, reference: str | Path | None = None) -> Anchor:
    """Read what ``write_anchor`` wrote. Nothing in the file can run code.

    Args:
        path: where it lies.
        reference: the public file that has the θ* which this one refers to.

    Returns:
        Its content; F in at least 32 bits again, or as ``log8`` numbers.

    Raises:
        LifelongError: when it is missing, damaged, or another kind of file, or θ* is not where it
            refers to.
    """
    tensors, texts = read_tensors(path)
    if texts.pop("format", None) != FORMAT:
        raise LifelongError(
            f"{path} was not written by save(); wanted a file that EWC(…).save(FILE) left"
        )
    state: dict[str, Tensor] = {}
    try:
        about = {name: json.loads(text) for name, text in texts.items()}
        referred = about.pop("referred", {})
        for name, tensor in tensors.items():
            plain = name.removesuffix(":log8").removesuffix(":range")
            if name.endswith(":range"):
                state[plain.replace("importance.", "scale.", 1)] = tensor
            else:
                narrow = _is_importance(name) and tensor.dtype == torch.bfloat16
                state[plain] = tensor.float() if narrow else tensor
        if referred and reference is None:
            raise LifelongError(
                f"{path} refers to a public file for {len(referred)} of the consolidated weights; "
                "pass that, reference=FILE.safetensors"
            )
        if referred:
            state |= known_from(referred, Path(str(reference)), path)
        return Anchor(state=state, **about)
    except (ValueError, KeyError, TypeError) as error:
        raise LifelongError(f"{path} is of another version: {error}; save it again") from None


def settings_of(method: Any) -> dict[str, Any]:
    """The settings of a method that say how it holds what it learnt.

    Args:
        method: one that has a penalty.

    Returns:
        Argument → value, of those that are plain.
    """
    names = {
        name
        for kind in type(method).__mro__
        if "__init__" in vars(kind) and kind.__module__ != "builtins"
        for name in inspect.signature(vars(kind)["__init__"]).parameters
    }
    found = {}
    for name in sorted(names - PASSING):
        for owner in (method, method.penalty):
            value = getattr(owner, name, None)
            if isinstance(value, bool | int | float | str | list | tuple):
                found[name] = value
    return found


def taken_by(kind: type, settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings that a class of methods takes.

    Args:
        kind: the class.
        settings: as from a file.

    Returns:
        What may be passed to it.
    """
    found: set[str] = set()
    for one in kind.__mro__:
        if "__init__" not in vars(one):
            continue
        parameters = inspect.signature(vars(one)["__init__"]).parameters.values()
        found |= {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return {name: value for name, value in settings.items() if name in found - PASSING}


def _is_anchor(name: str) -> bool:
    return name.startswith(("anchor.", "rest.anchor.")) or (
        name.startswith("layers.") and name.endswith(".anchor")
    )


def _is_importance(name: str) -> bool:
    return name.startswith(("importance.", "rest.importance.")) or (
        name.startswith("layers.") and name.endswith((".A", ".G"))
    )
