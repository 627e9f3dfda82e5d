"""The LightningModule that adds the penalty, and the callbacks that decide when to consolidate."""

from lifelong.learning.consolidate import Consolidate
from lifelong.learning.diagnose import Diagnose
from lifelong.learning.ewc import EWC
from lifelong.learning.guard import StopOnNonFiniteLoss
from lifelong.learning.learner import ContinualLearner
from lifelong.learning.stopping import EarlyStoppingPerTask

__all__ = [
    "EWC",
    "Consolidate",
    "ContinualLearner",
    "Diagnose",
    "EarlyStoppingPerTask",
    "StopOnNonFiniteLoss",
]
