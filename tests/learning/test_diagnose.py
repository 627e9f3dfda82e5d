"""What is said of a λ that does nothing or too much, and that looking changes no bit."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lifelong.core import KroneckerPenalty, QuadraticPenalty, fisher_diagonal, kronecker_factors
from lifelong.learning import ContinualLearner
from lifelong.learning.diagnose import Diagnose, drift, protecting_bound
from lifelong.learning.progress import is_logging_step
from lifelong.methods import EWC
from lifelong.run.resume.journal import Journal

Batches = list[tuple[Tensor, Tensor]]


def batches(seed: int, count: int = 12) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(3, 6, generator=generator)
    labels = [torch.randint(3, (16,), generator=generator) for _ in range(count)]
    return [(means[y] + torch.randn(16, 6, generator=generator), y) for y in labels]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def learner(ewc_lambda: float, penalty: nn.Module | None = None, scale: float = 1.0):
    if penalty is None:
        penalty, other = QuadraticPenalty(), network()
        fisher = fisher_diagonal(other, batches(9))
        fisher = {name: scale * f for name, f in fisher.items()}
        penalty.fold(dict(other.named_parameters()), fisher)
    step = "proximal" if ewc_lambda > 1e3 else "explicit"
    sgd = partial(torch.optim.SGD, lr=0.1)
    method = EWC(ewc_lambda, step=step, consolidates=False)
    method.penalty = penalty
    made = ContinualLearner(network(), sgd, ["a", "b"], method=method)
    made.current_task = "b"
    return made


def fit(module: ContinualLearner) -> Journal:
    journal = Journal()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=[journal],
        log_every_n_steps=4,
        callbacks=[module.method],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches(1), batch_size=None))
    return journal


def figures(journal: Journal, name: str) -> list[float]:
    return [row[name] for _, row in journal.entries if name in row]


@pytest.mark.parametrize(
    ("ewc_lambda", "scale", "said"),
    [
        (1e-6, 1.0, "λ is inert while b is learnt: the penalty's gradient reached "),
        (1e12, 1.0, "λ freezes the network: the loss on b went from "),
        (1.0, 0.0, "the penalty is exactly zero while b is learnt"),
    ],
)
def test_a_lambda_that_does_nothing_or_too_much_is_said(
    ewc_lambda: float, scale: float, said: str
) -> None:
    module = learner(ewc_lambda, scale=scale)
    fit(module)
    (line,) = module.method.warnings
    assert line.startswith(said)


@pytest.mark.parametrize("ewc_lambda", [0.0, 1.0])
def test_a_lambda_that_works_and_no_lambda_are_not_spoken_of(ewc_lambda: float) -> None:
    module = learner(ewc_lambda)
    journal = fit(module)
    assert module.method.warnings == []
    assert len(figures(journal, "diagnostics/gradient_ratio")) == (9 if ewc_lambda else 0)


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
def test_looking_changes_no_bit(kind: str) -> None:
    def made() -> ContinualLearner:
        if kind == "diagonal":
            return learner(1.0)
        penalty, other = KroneckerPenalty(), network()
        penalty.fold(dict(other.named_parameters()), kronecker_factors(other, batches(9)))
        return learner(1.0, penalty)

    seen, unseen = made(), made()
    unseen.method._diagnose = None
    journal = fit(seen)
    fit(unseen)
    for name, tensor in seen.state_dict().items():
        assert torch.equal(tensor, unseen.state_dict()[name]), name
    assert len(figures(journal, "diagnostics/drift_free")) == (3 if kind == "diagonal" else 0)
    assert max(figures(journal, "diagnostics/gradient_ratio")) > 0


def test_the_ratio_is_that_of_the_two_gradients() -> None:
    expected: list[float] = []

    class Watch(Diagnose):
        def compare(self, trainer, module, params, optimizer):
            if is_logging_step(trainer):
                omega = module.method.ewc_lambda * module.method.penalty(params)
                pulls = torch.autograd.grad(omega, list(params.values()))
                pull = torch.cat([x.flatten() for x in pulls])
                whole = torch.cat([p.grad.flatten() for p in params.values()])
                expected.append(float(pull.norm() / (whole - pull).norm()))
            super().compare(trainer, module, params, optimizer)

    module = learner(3.0)
    module.method._diagnose = Watch(module.method)
    found = figures(fit(module), "diagnostics/gradient_ratio")
    assert len(found) == 9
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert max(found) > 0.05


def test_drift_is_split_at_nine_tenths_of_the_trace() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([3.0, 4.0, 1.0, 2.0]))

    penalty = QuadraticPenalty()
    penalty.fold({"w": torch.zeros(4)}, {"w": torch.tensor([8.0, 1.5, 0.3, 0.2])})
    assert protecting_bound(penalty) == 1.5
    protected, free = drift(penalty, dict(Net().named_parameters()), 1.5)
    assert protected == pytest.approx((25 / 2) ** 0.5, rel=1e-6)
    assert free == pytest.approx((5 / 2) ** 0.5, rel=1e-6)


def test_its_state_survives_an_interruption() -> None:
    module = learner(1.0)
    fit(module)
    diagnose, again = module.method._diagnose, Diagnose(module.method)
    again.load_state_dict(json.loads(json.dumps(diagnose.state_dict())))
    assert again.state_dict() == diagnose.state_dict()
    assert again.state_dict()["looks"] == 9


@pytest.mark.data
@pytest.mark.slow
def test_looking_takes_at_most_two_hundredths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lifelong.config.compose import compose_run
    from lifelong.search.branches import learn_branches

    spent = [0.0]

    def timed(hook: Callable[..., Any]) -> Callable[..., Any]:
        def run(*words: Any) -> Any:
            begin = time.perf_counter()
            found = hook(*words)
            spent[0] += time.perf_counter() - begin
            return found

        return run

    hooks = ["take", "compare", "begin_epoch", "end_epoch", "warnings_of"]
    for name in hooks:
        monkeypatch.setattr(Diagnose, name, timed(getattr(Diagnose, name)))
    words = ["max_epochs=3", "stages=off", "logger=none", f"output_dir={tmp_path}"]
    (summary,) = learn_branches([compose_run(words)])
    fits = sum(seconds["fit"] for seconds in summary.seconds.values())
    assert 0 < spent[0] < 0.02 * fits, (spent, fits)
