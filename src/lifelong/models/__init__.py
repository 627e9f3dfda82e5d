"""Networks. Imports torch alone."""

from lifelong.models.cnn import CNN
from lifelong.models.perceptron import Perceptron

__all__ = ["CNN", "Perceptron"]
