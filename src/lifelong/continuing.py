"""Going on with a run: what it was begun with, and whether that is asked for again.

Imports nothing heavy.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

# They change neither a number nor what is learnt.
FREE = ("resume", "output_dir", "data_dir", "stages", "stages_limit", "checkpoint_every", "logger")


def note_run(config: DictConfig, overrides: Sequence[str]) -> None:
    """Write down what a run is begun with, where no second start of the command overwrites it.

    Args:
        config: the composed configuration.
        overrides: the words on the command line.
    """
    path = _note(config.output_dir)
    if config.resume and path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    note = {"config": OmegaConf.to_container(config, resolve=True), "overrides": list(overrides)}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(note, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)


def continued(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration to resume with: that of the run if the command says nothing else.

    ``resume=true hydra.run.dir=DIR`` is enough; what is said beside it must fit the run, and is
    compared with its checkpoints later.

    Args:
        config: as composed from the command line.
        overrides: the words on the command line.

    Returns:
        The run's own configuration, with what is free to change taken from the command line; or
        ``config`` as it is where other keys were given, or no run was begun there.
    """
    path = _note(config.output_dir)
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return config
    keys = {word.lstrip("+~").partition("=")[0] for word in overrides}
    if any(key not in FREE and not key.startswith("hydra.") for key in keys):
        return config
    said = {key: config[key] for key in FREE if key in keys or key == "output_dir"}
    own = OmegaConf.create(note["config"])
    merged = OmegaConf.merge(own, {"resume": True})
    for key, value in said.items():
        OmegaConf.update(merged, key, value, merge=False, force_add=True)
    # Hydra has just written this command's words over those of the run.
    OmegaConf.save(merged, path.with_name("config.yaml"))
    OmegaConf.save(OmegaConf.create(note["overrides"]), path.with_name("overrides.yaml"))
    assert isinstance(merged, DictConfig)
    return merged


def how_to_continue(directory: str) -> str:
    """What to type to go on with an interrupted run.

    Args:
        directory: the run's.

    Returns:
        The command.
    """
    word = f"hydra.run.dir={directory}"
    if set("=, '\"") & set(directory):
        word = shlex.quote(f"hydra.run.dir='{directory}'")
    return f"lifelong-train resume=true {word}"


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys that matter and differ between two configurations.

    Args:
        then: of the run, in plain values.
        now: of the command, in plain values.

    Returns:
        ``key=its value there (its value here)``, for each.
    """
    before, after = dict(_flat(then)), dict(_flat(now))
    keys = [key for key in (before | after) if before.get(key) != after.get(key)]
    return [f"{key}={before.get(key)} there, {after.get(key)} here" for key in keys]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if (not prefix and key in FREE) or (prefix == "benchmark." and key == "data_dir"):
            continue
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _note(directory: str) -> Path:
    return Path(directory) / ".hydra" / "run.json"
