"""Likelihoods in closed form, whatever the shape of their outputs."""

import pytest
import torch
from torch import nn

from lifelong.core import Bernoulli, Gaussian, fisher_diagonal

pytestmark = pytest.mark.usefixtures("double")

N = 5


def test_softmax_of_two_classes_is_one_logit() -> None:
    network, x = nn.Linear(6, 1), torch.randn(N, 6)
    two = nn.Linear(6, 2)
    two.weight.data = torch.cat([network.weight.data, torch.zeros(1, 6)])
    two.bias.data = torch.cat([network.bias.data, torch.zeros(1)])
    one = fisher_diagonal(network, [(x, None)], likelihood=Bernoulli())
    wanted = fisher_diagonal(two, [(x, None)])
    torch.testing.assert_close(one["weight"][0], wanted["weight"][0], rtol=1e-12, atol=0)


def test_regression_has_its_closed_form_whatever_the_shape() -> None:
    x, y = torch.randn(N, 6), torch.randn(N)
    flat = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
    wanted = (x**2).mean(dim=0, keepdim=True)
    came = fisher_diagonal(flat, [(x, y)], likelihood=Gaussian())
    torch.testing.assert_close(came["0.weight"], wanted, rtol=1e-12, atol=0)
    residual = y[:, None] - flat[0](x).detach()
    wanted = (residual**2 * x**2).mean(dim=0, keepdim=True)
    for network in (flat, flat[:1]):
        came = fisher_diagonal(network, [(x, y)], likelihood=Gaussian(), labels="empirical")
        torch.testing.assert_close(came["0.weight"], wanted, rtol=1e-12, atol=0)
