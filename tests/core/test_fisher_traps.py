"""Traps of other people's networks: compiled, without a graph, sparse, half, frozen, endless."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lifelong.core import fisher_diagonal, kronecker_factors, parameters_by_name
from lifelong.core.fisher.traceless import traceless

Oracle = Callable[[nn.Module, Tensor], dict[str, Tensor]]

pytestmark = pytest.mark.usefixtures("double")

N = 7


@pytest.mark.parametrize("way", ["outer", "inner", "forward"])
def test_a_compiled_network_has_the_fisher_of_the_plain_one(way: str) -> None:
    ran = 0

    def backend(graph: Any, _: Any) -> Any:
        def run(*arguments: Any) -> Any:
            nonlocal ran
            ran += 1
            return graph(*arguments)

        return run

    plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(N, 4)
    wanted = list(fisher_diagonal(plain, [(x, None)]).values())
    network: Any = nn.Sequential(*plain)
    if way == "outer":
        network = torch.compile(network, backend=backend)
    elif way == "inner":
        network = nn.Sequential(plain[0], torch.compile(plain[1:], backend=backend))
    else:
        network.forward = torch.compile(network.forward, backend=backend)
    network(x)
    assert ran == 1
    came = fisher_diagonal(network, [(x, None)])
    # what a compiler made calls no hooks: it must not be what is looked at
    assert ran == 1
    assert list(came) == list(parameters_by_name(network))
    assert not any("_orig_mod" in name for name in came)
    torch.testing.assert_close(list(came.values()), wanted, rtol=1e-12, atol=1e-15)
    factors = kronecker_factors(network, [(x, None)])
    assert len(factors) == 2
    assert not any("_orig_mod" in name for name in factors)


class NoGraph(nn.Linear):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("estimate", [fisher_diagonal, kronecker_factors])
def test_an_output_without_a_graph_is_refused(estimate: Any) -> None:
    with pytest.raises(ValueError, match=r"carries no gradient.*no_grad.*forward="):
        estimate(NoGraph(4, 3), [(torch.randn(N, 4), None)])


@pytest.mark.parametrize("estimate", [fisher_diagonal, kronecker_factors])
def test_a_fisher_that_is_zero_everywhere_is_refused(estimate: Any) -> None:
    ignored = torch.full((N,), -100)
    with pytest.raises(ValueError, match="zero for every parameter"):
        estimate(nn.Linear(4, 3), [(torch.randn(N, 4), ignored)])


def test_random_states_are_put_back_although_the_data_use_them() -> None:
    numpy = pytest.importorskip("numpy")

    def states() -> list[Any]:
        return [random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()]

    def batches() -> Iterator[tuple[Tensor, None]]:
        for _ in range(3):
            numpy.random.rand(3)
            yield torch.randn(4, 4), None

    network = nn.Linear(4, 3)
    before = states()
    fisher_diagonal(network, batches(), labels="sampled")
    # beartype, which checks the calls of the tests, draws from Python's numbers itself
    assert states()[1] == before[1]
    assert torch.equal(states()[2], before[2])
    before = states()
    with traceless(network):
        random.random()
    assert states()[0] == before[0]


@pytest.mark.parametrize("tied", [False, True])
def test_sparse_gradients_are_those_of_a_dense_table(tied: bool) -> None:
    def network(sparse: bool) -> nn.Module:
        torch.manual_seed(0)
        table, head = nn.Embedding(6, 4, sparse=sparse), nn.Linear(4, 6, bias=False)
        if tied:
            head.weight = table.weight
        return nn.Sequential(table, nn.Flatten(), nn.Unflatten(1, (3, 4)), head)

    x = torch.randint(6, (N, 3))
    wanted = fisher_diagonal(network(False), [(x, None)])
    torch.testing.assert_close(fisher_diagonal(network(True), [(x, None)]), wanted)


def test_a_bag_of_sparse_embeddings_agrees_with_the_dense_one() -> None:
    x, found = torch.randint(6, (N, 3)), []
    for sparse in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.EmbeddingBag(6, 4, sparse=sparse), nn.Linear(4, 3))
        found.append(fisher_diagonal(network, [(x, None)]))
    assert found[0]["0.weight"].any()
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_follow_the_precision_of_the_parameters(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)).float()
    x = torch.randn(N, 4, dtype=torch.float32)
    wanted = fisher_diagonal(network, [(x, None)])
    network.to(dtype)
    for estimate in (
        fisher_diagonal(network, [(x, None)]),
        fisher_diagonal(network, [((x,), None)]),
    ):
        for name, expected in wanted.items():
            assert estimate[name].dtype == dtype
            torch.testing.assert_close(estimate[name].float(), expected, rtol=0.1, atol=2e-3)
    kronecker_factors(network, [(x, None)])


def test_samples_end_an_endless_iterable_without_asking_for_more() -> None:
    asked = 0

    def endless() -> Iterator[tuple[Tensor, None]]:
        nonlocal asked
        while True:
            asked += 1
            yield torch.ones(4, 4), None

    for estimate in (fisher_diagonal, kronecker_factors):
        asked = 0
        estimate(nn.Linear(4, 3), endless(), samples=8)
        assert asked == 2


def test_an_iterable_shorter_than_samples_is_taken_whole() -> None:
    network, x = nn.Linear(4, 3), torch.randn(N, 4)
    came = fisher_diagonal(network, iter([(x, None)]), samples=100)
    torch.testing.assert_close(came, fisher_diagonal(network, [(x, None)]), rtol=0, atol=0)


def test_frozen_parameters_have_a_fisher_where_it_is_asked_for() -> None:
    network, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(N, 4)
    wanted, factors = fisher_diagonal(network, [(x, None)]), kronecker_factors(network, [(x, None)])
    network[0].requires_grad_(False)
    assert list(fisher_diagonal(network, [(x, None)])) == ["2.weight", "2.bias"]
    came = fisher_diagonal(network, [(x, None)], include_frozen=True)
    torch.testing.assert_close(came, wanted, rtol=0, atol=0)
    assert set(kronecker_factors(network, [(x, None)], include_frozen=True)) == set(factors)
    assert [p.requires_grad for p in network.parameters()] == [False, False, True, True]


class Weighted(nn.Module):
    """A linear layer whose weight comes out of another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.inside, self.head = nn.Linear(2, 16), nn.Linear(4, 4), nn.Linear(4, 5)
        del self.inside.weight

    def forward(self, x: Tensor) -> Tensor:
        self.inside.weight = self.source(x.new_ones(2)).view(4, 4)
        return self.head(self.inside(x).tanh())


def test_a_weight_that_is_computed_passes_its_gradient_on(looped_fisher: Oracle) -> None:
    network, x = Weighted(), torch.randn(6, 4)
    wanted = looped_fisher(network, x)
    for threshold in (0, 1e-13):
        came = fisher_diagonal(network, [(x, None)], threshold=threshold)
        for name, expected in wanted.items():
            torch.testing.assert_close(came[name], expected, rtol=1e-9, atol=1e-14, msg=name)
