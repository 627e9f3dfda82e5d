"""What batches and outputs may look like, and the traps of other people's networks."""

import random
from collections import UserDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lifelong.core import (
    Gaussian,
    fisher_diagonal,
    kronecker_factors,
    parameters_by_name,
)
from lifelong.core.fisher.traceless import traceless

pytestmark = pytest.mark.usefixtures("double")

N = 7


class Two(nn.Module):
    """Two inputs, and whatever form of output."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.head, self.form = nn.Linear(4, 3), form

    def forward(self, a: Tensor, b: Tensor | None = None, labels: Tensor | None = None) -> Any:
        assert labels is None, "labels would make the network compute a loss"
        z = self.head(a if b is None else a * b)
        return FORMS[self.form](z)


@dataclass
class Result:
    logits: Tensor


FORMS = {
    "tensor": lambda z: z,
    "object": Result,
    "mapping": lambda z: {"loss": None, "logits": z},
    "tuple": lambda z: (z, None),
}


class Named(NamedTuple):
    x: Tensor
    y: Tensor
    weight: Tensor


def data() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(N, 4), torch.randn(N, 4), torch.arange(N) % 3


def assert_same(came: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float = 1e-12) -> None:
    assert {name.removeprefix("head.") for name in came} == set(wanted)
    for name, expected in wanted.items():
        found = came[name] if name in came else came[f"head.{name}"]
        torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-15)


@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_every_form_are_understood(form: str) -> None:
    network, (a, _, y) = Two(form), data()
    wanted = fisher_diagonal(network.head, [(a, y)], labels="empirical")
    assert_same(fisher_diagonal(network, [(a, y)], labels="empirical"), wanted)


BATCHES = {
    "pair": lambda a, b, y: ((a, b), y),
    "list": lambda a, b, y: [[a, b], y],
    "longer": lambda a, b, y: ((a, b), y, torch.ones(len(y)), ["name"] * len(y)),
    "named": lambda a, b, y: Named((a, b), y, torch.ones(len(y))),
    "labels": lambda a, b, y: {"a": a, "b": b, "labels": y},
    "target": lambda a, b, y: {"target": y, "b": b, "a": a},
    "mapping": lambda a, b, y: UserDict({"a": a, "b": b, "labels": y}),
    "nested": lambda a, b, y: ({"a": a, "b": b}, y),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_every_form_are_understood(name: str) -> None:
    network, (a, b, y) = Two(), data()
    wanted = fisher_diagonal(network.head, [(a * b, y)], labels="empirical")
    form = BATCHES[name]
    cut = [form(a[:3], b[:3], y[:3]), form(a[3:], b[3:], y[3:])]
    for chunk in (None, 2):
        assert_same(fisher_diagonal(network, cut, labels="empirical", chunk=chunk), wanted)


def test_a_single_entry_besides_the_label_may_have_any_name() -> None:
    network, (a, _, y) = nn.Linear(4, 3), data()
    came = fisher_diagonal(network, [{"image": a, "label": y}], labels="empirical")
    assert_same(came, fisher_diagonal(network, [(a, y)], labels="empirical"))


def test_entries_that_the_network_does_not_take_are_named() -> None:
    a, b, y = data()
    with pytest.raises(ValueError, match=r"\['a', 'c'\].*\['a', 'b', 'labels'\].*forward="):
        fisher_diagonal(Two(), [{"a": a, "c": b, "labels": y}])


def test_forward_takes_the_network_and_the_batch_or_the_batch_alone() -> None:
    network, (a, b, y) = Two(), data()
    wanted = fisher_diagonal(network.head, [(a * b, y)], labels="empirical")
    batch = {"pictures": {"left": a, "right": b}, "names": ["x"] * N, "scale": 1.0, "y": y}

    def forward(net: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        assert len(batch["names"]) == len(batch["y"])
        pictures = batch["pictures"]
        return net(pictures["left"] * batch["scale"], pictures["right"]), batch["y"]

    for one in (forward, lambda batch: forward(network, batch)):
        came = fisher_diagonal(network, [batch], labels="empirical", forward=one, chunk=3)
        assert_same(came, wanted)


def test_forward_is_used_by_the_kronecker_factors() -> None:
    network, (a, b, y) = Two(), data()
    wanted = kronecker_factors(network.head, [(a * b, y)])[""]
    came = kronecker_factors(
        network, [(a, b, y)], forward=lambda net, batch: (net(batch[0], batch[1]), batch[2])
    )["head"]
    torch.testing.assert_close(came, wanted, rtol=1e-12, atol=1e-15)


class Bare(nn.Module):
    """A parameter without a rule: per-example gradients go through forward=, too."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.randn(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.scale)


@pytest.mark.parametrize("words", [False, True])
def test_per_example_gradients_take_batches_of_every_form(words: bool) -> None:
    network, (a, _, y) = Bare(), data()
    batch = {"inner": [a, None], "n": torch.tensor(1.0), "y": y} | (
        {"names": ["one"] * N} if words else {}
    )
    wanted = fisher_diagonal(network, [(a, y)], labels="empirical")

    def forward(net: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if words:
            assert len(batch["names"]) == len(batch["y"])
        return net(batch["inner"][0] * batch["n"]), batch["y"]

    came = fisher_diagonal(network, [batch], labels="empirical", forward=forward)
    torch.testing.assert_close(came, wanted, rtol=1e-12, atol=1e-15)


class CausalLMOutput(UserDict):  # as Hugging Face names it
    @property
    def logits(self) -> Tensor:
        return self.data["logits"]


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.head(self.embedding(input_ids).cumsum(1)))


@pytest.mark.parametrize("labels", ["exact", "empirical"])
def test_a_causal_language_model_is_scored_against_the_next_token(labels: str) -> None:
    network, tokens = Language(), torch.randint(9, (N, 5))
    y = tokens.masked_fill(torch.arange(5) > 3, -100)
    came = fisher_diagonal(network, [{"input_ids": tokens, "labels": y}], labels=labels)
    wanted = fisher_diagonal(
        network,
        [(tokens, y)],
        labels=labels,
        forward=lambda net, batch: (net(batch[0]).logits[:, :-1], batch[1][:, 1:]),
    )
    torch.testing.assert_close(came, wanted, rtol=0, atol=0)
    by_hand = torch.zeros(9)
    for row, label in zip(tokens, y, strict=True):  # F of the head's bias
        log_p = network(row[None]).logits[0].log_softmax(-1)[:3]
        p = log_p.detach().exp()
        score = torch.eye(9)[label[1:4]] - p
        by_hand += (p - p**2).sum(0) if labels == "exact" else score.sum(0) ** 2
    torch.testing.assert_close(came["head.bias"], by_hand / N, rtol=1e-6, atol=0)


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


ODD: dict[str, tuple[Any, str]] = {
    "number": ([3], "a batch is a int; wanted a pair"),
    "tensor": ([torch.randn(N, 4)], "a batch is a Tensor; wanted a pair"),
    "lengths": ([(torch.randn(N, 4), torch.zeros(3).long())], "examples along the first dimension"),
    "packed": (
        [(nn.utils.rnn.pack_sequence([torch.randn(2, 4)]), torch.zeros(1).long())],
        "PackedSequence.*forward",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_batches_that_do_not_fit_say_what_came(name: str) -> None:
    batches, message = ODD[name]
    with pytest.raises(ValueError, match=message) as caught:
        fisher_diagonal(nn.Linear(4, 3), batches)
    assert "\n" not in str(caught.value)


class Odd(nn.Module):
    def __init__(self, made: Any) -> None:
        super().__init__()
        self.head, self.made = nn.Linear(4, 3), made

    def forward(self, x: Tensor) -> Any:
        return self.made(self.head(x))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda z: {"out": z}, r"dict of \['out'\].*forward="),
        (lambda z: z.argmax(-1), "int64.*forward="),
        (lambda z: None, "NoneType.*forward="),
        (lambda z: z.mean(), "float64 of shape.*forward="),
        (lambda z: z.flatten(), "for 2 examples.*forward="),
    ],
)
def test_outputs_that_do_not_fit_say_what_came(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        fisher_diagonal(Odd(made), [(torch.randn(N, 4), None)])
    assert "\n" not in str(caught.value)


def test_a_reconstruction_is_a_target_of_forward() -> None:
    coder = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 4))
    x = torch.randn(N, 4)
    came = fisher_diagonal(
        coder,
        [x],
        labels="empirical",
        likelihood=Gaussian(),
        forward=lambda net, batch: (net(batch), batch),
    )
    residual = (x - coder(x)).detach()
    torch.testing.assert_close(came["2.bias"], (residual**2).mean(dim=0), rtol=1e-9, atol=0)
