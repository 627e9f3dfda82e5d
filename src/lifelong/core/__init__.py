"""The mathematics: importance of parameters, penalties, figures. Imports torch and jaxtyping alone."""

from lifelong.core.accuracy import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
)
from lifelong.core.fisher import fisher_diagonal
from lifelong.core.penalty import QuadraticPenalty

__all__ = [
    "QuadraticPenalty",
    "average_accuracy",
    "backward_transfer",
    "fisher_diagonal",
    "forgetting",
    "forward_transfer",
]
