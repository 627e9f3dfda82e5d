"""Looking at a training step in a fit: it leaves no trace, and knows the fit's own limits."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the step's usual words
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanMetric

from lifelong.errors import LifelongError
from lifelong.learning import forecast
from lifelong.learning.fit_batches import FitBatches
from lifelong.methods import EWC
from lifelong.methods.protect import protect

from .steps import (
    TOKENS,
    N,
    Own,
    X,
    Y,
    brute,
    classes,
    fit,
    loader,
    numbers,
    plain,
    softmax,
)


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
