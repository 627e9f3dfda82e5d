"""What the drop-in estimates F of: the training step itself, against brute force in float64."""

import warnings
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the step's usual words
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import MeanMetric

from lifelong.core import Bernoulli, Categorical, Gaussian
from lifelong.core.fisher.likelihoods.product import Product
from lifelong.errors import LifelongError
from lifelong.learning import forecast
from lifelong.learning.fit_batches import FitBatches
from lifelong.learning.seen import see
from lifelong.methods import EWC, KroneckerEWC
from lifelong.methods.protect import protect

N = 6
Score = Callable[[Any, int], Tensor]


class Own(LightningModule):
    """A small float64 network whose step is a function of (module, batch)."""

    def __init__(self, step: Callable[..., Any], network: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = (network or nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))).double()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.step(self, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def classes(*shape: int, count: int = 3) -> Tensor:
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(1))


X, Y = numbers(N, 4), classes(N)


def brute(module: nn.Module, log_p: Callable[[int], Iterable[tuple[float, Tensor]]]) -> Any:
    """F by single examples: of each, weights and log-probabilities whose squared scores add up."""
    params = {n: p for n, p in module.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p) for n, p in params.items()}
    for i in range(N):
        for weight, one in log_p(i):
            found = torch.autograd.grad(
                one, list(params.values()), retain_graph=True, allow_unused=True
            )
            for name, g in zip(params, found, strict=True):
                if g is not None:
                    total[name] += weight * g.square() / N
    return total


def softmax(logits: Tensor) -> list[tuple[float, Tensor]]:
    """Every label of every position, classes last."""
    rows = logits.reshape(-1, logits.shape[-1]).log_softmax(-1)
    return [(float(v.detach().exp()), v) for row in rows for v in row]


def bernoulli(logits: Tensor) -> list[tuple[float, Tensor]]:
    return [(float((v.sigmoid() * (-v).sigmoid()).detach()), v) for v in logits.flatten()]


def gauss(output: Tensor) -> list[tuple[float, Tensor]]:
    return [(1.0, v) for v in output.flatten()]


def fit(module: LightningModule, data: Any, *callbacks: Any, **settings: Any) -> Trainer:
    base = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": list(callbacks),
    }
    trainer = Trainer(**(base | settings))  # type: ignore[arg-type]
    trainer.fit(module, data)
    return trainer


def loader(*tensors: Tensor, size: int = 3) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=size)


PIXELS, PIXEL_LABELS = numbers(N, 1, 3, 3), classes(N, 3, 3)
TOKENS = classes(N, 4, count=7)
TOKEN_LABELS = classes(N, 4, count=5).masked_fill(classes(N, 4, count=4) == 0, -100)
MANY = (numbers(N, 3) > 0).double()


class Words(nn.Module):
    """Token by token, mixed along the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.embed(ids).cumsum(1).tanh())


class LikeHuggingFace(nn.Module):
    """Makes its own loss, of the labels shifted by one, and returns an object."""

    def __init__(self) -> None:
        super().__init__()
        self.words = Words()

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        logits = self.words(input_ids)
        shifted = F.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
        loss = F.cross_entropy(logits.view(-1, 5), shifted, ignore_index=-100)
        return SimpleNamespace(loss=loss, logits=logits)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).tanh()
        return self.a(h), self.b(h)


def kept(i: int, logits: Tensor) -> Tensor:
    return logits[TOKEN_LABELS[i] != -100]


class NoGrad(Own):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 3, 1))


def ae() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 4))


def poisson(logs: Tensor) -> list[tuple[float, Tensor]]:
    return [(float(v.detach().exp()), v) for v in logs.flatten()]


def spread(output: Tensor) -> list[tuple[float, Tensor]]:
    """Means in the first column, logarithms of their variances in the second."""
    f, s = output.reshape(-1, 2).unbind(1)
    return [(float((-b).detach().exp()), a) for a, b in zip(f, s, strict=True)] + [
        (0.5, b) for b in s
    ]


class ByTime(nn.Module):
    """Tokens [N, T] to scores [T, N, 5], as recurrent networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(7, 4), nn.RNN(4, 3), nn.Linear(3, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(ids.T))[0])


def masked(loss: Tensor, counts: Tensor) -> Tensor:
    return (loss * counts).sum() / counts.sum()


REST = numbers(2, N)[0]
COUNTS, VARIANCE = MANY[:, :3].clone().fill_diagonal_(1.0), numbers(N, 3, seed=8).exp()
WHOLE = TOKEN_LABELS.clamp_min(0)
# name → module, batches of two sizes, and the log-probabilities of example i
FAMILIES: dict[str, tuple[Callable[[], Own], list[Any], Callable[[Any, int], Any]]] = {
    "a classifier": (
        lambda: Own(lambda m, b: F.cross_entropy(m(b[0]), b[1])),
        [(X[:4], Y[:4]), (X[4:], Y[4:])],
        lambda m, i: softmax(m.net(X[i : i + 1])),
    ),
    "a forward without gradients, extra elements": (
        lambda: NoGrad(lambda m, b: {"loss": F.cross_entropy(m.net(b[0]), b[1], reduction="sum")}),
        [(X[:4], Y[:4], REST[:4], ["a"] * 4), (X[4:], Y[4:], REST[4:], ["b"] * 2)],
        lambda m, i: softmax(m.net(X[i : i + 1])),
    ),
    "dict batches and log-probabilities": (
        lambda: Own(lambda m, b: F.nll_loss(m.net(b["x"]).log_softmax(1), b["mine"])),
        [{"x": X[:4], "mine": Y[:4]}, {"x": X[4:], "mine": Y[4:]}],
        lambda m, i: softmax(m.net(X[i : i + 1])),
    ),
    "segmentation": (
        lambda: Own(lambda m, b: F.cross_entropy(m(b[0]), b[1]), conv()),
        [(PIXELS[:4], PIXEL_LABELS[:4]), (PIXELS[4:], PIXEL_LABELS[4:])],
        lambda m, i: softmax(m.net(PIXELS[i : i + 1]).movedim(1, -1)),
    ),
    "segmentation, flat": (
        lambda: Own(
            lambda m, b: F.cross_entropy(m(b[0]).movedim(1, -1).reshape(-1, 3), b[1].reshape(-1)),
            conv(),
        ),
        [(PIXELS, PIXEL_LABELS)],
        lambda m, i: softmax(m.net(PIXELS[i : i + 1]).movedim(1, -1)),
    ),
    "padded tokens, flat": (
        lambda: Own(lambda m, b: F.cross_entropy(m(b[0]).view(-1, 5), b[1].view(-1)), Words()),
        [(TOKENS[:4], TOKEN_LABELS[:4]), (TOKENS[4:], TOKEN_LABELS[4:])],
        lambda m, i: softmax(kept(i, m.net(TOKENS[i : i + 1])[0])),
    ),
    "a network that makes its own loss": (
        lambda: Own(lambda m, b: m.net(**b).loss, LikeHuggingFace()),
        [
            {"input_ids": TOKENS[:4], "labels": TOKEN_LABELS[:4]},
            {"input_ids": TOKENS[4:], "labels": TOKEN_LABELS[4:]},
        ],
        lambda m, i: softmax(m.net.words(TOKENS[i : i + 1])[0][:-1][TOKEN_LABELS[i][1:] != -100]),
    ),
    "regression, half the squares": (
        lambda: Own(lambda m, b: 0.5 * F.mse_loss(b[1], m(b[0]), reduction="sum") / len(b[0])),
        [(X, numbers(N, 3, seed=5))],
        lambda m, i: gauss(m.net(X[i : i + 1])),
    ),
    "an autoencoder whose forward encodes": (
        lambda: Own(lambda m, b: F.mse_loss(m.net(b), b), ae()),
        [X[:4], X[4:]],
        lambda m, i: gauss(m.net(X[i : i + 1])),
    ),
    "several labels": (
        lambda: Own(lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), b[1])),
        [(X, MANY)],
        lambda m, i: bernoulli(m.net(X[i : i + 1])),
    ),
    "one probability": (
        lambda: Own(lambda m, b: F.binary_cross_entropy(m(b[0])[:, 0].sigmoid(), b[1][:, 0])),
        [(X, MANY)],
        lambda m, i: bernoulli(m.net(X[i : i + 1])[:, 0]),
    ),
    "two heads": (
        lambda: Own(
            lambda m, b: sum(
                (F.cross_entropy(z, y) for z, y in zip(m.net(b[0]), b[1:], strict=True)),
                torch.zeros(()),
            ),
            Heads(),
        ),
        [(X[:4], Y[:4], Y[:4] % 2), (X[4:], Y[4:], Y[4:] % 2)],
        lambda m, i: [p for z in m.net(X[i : i + 1]) for p in softmax(z)],
    ),
    "a head of classes and one of numbers": (
        lambda: Own(
            lambda m, b: F.cross_entropy(m.net(b[0])[0], b[1]) + F.mse_loss(m.net(b[0])[1], b[2]),
            Heads(),
        ),
        [(X, Y, numbers(N, 2, seed=7))],
        lambda m, i: softmax(m.net(X[i : i + 1])[0]) + gauss(m.net(X[i : i + 1])[1]),
    ),
    "mixed examples": (
        lambda: Own(
            lambda m, b: (
                0.3 * F.cross_entropy(z := m(b[0]), b[1]) + 0.7 * F.cross_entropy(z, b[1].flip(0))
            )
        ),
        [(X, Y)],
        lambda m, i: softmax(m.net(X[i : i + 1])),
    ),
    "smoothed labels": (
        lambda: Own(lambda m, b: F.cross_entropy(m(b[0]), b[1], label_smoothing=0.1)),
        [(X, Y)],
        lambda m, i: softmax(m.net(X[i : i + 1])),
    ),
    "rows ordered by time": (
        lambda: Own(
            lambda m, b: F.cross_entropy(m(b[0]).flatten(0, 1), b[1].T.flatten()), ByTime()
        ),
        [(TOKENS[:4], TOKEN_LABELS[:4]), (TOKENS[4:], TOKEN_LABELS[4:])],
        lambda m, i: softmax(kept(i, m.net(TOKENS[i : i + 1])[:, 0])),
    ),
    "examples in the second dimension": (
        lambda: Own(lambda m, b: F.mse_loss(m(b[0]), b[1].movedim(1, 0)), ByTime()),
        [(TOKENS, numbers(N, 4, 5))],
        lambda m, i: gauss(m.net(TOKENS[i : i + 1])),
    ),
    "a mask by hand": (
        lambda: Own(
            lambda m, b: masked(
                F.cross_entropy(m(b[0]).movedim(2, 1), b[1], reduction="none"), b[2] != -100
            ),
            Words(),
        ),
        [(TOKENS[:4], WHOLE[:4], TOKEN_LABELS[:4]), (TOKENS[4:], WHOLE[4:], TOKEN_LABELS[4:])],
        lambda m, i: softmax(kept(i, m.net(TOKENS[i : i + 1])[0])),
    ),
    "numbers with a mask": (
        lambda: Own(
            lambda m, b: masked(F.mse_loss(m(b[0]), b[1], reduction="none"), b[2]),
        ),
        [(X[:4], VARIANCE[:4], COUNTS[:4]), (X[4:], VARIANCE[4:], COUNTS[4:])],
        lambda m, i: gauss(m.net(X[i : i + 1])[0, COUNTS[i] > 0]),
    ),
    "counts": (
        lambda: Own(lambda m, b: F.poisson_nll_loss(m(b[0]), b[1], full=True)),
        [(X, classes(N, 3).double())],
        lambda m, i: poisson(m.net(X[i : i + 1])),
    ),
    "counts at a rate": (
        lambda: Own(
            lambda m, b: F.poisson_nll_loss(m(b[0]).exp(), b[1], log_input=False, eps=1e-12)
        ),
        [(X, classes(N, 3).double())],
        lambda m, i: poisson(m.net(X[i : i + 1])),
    ),
    "numbers of a given variance": (
        lambda: Own(lambda m, b: F.gaussian_nll_loss(m(b[0]), b[1], b[2])),
        [(X, numbers(N, 3, seed=5), VARIANCE)],
        lambda m, i: gauss(m.net(X[i : i + 1])[0] / VARIANCE[i].sqrt()),
    ),
    "numbers and their variance": (
        lambda: Own(
            lambda m, b: F.gaussian_nll_loss(m(b[0])[:, 0], b[1], m(b[0])[:, 1].exp()),
            nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)),
        ),
        [(X, REST)],
        lambda m, i: spread(m.net(X[i : i + 1])),
    ),
    "a softmax written by hand": (
        lambda: Own(lambda m, b: -m(b[0]).log_softmax(1).gather(1, b[1][:, None]).mean()),
        [(X, Y)],
        lambda m, i: softmax(m.net(X[i : i + 1])),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fisher_information_is_that_of_the_training_step(family: str) -> None:
    make, batches, log_p = FAMILIES[family]
    module = make()
    got = EWC(1.0, threshold=0.0, labels="exact").estimate(module, batches)
    want = brute(module, lambda i: log_p(module, i))
    assert see(module, batches[0]).remarks == []
    assert set(got) == set(want)
    for name, one in want.items():
        torch.testing.assert_close(got[name], one, rtol=1e-9, atol=1e-12)
    assert sum(float(one.sum()) for one in want.values()) > 1e-3


@pytest.mark.parametrize("family", ["segmentation", "padded tokens, flat", "two heads"])
def test_kronecker_factors_are_those_of_the_training_step(family: str) -> None:
    make, batches, _ = FAMILIES[family]
    module = make()
    got = KroneckerEWC(1.0, threshold=0.0).estimate(module, batches)
    assert got.traces()
    assert all(trace > 0 for trace in got.traces().values())


@pytest.mark.parametrize("family", ["two heads", "several labels", "padded tokens, flat"])
def test_empirical_labels_are_those_that_the_loss_function_was_given(family: str) -> None:
    make, batches, _ = FAMILIES[family]
    module = make()
    got = EWC(1.0, labels="empirical").estimate(module, batches[:1])
    batch = batches[0]
    n = len(batch[0])
    want = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for i in range(n):
        one = tuple(t[i : i + 1] for t in batch)
        counted = int((one[1] != -100).sum()) if family != "two heads" else 1
        loss = module.step(module, one) * counted if counted else None
        if loss is None:
            continue
        for name, g in zip(want, torch.autograd.grad(loss, list(module.parameters())), strict=True):
            want[name] += g.square() / n
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-12)


def test_the_batches_are_those_that_the_step_sees() -> None:
    class Halves(Own):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] / 2, batch[1]

    module = Halves(lambda m, b: F.cross_entropy(m(b[0]), b[1]))
    got = EWC(1.0, threshold=0.0).estimate(module, [(X, Y)])
    want = brute(module, lambda i: softmax(module.net(X[i : i + 1] / 2)))
    for name, one in want.items():
        torch.testing.assert_close(got[name], one, rtol=1e-9, atol=1e-12)


def plain(m: Any, b: Any) -> Tensor:
    return F.cross_entropy(m(b[0]), b[1])


def vae(m: Any, b: Any) -> Tensor:
    return F.cross_entropy(m(b[0]), b[1]) + m.net[0](b[0]).square().mean()


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "another loss": (lambda m, b: F.smooth_l1_loss(m(b[0]), numbers(len(b[0]), 3)), "smooth_l1"),
    "a term of the examples": (vae, "the rest depends on the examples"),
    "a weighted sum": (
        lambda m, b: (
            F.cross_entropy(m(b[0]), b[1]) + 0.1 * F.mse_loss(m.net(b[0]), 0 * m(b[0]).detach())
        ),
        "weighted sum",
    ),
    "two functions of one output": (
        lambda m, b: F.cross_entropy(z := m(b[0]), b[1]) + F.mse_loss(z, z.detach() + 1),
        "one output to several loss functions",
    ),
    "the output in another way": (
        lambda m, b: F.cross_entropy(z := m(b[0]), b[1]) + z.square().mean(),
        "in another way, too",
    ),
    "its own weights": (
        lambda m, b: (
            F.cross_entropy(m(b[0]), b[1], reduction="none") * torch.arange(1, len(b[0]) + 1)
        ).mean(),
        "weighs the labels",
    ),
    "the root of a mean": (
        lambda m, b: F.mse_loss(m(b[0]), numbers(len(b[0]), 3)).sqrt(),
        "the rest depends on the examples",
    ),
    "a loss by hand": (lambda m, b: (m(b[0]) - 1).abs().mean(), "calls no loss function"),
    "no gradient": (lambda m, b: F.cross_entropy(m(b[0]).detach(), b[1]), "no gradient"),
    "pairs of examples": (
        lambda m, b: F.cross_entropy((z := m(b[0])) @ z.T, torch.arange(len(z))),
        "depends on the other examples",
    ),
    "a batch norm of the moment": (
        lambda m, b: F.cross_entropy(m(b[0]) - m(b[0]).mean(0), b[1]),
        "depends on the other examples",
    ),
    "a spread target": (
        lambda m, b: F.mse_loss(m(b[0])[:, :1], b[1].double()),
        "spreads out",
    ),
    "one number a batch": (
        lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]).mean(), torch.ones(()).double()),
        "one row, or the same number of rows",
    ),
    "no log-probabilities": (lambda m, b: F.nll_loss(m(b[0]), b[1]), "no log-probabilities"),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_the_first_step(case: str) -> None:
    step, words = REFUSED[case]
    module = Own(step)
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(LifelongError, match=words) as error:
        fit(module, loader(X, Y, size=6), EWC(1.0))
    assert "\n" not in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_batches_of_another_form_are_refused_before_the_first_step() -> None:
    module = Own(lambda m, b: F.cross_entropy(m(b["x"]), b["y"]))
    before = [p.detach().clone() for p in module.parameters()]
    rows = DataLoader([{"x": x, "y": y} for x, y in zip(X, Y, strict=True)], batch_size=3)
    with pytest.raises(LifelongError, match=r"batches=.*form of the training batches"):
        fit(module, rows, EWC(1.0, batches=[(X, Y)]))
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    own = EWC(1.0, batches=[(X, Y)], forward=lambda m, b: (m(b[0]), b[1]), damping=0.0, threshold=0)
    fit(module, rows, own)
    want = brute(module, lambda i: softmax(module.net(X[i : i + 1])))
    for name, one in want.items():
        torch.testing.assert_close(own.penalty.importances()[name], one, rtol=1e-9, atol=1e-12)


def test_batches_of_the_last_task_are_told_of() -> None:
    ewc, module = EWC(1.0, batches=loader(X, Y)), Own(plain)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*these very batches")
        fit(module, loader(X, Y), ewc)
    with pytest.warns(UserWarning, match="set ewc.batches to the new task's"):
        fit(module, loader(X + 1, Y), ewc)
    ewc.batches = loader(X + 1, Y)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*these very batches")
        fit(module, loader(X + 1, Y), ewc)


def test_soft_labels_are_refused_as_empirical_ones() -> None:
    step = FAMILIES["smoothed labels"][0]()
    with pytest.raises(LifelongError, match="labels='exact' or labels='sampled'"):
        see(step, (X, Y), labels="empirical")


def test_what_is_passed_wins() -> None:
    module = Own(REFUSED["another loss"][0])
    with pytest.warns(UserWarning, match="cosine"):
        fit(module, loader(X, Y), ewc := EWC(1.0, likelihood=Gaussian(2.0), damping=0.0))
    want = brute(module, lambda i: gauss(module.net(X[i : i + 1]) / 2))
    got = ewc.penalty.importances()
    for name, one in want.items():
        torch.testing.assert_close(got[name], one, rtol=1e-6, atol=1e-9)
    other = EWC(1.0, likelihood=Bernoulli(), forward=lambda m, b: m.net(b[0]))
    got = other.estimate(module, [(X, Y)])
    want = brute(module, lambda i: bernoulli(module.net(X[i : i + 1])))
    for name, one in want.items():
        torch.testing.assert_close(got[name], one, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", ["a mask by hand", "numbers with a mask"])
def test_a_mask_counts_for_a_likelihood_that_is_passed(family: str) -> None:
    make, batches, log_p = FAMILIES[family]
    module = make()
    told: Any = Categorical() if family == "a mask by hand" else Gaussian()
    ewc = EWC(1.0, likelihood=told, threshold=0.0, labels="exact")
    got = ewc.estimate(module, batches)
    for name, one in brute(module, lambda i: log_p(module, i)).items():
        torch.testing.assert_close(got[name], one, rtol=1e-9, atol=1e-12)


def test_the_likelihood_alone_lets_a_further_term_be() -> None:
    module = Own(vae)
    got = EWC(1.0, likelihood=Categorical(), threshold=0.0).estimate(module, [(X, Y)])
    want = brute(module, lambda i: softmax(module.net(X[i : i + 1])))
    for name, one in want.items():
        torch.testing.assert_close(got[name], one, rtol=1e-9, atol=1e-12)


def test_a_weight_decay_by_hand_is_named_and_left_out() -> None:
    def step(m: Any, b: Any) -> Tensor:
        return plain(m, b) + 0.1 * sum(p.square().sum() for p in m.parameters())

    seen = see(Own(step), (X, Y))
    assert len(seen.remarks) == 1
    assert "does not depend on the examples" in seen.remarks[0]


def test_a_term_that_is_added_in_place_is_seen() -> None:
    def step(m: Any, b: Any) -> Tensor:
        loss = plain(m, b)
        loss += m.net[0](b[0]).square().mean()
        return loss

    with pytest.raises(LifelongError, match="the rest depends on the examples"):
        see(Own(step), (X, Y))


def test_the_directions_of_several_outputs_are_sorted_and_make_up_both_covariances() -> None:
    logits, scores = numbers(1, 3), 3 * numbers(1, 2, seed=4)
    both = Product([Categorical(), Bernoulli()])
    row, target = both.join([logits, scores], [None, None])
    found = both.exact(row, target)
    assert (found.weights.diff(dim=1) <= 0).all()
    u = torch.cat([found.direction(i) for i in range(found.weights.shape[1])])
    p, q = logits[0].softmax(0), scores[0].sigmoid()
    want = torch.block_diag(p.diag() - p.outer(p), (q * (1 - q)).diag())
    torch.testing.assert_close(u.T @ u, want, rtol=1e-12, atol=1e-12)


def states() -> list[Any]:
    # Not Python's own: under pytest beartype draws from it whenever a function of core is called.
    found = np.random.get_state()
    return [torch.get_rng_state().tolist(), found[1].tolist(), found[2]]


def test_looking_leaves_nothing_behind() -> None:
    def step(m: Any, b: Any) -> Tensor:
        np.random.rand(), torch.rand(1)
        z = m(b[0])
        loss = F.cross_entropy(z, b[1])
        m.mean(loss.detach())
        m.memory.append(loss)
        m.counted += 1
        m.total += 1
        m.last = z
        m.log("loss", loss)
        m.print("said")
        m.logger.experiment.add_scalar("loss", loss)
        return loss

    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    module = Own(step, network)
    module.mean, module.memory, module.counted = MeanMetric(), [], 0
    module.total = torch.zeros(1)
    logs: list[Any] = []
    trainer = Trainer(
        accelerator="cpu", logger=NoisyLogger(logs), enable_checkpointing=False, max_epochs=1
    )
    module.trainer = trainer
    module.net[0].weight.grad = torch.ones_like(module.net[0].weight)
    before = states(), {k: v.clone() for k, v in module.state_dict().items()}
    names = set(vars(module))
    EWC(1.0).estimate(module, [(X, Y)])
    assert states() == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in module.state_dict().items())
    assert (module.memory, module.counted, float(module.total)) == ([], 0, 0.0)
    assert not module.mean.update_called
    assert float(module.mean.mean_value) == 0
    assert set(vars(module)) == names
    assert logs == []
    assert torch.equal(module.net[0].weight.grad, torch.ones_like(module.net[0].weight))
    assert module.training
    assert all(m.training for m in module.modules())
    assert not any(m._forward_hooks for m in module.modules())


def NoisyLogger(said: list[Any]) -> Any:  # noqa: N802 - makes one
    from lightning.pytorch.loggers.logger import Logger

    class Noisy(Logger):
        name, version = "noisy", 0
        experiment = SimpleNamespace(add_scalar=lambda *a: said.append(a))

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            said.append(metrics)

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            return

    return Noisy()


def test_the_check_of_a_fit_changes_no_bit_of_the_training() -> None:
    held = []
    for callbacks in ([], [EWC(0.0)]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)
        )
        module = Own(plain, network)
        torch.manual_seed(1)
        fit(module, loader(X, Y), *callbacks, max_epochs=3)
        held.append(module.state_dict())
    assert all(torch.equal(v, held[1][k]) for k, v in held[0].items())


class Manual(Own):
    """Goes backward by itself, once or more often, for two optimizers."""

    def __init__(self, losses: int) -> None:
        super().__init__(plain)
        self.automatic_optimization = False
        self.losses, self.seen = losses, Tensor()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        for _ in range(self.losses):
            self.manual_backward(plain(self, batch))
        self.seen = self.net[2].weight.grad.clone()
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[i].parameters(), 0.0) for i in (0, 2)]


def test_two_optimizers_of_one_loss_are_pulled_once() -> None:
    module, ewc = Manual(1), EWC(10.0, damping=0.0)
    fit(module, loader(X, Y, size=N), ewc)
    assert not ewc.penalty.is_empty
    with torch.no_grad():
        module.net[2].weight.add_(0.1)
    fit(module, loader(X, Y, size=N), ewc)
    held = ewc.penalty.importances()["net.2.weight"]
    (own,) = torch.autograd.grad(plain(module, (X, Y)), [module.net[2].weight])
    # of one task: the second has been folded since, half of it at the moved weights
    fresh = EWC(10.0, damping=0.0)
    assert "manual_backward" not in vars(module)
    with torch.no_grad():
        module.net[2].weight.sub_(0.1)
    fresh.consolidate(module, [(X, Y)])
    want = own + 10.0 * fresh.penalty.importances()["net.2.weight"] * 0.1
    torch.testing.assert_close(module.seen, want, rtol=1e-6, atol=1e-9)
    assert float((held * 0.1).norm()) > 1e-4


class AddsIt(Own):
    """Its step adds the term that the callback adds, too, with one optimizer or by hand."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__(plain)
        self.automatic_optimization = not by_hand
        self.ewc: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = plain(self, batch)
        if self.ewc is not None:
            loss = loss + self.ewc.term(self)
        if self.automatic_optimization:
            return loss
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()
        return None


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_step_that_adds_the_term_of_its_callback_is_pulled_once(by_hand: bool) -> None:
    weights = []
    for adds in (False, True):
        module, ewc = AddsIt(by_hand), EWC(10.0, consolidates=False)
        ewc.consolidate(module, [(X, Y)])
        with torch.no_grad():
            module.net[2].weight.add_(0.5)
        if adds:
            module.ewc = ewc
            with pytest.warns(UserWarning, match="it counts once; take one of the two out"):
                fit(module, loader(X, Y), ewc)
            assert ewc.term(module).item() > 0  # outside of the step it is λΩ
        else:
            fit(module, loader(X, Y), ewc)
        weights.append(module.net[2].weight.detach())
    assert torch.equal(*weights)


class Table(Own):
    """Embeddings with sparse gradients, and an optimizer that takes no others."""

    def __init__(self) -> None:
        super().__init__(lambda m, b: F.cross_entropy(m.net(b[0]).mean(1), b[1]))
        self.net = nn.Sequential(nn.Embedding(7, 3, sparse=True)).double()

    def configure_optimizers(self) -> Any:
        return torch.optim.SparseAdam(self.parameters(), 1e-2)


def test_an_optimizer_for_sparse_gradients_alone_is_refused_before_its_first_step() -> None:
    data, module, ewc = loader(TOKENS, Y), Table(), EWC(1.0)
    fit(module, data, ewc)
    before = module.net[0].weight.detach().clone()
    with pytest.raises(LifelongError, match=r"SparseAdam.*ignore='net.0.weight'"):
        fit(module, data, ewc)
    with pytest.raises(LifelongError, match="SparseAdam"):
        protect(module, module.configure_optimizers(), ewc)
    assert torch.equal(before, module.net[0].weight)
    free = EWC(1.0, consolidates=False, ignore="net.0.*")
    free.load_state_dict(ewc.state_dict())
    fit(module, data, free)
    assert not torch.equal(before, module.net[0].weight)


def test_several_losses_of_ones_own_are_refused_with_the_words_to_type() -> None:
    with pytest.raises(LifelongError, match=r"loss = loss \+ ewc.term\(self\)"):
        fit(Manual(2), loader(X, Y), EWC(1.0))


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield X[0], Y[0]


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        ({"limit_train_batches": 2}, 2),
        ({"limit_train_batches": 1}, 1),
        ({"limit_train_batches": 0.5}, 3),
        ({"overfit_batches": 2}, 2),
        ({"max_steps": 4}, 4),
        ({"max_steps": 2, "accumulate_grad_batches": 2}, 4),
        ({"max_steps": 40, "max_epochs": 2}, 6),
        ({}, 6),
    ],
)
def test_the_limits_of_a_fit_are_those_of_the_estimate(
    settings: dict[str, Any], batches: int
) -> None:
    trainer = fit(Own(plain), loader(X, Y, size=1), **settings)
    again = FitBatches(trainer)
    assert len(list(again)) == batches == again.examples()


def test_data_without_an_end_need_a_number_of_examples() -> None:
    data = DataLoader(Endless(), batch_size=3)
    with pytest.raises(LifelongError, match="samples=2000"):
        fit(Own(plain), data, EWC(1.0), max_epochs=-1, max_time="00:00:01:00")
    fit(Own(plain), data, EWC(1.0), max_steps=3, max_epochs=-1)
    fit(Own(plain), data, EWC(1.0, samples=5), limit_train_batches=2)


def test_an_iterator_is_refused_before_it_is_used_up() -> None:
    batches = iter([(X[:3], Y[:3]), (X[3:], Y[3:])])
    with pytest.raises(LifelongError, match="used up when the fit ends"):
        fit(Own(plain), batches, EWC(1.0))
    assert len(list(batches)) == 1  # Lightning itself reads one ahead


def test_batches_of_several_loaders_are_seen_whole() -> None:
    def step(m: Any, b: Any) -> Tensor:
        return F.cross_entropy(m.net(b["a"][0]), b["a"][1]) + F.cross_entropy(
            m.net(b["b"][0]), b["b"][1]
        )

    module, ewc = Own(step), EWC(1.0, damping=0.0, threshold=0.0)
    fit(module, {"a": loader(X, Y), "b": loader(X + 1, Y)}, ewc)
    want = brute(
        module, lambda i: softmax(module.net(X[i : i + 1])) + softmax(module.net(X[i : i + 1] + 1))
    )
    for name, one in want.items():
        torch.testing.assert_close(ewc.penalty.importances()[name], one, rtol=1e-9, atol=1e-12)


def test_dear_labels_are_drawn_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    many = nn.Sequential(nn.Linear(4, 120))
    batches = [(numbers(600, 4), classes(600, count=120))]
    ewc = EWC(1.0)
    said: list[str] = []
    ewc._say = lambda line, how: said.append(line)  # type: ignore[method-assign]
    torch.manual_seed(0)
    got = ewc.estimate(Own(plain, many), batches)
    assert len(said) == 1
    assert "119 backward passes" in said[0]
    torch.manual_seed(0)
    drawn = EWC(1.0, labels="sampled").estimate(Own(plain, many), batches)
    assert all(torch.equal(got[name], drawn[name]) for name in drawn)
    # few examples are not dear
    few = EWC(1.0).estimate(Own(plain, many), [(X, Y)])
    exact = EWC(1.0, labels="exact").estimate(Own(plain, many), [(X, Y)])
    assert all(torch.equal(few[name], exact[name]) for name in exact)


@pytest.mark.parametrize(("second", "seconds"), [((5.6, 500), None), ((6.0, 20), "100 s")])
def test_a_long_estimate_is_announced_by_its_pace_once_it_runs(
    monkeypatch: pytest.MonkeyPatch, second: tuple[float, int], seconds: str | None
) -> None:
    said: list[str] = []
    monkeypatch.setattr(forecast, "rank_zero_info", said.append)
    tell = forecast.Forecast("EWC", None, None, 1000)
    for now, done in ((5.0, 10), second):  # the first five seconds read the data
        monkeypatch.setattr(forecast.time, "monotonic", lambda now=now: now)
        tell(done, None)
    assert (len(said), seconds is None or seconds in said[0]) == (seconds is not None, True)
