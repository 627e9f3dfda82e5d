"""A budget instead of λ: the predictions on old inputs change by what was allowed, no more."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import lifelong
from lifelong.core import Categorical
from lifelong.errors import LifelongError
from lifelong.methods import EWC, KroneckerEWC
from lifelong.methods.budget import Budget, Memory, upper_bound
from lifelong.run import learn_sequence

from .jobs import Points, job, left
from .test_arguments import Own, batches, fit, network

OLD = torch.randn(200, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def learnt(**settings: Any) -> tuple[Own, EWC]:
    """A module that has learnt one task, with a budget kept on inputs of it."""
    ewc = EWC(**{"at_most": 0.02, "watch": OLD, **settings})
    module = Own()
    fit(module, ewc, seed=1, max_epochs=20)
    return module, ewc


def change(before: nn.Module, after: nn.Module) -> float:
    with torch.no_grad():
        return float(Categorical().divergence(before(OLD), after(OLD), None).mean())


def copy_of(module: nn.Module) -> nn.Module:
    other = network()
    other.load_state_dict(module.state_dict())
    return other


def test_the_bound_is_students_with_johnsons_term() -> None:
    x = torch.tensor([0.0, 0.1, 0.3, 2.0], dtype=torch.float64)
    m, s, n = float(x.mean()), float(x.std()), 4
    skew = float(((x - m) ** 3).mean()) / s**3
    wanted = m + skew * s / (6 * n) + stats.t.ppf(0.9, n - 1) * s / math.sqrt(n)
    assert upper_bound(x) == pytest.approx(wanted, abs=1e-12)
    assert upper_bound(torch.full((5,), 0.25)) == 0.25


def test_lambda_moves_by_the_excess_and_by_its_change() -> None:
    budget = Budget(0.1)
    budget.memories = [Memory([], [], torch.ones(0), mean=0.1, upper=0.2)]
    one = budget.next_lambda(10.0)
    assert one == pytest.approx(10 * math.exp(0.2 * math.log(2)))
    budget.memories[0].upper = 0.4
    two = budget.next_lambda(one)
    assert two == pytest.approx(one * math.exp(0.2 * math.log(4) + math.log(2)))
    budget.memories[0].upper = 1e9  # cut at 3
    assert budget.next_lambda(1.0) == pytest.approx(math.exp(0.6 + 3 - math.log(4)))
    assert Budget(0.1).next_lambda(1.0) == pytest.approx(math.exp(-0.2))  # nothing moved: −1
    assert budget.next_lambda(1.0, most=0.5) <= 0.5


def test_of_several_tasks_the_worst_counts() -> None:
    budget = Budget(0.1)
    some = torch.ones(0)
    budget.memories = [Memory([], [], some, 0.3, 0.4), Memory([], [], some, 0.1, 0.2)]
    assert (budget.mean, budget.upper) == (0.3, 0.4)


@pytest.mark.parametrize("start", [1e-2, 1e4])
def test_the_budget_is_kept_wherever_lambda_begins(start: float) -> None:
    module, ewc = learnt(ewc_lambda=start)
    old = copy_of(module.body)
    fit(module, ewc, seed=2, max_epochs=60)
    assert ewc.budget is not None
    assert 0.4 * 0.02 < ewc.budget.kept["forgetting/watched_upper"] < 1.3 * 0.02
    assert change(old, module.body) == pytest.approx(
        ewc.budget.kept["forgetting/watched"], rel=1e-6
    )


def test_a_larger_budget_lets_more_be_learnt() -> None:
    losses = []
    for at_most in (0.001, 0.1):
        module, ewc = learnt(at_most=at_most)
        fit(module, ewc, seed=2, max_epochs=60)
        with torch.no_grad():
            losses.append(float(cross_entropy(module(batches(2)[0][0]), batches(2)[0][1])))
    assert losses[1] < losses[0]


def test_points_are_of_the_true_labels_probability() -> None:
    pairs = batches(1)
    module, ewc = learnt(at_most=1.0, unit="points", watch=pairs)
    old = copy_of(module.body)
    fit(module, ewc, seed=2, max_epochs=60)
    with torch.no_grad():
        p = [
            torch.cat([n(x).softmax(1)[range(len(y)), y] for x, y in pairs])
            for n in (old, module.body)
        ]
    assert ewc.budget.kept["forgetting/watched"] == pytest.approx(
        100 * float((p[0] - p[1]).mean()), abs=1e-6
    )
    with pytest.raises(LifelongError, match="a budget in points wants one class an example"):
        learnt(at_most=1.0, unit="points")


def test_so_many_inputs_of_each_task_are_kept_as_they_were() -> None:
    ewc = EWC(at_most=0.02, watch=7)
    module = Own()
    fit(module, ewc, seed=1)
    assert ewc.budget is not None
    assert ewc.budget.inputs == 7
    x = torch.cat([piece[0] for piece in ewc.budget.memories[0].pieces])
    with torch.no_grad():
        assert torch.equal(torch.cat(ewc.budget.memories[0].before), module(x))
    fit(module, ewc, seed=2)
    assert [len(m.numbers) for m in ewc.budget.memories] == [7, 7]
    assert ewc.budget.bytes == 14 * (6 + 5 + 1) * 8  # x, the outputs and y


def test_of_a_run_the_inputs_are_validation_images(tmp_path: Path) -> None:
    learn_sequence(job("EWC@budget", tmp_path))
    memories = left(tmp_path)["method"]["budget"]["memories"]
    for task, memory in enumerate(memories):
        held_out = Points(task).examples(1, 30).tensors[0]
        (piece,) = memory["pieces"]
        assert len(piece[0]) == 10
        assert all(any(torch.equal(x, one) for one in held_out) for x in piece[0])


def test_drawn_inputs_count_by_how_likely_they_were() -> None:
    ewc, module = EWC(at_most=0.02, watch=7), Own()
    fit(module, ewc, seed=1, max_epochs=30)
    assert ewc.budget is not None
    memory = ewc.budget.memories[0]
    assert memory.numbers.std() > 0.01
    with torch.no_grad():
        for p in module.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(p)
        x = torch.cat([piece[0] for piece in memory.pieces])
        each = Categorical().divergence(torch.cat(memory.before), module(x), None)
    ewc.budget.look(module, ewc.way_to_outputs)
    assert memory.mean == pytest.approx(float((memory.numbers * each).mean()), rel=1e-9)
    assert memory.upper == pytest.approx(upper_bound(memory.numbers * each), rel=1e-9)


def test_gradient_descent_in_a_loop_begins_where_its_step_is_stable() -> None:
    net, ewc = network(), EWC(at_most=0.02, watch=OLD, ewc_lambda=1e12)
    ewc.consolidate(net, batches(1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with lifelong.protect(net, optimizer, ewc) as guard:
        wanted = 1 / (0.1 * ewc.penalty.largest_curvature())
        assert guard.ewc_lambda == pytest.approx(wanted, rel=1e-9)
    with lifelong.protect(net, optimizer, ewc, 1e12, step="proximal") as guard:
        assert guard.ewc_lambda == 1e12


def test_what_is_kept_goes_on_in_a_checkpoint() -> None:
    module, ewc = learnt(watch=9)
    fit(module, ewc, seed=2)
    other = EWC(at_most=0.02, watch=9)
    other.load_state_dict(ewc.state_dict())
    assert other.ewc_lambda == ewc.ewc_lambda != EWC.first_lambda
    first, again = ewc.budget, other.budget
    assert first is not None
    assert again is not None
    assert torch.equal(torch.cat(first.memories[0].before), torch.cat(again.memories[0].before))
    assert again.looks == first.looks > 0


def test_a_fit_that_is_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    def trainer(*callbacks: Callback) -> Trainer:
        return Trainer(
            accelerator="cpu",
            callbacks=list(callbacks),
            logger=False,
            default_root_dir=tmp_path,
            max_epochs=6,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    loader: Any = DataLoader(batches(2), batch_size=None)  # type: ignore[arg-type]
    module, ewc = learnt(watch=20, ewc_lambda=3.0)
    middle = ModelCheckpoint(tmp_path, filename="middle", every_n_train_steps=10, save_top_k=-1)
    begun = copy.deepcopy(ewc.state_dict())
    trainer(ewc, middle).fit(module, loader)
    again, other = Own(), EWC(at_most=0.02, watch=20, ewc_lambda=3.0)
    other.load_state_dict(begun)
    trainer(other).fit(again, loader, ckpt_path=next(tmp_path.glob("middle*.ckpt")))
    for one, two in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    assert ewc.ewc_lambda == other.ewc_lambda != 3.0


def test_any_loop_keeps_it(tmp_path: Path) -> None:
    net = network()
    EWC(ewc_lambda=1.0).consolidate(net, batches(1))
    ewc = EWC(ewc_lambda=1.0)
    ewc.consolidate(net, batches(1))
    ewc.save(tmp_path / "old.safetensors")
    for step in ("explicit", "proximal"):
        one = copy_of(net)
        optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
        guard = lifelong.protect(
            one, optimizer, tmp_path / "old.safetensors", at_most=0.02, watch=OLD, step=step
        )
        for _ in range(60):
            for x, y in batches(2):
                optimizer.zero_grad()
                guard.term(cross_entropy(one(x), y)).backward()
                optimizer.step()
        assert 0.1 * 0.02 < change(net, one) < 1.3 * 0.02, step
        assert guard.ewc_lambda != 1.0


def test_a_file_holds_no_inputs() -> None:
    ewc = EWC(ewc_lambda=1.0)
    ewc.consolidate(network(), batches(1))
    other = EWC(at_most=0.02)
    other.penalty.load_state_dict(ewc.penalty.state_dict())
    with pytest.raises(LifelongError, match=r"a file holds no inputs .* pass watch=old_inputs"):
        other.hold(network())


def test_another_likelihood_is_looked_at_by_its_own_divergence() -> None:
    class Regression(Own):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.mse_loss(self(batch[0]), batch[0][:, :5])

    module, ewc = Regression(), EWC(at_most=0.05, watch=16)
    fit(module, ewc, seed=1, max_epochs=5)
    assert ewc.budget is not None
    memory = ewc.budget.memories[0]
    with torch.no_grad():
        for p in module.parameters():
            p += 0.05
        x = torch.cat([piece[0] for piece in memory.pieces])
        wanted = 0.5 * (module(x) - torch.cat(memory.before)).square().mean(1)
    ewc.budget.look(module, ewc.way_to_outputs)
    assert memory.mean == pytest.approx(float((memory.numbers * wanted).mean()), rel=1e-9)


def test_a_likelihood_that_cannot_compare_is_refused_before_the_first_step() -> None:
    def own(module: nn.Module, batch: Any) -> Tensor:
        return -cross_entropy(module(batch[0]), batch[1], reduction="none")

    module = Own()
    before = copy_of(module.body)
    with pytest.raises(LifelongError, match="a budget came along with own as likelihood"):
        fit(module, EWC(at_most=0.02, labels="empirical", likelihood=own))
    assert change(before, module.body) == 0.0


def test_looking_leaves_no_trace() -> None:
    module, ewc = learnt(watch=20)
    module.body.append(nn.Dropout(0.5))
    module.train()
    assert ewc.budget is not None
    before = {n: t.clone() for n, t in module.state_dict().items()}
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    ewc.budget.look(module, ewc.way_to_outputs)
    assert torch.equal(torch.rand(2), wanted)
    assert module.training
    assert module.body[-1].training
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, r"neither ewc_lambda nor at_most came; .* EWC\(ewc_lambda=10000\)"),
        ({"at_most": 0.0}, "at_most is 0.0; it must be a number above 0"),
        ({"at_most": math.inf}, "at_most is inf"),
        ({"at_most": 0.02, "unit": "bits"}, "unit is 'bits'; it must be nats or points"),
        ({"at_most": 0.02, "watch": 1}, "watch is 1; it must be two inputs or more"),
        ({"at_most": 0.02, "watch": "old.pt"}, "watch is a str; wanted a number of inputs"),
        ({"at_most": 0.02, "ewc_lambda": 0.0}, "ewc_lambda is 0, from where a budget"),
        ({"ewc_lambda": 1.0, "watch": OLD}, "old inputs came as watch, and no budget"),
    ],
)
def test_what_cannot_be_a_budget_is_refused_at_once(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        EWC(**settings)


def test_each_kind_begins_at_a_lambda_of_its_own() -> None:
    assert EWC(at_most=0.02).ewc_lambda == 1e4
    assert KroneckerEWC(at_most=0.02).ewc_lambda == 1e2
