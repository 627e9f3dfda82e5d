"""The mathematics: importance, penalties, figures. Imports torch and jaxtyping alone."""

from lifelong.core.accuracy import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
)
from lifelong.core.estimators import equivalent_lambda
from lifelong.core.fisher import fisher_diagonal
from lifelong.core.kronecker import KroneckerFactors, kronecker_factors
from lifelong.core.kronecker_penalty import KroneckerPenalty
from lifelong.core.penalty import QuadraticPenalty
from lifelong.core.proximal import step_sizes

__all__ = [
    "KroneckerFactors",
    "KroneckerPenalty",
    "QuadraticPenalty",
    "average_accuracy",
    "backward_transfer",
    "equivalent_lambda",
    "fisher_diagonal",
    "forgetting",
    "forward_transfer",
    "kronecker_factors",
    "step_sizes",
]
