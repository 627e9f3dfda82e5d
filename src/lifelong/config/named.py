"""What a run's file may name: what ``conf/``, or whoever typed the command, names too.

The note of a run (``.hydra/run.json``) is data. Hydra builds whatever a configuration names, so a
name that comes from a file alone is refused.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lifelong.config.compose import CONF
from lifelong.errors import LifelongError

DEEPEST = 32  # levels of a configuration; ours has six
ANYWHERE = ""
PACKAGE = "# @package "

Words = dict[str, set[str]]  # first key of a configuration → what may be named below it


def typed_directories() -> list[Path]:
    """Where else the command that is running finds its configuration: ``--config-dir``.

    Returns:
        The folders that whoever typed it named; none outside Hydra's own command.
    """
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    found = [Path(source.path) for source in sources if source.schema == "file"]
    return [path for path in found if path.resolve() != CONF]


def named_in(directories: Iterable[Path], config: DictConfig) -> Words:
    """What the files of some folders name, with what a configuration does.

    Args:
        directories: as ``conf/`` is laid out.
        config: as composed from what was typed now.

    Returns:
        For each first key the words ``_target_=…``, ``_partial_=…`` of its groups.
    """
    words: Words = {}
    for group, name in _named(OmegaConf.to_container(config, resolve=False)):
        words.setdefault(group, set()).add(name)
    for directory in directories:
        for path in sorted(directory.rglob("*.yaml")):
            # What Hydra cannot read was not what the command was composed of.
            with contextlib.suppress(OSError, ValueError, OmegaConfBaseException):
                for group, name in _named_in_file(path, path.relative_to(directory), config):
                    words.setdefault(group, set()).add(name)
    return words


def refuse_foreign(path: Path, content: Mapping[str, Any], words: Words) -> None:
    """Check that a file's configuration is plain data and names nothing of its own.

    Args:
        path: the file, for the words.
        content: its configuration.
        words: what it may name.

    Raises:
        LifelongError: one line that says what it names, and what to type.
    """
    if not _is_plain(content):
        raise LifelongError(
            f"{path} is no configuration of a run; type what the run was begun with beside "
            "resume=true"
        )
    known = words.get(ANYWHERE, set())
    for group, name in _named(content):
        if name not in known | words.get(group, set()):
            raise LifelongError(
                f"{path} names {short(f'{group}: {name}')}, which neither conf/ nor what was typed "
                "names; if the run is yours, type what it was begun with (words, --config-dir) "
                "beside resume=true"
            )


def short(words: str) -> str:
    """A file's words as part of a line.

    Args:
        words: any.

    Returns:
        At most 80 printable characters.
    """
    line = " ".join("".join(x if x.isprintable() else " " for x in words[:200]).split())
    return line if len(line) <= 80 else f"{line[:79]}…"


def _named_in_file(path: Path, place: Path, config: DictConfig) -> Iterator[tuple[str, str]]:
    if place.parts[0] == "hydra":
        return  # Hydra's own node is never read from a file of a run
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    header = next((x for x in path.read_text(encoding="utf-8").splitlines() if PACKAGE in x), "")
    package = header.partition(PACKAGE)[2].strip()
    if len(place.parts) == 1 or package == "_global_":
        yield from _named(content)
        return
    group = package.partition(".")[0] if package and package[0] != "_" else place.parts[0]
    # What several groups share, conf/base, counts for all of them.
    yield from _named({group if group in config else ANYWHERE: content})


def _named(config: Any) -> Iterator[tuple[str, str]]:
    for group, content in config.items() if isinstance(config, Mapping) else ():
        if group != "hydra":
            for name in _special({group: content}):
                yield str(group), name


def _special(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str) and key.startswith("_") and key.endswith("_"):
                yield f"{key}={item}"
            yield from _special(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _special(item)


def _is_plain(value: Any, depth: int = 0) -> bool:
    if depth > DEEPEST:
        return False
    if isinstance(value, Mapping):
        return all(
            isinstance(key, str) and _is_plain(key) and _is_plain(item, depth + 1)
            for key, item in value.items()
        )
    if isinstance(value, list | tuple):
        return all(_is_plain(item, depth + 1) for item in value)
    # A run writes its configuration with everything resolved.
    return "${" not in value if isinstance(value, str) else True
