"""Learns a sequence of tasks and keeps its results."""

from lifelong.run.job import Job
from lifelong.run.resume.position import stage_checkpoint
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
