"""Learns a sequence of tasks and keeps its results."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lifelong.run.resume.position import stage_checkpoint
    from lifelong.run.sequence import Job, learn_sequence, learn_trial
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

_SHELVES = {
    "resume.position": ("stage_checkpoint",),
    "sequence": ("Job", "learn_sequence", "learn_trial"),
    "store": ("NoStore", "StageStore"),
    "summary": ("StageResult", "Summary"),
}


def __getattr__(name: str) -> Any:
    # Reports read summaries from here, and do not wait for torch.
    for shelf, names in _SHELVES.items():
        if name in names:
            return getattr(import_module(f"lifelong.run.{shelf}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
