"""Learns a sequence of tasks and keeps its results."""

from lifelong.run.sequence import Job, learn_sequence, stage_checkpoint
from lifelong.run.summary import StageResult, Summary

__all__ = ["Job", "StageResult", "Summary", "learn_sequence", "stage_checkpoint"]
