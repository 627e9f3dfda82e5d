"""The runs below a folder, read back: summaries, how each was begun, what it forgot, its curves."""

import base64
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lifelong.errors import LifelongError
from lifelong.report.names import title
from lifelong.run.keys import is_setting
from lifelong.run.summary import Summary


@dataclass(frozen=True)
class ForgottenImage:
    """A test image that was read right when its task was learnt, and wrong at the end.

    Args:
        pixels: grey values, 0 the paper and 255 full ink, row by row.
        shape: height and width.
        label: what it is.
        after: what the network reads at the end.
    """

    pixels: bytes
    shape: tuple[int, int]
    label: int
    after: int


@dataclass(frozen=True)
class Forgotten:
    """The test images of one old task that a run forgot.

    Args:
        task: the old one.
        count: how many of its test images, in all.
        images: some of them.
    """

    task: str
    count: int
    images: list[ForgottenImage]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        directory: where it lies.
        summary: what it found.
        words: the ``key=value`` words it was begun with; empty if it left none.
        forgotten: the images it forgot, by old task.
    """

    directory: Path
    summary: Summary
    words: list[str] = field(default_factory=list)
    forgotten: list[Forgotten] = field(default_factory=list)

    @property
    def setting(self) -> str:
        """What sets it apart beside method, λ and seed, in the words of the command line."""
        return " ".join(
            word for word in self.words if is_setting(word.lstrip("+~").partition("=")[0])
        )

    @property
    def command(self) -> str:
        """What to type to have it again."""
        words = self.words or [
            f"benchmark={self.summary.benchmark}",
            f"method={self.summary.method}",
            *(
                [f"method.ewc_lambda={self.summary.ewc_lambda:g}"]
                if self.summary.has_lambda
                else []
            ),
            f"max_epochs={self.summary.max_epochs}",
        ]
        kept = [w for w in words if not w.startswith(("seed=", "output_dir=", "resume="))]
        return " ".join(["lifelong-train", *kept, f"seed={self.summary.seed}"])


@dataclass(frozen=True)
class Results:
    """All finished runs below a folder.

    Args:
        directory: the folder.
        runs: those that could be read, in the order of their folders.
        notes: a line on each file that was left out, and why.
    """

    directory: Path
    runs: list[Run]
    notes: list[str]


def read_results(directory: Path) -> Results:
    """Read every run below a folder.

    A summary that cannot be read is left out and named. Of several runs with the same method, λ,
    setting and seed the newest counts: repeating a run is no second sample.

    Args:
        directory: of one run, of a sweep, or of several of these.

    Returns:
        At least one run, all over the same tasks.

    Raises:
        LifelongError: when the folder is not there, holds no finished run, or runs over different
            tasks, whose figures do not belong into one picture.
    """
    if not directory.is_dir():
        raise LifelongError(f"{directory} is no folder; type lifelong-report DIR with a run's own")
    runs, notes = [], []
    for path in sorted(_summaries(directory)):
        try:
            runs.append(_read_run(path))
        except LifelongError as error:
            notes.append(f"left out: {error}")
    if not runs:
        why = f" ({notes[0]})" if notes else ""
        raise LifelongError(
            f"{directory} holds no finished run{why}; learn one first: lifelong-train "
            f"hydra.run.dir={directory}"
        )
    _refuse_a_mixture(directory, runs)
    newest: dict[tuple[Any, ...], Run] = {}
    for run in sorted(runs, key=lambda run: (run.directory / "summary.json").stat().st_mtime):
        known = (run.summary.method, run.summary.ewc_lambda, run.setting, run.summary.seed)
        if known in newest:
            older = newest[known].directory
            notes.append(f"left out: {older} repeats {run.directory}, which is newer")
        newest[known] = run
    kept = set(map(id, newest.values()))
    return Results(directory, [run for run in runs if id(run) in kept], notes)


def read_summaries(directories: Iterable[Path]) -> list[Summary]:
    """The summaries of those runs that have one.

    Args:
        directories: of the runs.

    Returns:
        In the same order.
    """
    paths = (directory / "summary.json" for directory in directories)
    return [Summary.read(path) for path in paths if path.is_file()]


def read_scalars(directory: Path | str, tag: str) -> tuple[list[int], list[float]]:
    """One logged curve of a run.

    Args:
        directory: the run's, which holds ``tensorboard/``.
        tag: the curve's name, such as ``train/penalty``.

    Returns:
        The optimizer steps since the first task began, and the values.

    Raises:
        LifelongError: when the run logged no such curve; it names those that it logged.
    """
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    # 0 keeps every event; the default thins long curves at random
    folder = Path(directory) / "tensorboard"
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    known = events.Reload().Tags()["scalars"] if folder.is_dir() else []
    if tag not in known:
        raise LifelongError(
            f"{directory} has no curve {tag}; it has {', '.join(sorted(known)) or 'none'}: "
            "learn with logger=tensorboard"
        )
    curve = events.Scalars(tag)
    return [event.step for event in curve], [event.value for event in curve]


def _summaries(directory: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(directory):
        below[:] = [name for name in below if not name.startswith(".")]
        if "summary.json" in files:
            yield Path(folder) / "summary.json"


def _read_run(path: Path) -> Run:
    summary = Summary.read(path)
    lengths = {len(summary.tasks), len(summary.accuracy), len(summary.curves)}
    if len(lengths) > 1 or not all(len(row) == len(summary.tasks) for row in summary.accuracy):
        raise LifelongError(f"{path}: its accuracy matrix does not fit its tasks; learn it again")
    return Run(path.parent, summary, _words(path.parent), _forgotten(path.parent))


def _words(directory: Path) -> list[str]:
    try:
        note = json.loads((directory / ".hydra" / "run.json").read_text(encoding="utf-8"))
        return [str(word) for word in note["overrides"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    path = directory / ".hydra" / "overrides.yaml"
    try:
        return [str(word) for word in OmegaConf.load(path)] if path.is_file() else []
    except Exception:  # whatever YAML finds wrong with it: the figures do not need it
        return []


def _forgotten(directory: Path) -> list[Forgotten]:
    try:
        content = json.loads((directory / "forgotten.json").read_text(encoding="utf-8"))
        return [_forgotten_of(one) for one in content]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _forgotten_of(one: Mapping[str, Any]) -> Forgotten:
    images = []
    for kept in one["digits"]:
        pixels = base64.b64decode(kept["pixels"])
        # Files that say no shape are of square images.
        height, width = one.get("shape") or [math.isqrt(len(pixels))] * 2
        if len(pixels) == height * width > 0:
            label, after = int(kept["label"]), int(kept["after"])
            images.append(ForgottenImage(pixels, (height, width), label, after))
    return Forgotten(str(one["task"]), int(one.get("count", len(images))), images)


def _refuse_a_mixture(directory: Path, runs: Sequence[Run]) -> None:
    kinds: dict[str, list[Path]] = {}
    for run in runs:
        kinds.setdefault(title(run.summary), []).append(run.directory)
    if len(kinds) > 1:
        found = "; ".join(f"{name}: {len(d)} below {_common(d)}" for name, d in kinds.items())
        raise LifelongError(
            f"{directory} holds runs over different tasks ({found}); give one of these folders: "
            "lifelong-report DIR"
        )


def _common(directories: Sequence[Path]) -> str:
    return os.path.commonpath([str(directory) for directory in directories])
