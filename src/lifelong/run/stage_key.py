"""The key of a stage: a hash of everything that may have shaped its result.

Everything counts but what ``lifelong.run.keys`` declares free: what somebody forgets to declare
costs a stage that is learnt twice, never a stage of other numbers.
"""

import ast
import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from lifelong.run.keys import FREE_FOR_STATE, LABELS, shaping, targets

PACKAGE = Path(__file__).parents[1]
# They read results, choose which λ is learnt with, or word what a user sees: no stage's numbers.
ROOMS_WITHOUT_NUMBERS = ("report", "search", "cli")
INSTALLED = {"site-packages", "dist-packages"}
PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy")


def fit_key(
    config: Mapping[str, Any], tasks: Sequence[tuple[str, str]], index: int, *, plain: bool
) -> str:
    """The key of what learning one task gives: network, curves, accuracies.

    A stage depends on no later task, so that benchmarks that begin alike share their beginning.

    Args:
        config: the resolved configuration, in plain values.
        tasks: name and data fingerprint of every task, in order.
        index: which task is learnt.
        plain: whether the method takes no part in learning it: as with λ and its penalty while the
            first task is learnt.

    Returns:
        Hexadecimal.
    """
    shape = shaping(config)
    if plain:
        shape.pop("method", None)
    learnt = [list(task) for task in tasks[: index + 1]]
    names = [name for name, _ in learnt]
    benchmark = shape.get("benchmark")
    if isinstance(benchmark, dict) and isinstance(benchmark.get("tasks"), Mapping):
        own = {name: task for name, task in benchmark["tasks"].items() if name in names}
        shape["benchmark"] = benchmark | {"tasks": own}
    return _hash(
        {"config": shape, "tasks": learnt, "machine": machine(), "code": code(targets(shape))}
    )


def state_key(fit: str, config: Mapping[str, Any]) -> str:
    """The key of what a method keeps of a task that it has learnt.

    Args:
        fit: the key of what was learnt.
        config: the resolved configuration; its method counts, but for what shapes learning alone
            and is in ``fit`` where it does.

    Returns:
        Hexadecimal.
    """
    free = {*FREE_FOR_STATE, *(label.removeprefix("method.") for label in LABELS)}
    method = {name: value for name, value in config["method"].items() if name not in free}
    return _hash({"fit": fit, "method": method, "code": code(targets(method))})


def machine() -> dict[str, Any]:
    """What the last bit of a sum depends on, beside the code.

    Returns:
        Processor, instruction set, threads, GPU, precision of matrix products.
    """
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "matrix products": torch.get_float32_matmul_precision(),
    }


def code(names: Iterable[str] = ()) -> dict[str, str]:
    """What computes: the versions of packages, the source of ours and of the user's own.

    Args:
        names: the dotted paths that the configuration builds. What lies in ``site-packages`` counts
            by its version, anything else by its source and that of all of the user's that it
            imports.

    Returns:
        Package → version or hash.
    """
    found = {name: _version(name) or "" for name in PACKAGES}
    found |= {"python": platform.python_version(), "torch": torch.__version__}
    ours = [
        path
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ROOMS_WITHOUT_NUMBERS
    ]
    found["lifelong"] = _source(ours, PACKAGE)
    waiting = sorted({name.partition(".")[0] for name in names})
    while waiting:
        top = waiting.pop()
        if top in found or top in sys.stdlib_module_names:
            continue
        if top == "__main__" and not getattr(sys.modules.get(top), "__file__", None):
            found[top] = uuid4().hex  # typed at a prompt: nobody can tell when it changes
            continue
        places = _places(top)
        installed = any(INSTALLED & set(place.parts) for place in places)
        known = _version(top) if installed else None
        files = [] if known else [path for place in places for path in _python_files(place)]
        found[top] = known or _source(files, *places[:1])
        waiting += sorted({other for path in files for other in _imported(path)} - {top})
    return found


def _places(top: str) -> list[Path]:
    # a file, or the folders of a package
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):  # __main__ has no specification
        spec = None
    if spec is None:
        file = getattr(sys.modules.get(top), "__file__", None)
        return [Path(file)] if file else []
    if spec.submodule_search_locations is not None:
        return [Path(place) for place in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin and Path(spec.origin).is_file() else []


def _python_files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return [
        path
        for path in sorted(place.rglob("*.py"))
        if not any(
            part.startswith(".") or part in INSTALLED for part in path.relative_to(place).parts
        )
    ]


def _imported(path: Path) -> set[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # the bytes count all the same
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _source(files: Iterable[Path], place: Path | None = None) -> str:
    hashed = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(place) if place and path.is_relative_to(place) else path.name
        hashed.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return hashed.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        names = _distributions().get(package, [])
        return ", ".join(f"{name} {version(name)}" for name in sorted(set(names))) or None


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
