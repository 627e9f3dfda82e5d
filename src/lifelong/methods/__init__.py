"""One file a method: what it adds to learning a task, and how it consolidates."""

from lifelong.methods.agem import AGEM
from lifelong.methods.base import Method
from lifelong.methods.derpp import DERpp
from lifelong.methods.ewc import EWC
from lifelong.methods.finetune import Finetune
from lifelong.methods.joint import Joint
from lifelong.methods.kronecker_ewc import KroneckerEWC
from lifelong.methods.l2 import L2
from lifelong.methods.lwf import LwF
from lifelong.methods.mas import MAS
from lifelong.methods.online_ewc import OnlineEWC
from lifelong.methods.penalty_method import PenaltyMethod
from lifelong.methods.replay import Replay
from lifelong.methods.si import SI

__all__ = [
    "AGEM",
    "EWC",
    "L2",
    "MAS",
    "SI",
    "DERpp",
    "Finetune",
    "Joint",
    "KroneckerEWC",
    "LwF",
    "Method",
    "OnlineEWC",
    "PenaltyMethod",
    "Replay",
]
