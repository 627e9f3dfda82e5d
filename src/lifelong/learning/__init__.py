"""Lightning plumbing that knows no method."""

from lifelong.learning.diagnose import Diagnose
from lifelong.learning.guard import StopOnNonFiniteLoss
from lifelong.learning.learner import ContinualLearner
from lifelong.learning.stopping import EarlyStoppingPerTask

__all__ = [
    "ContinualLearner",
    "Diagnose",
    "EarlyStoppingPerTask",
    "StopOnNonFiniteLoss",
]
