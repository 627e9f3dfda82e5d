"""A benchmark as configuration defines it. Imports nothing heavy: it is checked before torch."""

import re
from collections.abc import Mapping
from typing import Any

from lifelong.data.scenario import check_scenario
from lifelong.errors import LifelongError

NEW = "{_target_: package.Class, …}"


def check_benchmark(benchmark: Mapping[str, Any], scenario: object) -> None:
    """Refuse a benchmark that cannot be made.

    Args:
        benchmark: Its section of the configuration.
        scenario: The run's; the benchmark may name it too.

    Raises:
        LifelongError: One line that says what is wrong and what to type.
    """
    check_scenario(scenario)
    own = benchmark.get("scenario", scenario)
    check_scenario(own, "benchmark.scenario")
    if own != scenario:
        raise LifelongError(
            f"benchmark.scenario={own} and scenario={scenario} differ; type scenario={own}"
        )
    if benchmark.get("_target_") is not None:
        raise LifelongError(
            f"benchmark._target_={benchmark['_target_']}: a benchmark is no class of its own now, "
            f"each of its tasks is; write tasks: {{NAME: {NEW}, …}}"
        )
    tasks = benchmark.get("tasks")
    if not isinstance(tasks, Mapping) or not tasks:
        raise LifelongError(f"benchmark.tasks is {tasks}; write tasks: {{NAME: {NEW}, …}}")
    for name, task in tasks.items():
        _check_task(str(name), task)


def dataset_of(task: Any) -> str | None:
    """Return the name of the data set of ours that a task learns.

    Args:
        task: The task in a benchmark's section, or the bare name, as runs of earlier versions have
            it.

    Returns:
        One of `sources.DATASETS`; None for a class of the user's own.

    Example:
        >>> dataset_of({"_target_": "lifelong.data.ImageTask", "dataset": "usps"})
        'usps'
        >>> dataset_of({"_target_": "birds.Birds", "dataset": "cub"}) is None
        True
    """
    if isinstance(task, Mapping):
        ours = str(task.get("_target_")).startswith("lifelong.data.")
        return str(task["dataset"]) if ours and "dataset" in task else None
    return str(task)


def _check_task(name: str, task: Any) -> None:
    # it names files and curves
    if not re.fullmatch(r"[\w.-]+", name):
        raise LifelongError(
            f"benchmark.tasks has the task {name!r}; name it with letters, digits, '_', '-' and '.'"
        )
    if isinstance(task, str):
        raise LifelongError(
            f"benchmark.tasks.{name} is {task}; a task names its class now: write {name}: {NEW}, "
            f"or for a data set of ours put /base/images@tasks.{name} into the file's defaults and "
            f"write {name}: {{dataset: {task}}}"
        )
    if not isinstance(task, Mapping) or not isinstance(task.get("_target_"), str):
        raise LifelongError(
            f"benchmark.tasks.{name} has no _target_; write {name}: {NEW}, with a "
            "LightningDataModule"
        )
