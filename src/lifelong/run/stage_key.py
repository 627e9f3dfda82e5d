"""The key of a stage: a hash of everything that shaped its result, and of nothing else."""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).parents[1]
# What reports and commands do changes no number.
ROOMS = ("core", "models", "data", "learning", "methods", "run")
SHAPING = (
    *("model", "optimizer", "scheduler", "callbacks", "trainer"),
    *("batch_size", "val_fraction", "seed", "max_epochs", "compile", "diagnostics"),
)
KNOWN = ("lifelong", "torch", "lightning")


def fit_key(
    config: Mapping[str, Any], tasks: Sequence[tuple[str, str]], index: int, *, plain: bool
) -> str:
    """The key of what learning one task gives: network, curves, accuracies.

    Args:
        config: the resolved configuration.
        tasks: name and data fingerprint of every task, in order.
        index: which task is learnt.
        plain: whether the method leaves the learning of this task as it is.

    Returns:
        Hexadecimal.
    """
    shape: dict[str, Any] = {name: config.get(name) for name in SHAPING}
    shape["tasks"] = [list(task) for task in tasks[: index + 1]]
    shape["machine"] = machine()
    shape["code"] = code()
    if not plain:
        shape["method"] = config["method"]
    shape["own code"] = [own_code(target) for target in sorted(set(_targets(shape)))]
    return _hash(shape)


def state_key(fit: str, config: Mapping[str, Any]) -> str:
    """The key of what a method keeps of a task that was learnt.

    Args:
        fit: the key of what was learnt.
        config: the resolved configuration; how the method estimates counts, λ does not.

    Returns:
        Hexadecimal.
    """
    free = ("ewc_lambda", "step")
    method = {name: value for name, value in config["method"].items() if name not in free}
    own = [own_code(target) for target in sorted(set(_targets(method)))]
    return _hash({"fit": fit, "method": method, "own code": own})


def machine() -> dict[str, Any]:
    """What the last bit of a sum depends on, beside the code.

    Returns:
        Processor, instruction set, threads, GPU.
    """
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def code() -> dict[str, str]:
    """The versions of what computes.

    Returns:
        Package → version, and a hash of our own source.
    """
    hashed = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((PACKAGE / room).rglob("*.py")):
            hashed.update(path.read_bytes())
    packages = ("torch", "lightning", "numpy", "torchmetrics")
    return {name: version(name) for name in packages} | {"lifelong": hashed.hexdigest()}


def own_code(target: str) -> str:
    """A hash of the file that a user's own class stands in; of the packages' the version counts.

    Args:
        target: a dotted path from the configuration.

    Returns:
        The path, with the hash where the file is the user's.
    """
    top, module = target.partition(".")[0], target.rpartition(".")[0]
    if top in KNOWN or not module:
        return target
    try:
        spec = find_spec(module)
    except ImportError:
        return target
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return target
    return f"{target} {hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()}"


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("_target_"), str):
            yield value["_target_"]
        for item in value.values():
            yield from _targets(item)
    elif isinstance(value, list):
        for item in value:
            yield from _targets(item)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
