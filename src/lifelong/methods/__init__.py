"""One file a method: what it adds to learning a task, and how it consolidates."""

from lifelong.methods.consolidate import Consolidate
from lifelong.methods.ewc import EWC

__all__ = ["EWC", "Consolidate"]
