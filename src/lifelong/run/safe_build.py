"""The one door through which a file's words become a network: what it names is checked first.

A checkpoint is data from anywhere. Hydra's ``instantiate`` would call whatever its ``_target_``
names; here a name must be that of a class that is a network, and its arguments plain values.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lifelong.errors import LifelongError

PACKAGES = ("lifelong.models", "torch.nn", "torchvision")
DEEPEST = 32  # levels of a configuration; no network's own has a third of them
# Their constructors run code that they are given.
RUN_CODE = (torch.jit.ScriptModule, torch.fx.GraphModule)
TARGET, ARGUMENTS = "_target_", "_args_"


class UntrustedError(LifelongError):
    """What a configuration holds that is neither a network's name nor a plain value."""


def build_network(config: Any) -> nn.Module:
    """Build the network that a configuration from a file names, if it names nothing else.

    The whole configuration is checked before the first class is called. Interpolations are not
    resolved, and nothing is imported but modules of ``lifelong.models``, ``torch.nn`` and
    ``torchvision``.

    Args:
        config: ``_target_``, the class's name, with its arguments: plain values, and networks that
            are named in the same way. ``_args_`` holds those without a name.

    Returns:
        The network, with fresh weights.

    Raises:
        UntrustedError: when a name is not that of a network's class, or a value is not plain.
    """
    classes = network_classes(config)
    if not isinstance(config, Mapping) or TARGET not in config:
        raise UntrustedError("no class that is named")
    return _built(config, classes)


def network_classes(config: Any) -> dict[str, type[nn.Module]]:
    """The classes that a configuration names; nothing is built.

    Args:
        config: of a network, from a file.

    Returns:
        Name → class.

    Raises:
        UntrustedError: when a name is not that of a network's class, or a value is not plain.
    """  # noqa: DOC502
    names: set[str] = set()
    _check(config, names, 0)
    # All of them before any is imported.
    for name in sorted(names):
        _home(name)
    return {name: network_class(name) for name in sorted(names)}


def network_class(name: str) -> type[nn.Module]:
    """The class of a network.

    Args:
        name: the module that defines it, or a package that offers it, and the class's own name:
            ``torch.nn.modules.linear.Linear`` or ``torch.nn.Linear``.

    Returns:
        A subclass of ``nn.Module`` that ``lifelong.models``, ``torch.nn`` or ``torchvision``
        defines.

    Raises:
        UntrustedError: when it is anything else.
    """
    home, last = _home(name)
    try:
        # A module is found by its import alone: no attribute is walked through, as any module has
        # the modules that it imports.
        module = importlib.import_module(home)
    except Exception as error:
        raise UntrustedError(_short(name)) from error
    found = vars(module).get(last)
    if (
        module.__name__ != home
        or not isinstance(found, type)
        or not issubclass(found, nn.Module)
        or issubclass(found, RUN_CODE)
        or not _is_ours(found.__module__)
        or found.__qualname__ != last
        or (found.__module__ != home and not hasattr(module, "__path__"))
    ):
        raise UntrustedError(_short(name))
    return found


def _home(name: str) -> tuple[str, str]:
    home, _, last = name.rpartition(".")
    # Each step must be an ordinary name: `__init__` and `__main__` are modules as well.
    if not _is_ours(home) or not all(x.isidentifier() and "__" not in x for x in name.split(".")):
        raise UntrustedError(_short(name))
    return home, last


def _is_ours(module: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in PACKAGES)


def _check(value: Any, names: set[str], depth: int) -> None:
    if depth > DEEPEST:
        raise UntrustedError(f"arguments that are nested deeper than {DEEPEST} levels")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise UntrustedError(f"{_short(key)} as an argument's name")
            if key == TARGET:
                if not isinstance(item, str):
                    raise UntrustedError(f"{_short(item)} as a class's name")
                names.add(item)
            elif key == ARGUMENTS and TARGET in value:
                if not isinstance(item, list | tuple):
                    raise UntrustedError(f"{_short(item)} as its arguments")
            elif key.startswith("_") and key.endswith("_"):
                raise UntrustedError(f"Hydra's {_short(key)}")
            _check(item, names, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item, names, depth + 1)
    elif isinstance(value, str):
        if "${" in value:
            raise UntrustedError(_short(value))
    elif value is not None and not isinstance(value, bool | int | float):
        raise UntrustedError(_short(value))


def _built(value: Any, classes: Mapping[str, type[nn.Module]]) -> Any:
    if isinstance(value, Mapping):
        given = {key: _built(item, classes) for key, item in value.items() if key != TARGET}
        if TARGET not in value:
            return given
        return classes[value[TARGET]](*given.pop(ARGUMENTS, ()), **given)
    if isinstance(value, list | tuple):
        return [_built(item, classes) for item in value]
    return value


def _short(value: Any) -> str:
    # A value may be as long as its file, and a tensor's words are long whatever it holds.
    words = value if isinstance(value, str) else f"a {type(value).__name__}"
    words = " ".join("".join(x if x.isprintable() else " " for x in words[:200]).split())
    return words if len(words) <= 80 else f"{words[:79]}…"
