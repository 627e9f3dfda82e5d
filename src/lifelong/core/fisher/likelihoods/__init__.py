"""Likelihoods: what a network's output says about the labels."""

from lifelong.core.fisher.likelihoods.base import Likelihood
from lifelong.core.fisher.likelihoods.categorical import Categorical
from lifelong.core.fisher.likelihoods.counts import Poisson
from lifelong.core.fisher.likelihoods.heteroscedastic import Heteroscedastic
from lifelong.core.fisher.likelihoods.per_output import Bernoulli, Gaussian, PerOutput

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Heteroscedastic",
    "Likelihood",
    "PerOutput",
    "Poisson",
]
