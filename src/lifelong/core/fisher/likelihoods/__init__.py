"""Likelihoods: what a network's output says about the labels."""

from lifelong.core.fisher.likelihoods.base import Likelihood
from lifelong.core.fisher.likelihoods.categorical import Categorical
from lifelong.core.fisher.likelihoods.per_output import Bernoulli, Gaussian, PerOutput

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "PerOutput"]
