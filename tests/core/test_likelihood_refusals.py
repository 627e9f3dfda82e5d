"""Targets and outputs that contradict the likelihood are refused, with the cure."""

import pytest
import torch
from torch import Tensor, nn

from lifelong.core import (
    Bernoulli,
    Categorical,
    Gaussian,
    Heteroscedastic,
    Likelihood,
    Poisson,
    fisher_diagonal,
)

pytestmark = pytest.mark.usefixtures("double")

N = 5


REFUSED: dict[str, tuple[tuple[int, ...], Tensor | None, Likelihood | None, str, str]] = {
    "numbers": ((3,), torch.randn(N, 3), None, "exact", "float.* targets.*Gaussian"),
    "one logit": ((1,), torch.zeros(N).long(), None, "exact", "C ≥ 2.*Bernoulli"),
    "other shape": ((3,), torch.zeros(N, 2).long(), None, "exact", r"shape \(2, 2\).*likelihood="),
    "spread out": ((3,), torch.randn(N, 1), Gaussian(), "empirical", r"\(5, 1\)"),
    "not yes or no": ((3,), torch.full((N, 3), 2), Bernoulli(), "empirical", "0 to 1"),
    "fewer than none": ((3,), torch.full((N, 3), -1), Poisson(), "empirical", "at least 0"),
    "no variance": ((3,), torch.zeros(N, 3), Heteroscedastic(), "empirical", "log-variance last"),
    "ignored by another number": ((3,), torch.full((N,), -1), None, "empirical", "ignore_index"),
    "no draw": ((3,), None, Likelihood(), "sampled", "cannot draw"),
    "no closed form": ((3,), None, Likelihood(), "exact", "no exact expectation"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_the_likelihood_is_named(name: str) -> None:
    outputs, y, likelihood, labels, message = REFUSED[name]
    network = nn.Linear(6, *outputs)
    with pytest.raises(ValueError, match=message) as caught:
        fisher_diagonal(network, [(torch.randn(N, 6), y)], likelihood=likelihood, labels=labels)
    assert "\n" not in str(caught.value)


def test_targets_that_leave_the_class_dimension_open_ask_for_it() -> None:
    network, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(N, 4, 4)
    with pytest.raises(ValueError, match=r"class_dim=1\) or class_dim=2"):
        fisher_diagonal(network, [(x, torch.zeros(N, 4).long())])
    last = fisher_diagonal(
        network, [(x, torch.zeros(N, 4).long())], likelihood=Categorical(class_dim=-1)
    )
    torch.testing.assert_close(last, fisher_diagonal(network, [(x, None)]), rtol=0, atol=0)


def test_probabilities_are_no_scores() -> None:
    network = nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=-1))
    with pytest.raises(ValueError, match="these are probabilities"):
        fisher_diagonal(network, [(torch.randn(N, 6), None)])
    logarithms = nn.Sequential(network[0], nn.LogSoftmax(dim=-1))
    x = torch.randn(N, 6)
    came = fisher_diagonal(logarithms, [(x, None)])["0.weight"]
    wanted = fisher_diagonal(network[:1], [(x, None)])["0.weight"]
    torch.testing.assert_close(came, wanted, rtol=1e-9, atol=0)


def test_a_function_knows_the_labels_of_the_batch_only() -> None:
    def likelihood(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return network(batch[0]).log_softmax(-1)[:, 0]

    data = [(torch.randn(N, 6), torch.zeros(N))]
    for labels in ("exact", "sampled"):
        with pytest.raises(ValueError, match="labels='empirical'"):
            fisher_diagonal(nn.Linear(6, 3), data, likelihood=likelihood, labels=labels)
