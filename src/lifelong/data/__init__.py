"""Tasks as data: where the images come from, how they are kept, and how batches are drawn.

`task` says what a task is and makes one of any LightningDataModule, `image_task` is the one of
digits in memory; `benchmark` puts them in order, `scenario` says what is known at test. `sets/`
holds the data sets, `files/` archives, cache and download.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lifelong.data.benchmark import Benchmark
    from lifelong.data.image_task import ImageTask
    from lifelong.data.task import ModuleTask, Task

__all__ = ["Benchmark", "ImageTask", "ModuleTask", "Task"]

_HOMES = {"Benchmark": "benchmark", "ImageTask": "image_task", "ModuleTask": "task", "Task": "task"}


def __getattr__(name: str) -> Any:
    # Lightning takes seconds, and to read files needs none of it
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
