"""One file a method: what it adds to learning a task, and how it consolidates."""

from lifelong.methods.base import Method
from lifelong.methods.ewc import EWC
from lifelong.methods.finetune import Finetune
from lifelong.methods.joint import Joint
from lifelong.methods.kronecker_ewc import KroneckerEWC
from lifelong.methods.online_ewc import OnlineEWC
from lifelong.methods.penalty_method import PenaltyMethod

__all__ = [
    "EWC",
    "Finetune",
    "Joint",
    "KroneckerEWC",
    "Method",
    "OnlineEWC",
    "PenaltyMethod",
]
