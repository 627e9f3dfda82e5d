"""Learns a sequence of tasks and keeps its results."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lifelong.run.job import Job
    from lifelong.run.learnt import stage_checkpoint
    from lifelong.run.sequence import learn_sequence, learn_trial
    from lifelong.run.store import NoStore, StageStore
    from lifelong.run.summary import StageResult, Summary

__all__ = [
    "Job",
    "NoStore",
    "StageResult",
    "StageStore",
    "Summary",
    "learn_sequence",
    "learn_trial",
    "stage_checkpoint",
]
_FROM = {
    "learnt": ("stage_checkpoint",),
    "job": ("Job",),
    "sequence": ("learn_sequence", "learn_trial"),
    "store": ("NoStore", "StageStore"),
    "summary": ("StageResult", "Summary"),
}


def __getattr__(name: str) -> Any:
    # The table of keys lies in this room: checks and reports read it without waiting for torch.
    for module, names in _FROM.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
