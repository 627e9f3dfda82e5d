"""Lightning plumbing that knows no method."""

from lifelong.learning.learner import ContinualLearner
from lifelong.learning.stopping import EarlyStoppingPerTask

__all__ = ["ContinualLearner", "EarlyStoppingPerTask"]
