"""The Kronecker factors against single examples, layer by layer."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lifelong.core.fisher.diagonal import fisher_diagonal
from lifelong.core.fisher.factors import KroneckerFactors, kronecker_factors
from lifelong.core.fisher.gram import Gram

EXACT = {"rtol": 1e-9, "atol": 1e-13}
Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def perceptron() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)
    ).double()


def images(n: int = 12) -> Tensor:
    return torch.randn(n, 2, 5, 6, dtype=torch.float64)


def labelled(x: Tensor, *sizes: int) -> Batches:
    y = torch.arange(len(x)) % 3
    return list(zip(x.split(list(sizes) or len(x)), y.split(list(sizes) or len(x)), strict=True))


def scores(
    network: nn.Module, x: Tensor, params: list[nn.Parameter]
) -> Iterator[tuple[float, list[Tensor]]]:
    """For one example the probability and the score of every class."""
    log_p = network(x).log_softmax(-1).flatten(0, -2)[0]
    for one in log_p:
        found = torch.autograd.grad(one, params, retain_graph=True)
        yield float(one.detach().exp()), list(found)


def fisher_block(network: nn.Module, x: Tensor, params: list[nn.Parameter]) -> Tensor:
    """The Fisher information of one layer, [W, b] row by row, by brute force."""
    total = torch.zeros((), dtype=torch.float64)
    for one in x.split(1):
        for p, parts in scores(network, one, params):
            matrix = torch.cat(
                [part.flatten(1) if part.ndim > 1 else part[:, None] for part in parts], 1
            )
            total = total + p * torch.outer(matrix.flatten(), matrix.flatten())
    return total / len(x)


def test_for_one_example_the_product_is_the_fisher_information_itself() -> None:
    network, x = perceptron(), torch.randn(1, 4, dtype=torch.float64)
    factors = kronecker_factors(network, labelled(x), threshold=0.0)
    assert list(factors) == ["0", "2", "4"]
    assert factors.diagonal == {}
    for name, (A, G) in factors.items():
        block = fisher_block(network, x, list(network.get_submodule(name).parameters()))
        torch.testing.assert_close(torch.kron(G, A), block, **EXACT)


def test_a_convolution_with_one_position_is_exact_for_one_example() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 3, (5, 6)), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3)
    ).double()
    x = images(1)
    A, G = kronecker_factors(network, labelled(x), threshold=0.0)["0"]
    block = fisher_block(network, x, list(network[0].parameters()))
    torch.testing.assert_close(torch.kron(G, A), block, **EXACT)


def test_both_factors_are_means_over_examples() -> None:
    network, x = perceptron(), torch.randn(9, 4, dtype=torch.float64)
    A, G = kronecker_factors(network, labelled(x), threshold=0.0)["2"]
    a = network[:2](x)
    torch.testing.assert_close(A, a.T @ a / 9, **EXACT)
    expected = torch.zeros_like(G)
    for one in x.split(1):
        z = network[2](network[:2](one)).detach().requires_grad_()
        log_p = network[3:](z).log_softmax(-1)[0]
        for c in range(3):
            (delta,) = torch.autograd.grad(log_p[c], z, retain_graph=True)
            expected += log_p[c].exp().detach() * delta.T @ delta / 9
    torch.testing.assert_close(G, expected, **EXACT)


def test_a_convolution_sums_inputs_and_averages_gradients_over_positions() -> None:
    conv = nn.Conv2d(2, 3, (2, 3), stride=2, padding=1, dilation=(1, 2))
    network = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).double()
    x = images(4)
    network(x)
    A, G = kronecker_factors(network, labelled(x), threshold=0.0)["0"]
    expected_a, expected_g = torch.zeros_like(A), torch.zeros_like(G)
    for one in x.split(1):
        patches = nn.functional.unfold(one, (2, 3), (1, 2), 1, 2)[0].T
        rows = torch.cat([patches, torch.ones(len(patches), 1, dtype=torch.float64)], 1)
        expected_a += rows.T @ rows / 4
        z = conv(one).detach().requires_grad_()
        log_p = network[1:](z).log_softmax(-1)[0]
        for c in range(3):
            (delta,) = torch.autograd.grad(log_p[c], z, retain_graph=True)
            flat = delta[0].flatten(1).T
            expected_g += float(log_p[c].detach().exp()) * flat.T @ flat / len(flat) / 4
    torch.testing.assert_close(A, expected_a, **EXACT)
    torch.testing.assert_close(G, expected_g, **EXACT)


def test_the_factors_do_not_depend_on_the_batches() -> None:
    network, x = perceptron(), torch.randn(12, 4, dtype=torch.float64)
    whole = kronecker_factors(network, labelled(x))
    for sizes in ((1,) * 12, (5, 7), (11, 1)):
        for name, pair in kronecker_factors(network, labelled(x, *sizes)).items():
            for found, expected in zip(pair, whole[name], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_a_generator_of_batches_will_do() -> None:
    network, x = perceptron(), torch.randn(12, 4, dtype=torch.float64)
    lazily = kronecker_factors(network, (pair for pair in labelled(x, 5, 7)))
    torch.testing.assert_close(dict(lazily), dict(kronecker_factors(network, labelled(x))))


@pytest.mark.parametrize("labels", ["exact", "sampled", "empirical"])
def test_where_one_unit_feeds_all_the_diagonals_agree(labels: str) -> None:
    # constant inputs are independent of every gradient
    network, x = perceptron(), torch.ones(20, 4, dtype=torch.float64)
    options = {"labels": labels, "threshold": 0.0, "generator": torch.Generator().manual_seed(1)}
    factors = kronecker_factors(network, labelled(x), **options)
    options["generator"] = torch.Generator().manual_seed(1)
    diagonal = fisher_diagonal(network, labelled(x), **options)
    A, G = factors["0"]
    expected = torch.cat([diagonal["0.weight"], diagonal["0.bias"][:, None]], 1)
    torch.testing.assert_close(torch.outer(G.diagonal(), A.diagonal()), expected, **EXACT)


def test_confident_examples_still_count_for_the_inputs() -> None:
    network = perceptron()
    with torch.no_grad():
        network[4].bias.copy_(torch.tensor([200.0, 0.0, -200.0]))
    x = torch.randn(10, 4, dtype=torch.float64)
    A, _ = kronecker_factors(network, labelled(x))["0"]
    rows = torch.cat([x, torch.ones(10, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(A, rows.T @ rows / 10, **EXACT)


def test_what_the_threshold_leaves_out_is_never_added() -> None:
    network = perceptron()
    network[4] = nn.Linear(5, 8).double()
    x = 3 * torch.randn(600, 4, dtype=torch.float64)
    exact = kronecker_factors(network, labelled(x), threshold=0.0)
    found = kronecker_factors(network, labelled(x), threshold=0.05)
    for name, (A, G) in found.items():
        assert torch.equal(A, exact[name][0])
        missing = exact[name][1] - G
        assert float(torch.linalg.eigvalsh(missing).min()) >= -1e-12
        assert 1e-6 < float(missing.trace() / G.trace()) < 0.2


def test_the_samples_are_the_first_examples() -> None:
    network, x = perceptron(), torch.randn(12, 4, dtype=torch.float64)
    found = kronecker_factors(network, labelled(x, 5, 7), samples=7)
    torch.testing.assert_close(dict(found), dict(kronecker_factors(network, labelled(x[:7]))))


class Mixed(nn.Module):
    """A layer used twice, tied weights, a normalisation, a frozen layer, a frozen bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.tied = nn.LayerNorm(4), nn.Linear(4, 4, bias=False)
        self.tied.weight = self.twice.weight
        self.frozen, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(4))
        self.frozen.requires_grad_(False)
        self.last.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.first(x)).tanh())
        return self.last(self.frozen(self.tied(self.norm(x))) * self.scale)


def test_what_has_no_factors_comes_in_the_diagonal() -> None:
    network, x = Mixed().double(), torch.randn(8, 4, dtype=torch.float64)
    factors = kronecker_factors(network, labelled(x), threshold=0.0)
    assert sorted(factors) == ["first", "last"]
    assert factors["last"][0].shape == (4, 4)  # without the frozen bias
    rest = {"twice.weight", "twice.bias", "norm.weight", "norm.bias", "scale"}
    assert set(factors.diagonal) == rest
    expected = fisher_diagonal(network, labelled(x), threshold=0.0)
    torch.testing.assert_close(factors.diagonal, {name: expected[name] for name in rest}, **EXACT)


def test_a_linear_layer_with_positions_counts_them_as_a_convolution_does() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x).tanh().mean(1))

    network, x = Mean().double(), torch.randn(6, 5, 3, dtype=torch.float64)
    A, _ = kronecker_factors(network, labelled(x))["inner"]
    rows = torch.cat([x.flatten(0, 1), torch.ones(30, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(A, rows.T @ rows / 6, **EXACT)


def test_it_leaves_no_trace() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    x = torch.randn(6, 4)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    kronecker_factors(network, labelled(x))
    torch.testing.assert_close(dict(network.state_dict()), state, rtol=0, atol=0)
    assert all(m.training for m in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_no_example_is_an_error() -> None:
    with pytest.raises(ValueError, match="no example"):
        kronecker_factors(perceptron(), [])


def test_the_trace_is_that_of_the_product_and_the_diagonal() -> None:
    two = 2.0 * torch.eye(2)
    factors = KroneckerFactors({"a": (two, torch.eye(3))}, {"b": torch.ones(5)})
    assert factors.trace() == 4 * 3 + 5
    assert factors.mean_diagonal() == 17 / 11


def test_the_gram_matrix_is_the_full_product_however_many_blocks() -> None:
    rows = torch.randn(30, 600, dtype=torch.float64)
    gram = Gram(600, rows.device)
    gram.add(rows[:10], 0.5)
    gram.add(rows[10:])
    expected = 0.5 * rows[:10].T @ rows[:10] + rows[10:].T @ rows[10:]
    torch.testing.assert_close(gram.total(), expected, rtol=1e-12, atol=1e-12)
