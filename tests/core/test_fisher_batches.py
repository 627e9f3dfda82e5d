"""What batches and outputs may look like."""

from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lifelong.core import (
    Gaussian,
    fisher_diagonal,
    kronecker_factors,
)

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
