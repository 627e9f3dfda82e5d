"""The mathematics: importance, penalties, figures. Imports torch and jaxtyping alone."""

from lifelong.core.fisher.diagonal import fisher_diagonal
from lifelong.core.fisher.evaluation import parameters_by_name
from lifelong.core.fisher.factors import KroneckerFactors, kronecker_factors
from lifelong.core.fisher.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Heteroscedastic,
    Likelihood,
    PerOutput,
    Poisson,
)
from lifelong.core.fisher.other_libraries import equivalent_lambda
from lifelong.core.fisher.sensitivity import output_sensitivity
from lifelong.core.importance import DiagonalImportance
from lifelong.core.metrics import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
)
from lifelong.core.penalty.kronecker import KroneckerPenalty
from lifelong.core.penalty.proximal import step_sizes
from lifelong.core.penalty.quadratic import QuadraticPenalty
from lifelong.core.penalty.term import PenaltyTerm
from lifelong.core.plain import from_plain, to_plain
from lifelong.core.protocols import Importance, Penalty

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiagonalImportance",
    "Gaussian",
    "Heteroscedastic",
    "Importance",
    "KroneckerFactors",
    "KroneckerPenalty",
    "Likelihood",
    "Penalty",
    "PenaltyTerm",
    "PerOutput",
    "Poisson",
    "QuadraticPenalty",
    "average_accuracy",
    "backward_transfer",
    "equivalent_lambda",
    "fisher_diagonal",
    "forgetting",
    "forward_transfer",
    "from_plain",
    "kronecker_factors",
    "output_sensitivity",
    "parameters_by_name",
    "step_sizes",
    "to_plain",
]
