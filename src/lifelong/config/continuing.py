"""Going on with a run: what it was begun with, and whether that is asked for again.

What a run's folder says is data: values are taken from it, and whatever is built must be named by
``conf/`` or by what was typed. Imports nothing heavy unless a run is resumed.
"""

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lifelong.config.check import check
from lifelong.config.compose import CONF
from lifelong.config.named import named_in, refuse_foreign, short, typed_directories
from lifelong.data.files.whole import whole_file
from lifelong.errors import LifelongError
from lifelong.run.keys import is_free

if TYPE_CHECKING:
    from lifelong.run import Summary

TYPE_AGAIN = "type what the run was begun with beside resume=true"


def note_run(config: DictConfig, overrides: Sequence[str]) -> None:
    """Write down what a run is begun with, where no second start of the command overwrites it.

    Args:
        config: the composed configuration.
        overrides: the words on the command line.
    """
    path = _note(config.output_dir)
    if config.resume and path.exists():
        return
    note = {
        "config": OmegaConf.to_container(config, resolve=True),
        "overrides": list(overrides),
        "config_dirs": [str(directory) for directory in typed_directories()],
    }
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(note, indent=1, ensure_ascii=False), encoding="utf-8")


def continues_alone(overrides: Sequence[str]) -> bool:
    """Whether a command says nothing of the run that it resumes but what is free to change.

    Args:
        overrides: the words on the command line.

    Returns:
        True for ``resume=true hydra.run.dir=DIR``.
    """
    keys = [word.lstrip("+").partition("=")[0].partition("@")[0] for word in overrides]
    return all(is_free(key) for key in keys)


def continued(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration to resume with: that of the run if the command says nothing else.

    ``resume=true hydra.run.dir=DIR`` is enough; what is said beside it must fit the run, and is
    compared with its checkpoints later. The note gives values. What it names (``_target_``) must be
    named by ``conf/`` or by what was typed, and where the run writes is not for it to say.

    Args:
        config: as composed from the command line.
        overrides: the words on the command line.

    Returns:
        The run's own configuration, with what is free to change taken from the command line; or
        ``config`` as it is where other keys were given, or no run was begun there.

    Raises:
        LifelongError: when the note is damaged, or names what nobody typed.
    """  # noqa: DOC502
    path = _note(config.output_dir)
    if not continues_alone(overrides) or not path.exists():
        return config
    note = _read(path)
    merged = _from_note(path, note, config, set(_first_keys(overrides)), typed_directories())
    _restore(path, OmegaConf.to_container(merged, resolve=True), note)
    return merged


def finished_run(directory: str) -> "Summary | None":
    """What a run has come to, if it is finished; nothing is built for it.

    Args:
        directory: the run's.

    Returns:
        Its summary where every stage's checkpoint is whole and has the same accuracies.
    """
    from lifelong.run import Summary, stage_checkpoint
    from lifelong.run.learnt import read_stage

    try:
        summary = Summary.read(Path(directory) / "summary.json")
        stages = [
            read_stage(stage_checkpoint(Path(directory), index, task))
            for index, task in enumerate(summary.tasks)
        ]
        known = [one.get("accuracy") for one in stages[-1].stages] if stages else []
    except (LifelongError, OSError, TypeError, RecursionError):
        return None
    if not known or known != summary.accuracy or stages[-1].tasks != summary.tasks:
        return None
    # Hydra has just written this command's words over those of the run.
    with contextlib.suppress(LifelongError, OSError, OmegaConfBaseException):
        note = _read(_note(directory))
        _restore(_note(directory), note["config"], note)
    return summary


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
    return " ".join(["lifelong-train resume=true", word, *_also(directory)])


def _also(directory: str) -> Iterator[str]:
    # Nothing else must be typed but for a run that was begun with names of one's own.
    path = _note(directory)
    try:
        note = _read(path)
        noted = OmegaConf.create(note["config"])
        directories = [Path(one) for one in note.get("config_dirs", ())]
        yield from (shlex.quote(f"--config-dir={one}") for one in directories)
    except (LifelongError, OmegaConfBaseException, OSError):
        return
    try:
        plain = OmegaConf.create(dict.fromkeys(noted))
        assert isinstance(plain, DictConfig)
        _check_names(path, note["config"], plain, directories)
        _loggers(path, noted, str(noted.output_dir), directories)
    except (LifelongError, OmegaConfBaseException):
        said = [w for w in note["overrides"] if not w.startswith(("resume=", "hydra."))]
        yield from (shlex.quote(word) for word in said)


def _first_keys(overrides: Sequence[str]) -> list[str]:
    return [word.lstrip("+~").partition("=")[0].split("@")[0].split(".")[0] for word in overrides]


def _read(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LifelongError(f"{path} is damaged; {TYPE_AGAIN}") from error
    strings = ("overrides", "config_dirs")
    if (
        not isinstance(note, dict)
        or not isinstance(note.get("config"), dict)
        or not all(isinstance(note.get(key, []), list) for key in strings)
        or not all(isinstance(word, str) for key in strings for word in note.get(key, []))
    ):
        raise LifelongError(f"{path} is damaged; {TYPE_AGAIN}")
    return note


def _from_note(
    path: Path,
    note: Mapping[str, Any],
    config: DictConfig,
    said: set[str],
    directories: Sequence[Path],
) -> DictConfig:
    content = dict(note["config"])
    names = {key: value for key, value in content.items() if key not in said}
    _check_names(path, names, config, directories)
    _check_shape(path, content, config, said)
    merged = OmegaConf.create({**content, "resume": True, "output_dir": config.output_dir})
    for key in said - {"hydra"}:
        OmegaConf.update(merged, key, config[key], merge=False, force_add=True)
    if "logger" not in said:
        merged.logger = _loggers(path, merged, str(content["output_dir"]), directories)
    _paths(merged, content, config, said)
    try:
        check(merged)
    except (AttributeError, TypeError, ValueError, AssertionError) as error:
        raise LifelongError(f"{path} is no configuration of a run; {TYPE_AGAIN}") from error
    return merged


def _check_names(
    path: Path, content: Mapping[str, Any], config: DictConfig, directories: Sequence[Path]
) -> None:
    refuse_foreign(path, content, named_in([CONF, *directories], config))


def _check_shape(path: Path, content: dict[str, Any], config: DictConfig, said: set[str]) -> None:
    now = OmegaConf.to_container(config, resolve=False)
    assert isinstance(now, dict)
    for key, value in now.items():
        if key in said:
            continue
        # A group may be empty: `logger`, `callbacks`, `search`.
        name = str(key)
        then = content.setdefault(name, None)
        if isinstance(value, dict) != isinstance(then, dict) and None not in (value, then):
            raise LifelongError(f"{path} is damaged ({name}); {TYPE_AGAIN}")


def _loggers(
    path: Path, config: DictConfig, directory: str, directories: Sequence[Path]
) -> DictConfig | None:
    # Taken from conf/: a note may choose loggers, but not where they write.
    if not config.logger:
        return config.logger
    found = {}
    chosen = OmegaConf.to_container(config.logger, resolve=True)
    assert isinstance(chosen, dict)
    for name, noted in {str(key): value for key, value in chosen.items()}.items():
        for option in _logger_options([CONF, *directories]):
            if name not in option:
                continue
            then, now = (_resolved(config, option[name], where) for where in (directory, None))
            if then == noted:
                found[name] = now
        if name not in found:
            raise LifelongError(
                f"{path} has a logger ({short(name)}) that is none of conf/logger as it stands; "
                "type what the run was begun with of it beside resume=true, logger=csv for instance"
            )
    return OmegaConf.create(found)


def _logger_options(directories: Sequence[Path]) -> Iterator[Mapping[str, Any]]:
    for directory in directories:
        for file in sorted((directory / "logger").glob("*.yaml")):
            content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
            if isinstance(content, dict):
                yield {str(key): value for key, value in content.items()}


def _resolved(config: DictConfig, logger: Any, directory: str | None) -> Any:
    whole = OmegaConf.merge(config, {"logger": None})
    whole.logger = {"one": logger}
    if directory is not None:
        whole.output_dir = directory
    return OmegaConf.to_container(whole.logger.one, resolve=True)


def _paths(
    merged: DictConfig, content: Mapping[str, Any], config: DictConfig, said: set[str]
) -> None:
    # A note may not choose the folder of the stages, which is pruned, nor make one for data.
    if "stages" not in said and content.get("stages") not in ("off", config.stages):
        merged.stages = config.stages
    if "stages_limit" not in said:
        merged.stages_limit = config.stages_limit
    if "data_dir" not in said and not Path(str(content.get("data_dir"))).is_dir():
        merged.data_dir = config.data_dir
    if isinstance(merged.benchmark, DictConfig):
        _replace(merged.benchmark, "data_dir", content.get("data_dir"), merged.data_dir)


def _replace(node: Any, key: str, before: Any, after: Any) -> None:
    for name, value in node.items() if isinstance(node, DictConfig) else ():
        if name == key and value == before:
            node[name] = after
        else:
            _replace(value, key, before, after)


def _restore(path: Path, config: Any, note: Mapping[str, Any]) -> None:
    # Hydra has just written this command's words over those of the run.
    OmegaConf.save(OmegaConf.create(config), path.with_name("config.yaml"))
    OmegaConf.save(OmegaConf.create(note.get("overrides", [])), path.with_name("overrides.yaml"))


def _note(directory: str) -> Path:
    return Path(directory) / ".hydra" / "run.json"
