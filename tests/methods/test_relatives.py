"""L2, MAS, SI: each argument does what it says, against penalties folded by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lifelong.core import DiagonalImportance, QuadraticPenalty, output_sensitivity
from lifelong.errors import LifelongError
from lifelong.methods import L2, MAS, SI

from .strangers import Stranger, Tagger, loader, params, tagged, trainer
from .test_arguments import Own, batches, fit, network, same

KINDS: tuple[Any, ...] = (L2, MAS, SI)
every_kind = pytest.mark.parametrize("kind", KINDS)


def importance(kind: Any, module: nn.Module, start: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the fit on batches(1) by plain SGD, by hand."""
    if kind is L2:
        return {name: torch.ones_like(p) for name, p in module.named_parameters()}
    if kind is MAS:
        return output_sensitivity(module, batches(1))
    omega = {name: torch.zeros_like(p) for name, p in start.items()}
    again = Own()
    again.load_state_dict(start)
    for x, y in batches(1):
        found = torch.autograd.grad(cross_entropy(again(x), y), list(again.parameters()))
        with torch.no_grad():
            for (name, p), g in zip(again.named_parameters(), found, strict=True):
                omega[name] += 0.1 * g.square()
                p -= 0.1 * g
    ends = dict(module.named_parameters())
    return {
        name: 2 * w.clamp(min=0) / ((ends[name].detach() - start[name]) ** 2 + 0.1)
        for name, w in omega.items()
    }


@every_kind
@pytest.mark.parametrize(
    "how", [{}, {"decay": 0.5}, {"anchors": "each"}, {"damping": 0.3}], ids=str
)
def test_two_tasks_are_folded_as_the_arguments_say(kind: Any, how: dict[str, Any]) -> None:
    if kind is L2 and "damping" in how:
        pytest.skip("L2 leaves nothing free")
    method, module = kind(0.0, **how), Own()
    by_hand = QuadraticPenalty(how.get("damping", 0.0), how.get("anchors", "last"))
    plain = QuadraticPenalty(anchors="last")
    for _ in range(2):
        start = {name: p.detach().clone() for name, p in module.named_parameters()}
        fit(module, method)
        method.remembered.data = None  # the same data, another task
        found = DiagonalImportance(importance(kind, module, start))
        theta = dict(module.named_parameters())
        by_hand.fold(theta, found, how.get("decay", 1.0))
        plain.fold(theta, found)
    state = method.penalty.state_dict()
    for name, tensor in by_hand.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-9, atol=1e-12)
    if how:
        assert not all(
            torch.allclose(state[name], tensor, rtol=1e-6, atol=0)
            for name, tensor in plain.state_dict().items()
        )


@every_kind
@pytest.mark.parametrize("step", ["explicit", "proximal"])
def test_a_step_is_held_as_its_argument_says(kind: Any, step: str) -> None:
    method, module = kind(3.0, step=step, consolidates=False), Own()
    anchors = {f"body.{name}": p for name, p in network(3).named_parameters()}
    ones = DiagonalImportance({name: torch.ones_like(p) for name, p in anchors.items()})
    method.penalty.fold(anchors, ones)
    x, y = batches(1)[0]
    start = {name: p.clone() for name, p in params(module).items()}
    gradients = torch.autograd.grad(cross_entropy(module(x), y), list(module.parameters()))
    fit(module, method, limit_train_batches=1)
    for (name, p), g in zip(module.named_parameters(), gradients, strict=True):
        pull = 3.0 * (start[name] - anchors[name])
        after = start[name] - 0.1 * (g + pull)
        if step == "proximal":
            after = (start[name] - 0.1 * g + 0.3 * anchors[name]) / 1.3
        torch.testing.assert_close(p.detach(), after.detach(), rtol=1e-9, atol=1e-12)


@every_kind
def test_what_is_chosen_is_held_and_nothing_else(kind: Any) -> None:
    for how, names in (
        ({"modules": "head"}, {"head.weight", "head.bias"}),
        ({"ignore": "head.*"}, {"body.0.weight", "body.0.bias"}),
        ({"consolidates": False}, set()),
    ):
        method = kind(1.0, **how)
        trainer(method).fit(Stranger(), loader())
        assert set(method.penalty.importances()) == names


@pytest.mark.parametrize("kind", [L2, MAS])
def test_frozen_parameters_are_held_where_they_are_included(kind: Any) -> None:
    for included in (False, True):
        module, method = Stranger(), kind(1.0, include_frozen=included)
        module.body.requires_grad_(False)
        trainer(method).fit(module, loader())
        assert ("body.0.weight" in method.penalty.importances()) is included


@every_kind
def test_norms_are_frozen_unless_they_are_not_to_be(kind: Any) -> None:
    for frozen in (None, True, False):
        module, method = Stranger(norm=True), kind(1.0, freeze_norm=frozen)
        trainer(method).fit(module, loader())
        before = module.body[1].running_mean.clone()
        trainer(method).fit(module, loader(1))
        assert torch.equal(module.body[1].running_mean, before) is (frozen is not False)


@every_kind
def test_what_is_held_goes_to_a_file_and_back(kind: Any, tmp_path: Path) -> None:
    how = {"anchors": "each"} if kind is L2 else {"damping": 0.25}
    module, method = Stranger(), kind(7.0, **how)
    trainer(method).fit(module, loader())
    method.save(tmp_path / "held.safetensors")
    again = kind.load(tmp_path / "held.safetensors")
    kept = method.penalty.state_dict()
    assert same({name: again.penalty.state_dict()[name] for name in kept}, kept)
    assert again.ewc_lambda == 7.0
    assert (again.penalty.damping, again.penalty.anchored) == (
        method.penalty.damping,
        method.penalty.anchored,
    )
    by_argument = kind(7.0, anchor=tmp_path / "held.safetensors", diagnostics=False)
    trainer(by_argument).fit(module, loader(1))
    assert len(by_argument.remembered.examples) == 2


@every_kind
def test_diagnostics_are_said_unless_they_are_off(kind: Any) -> None:
    for wanted in (True, False):
        method, module = kind(1e-12, diagnostics=wanted, consolidates=False), Own()
        theta = {name: p + 0.1 for name, p in module.named_parameters()}
        method.penalty.fold(theta, {name: torch.ones_like(p) for name, p in theta.items()})
        with pytest.MonkeyPatch.context() as patch:
            said: list[str] = []
            patch.setattr("lifelong.methods.penalty_method.rank_zero_warn", said.append)
            from lifelong.run.resume.journal import Journal

            fit(module, method, logger=[Journal()])
        assert any("λ is inert" in line for line in said) is wanted


@every_kind
@pytest.mark.parametrize("stranger", ["classes", "tokens"])
def test_strangers_modules_are_held(kind: Any, stranger: str) -> None:
    drifts = []
    for weight in (0.0, 200.0):
        module = Stranger() if stranger == "classes" else Tagger()
        tasks = [loader(t) if stranger == "classes" else tagged(t) for t in (0, 1)]
        method = kind(weight, step="proximal")
        trainer(method).fit(module, tasks[0])
        before = params(module)
        before = {name: p.clone() for name, p in before.items()}
        trainer(method).fit(module, tasks[1])
        drifts.append(sum(float((params(module)[n] - p).square().sum()) for n, p in before.items()))
        assert set(method.penalty.importances()) == set(before)
    assert drifts[1] < 0.3 * drifts[0]


def test_mas_takes_the_batches_the_samples_and_the_forward_that_it_is_given() -> None:
    module = Own()
    fit(module, MAS(1.0))
    for how, expected in (
        ({"batches": batches(5)}, output_sensitivity(module, batches(5))),
        ({"samples": 5}, output_sensitivity(module, batches(1), samples=5)),
        (
            {"forward": lambda m, batch: 3 * m(batch[0])},
            {n: 9 * f for n, f in output_sensitivity(module, batches(1)).items()},
        ),
    ):
        method, again = MAS(1.0, **how), Own()
        fit(again, method)
        for name, f in method.penalty.importances().items():
            torch.testing.assert_close(f, expected[name], rtol=1e-9, atol=1e-12)


def test_mas_asks_no_labels_and_refuses_what_has_no_output() -> None:
    class Distance(Stranger):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self(batch[0]) - 1).pow(4).mean()

    module, method = Distance(), MAS(1.0)
    trainer(method).fit(module, loader())
    expected = output_sensitivity(module, list(loader()))
    assert same(dict(method.penalty.importances()), dict(expected))

    class Nothing(Distance):
        def forward(self, x: Any) -> Any:
            return "words"

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.head(self.body(batch[0])).pow(4).mean()

    with pytest.raises(LifelongError, match="pass forward=lambda module, batch: output") as error:
        trainer(MAS(1.0)).fit(Nothing(), loader())
    assert "\n" not in str(error.value)


def test_xi_damps_the_path() -> None:
    traces = []
    for xi in (0.05, 0.1, 10.0):
        method, module = SI(1.0, xi=xi), Own()
        fit(module, method)
        traces.append(method.figures["fisher/trace"])
    assert traces[0] > traces[1] > 50 * traces[2] / 2
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"xi is .*above 0"):
            SI(1.0, xi=wrong)


class Watched(Callback):
    """Takes the path of a fit from outside."""

    def __init__(self, method: SI) -> None:
        self.method, self.omega = method, {}

    def on_train_end(self, one: Trainer, *_: Any) -> None:
        self.omega = {name: w.clone() for name, w in self.method._path.omega.items()}


@pytest.mark.parametrize("step", ["explicit", "proximal"])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_the_path_counts_the_tasks_own_gradient_and_every_move(step: str, accumulated: int) -> None:
    # λΩ moves the parameters and is no part of the loss whose fall is counted; the last step of the
    # epoch has one micro-batch of three.
    method, module = SI(2.0, step=step), Own()
    anchors = {f"body.{name}": p.detach() for name, p in network(3).named_parameters()}
    method.penalty.fold(anchors, {name: torch.ones_like(p) for name, p in anchors.items()})
    again, watched = Own(), Watched(method)
    fit(module, method, watched, accumulate_grad_batches=accumulated, gradient_clip_val=0.5)
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    theta = dict(again.named_parameters())
    omega = {name: torch.zeros_like(p) for name, p in theta.items()}
    data = batches(1)
    for first in range(0, 4, accumulated):
        part = data[first : first + accumulated]
        own = sum(cross_entropy(again(x), y) for x, y in part) / accumulated
        g = torch.autograd.grad(own, list(theta.values()), retain_graph=True)
        pull = 2.0 * method_like(anchors)(theta) * len(part) / accumulated
        optimizer.zero_grad()
        (own + pull if step == "explicit" else own).backward()
        torch.nn.utils.clip_grad_norm_(theta.values(), 0.5)
        before = {name: p.detach().clone() for name, p in theta.items()}
        optimizer.step()
        if step == "proximal":
            with torch.no_grad():
                for name, p in theta.items():
                    p.copy_((p + 0.2 * anchors[name]) / 1.2)
        for (name, p), one in zip(theta.items(), g, strict=True):
            omega[name] -= one * (p.detach() - before[name])
    for name, expected in omega.items():
        torch.testing.assert_close(watched.omega[name], expected, rtol=1e-9, atol=1e-12)


def method_like(anchors: dict[str, Tensor]) -> QuadraticPenalty:
    penalty = QuadraticPenalty()
    penalty.fold(anchors, {name: torch.ones_like(p) for name, p in anchors.items()})
    return penalty


def test_si_cannot_consolidate_what_it_did_not_see_learnt() -> None:
    with pytest.raises(LifelongError, match="take MAS or EWC") as error:
        SI(1.0).consolidate(Own(), batches(1))
    assert "\n" not in str(error.value)


@every_kind
def test_anchors_of_another_kind_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="anchors is 'first'; it must be one of each, last"):
        kind(1.0, anchors="first")


def test_all_importance_holds_to_the_newest_weights() -> None:
    penalty = QuadraticPenalty(anchors="last")
    first, second = {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}
    penalty.fold(first, {"w": torch.tensor([2.0])})
    penalty.fold(second, {"w": torch.tensor([4.0])})
    assert float(penalty(second)) == 0.0
    assert float(penalty(first)) == 0.5 * (2 + 4) * 2**2


class ByItself(Stranger):
    def __init__(self, losses: int = 1) -> None:
        super().__init__()
        self.automatic_optimization, self.losses = False, losses

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        optimizer.zero_grad()
        for _ in range(self.losses):
            self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


@every_kind
def test_a_module_that_goes_backward_by_itself_is_held_by_its_one_loss(kind: Any) -> None:
    ends = []
    for module in (Stranger(), ByItself()):
        method = kind(20.0)
        for task in (0, 1):
            trainer(method).fit(module, loader(task))
        ends.append(params(module))
        assert "manual_backward" not in vars(module)
    for name, p in ends[0].items():
        torch.testing.assert_close(ends[1][name], p, rtol=1e-9, atol=1e-12)
    one = trainer(kind(1.0))
    with pytest.raises(LifelongError, match="calls manual_backward 2 times"):
        one.fit(ByItself(2), loader())
    assert one.global_step == 0
