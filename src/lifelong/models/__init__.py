"""Networks. Imports torch alone."""

from lifelong.models.perceptron import Perceptron

__all__ = ["Perceptron"]
