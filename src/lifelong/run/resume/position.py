"""Where an interrupted run stands, found in its folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lifelong.errors import LifelongError
from lifelong.run.keys import flat, is_free, moved
from lifelong.run.learnt import read_stage, stage_checkpoint
from lifelong.run.resume.checkpoint import CheckpointError
from lifelong.run.resume.journal import Entry
from lifelong.run.resume.keeping import previous, read_progress
from lifelong.run.summary import StageResult


@dataclass
class Position:
    """How far a run has come.

    Args:
        stages: the results of the finished stages.
        untrained: the accuracies before the first task; None where they are not known yet.
        network: the network after the last finished stage.
        method: what the method kept then.
        journal: what was logged.
        progress: the checkpoint within the stage that was interrupted.
        before_progress: what was logged before that stage.
    """

    stages: list[StageResult] = field(default_factory=list)
    untrained: list[float] | None = None
    network: dict[str, Any] | None = None
    method: dict[str, Any] = field(default_factory=dict)
    journal: list[Entry] = field(default_factory=list)
    progress: Path | None = None
    before_progress: list[Entry] = field(default_factory=list)


def progress_checkpoint(directory: Path) -> Path:
    """Where a run keeps the middle of the stage that it is in.

    Args:
        directory: the run's.

    Returns:
        The path of the checkpoint.
    """
    return directory / "checkpoints" / "progress.ckpt"


def find_position(
    directory: Path,
    tasks: Sequence[str],
    about: Mapping[str, Any],
    tell: Callable[[str], None],
) -> Position:
    """Find the newest intact checkpoints of a run.

    A damaged one is told of, and the one before it taken.

    Args:
        directory: the run's.
        tasks: their names, in order.
        about: what is to be run; a checkpoint of anything else is refused.
        tell: told what was found.

    Returns:
        The position; the beginning where there is no checkpoint.

    Raises:
        LifelongError: when the folder holds another run.
    """  # noqa: DOC502
    position = Position()
    for index in reversed(range(len(tasks))):
        path = stage_checkpoint(directory, index, tasks[index])
        if not path.exists():
            continue
        try:
            stage = read_stage(path)
        except CheckpointError as error:
            tell(f"{error}; going back to the checkpoint before it")
            continue
        refuse_another_run(path, {"config": stage.config, "data": stage.data}, about)
        position = Position(
            stages=[StageResult(**one) for one in stage.stages],
            untrained=stage.untrained,
            network=stage.network,
            method=stage.method,
            journal=stage.journal,
        )
        break
    progress, content, complaints = read_progress(progress_checkpoint(directory))
    for complaint in complaints:
        tell(f"{complaint}; going back to the checkpoint before it")
    if progress is not None:
        refuse_another_run(progress, content["about"], about)
        if content["stage"] == len(position.stages):
            kept = content["trainer"]["callbacks"]["KeepProgress"]
            position.progress = progress
            position.before_progress = position.journal
            position.journal = [(step, figures) for step, figures in kept["journal"]]
    return position


def clear(directory: Path) -> None:
    """Remove what an earlier run left in its folder, before a new one begins there.

    Args:
        directory: the run's.
    """
    folder = directory / "checkpoints"
    old = [directory / "summary.json", *folder.glob("stage-*.ckpt"), *folder.glob(".*.tmp")]
    for path in (*old, progress_checkpoint(directory), previous(progress_checkpoint(directory))):
        path.unlink(missing_ok=True)


def refuse_another_run(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a checkpoint belongs to what is to be run.

    Args:
        path: the checkpoint.
        then: what made it.
        now: what is to be run.

    Raises:
        LifelongError: naming what differs, and what to type.
    """
    other = differences(then["config"], now["config"])
    other += [
        f"the images of {task} ({before[:8]}… there, {now['data'].get(task, 'none')[:8]}… here)"
        for task, before in then["data"].items()
        if now["data"].get(task) != before
    ]
    if other:
        raise LifelongError(
            f"{path} belongs to another run: {'; '.join(other)}; type what it has, or leave "
            "resume=true out to begin anew in another folder"
        )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys that matter and differ between two configurations.

    Args:
        then: of the run, in plain values.
        now: of the command, in plain values.

    Returns:
        ``key=its value there, its value here`` for each, with the new name of a key that moved.
    """
    before, after = flat(then), flat(now)
    keys = [key for key in (before | after) if before.get(key) != after.get(key)]
    return [
        f"{key}={before.get(key)} there, {after.get(key)} here"
        + (f" (it is {moved(key)} now)" if moved(key) and key not in after else "")
        for key in keys
        if not is_free(key)
    ]
