"""Going on with a run: what it was begun with, and whether that is asked for again.

Imports nothing heavy unless a run is resumed.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf


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
    from lifelong.run.keys import flat, is_free

    path = _note(config.output_dir)
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return config
    keys = {word.lstrip("+~").partition("=")[0] for word in overrides}
    if not all(is_free(key) for key in keys) or any(word.startswith("~") for word in overrides):
        return config
    said = {key for key in keys if not key.startswith("hydra")} | {"output_dir"}
    own = OmegaConf.create(note["config"])
    merged = OmegaConf.merge(own, {"resume": True})
    for key in said:
        # data_dir is handed on to the benchmark: what was resolved there is said anew too
        handed_on = [k for k in flat(note["config"]) if is_free(k) and k.endswith(f".{key}")]
        for place in (key, *handed_on):
            value = OmegaConf.select(config, key)
            OmegaConf.update(merged, place, value, merge=False, force_add=True)
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


def _note(directory: str) -> Path:
    return Path(directory) / ".hydra" / "run.json"
