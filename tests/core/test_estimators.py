import pytest
import torch
from torch import Tensor, nn

from lifelong.core.fisher.diagonal import fisher_diagonal
from lifelong.core.fisher.other_libraries import (
    batched_diagonal,
    equivalent_lambda,
    p_weighted_diagonal,
)

pytestmark = pytest.mark.usefixtures("double")


def setting() -> tuple[nn.Module, Tensor, Tensor]:
    network = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
    return network, torch.randn(20, 5), torch.arange(20) % 4


def trace(diagonal: dict[str, Tensor]) -> float:
    return sum(float(entries.sum()) for entries in diagonal.values())


def test_batches_of_one_are_the_empirical_fisher() -> None:
    network, x, y = setting()
    came = batched_diagonal(network, [(x, y)], batch_size=1)
    wanted = fisher_diagonal(network, [(x, y)], labels="empirical")
    torch.testing.assert_close(came, wanted, rtol=1e-10, atol=1e-18)


def test_batches_are_squared_after_their_mean() -> None:
    network, x, y = setting()
    wanted = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for part in (slice(0, 8), slice(8, 16), slice(16, 20)):
        loss = nn.functional.cross_entropy(network(x[part]), y[part])
        for name, p in network.named_parameters():
            wanted[name] += torch.autograd.grad(loss, p, retain_graph=True)[0] ** 2 / 3
    came = batched_diagonal(network, [(x[:3], y[:3]), (x[3:], y[3:])], batch_size=8)
    torch.testing.assert_close(came, wanted, rtol=1e-10, atol=1e-18)


def test_the_batched_trace_falls_with_the_batch_size() -> None:
    network, x, y = setting()
    traces = [trace(batched_diagonal(network, [(x, y)], batch_size=n)) for n in (1, 5, 20)]
    assert traces[0] > 1.5 * traces[1] > 1.5 * traces[2]


def test_p_weighting_multiplies_the_square_by_the_probability_of_the_label() -> None:
    network, x, y = setting()
    wanted = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for one, label in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(network(one[None]), label[None])
        for name, p in network.named_parameters():
            score = torch.autograd.grad(loss, p, retain_graph=True)[0]
            wanted[name] += (-loss.detach()).exp() * score**2 / 20
    came = p_weighted_diagonal(network, [(x[:7], y[:7]), (x[7:], y[7:])])
    torch.testing.assert_close(came, wanted, rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize(("estimator", "half"), [("batched", False), ("p-weighted", True)])
def test_an_equivalent_lambda_makes_the_penalties_equally_stiff(estimator: str, half: bool) -> None:
    network, x, y = setting()
    ours = equivalent_lambda(3.0, network, [(x, y)], estimator=estimator, batch_size=5, half=half)
    if estimator == "batched":
        theirs = batched_diagonal(network, [(x, y)], batch_size=5)
    else:
        theirs = p_weighted_diagonal(network, [(x, y)])
    stiffness = 0.5 * ours * trace(fisher_diagonal(network, [(x, y)]))
    assert stiffness == pytest.approx(3.0 * (0.5 if half else 1.0) * trace(theirs), rel=1e-9)


def test_an_unknown_estimator_is_named() -> None:
    network, x, y = setting()
    with pytest.raises(ValueError, match="estimator='mean'"):
        equivalent_lambda(1.0, network, [(x, y)], estimator="mean")
