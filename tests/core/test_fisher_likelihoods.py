"""Every likelihood and kind of labels on every kind of layer, against single examples."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lifelong.core import (
    Bernoulli,
    Categorical,
    Gaussian,
    Heteroscedastic,
    Likelihood,
    PerOutput,
    Poisson,
    fisher_diagonal,
    kronecker_factors,
)
from lifelong.core.fisher.likelihoods.base import directions

pytestmark = pytest.mark.usefixtures("double")

N = 5


class Pooled(nn.Module):
    """Tokens to one vector an example, by way of some layer over positions."""

    def __init__(self, layer: nn.Module, width: int = 4) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(7, width), layer
        self.head = nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if isinstance(self.layer, nn.MultiheadAttention):
            x = self.layer(x, x, x, need_weights=False)[0]
        elif isinstance(self.layer, nn.RNNBase):
            x = self.layer(x)[0]
        else:
            x = self.layer(x)
        return self.head(x.tanh().mean(dim=1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens).mean(dim=1).tanh())[:, :3]


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
    "convolution and batch norm": images,
    "embedding": lambda: Pooled(nn.Identity()),
    "layer norm": lambda: Pooled(nn.LayerNorm(4)),
    "attention": lambda: Pooled(nn.MultiheadAttention(4, 2, batch_first=True)),
    "transformer": lambda: Pooled(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)),
    "lstm": lambda: Pooled(nn.LSTM(4, 4, batch_first=True)),
    "tied": Tied,
}


def inputs(name: str) -> Tensor:
    if name == "linear":
        return torch.randn(N, 6)
    if name.startswith("convolution"):
        return torch.randn(N, 1, 5, 5)
    return torch.randint(7, (N, 4))


LIKELIHOODS: dict[str, Likelihood] = {
    "categorical": Categorical(),
    "gaussian": Gaussian(sigma=0.7),
    "bernoulli": Bernoulli(),
    "poisson": Poisson(),
}


def targets(name: str, shape: tuple[int, ...] = (N, 3)) -> Tensor:
    if name == "categorical":
        return torch.randint(shape[-1], shape[:-1])
    if name == "poisson":
        return torch.randint(5, shape).double()
    return torch.randn(shape) if name == "gaussian" else torch.randint(2, shape).double()


def log_p(name: str, z: Tensor, y: Tensor) -> Tensor:
    """Log-probabilities by torch's own losses, one for each label of one example."""
    if name == "categorical":
        return -functional.cross_entropy(z.reshape(-1, z.shape[-1]), y.flatten(), reduction="none")
    if name == "gaussian":
        return -functional.gaussian_nll_loss(
            z, y, torch.full_like(z, 0.49), reduction="none"
        ).flatten()
    if name == "poisson":
        each = functional.poisson_nll_loss(z, y, reduction="none") + torch.lgamma(y + 1)
        return -each.flatten()
    return -functional.binary_cross_entropy_with_logits(z, y, reduction="none").flatten()


def squared(value: Tensor, params: list[nn.Parameter]) -> list[Tensor]:
    found = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g**2 for p, g in zip(params, found, strict=True)]


def brute(
    network: nn.Module, x: Tensor, terms: Callable[[Tensor, int], Iterator[tuple[float, Tensor]]]
) -> dict[str, Tensor]:
    """Mean over examples of Σ weight · (∂ value / ∂θ)², in eval mode."""
    params = {name: p for name, p in network.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    network.eval()
    for i in range(len(x)):
        for weight, value in terms(network(x[i : i + 1])[0], i):
            for name, square in zip(params, squared(value, list(params.values())), strict=True):
                total[name] += weight * square / len(x)
    return total


def expectation(name: str) -> Callable[[Tensor, int], Iterator[tuple[float, Tensor]]]:
    """The expectation over the labels, each label by itself."""

    def terms(z: Tensor, _: int) -> Iterator[tuple[float, Tensor]]:
        if name == "gaussian":  # of (y − f)² / σ⁴ over y it is 1 / σ²
            yield from ((1 / 0.49, one) for one in z.flatten())
        elif name == "poisson":  # of (y − r)² over y it is the variance r
            yield from ((float(one.detach().exp()), one) for one in z.flatten())
        elif name == "categorical":
            for row in z.reshape(-1, z.shape[-1]).log_softmax(-1):
                yield from ((float(one.detach().exp()), one) for one in row)
        else:
            for one in z.flatten():
                yield from (
                    (float(s.detach().sigmoid()), functional.logsigmoid(s)) for s in (one, -one)
                )

    return terms


def assert_equal(came: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert came.keys() == wanted.keys()
    for name, expected in wanted.items():
        assert expected.any(), f"{name}: the test would see nothing"
        atol = 1e-9 * float(expected.max())
        torch.testing.assert_close(came[name], expected, rtol=1e-9, atol=atol, msg=name)


@pytest.mark.parametrize("kind", LIKELIHOODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_exact_labels_are_the_expectation_over_each_label(name: str, kind: str) -> None:
    network, x = NETWORKS[name](), inputs(name)
    wanted = brute(network, x, expectation(kind))
    came = fisher_diagonal(
        network, [(x[:2], None), (x[2:], None)], likelihood=LIKELIHOODS[kind], threshold=0
    )
    assert_equal(came, wanted)


@pytest.mark.parametrize("kind", LIKELIHOODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_empirical_labels_square_the_score_of_an_example(name: str, kind: str) -> None:
    network, x, y = NETWORKS[name](), inputs(name), targets(kind)
    wanted = brute(network, x, lambda z, i: iter([(1.0, log_p(kind, z, y[i]).sum())]))
    likelihood, data = LIKELIHOODS[kind], [(x[:2], y[:2]), (x[2:], y[2:])]
    assert_equal(fisher_diagonal(network, data, labels="empirical", likelihood=likelihood), wanted)

    def each(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        z = network(batch[0])
        return torch.stack([log_p(kind, a, b).sum() for a, b in zip(z, batch[1], strict=True)])

    assert_equal(fisher_diagonal(network, data, labels="empirical", likelihood=each), wanted)


@pytest.mark.parametrize("kind", LIKELIHOODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_sampled_labels_square_the_score_of_the_drawn_ones(name: str, kind: str) -> None:
    network, x, likelihood = NETWORKS[name](), inputs(name), LIKELIHOODS[kind]
    draw = likelihood.sampled(network.eval()(x), None, torch.Generator().manual_seed(3))
    wanted = brute(network, x, lambda z, i: iter([(1.0, (z * draw[i]).sum())]))
    came = fisher_diagonal(
        network,
        [(x, None)],
        labels="sampled",
        likelihood=likelihood,
        generator=torch.Generator().manual_seed(3),
    )
    assert_equal(came, wanted)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_drawn_scores_have_mean_zero_and_the_exact_covariance(kind: str) -> None:
    likelihood, z = LIKELIHOODS[kind], torch.randn(1, 2, 3)
    many = z.expand(60_000, 2, 3)
    u = likelihood.sampled(many, None, torch.Generator().manual_seed(0)).flatten(1)
    exact = torch.cat([d.flatten(1) for d in directions(likelihood, z, "exact", None, None)])
    covariance = exact.T @ exact
    # four standard errors of a product of scores
    bound = 4 * (u[:, :, None] * u[:, None, :]).std(dim=0) / math.sqrt(len(u))
    assert (u.mean(dim=0).abs() <= 4 * u.std(dim=0) / math.sqrt(len(u))).all()
    assert ((u.T @ u / len(u) - covariance).abs() <= bound + 1e-12).all()


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_log_prob_is_that_of_the_losses_of_torch(kind: str) -> None:
    z, y = torch.randn(N, 2, 3), targets(kind, (N, 2, 3))
    wanted = torch.stack([log_p(kind, a, b).sum() for a, b in zip(z, y, strict=True)])
    if kind == "gaussian":  # torch's loss leaves the constant out
        wanted -= 6 * 0.5 * math.log(math.tau)
    torch.testing.assert_close(LIKELIHOODS[kind].log_prob(z, y), wanted, rtol=1e-12, atol=1e-12)


class Grid(nn.Module):
    """Scores [N, 3, 4, 2]: classes in dimension 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def pixelwise(ignored: bool) -> tuple[nn.Module, Tensor, Tensor]:
    y = torch.randint(3, (N, 4, 2))
    if ignored:
        y[torch.rand(y.shape) < 0.5] = -100
        y[1] = -100
    return Grid(), torch.randn(N, 1, 4, 2), y


@pytest.mark.parametrize("ignored", [False, True])
def test_pixels_are_independent_labels_and_ignored_ones_count_for_nothing(ignored: bool) -> None:
    network, x, y = pixelwise(ignored)

    def exact(z: Tensor, i: int) -> Iterator[tuple[float, Tensor]]:
        rows = z.movedim(0, -1)[y[i] != -100]
        return expectation("categorical")(rows, i)

    def empirical(z: Tensor, i: int) -> Iterator[tuple[float, Tensor]]:
        yield 1.0, functional.cross_entropy(z[None], y[i][None], reduction="sum")

    for terms, labels in ((exact, "exact"), (empirical, "empirical")):
        wanted = brute(network, x, terms)
        for likelihood in (None, Categorical(), Categorical(class_dim=1)):
            for threshold in (0, 1e-13):
                came = fisher_diagonal(
                    network, [(x, y)], labels=labels, likelihood=likelihood, threshold=threshold
                )
                assert_equal(came, wanted)


def test_ignored_positions_are_not_drawn() -> None:
    network, x, y = pixelwise(ignored=True)
    u = Categorical().sampled(network(x), y, None).movedim(1, -1)
    assert not u[y == -100].any()
    assert u[y != -100].any(dim=-1).all()


def test_tokens_take_the_last_dimension() -> None:
    network = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6))
    x = torch.randint(7, (N, 3))
    y = torch.randint(6, (N, 3))
    y[:, 2] = -100
    wanted = brute(network, x, lambda z, i: expectation("categorical")(z[:2], i))
    assert_equal(fisher_diagonal(network, [(x, y)], threshold=0), wanted)


def test_only_active_classes_take_part_in_the_softmax() -> None:
    network, x = nn.Linear(6, 5), torch.randn(N, 6)
    active, y = (3, 1, 4), torch.tensor([1, 3, 4, 4, 1])
    likelihood = Categorical(active=active)

    def empirical(z: Tensor, i: int) -> Iterator[tuple[float, Tensor]]:
        yield 1.0, z[list(active)].log_softmax(-1)[active.index(int(y[i]))]

    wanted = brute(network, x, lambda z, i: expectation("categorical")(z[list(active)], i))
    came = fisher_diagonal(network, [(x, y)], likelihood=likelihood, threshold=0)
    for name in wanted:
        torch.testing.assert_close(came[name], wanted[name], rtol=1e-9, atol=1e-15)
        assert not came[name][[0, 2]].any()
    came = fisher_diagonal(network, [(x, y)], likelihood=likelihood, labels="empirical")
    for name, expected in brute(network, x, empirical).items():
        torch.testing.assert_close(came[name], expected, rtol=1e-9, atol=1e-15)
    with pytest.raises(ValueError, match="outside the active classes"):
        fisher_diagonal(network, [(x, y * 0)], likelihood=likelihood, labels="empirical")


class Counts(PerOutput):
    """Poisson counts at the rate exp(output)."""

    def information(self, output: Tensor) -> Tensor:
        return output.exp()

    def log_prob(self, output: Tensor, target: Tensor | None) -> Tensor:
        assert target is not None
        return (target * output - output.exp()).sum(dim=1)

    def sample(self, output: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.poisson(output.exp(), generator=generator)


def test_a_likelihood_of_ones_own_has_all_three_kinds_of_labels() -> None:
    network, x, y = NETWORKS["linear"](), inputs("linear"), torch.randint(5, (N, 3)).double()

    def empirical(z: Tensor, i: int) -> Iterator[tuple[float, Tensor]]:
        yield 1.0, -functional.poisson_nll_loss(z, y[i], reduction="sum")

    def exact(z: Tensor, _: int) -> Iterator[tuple[float, Tensor]]:
        yield from ((float(one.detach().exp()), one) for one in z)

    own = Counts()
    came = fisher_diagonal(network, [(x, y)], likelihood=own, labels="empirical")
    assert_equal(came, brute(network, x, empirical))
    exact_one = fisher_diagonal(network, [(x, y)], likelihood=own)
    assert_equal(exact_one, brute(network, x, exact))
    many = [(x.repeat(4000, 1), None)]
    sampled = fisher_diagonal(network, many, likelihood=own, labels="sampled")
    for name, expected in exact_one.items():
        torch.testing.assert_close(sampled[name], expected, rtol=0.2, atol=0.05)


@pytest.mark.parametrize("labels", ["exact", "sampled", "empirical"])
def test_a_variance_that_the_network_says_has_information_too(labels: str) -> None:
    # of y ~ N(f, exp s) the score of f is (y − f) / v, that of s is ((y − f)² / v − 1) / 2
    likelihood = Heteroscedastic()
    z, y = torch.randn(1, 2, 2), torch.randn(1, 2)
    f, v = z[..., 0], z[..., 1].exp()
    score = torch.stack([(y - f) / v, ((y - f) ** 2 / v - 1) / 2], dim=-1)
    torch.testing.assert_close(likelihood.empirical(z, y), score, rtol=1e-12, atol=1e-12)
    want = functional.gaussian_nll_loss(f, y, v, full=True, reduction="sum")
    torch.testing.assert_close(-likelihood.log_prob(z, y)[0], want, rtol=1e-12, atol=0)
    u = torch.cat([d.flatten(1) for d in directions(likelihood, z, "exact", None, None)])
    if labels == "exact":
        want = torch.stack([1 / v, torch.full_like(v, 0.5)], dim=-1).flatten().diag()
        torch.testing.assert_close(u.T @ u, want, rtol=1e-12, atol=0)
    elif labels == "sampled":
        many = z.expand(60_000, 2, 2)
        drawn = likelihood.sampled(many, None, torch.Generator().manual_seed(0)).flatten(1)
        bound = 4 * (drawn[:, :, None] * drawn[:, None, :]).std(dim=0) / math.sqrt(len(drawn))
        assert ((drawn.T @ drawn / len(drawn) - u.T @ u).abs() <= bound).all()


def test_sigma_scales_by_its_inverse_square() -> None:
    network, x = NETWORKS["linear"](), inputs("linear")
    one, three = (
        fisher_diagonal(network, [(x, None)], likelihood=Gaussian(sigma)) for sigma in (1.0, 3.0)
    )
    for name, expected in one.items():
        torch.testing.assert_close(9 * three[name], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("labels", ["exact", "sampled", "empirical"])
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_kronecker_factors_of_one_example_are_the_fisher_information(
    kind: str, labels: str
) -> None:
    network, x, y = NETWORKS["linear"](), torch.randn(1, 6), targets(kind, (1, 3))
    options = {"labels": labels, "likelihood": LIKELIHOODS[kind], "threshold": 0.0}
    diagonal, factors = (
        estimator(network, [(x, y)], generator=torch.Generator().manual_seed(1), **options)
        for estimator in (fisher_diagonal, kronecker_factors)
    )
    for layer, (A, G) in factors.items():
        block = torch.outer(G.diag(), A.diag())
        wanted = torch.cat([diagonal[f"{layer}.weight"], diagonal[f"{layer}.bias"][:, None]], 1)
        torch.testing.assert_close(block, wanted, rtol=1e-9, atol=1e-15)
