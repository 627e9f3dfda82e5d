"""What a method attaches to a module and a fit, and that it takes it away again."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback
from torch.nn.functional import cross_entropy

from lifelong.core import (
    DiagonalImportance,
    QuadraticPenalty,
)
from lifelong.errors import LifelongError
from lifelong.learning import ContinualLearner
from lifelong.learning.guard import NonFiniteLoss
from lifelong.methods import EWC, Finetune
from lifelong.run.resume.journal import Journal

from .test_arguments import Own, batches, every_kind, fit, held, network


class Moved(QuadraticPenalty):
    """Notes where it is sent and what is folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def to(self, device: Any) -> Any:  # type: ignore[override]
        self.calls.append(device)
        return self

    def fold(self, *_: Any) -> None:
        self.calls.append("fold")


def test_the_penalty_follows_the_module_to_its_device() -> None:
    # What lies on "meta" has no numbers: only where the penalty is sent can be asked.
    method, module = EWC(1.0, consolidates=False), Own().to("meta")
    method.penalty = Moved()
    method.on_fit_start(SimpleNamespace(ckpt_path=None), module)  # type: ignore[arg-type]
    method.detach()
    assert method.penalty.calls == [torch.device("meta")]
    importance = DiagonalImportance({"body.0.weight": torch.ones(7, 6)})
    method.fold(module, importance)
    assert method.penalty.calls[1:] == [torch.device("meta"), "fold"]


def test_after_a_fit_nothing_acts_on_the_module_or_holds_on_to_it() -> None:
    method, module = held(step="proximal"), Own()
    trainer = fit(module, method)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1.0).grad = None
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer.optimizers[0].step()
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    held_on_to = [one for one in vars(method).values() if isinstance(one, dict) and one]
    assert held_on_to == [method.figures]
    assert (method._term, method._hooks, method._attached) == (None, [], None)


def test_a_fit_that_fails_leaves_the_module_its_own_step() -> None:
    class Fails(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            raise RuntimeError("a fault of a test")

    module = Own()
    with pytest.raises(RuntimeError, match="a fault of a test"):
        fit(module, held(), Fails())
    assert "training_step" not in vars(module)
    # One that was set on the instance, as torch.compile does, comes back.
    own = module.training_step
    module.training_step = own  # type: ignore[method-assign]
    fit(module, held())
    assert vars(module)["training_step"] is own


@pytest.mark.parametrize("returns", ["loss", "mapping", "nothing"])
def test_what_a_step_returns_keeps_its_form_with_the_objective_in_it(returns: str) -> None:
    method, module = held(), Own(returns)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    first = 1 if returns == "nothing" else 0
    x, y = batches(1)[first]
    whole = float(cross_entropy(module(x), y)) + 20.0 * float(method.penalty.value(start))
    fit(module, method)
    outputs = [seen for seen in module.seen if seen]
    assert len(outputs) == 4 - first
    assert float(outputs[0]["loss"]) == pytest.approx(whole, rel=1e-9)
    assert outputs[0].get("more") == (3.0 if returns == "mapping" else None)


def test_a_learner_is_refused_another_method_than_its_own() -> None:
    learner = ContinualLearner(network(), lambda p: torch.optim.SGD(p, 0.1), ["a"], method=EWC(1.0))
    with pytest.raises(ValueError, match="the learner's method is EWC; give the Trainer that one"):
        fit(learner, EWC(1.0))


@pytest.mark.parametrize("accumulated", [1, 2])
def test_fine_tuning_logs_its_loss_once_a_step_and_no_penalty(accumulated: int) -> None:
    journal, module = Journal(), Own()
    x, y = batches(1)[0]
    task = float(cross_entropy(module(x), y))
    fit(module, Finetune(), logger=[journal], accumulate_grad_batches=accumulated)
    rows = [row for _, row in journal.entries if "train/task_loss" in row]
    assert len(rows) == 4 / accumulated
    assert rows[0]["train/task_loss"] == pytest.approx(task, rel=1e-9)
    assert {row["train/penalty"] for row in rows} == {0.0}
    assert {row["train/penalty_weighted"] for row in rows} == {0.0}


@pytest.mark.parametrize("loss", [float("inf"), -float("inf"), float("nan")])
def test_a_loss_that_is_infinite_or_no_number_is_named_with_its_step(loss: float) -> None:
    guard = NonFiniteLoss(lambda trainer: "a fault")
    trainer: Any = SimpleNamespace(global_step=5, log_every_n_steps=1)
    module: Any = SimpleNamespace(current_task="usps")
    guard.look(trainer, module, {"loss": torch.tensor(1e30)})
    guard.look(trainer, module, None)
    with pytest.raises(
        LifelongError, match="while learning usps, at step 5; the likely cause is a f"
    ):
        guard.look(trainer, module, torch.tensor(loss))


class Broken(Own):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * float("inf")


def test_a_strangers_broken_loss_is_our_affair_only_while_the_module_is_held() -> None:
    with pytest.raises(LifelongError, match=r"take EWC\(step='proximal'\) or a smaller ewc_lambda"):
        fit(Broken(), held())
    fit(Broken(), EWC(1.0, consolidates=False))


def test_a_penalty_too_stiff_for_the_step_is_said_before_training() -> None:
    largest = held().penalty.largest_curvature()
    for stiffness, said in ((1.9, False), (2.1, True)):
        method, warned = held(ewc_lambda=stiffness / (0.1 * largest)), []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lifelong.methods.penalty_method.rank_zero_warn", warned.append)
            fit(Own(), method)
        assert ([line for line in warned if "lr·λ·F_max is 2.1 at" in line] != []) is said


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
@every_kind
def test_a_decay_out_of_range_is_refused(kind: Any, decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay is .*; it must lie in"):
        kind(1.0, decay=decay)
    with pytest.raises(ValueError, match="step is 'both'; it must be one of explicit, proximal"):
        kind(1.0, step="both")
