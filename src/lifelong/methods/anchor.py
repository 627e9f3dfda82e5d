"""The file that carries a penalty to where the new data are: θ*, F, and whose they are."""

import inspect
import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lifelong.data.files.tensors import read_tensors, write_tensors
from lifelong.errors import LifelongError

Precision = Literal["float32", "bfloat16", "log8"]
FORMAT = "lifelong anchor 1"
OCTAVES = 48  # what 255 steps of a logarithm reach down from the largest F
# Of this fit or this place, not of what was learnt.
PASSING = {"self", "ewc_lambda", "anchor", "batches", "consolidates", "diagnostics"} | {
    *("at_most", "watch", "unit")
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


def write_anchor(path: Path, anchor: Anchor, precision: Precision) -> None:
    """Write what a method holds, whole or not at all.

    F takes 4 bytes an entry as it is, 2 as ``bfloat16`` (each entry off by at most 0.4 %) and 1 as
    ``log8``: logarithms in 255 steps over at most 48 octaves, each entry off by at most 6.8 %,
    below them 0. θ* stays as it is.

    Args:
        path: where to.
        anchor: what to write.
        precision: of F.

    Raises:
        ValueError: when the precision is none of these, or not one for factors.
    """
    if precision not in get_args(Precision):
        wanted = ", ".join(get_args(Precision))
        raise ValueError(f"precision is {precision!r}; it must be one of {wanted}")
    tensors: dict[str, Tensor] = {}
    for name, tensor in anchor.state.items():
        if precision == "float32" or not _is_importance(name):
            tensors[name] = tensor
        elif precision == "bfloat16":
            tensors[name] = tensor.bfloat16()
        elif name.endswith((".A", ".G")):
            raise ValueError(
                "log8 is for diagonals, and Kronecker factors have negative entries; "
                "take precision='bfloat16'"
            )
        else:
            tensors[f"{name}:log8"], tensors[f"{name}:range"] = _to_log8(tensor)
    about = {
        "penalty": anchor.penalty,
        "method": anchor.method,
        "ewc_lambda": anchor.ewc_lambda,
        "settings": anchor.settings,
        "remembered": anchor.remembered,
        "likelihood": anchor.likelihood,
        "versions": {"lifelong": version("lifelong-lightning"), "torch": str(torch.__version__)},
    }
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in about.items()}
    write_tensors(path, tensors, {"format": FORMAT, **texts})


def read_anchor(path: Path) -> Anchor:
    """Read what ``write_anchor`` wrote. Nothing in the file can run code.

    Args:
        path: where it lies.

    Returns:
        Its content, F in at least 32 bits again.

    Raises:
        LifelongError: when it is missing, damaged, or another kind of file.
    """
    tensors, texts = read_tensors(path)
    if texts.pop("format", None) != FORMAT:
        raise LifelongError(
            f"{path} was not written by save(); wanted a file that EWC(…).save(FILE) left"
        )
    state: dict[str, Tensor] = {}
    try:
        about = {name: json.loads(text) for name, text in texts.items()}
        for name, tensor in tensors.items():
            if name.endswith(":log8"):
                name = name.removesuffix(":log8")
                state[name] = _from_log8(tensor, tensors[f"{name}:range"])
            elif not name.endswith(":range"):
                state[name] = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
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


def _is_importance(name: str) -> bool:
    return name.startswith(("importance.", "rest.importance.")) or (
        name.startswith("layers.") and name.endswith((".A", ".G"))
    )


def _to_log8(f: Tensor) -> tuple[Tensor, Tensor]:
    logs = f.detach().double().log2()
    finite = logs[torch.isfinite(logs)]
    if not finite.numel():
        return torch.zeros_like(f, dtype=torch.uint8), torch.zeros(2)
    top = float(finite.max())
    low = max(float(finite.min()), top - OCTAVES)
    step = (top - low) / 254 or 1.0
    codes = ((logs - low) / step).round().add(1).nan_to_num(neginf=0.0).clamp(0, 255)
    return codes.to(torch.uint8), torch.tensor([low, step], dtype=torch.float32)


def _from_log8(codes: Tensor, scale: Tensor) -> Tensor:
    low, step = (float(x) for x in scale)
    values = torch.exp2(low + (codes.double() - 1) * step).float()
    return torch.where(codes > 0, values, 0.0)
