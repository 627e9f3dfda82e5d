"""The one table of configuration keys: what shapes numbers, what is free, what names a run.

A key that nobody declared here shapes numbers: it counts in a stage's key, it may not change when a
run is resumed, and reports group by it. Whatever is declared free has its reason beside it.

Keys are written as on the command line, dots between their parts; ``*`` stands for one part. A
declared key covers all below it. Imports nothing heavy.
"""

from collections.abc import Iterator, Mapping
from typing import Any

# No number depends on them: free for a stage's key, on resume, and in reports.
FREE: Mapping[str, str] = {
    "resume": "a resumed run ends with the bits of an uninterrupted one",
    "output_dir": "where the results go",
    "hydra": "folders, launchers and help; Hydra keeps it out of what a run sees",
    "data_dir": "where the images lie; what they are is in each task's fingerprint",
    "benchmark.tasks.*.data_dir": "data_dir, as a task has it",
    "stages": "a stage from the store has the bits of one that is learnt",
    "stages_limit": "how much the store keeps",
    "checkpoint_every": "how often the middle of a stage is kept; it draws nothing at random",
    "logger": "who is told the figures",
    "trainer.enable_model_summary": "a table on the screen",
    "choice": "which λ is learnt with; a stage of a given λ does not know how that was chosen",
    "search": "which λ is tried next; as choice",
}
# Words of reports: no number depends on them, so that stages are shared across them, but a run that
# is resumed keeps its own.
LABELS = ("benchmark.name", "method.name")
# What tells runs apart in every report by itself. All but the labels shape numbers.
NAMES = (
    *("seed", "benchmark.tasks.*.seed", "method.seed"),
    *("method", "method._target_", "method.ewc_lambda", "benchmark", "experiment", *LABELS),
)
# Keys of the method that shape a task while it is learnt, not what is kept of it afterwards.
FREE_FOR_STATE = ("ewc_lambda", "step")
MOVED: Mapping[str, str] = {
    "method.penalty.damping": "method.damping",
    "method.penalty.merge": "method.merge",
    "method.penalty.precision": "method.precision",
    "method.consolidation.decay": "method.decay",
    "method.consolidation.estimator.labels": "method.labels",
    "method.consolidation.estimator.samples": "method.samples",
    "method.consolidation.estimator.threshold": "method.threshold",
    "method.joint": "method=joint",
}


def is_free(key: str) -> bool:
    """Whether no number depends on a key.

    Args:
        key: with dots between its parts.

    Returns:
        What the table says of it or of what it is a part of.

    Example:
        >>> is_free("logger.csv.save_dir"), is_free("benchmark.tasks.mnist.data_dir")
        (True, True)
        >>> is_free("batch_size")
        False
    """
    return _declared(_parts(key), FREE)


def shaping(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration shapes numbers: all but what is declared free, or is a label.

    Args:
        config: in plain values.

    Returns:
        The same, nested, without the others.

    Example:
        >>> shaping({"seed": 1, "output_dir": "x", "benchmark": {"name": "b", "tasks": {}}})
        {'seed': 1, 'benchmark': {'tasks': {}}}
    """
    return _without(config, (*FREE, *LABELS))


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What reports group runs by: neither free, nor what names a run.

    Args:
        config: in plain values.

    Returns:
        Key, with dots, → its value.
    """
    return {key: value for key, value in flat(config).items() if is_setting(key)}


def is_setting(key: str) -> bool:
    """Whether reports group runs by a key.

    Args:
        key: with dots between its parts, or a group.

    Returns:
        Whether it is neither free, nor one that names a run.

    Example:
        >>> is_setting("trainer.precision"), is_setting("method.ewc_lambda"), is_setting("seed")
        (True, False, False)
    """
    path = _parts(key)
    # method=ewc names a run, method.damping=0.1 is a setting: no name covers what lies below it
    names = any(len(path) == len(_parts(name)) and _fits(path, _parts(name)) for name in NAMES)
    return not names and not is_free(key)


def moved(key: str) -> str | None:
    """What a key of an earlier version is called now.

    Args:
        key: with dots between its parts.

    Returns:
        The key, or the group's choice, that took its place; None where it did not move.

    Example:
        >>> moved("method.penalty.damping"), moved("method.joint"), moved("seed")
        ('method.damping', 'method=joint', None)
    """
    return MOVED.get(key)


def flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A configuration as on the command line.

    Args:
        config: in plain values.
        before: the key of the whole, with its dot.

    Returns:
        Key, with dots, → value; what is empty has a key too.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found


def targets(value: Any) -> Iterator[str]:
    """The dotted paths of all that a configuration builds or calls.

    Args:
        value: a configuration in plain values, or a part of one.

    Yields:
        Every ``_target_``, and what one of Hydra's own is to look up.
    """
    if isinstance(value, Mapping):
        target = value.get("_target_")
        if isinstance(target, str):
            yield target
            if target.startswith("hydra.") and isinstance(value.get("path"), str):
                yield value["path"]
        for item in value.values():
            yield from targets(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from targets(item)


def _without(config: Mapping[str, Any], keys: tuple[str, ...], before: tuple[str, ...] = ()) -> Any:
    kept: dict[str, Any] = {}
    for key, value in config.items():
        path = (*before, str(key))
        if not _declared(path, keys):
            kept[key] = _without(value, keys, path) if isinstance(value, Mapping) else value
    return kept


def _declared(path: tuple[str, ...], keys: Mapping[str, str] | tuple[str, ...]) -> bool:
    return any(_fits(path, _parts(key)) for key in keys)


def _parts(key: str) -> tuple[str, ...]:
    return tuple(key.replace("/", ".").split("."))  # a group within a group has a slash


def _fits(path: tuple[str, ...], key: tuple[str, ...]) -> bool:
    return len(path) >= len(key) and all(
        want in ("*", part) for want, part in zip(key, path, strict=False)
    )
