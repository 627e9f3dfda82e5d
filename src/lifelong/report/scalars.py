"""Curves that a run logged, read back from its TensorBoard files."""

from pathlib import Path

from lifelong.errors import LifelongError


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
