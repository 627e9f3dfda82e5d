"""What of a training step is refused, what is left out, and what a user passes instead."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the step's usual words
from torch.utils.data import DataLoader

from lifelong.core import Bernoulli, Categorical, Gaussian
from lifelong.core.fisher.likelihoods.product import Product
from lifelong.errors import LifelongError
from lifelong.learning.seen import see
from lifelong.methods import EWC

from .steps import (
    FAMILIES,
    Own,
    X,
    Y,
    bernoulli,
    brute,
    fit,
    gauss,
    loader,
    numbers,
    plain,
    softmax,
)


def test_the_batches_are_those_that_the_step_sees() -> None:
    class Halves(Own):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] / 2, batch[1]

    module = Halves(lambda m, b: F.cross_entropy(m(b[0]), b[1]))
    got = EWC(1.0, threshold=0.0).estimate(module, [(X, Y)])
    want = brute(module, lambda i: softmax(module.net(X[i : i + 1] / 2)))
    for name, one in want.items():
        torch.testing.assert_close(got[name], one, rtol=1e-9, atol=1e-12)


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
