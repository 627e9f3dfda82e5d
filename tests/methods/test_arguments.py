"""Each argument of a method does what it says: against the penalty folded by hand."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lifelong.core import (
    KroneckerPenalty,
    QuadraticPenalty,
    fisher_diagonal,
    kronecker_factors,
)
from lifelong.methods import EWC, KroneckerEWC, OnlineEWC
from lifelong.run.resume.journal import Journal

Batches = list[tuple[Tensor, Tensor]]
KINDS = (EWC, OnlineEWC, KroneckerEWC)
every_kind = pytest.mark.parametrize("kind", KINDS)


def batches(seed: int, count: int = 4) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(8, 6, generator=generator, dtype=torch.float64),
            torch.randint(5, (8,), generator=generator),
        )
        for _ in range(count)
    ]


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5)).to(dtype)


class Own(LightningModule):
    """Somebody's module; what its step returns is a loss, or a mapping with one."""

    def __init__(self, returns: str = "loss", lr: float = 0.1) -> None:
        super().__init__()
        self.body, self.returns, self.lr = network(), returns, lr
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = cross_entropy(self(batch[0]), batch[1])
        if self.returns == "nothing" and batch_idx == 0:
            return None
        return {"loss": loss, "more": 3.0} if self.returns == "mapping" else loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(outputs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def fit(module: LightningModule, *callbacks: Callback, seed: int = 1, **also: Any) -> Trainer:
    ckpt_path = also.pop("ckpt_path", None)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **{"logger": False, "max_epochs": 1, **also},
    )
    loader: Any = DataLoader(batches(seed), batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


def folded(kind: Any, *tasks: tuple[nn.Module, Batches], **settings: Any) -> dict[str, Tensor]:
    """The state of a penalty that takes up these tasks, without any method."""
    names = {"samples", "threshold", "labels"} & set(settings)
    estimating = {name: settings.pop(name) for name in names}
    decay = settings.pop("decay", 0.95 if kind is OnlineEWC else 1.0)
    if kind is KroneckerEWC:
        penalty, estimator = (
            KroneckerPenalty(settings.pop("damping", 0.0), **settings),
            kronecker_factors,
        )
    else:
        penalty, estimator = QuadraticPenalty(settings.pop("damping", 0.01)), fisher_diagonal
    for net, data in tasks:
        torch.manual_seed(7)
        importance = estimator(net, data, **estimating)
        penalty.fold(dict(net.named_parameters()), importance, decay)
    return penalty.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def held(kind: Any = EWC, ewc_lambda: float = 20.0, seed: int = 3, **settings: Any) -> Any:
    """A method that holds to another network than training begins with, so that Ω is not zero."""
    method = kind(ewc_lambda, **{"consolidates": False, **settings})
    other = Own()
    other.body = network(seed)
    method.consolidate(other, batches(9))
    return method


@every_kind
@pytest.mark.parametrize(
    "settings",
    [{}, {"labels": "sampled"}, {"labels": "empirical"}, {"samples": 11}, {"threshold": 0.4}],
    ids=str,
)
def test_the_importance_is_estimated_as_the_arguments_say(kind: Any, settings: Any) -> None:
    method, task = kind(1.0, **settings), (network(), batches(0))
    torch.manual_seed(7)
    method.consolidate(*task)
    assert same(method.penalty.state_dict(), folded(kind, task, **settings))
    if settings:
        assert not same(method.penalty.state_dict(), folded(kind, task))


@every_kind
def test_an_estimate_says_how_far_it_is(kind: Any) -> None:
    said: list[int] = []
    kind(1.0).estimate(network(), batches(0), progress=lambda done, total: said.append(done))
    assert said[-1] == 32


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, {"damping": 0.3}) for kind in KINDS),
        *((kind, {"decay": 0.5}) for kind in KINDS),
        *((kind, {"decay": 0.5, "damping": 0.3}) for kind in KINDS),
        (KroneckerEWC, {"merge": "nearest"}),
        (KroneckerEWC, {"merge": "nearest", "damping": 0.3}),
    ],
    ids=str,
)
def test_two_tasks_are_folded_as_the_arguments_say(kind: Any, settings: Any) -> None:
    method, tasks = kind(1.0, **settings), [(network(s), batches(s)) for s in (0, 1)]
    for task in tasks:
        method.consolidate(*task)
    assert same(method.penalty.state_dict(), folded(kind, *tasks, **settings))
    assert not same(method.penalty.state_dict(), folded(kind, *tasks))


def test_online_ewc_is_ewc_whose_earlier_tasks_fade() -> None:
    tasks = [(network(s), batches(s)) for s in (0, 1)]
    made = {kind: kind(1.0) for kind in (EWC, OnlineEWC)}
    for method in made.values():
        for task in tasks:
            method.consolidate(*task)
    online = made[OnlineEWC].penalty.state_dict()
    assert same(online, folded(EWC, *tasks, decay=0.95))
    assert not same(online, made[EWC].penalty.state_dict())
    assert OnlineEWC(1.0, decay=1.0).decay == EWC(1.0).decay == 1.0


@pytest.mark.parametrize(
    ("precision", "low", "high"), [("float32", 0, 1e-5), ("bfloat16", 1e-4, 1e-2)]
)
def test_precision_is_that_of_the_kronecker_gradient(
    precision: str, low: float, high: float
) -> None:
    method = KroneckerEWC(1.0, precision=precision)  # type: ignore[arg-type]
    data = [(x.float(), y) for x, y in batches(0)]
    method.consolidate(network(0, torch.float32), data)
    params = dict(network(1, torch.float32).named_parameters())
    exact = torch.autograd.grad(method.penalty(params), list(params.values()))
    method.penalty.add_gradient_(params, 1.0)
    for true, p in zip(exact, params.values(), strict=True):
        assert p.grad is not None
        assert low <= float((p.grad - true).norm() / true.norm()) <= high


@every_kind
def test_what_consolidates_does_so_on_the_training_data_or_on_the_batches_given(kind: Any) -> None:
    for given, expected in ((None, batches(1)), (batches(5), batches(5))):
        module, method = Own(), kind(1.0, batches=given)
        fit(module, method)
        assert same(method.penalty.state_dict(), folded(kind, (module, expected)))
        assert not same(method.penalty.state_dict(), folded(kind, (module, batches(2))))
    unkept = kind(1.0, consolidates=False)
    fit(Own(), unkept)
    assert unkept.penalty.is_empty


def test_batches_that_are_given_come_before_those_of_the_data_module() -> None:
    from lightning import LightningDataModule

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(batches(1), batch_size=None)  # type: ignore[arg-type]

        def consolidation_batches(self, *, rank: int, world_size: int) -> Iterator[Any]:
            assert (rank, world_size) == (0, 1)
            return iter(batches(4))

    for given, expected in ((None, batches(4)), (batches(5), batches(5))):
        module, method = Own(), EWC(1.0, batches=given)
        trainer = Trainer(
            accelerator="cpu", max_epochs=1, callbacks=[method], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=Data())
        assert same(method.penalty.state_dict(), folded(EWC, (module, expected)))


@every_kind
@pytest.mark.parametrize("step", ["explicit", "proximal"])
def test_the_first_step_returns_and_logs_the_parts_of_the_objective(kind: Any, step: str) -> None:
    method, journal, module = (
        held(kind, step=step, precision="float32")
        if kind is KroneckerEWC
        else held(kind, step=step),
        Journal(),
        Own(),
    )
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    x, y = batches(1)[0]
    task, omega = float(cross_entropy(module(x), y)), float(method.penalty.value(start))
    assert omega > 1e-3
    fit(module, method, logger=[journal])
    whole = task + 20.0 * omega if step == "explicit" else task
    assert float(module.seen[0]["loss"]) == pytest.approx(whole, rel=1e-9)
    assert method._diagnose.state_dict()["first"] == pytest.approx(task, rel=1e-9)
    (logged,) = [row for at, row in journal.entries if at == 0 and "train/penalty" in row]
    assert logged["train/task_loss"] == pytest.approx(task, rel=1e-9)
    assert logged["train/penalty"] == pytest.approx(omega, rel=1e-6)
    assert logged["train/penalty_weighted"] == pytest.approx(20.0 * omega, rel=1e-6)


@every_kind
@pytest.mark.parametrize("step", ["explicit", "proximal"])
def test_a_step_is_made_as_its_argument_says(kind: Any, step: str) -> None:
    also: Any = {"precision": "float32"} if kind is KroneckerEWC else {}
    method, module = held(kind, step=step, **also), Own()
    fit(module, method, limit_train_batches=1)
    expected = network()
    params = {f"body.{name}": p for name, p in expected.named_parameters()}
    optimizer = torch.optim.SGD(params.values(), lr=0.1)
    x, y = batches(1)[0]
    loss = cross_entropy(expected(x), y)
    (loss + 20.0 * method.penalty(params) if step == "explicit" else loss).backward()
    before = {p: p.detach().clone() for p in params.values()}
    optimizer.step()
    if step == "proximal":
        from lifelong.core import step_sizes

        method.penalty.proximal_step_(params, step_sizes(optimizer), 20.0)
    for name, p in module.named_parameters():
        torch.testing.assert_close(p, params[name], rtol=1e-9, atol=1e-12)
        assert (p - before[params[name]]).abs().max() > 1e-4


@every_kind
def test_diagnostics_are_logged_and_said_unless_they_are_off(kind: Any) -> None:
    for wanted in (True, False):
        method, journal = held(kind, 1e-9, diagnostics=wanted), Journal()
        module: LightningModule = Own()
        if wanted:
            with pytest.warns(UserWarning, match="λ is inert while the new task is learnt"):
                fit(module, method, logger=[journal])
        else:
            fit(module, method, logger=[journal])
        names = {name for _, row in journal.entries for name in row}
        assert ("diagnostics/gradient_ratio" in names) is wanted
        assert len(method.warnings) == int(wanted)
    # the next fit begins without the lines of the last
    method.warnings = ["old"]
    fit(Own(), method)
    assert method.warnings == []


def test_watching_begins_anew_with_each_fit_and_goes_on_with_a_resumed_one(tmp_path: Any) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    whole = held()
    fit(Own(), whole, Stop(), logger=[Journal()])
    watched = whole._diagnose.state_dict()
    assert watched["looks"] == 4
    fit(Own(), whole, logger=[Journal()])
    assert whole._diagnose.state_dict() == watched
    resumed = held()
    fit(Own(), resumed, logger=[Journal()], ckpt_path=tmp_path / "middle.ckpt")
    assert resumed._diagnose.state_dict() == watched


@every_kind
def test_the_figures_are_the_trace_and_each_part_s_share_and_are_logged(kind: Any) -> None:
    method, journal, module = kind(1.0), Journal(), Own()
    fit(module, method, logger=[journal])
    estimator = kronecker_factors if kind is KroneckerEWC else fisher_diagonal
    traces = estimator(module, batches(1)).traces()
    whole = sum(traces.values())
    assert method.figures.pop("fisher/trace") == pytest.approx(whole, rel=1e-12)
    shares = {f"fisher/share/{name}": part / whole for name, part in traces.items()}
    assert method.figures == pytest.approx(shares, rel=1e-12)
    logged = [row for _, row in journal.entries if "fisher/trace" in row]
    assert len(logged) == 1
    assert logged[0]["fisher/trace"] == pytest.approx(whole, rel=1e-12)
