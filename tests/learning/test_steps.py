"""Accumulation, clipping, schedules and mixed precision: what each leaves of the penalty."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lifelong.core import KroneckerPenalty, QuadraticPenalty, fisher_diagonal, kronecker_factors
from lifelong.learning import ContinualLearner
from lifelong.methods import EWC, KroneckerEWC, penalty_method

SGD = partial(torch.optim.SGD, lr=0.1)
LAMBDA = 20.0
Optimizer = Callable[..., torch.optim.Optimizer]


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def examples(count: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return TensorDataset(x.to(dtype), torch.randint(3, (count,), generator=generator))


def consolidated(dtype: torch.dtype = torch.float64) -> QuadraticPenalty:
    # away from where training begins, so that the first step feels it
    penalty, other = QuadraticPenalty(), network(dtype)
    with torch.no_grad():
        other[0].weight.add_(0.1)
    data = [examples(40, 9, dtype).tensors]
    penalty.fold(dict(other.named_parameters()), fisher_diagonal(other, data))
    return penalty


class Data(LightningDataModule):
    def __init__(self, count: int, batch_size: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.dataset, self.batch_size = examples(count, dtype=dtype), batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.dataset, batch_size=self.batch_size)

    def consolidation_batches(self, *, rank: int, world_size: int) -> Any:
        return iter([self.dataset.tensors])


class OwnModule(LightningModule):
    def __init__(self, optimizer: Optimizer, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.network = network(dtype)
        self.make_optimizer = optimizer

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


class Gradients(Callback):
    """What the optimizer is given, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.rates: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # after the step: before it the closure has not run, and no gradient is there
        def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            named = pl_module.network.named_parameters()
            self.steps.append({n: p.grad.clone() for n, p in named})
            self.rates.append(optimizer.param_groups[0]["lr"])

        trainer.optimizers[0].register_step_post_hook(keep)


def held(
    kind: str,
    data: Data,
    *,
    optimizer: Optimizer = SGD,
    ewc_lambda: float = LAMBDA,
    dtype: torch.dtype = torch.float64,
    callbacks: tuple[Callback, ...] = (),
    scheduler: Any = None,
    penalty: Any = None,
    method: Any = None,
    **also: Any,
) -> nn.Module:
    """Train two epochs, held by the learner (explicit or proximal) or by the drop-in callback."""
    penalty = penalty or consolidated(dtype)
    module: LightningModule
    if kind == "drop-in":
        ewc = EWC(ewc_lambda=ewc_lambda, damping=0.0, consolidates=False)
        anchors, importances = penalty.anchors(), penalty.importances()
        ewc.penalty.fold(
            {f"network.{name}": theta for name, theta in anchors.items()},
            {f"network.{name}": f for name, f in importances.items()},
        )
        module = OwnModule(optimizer, dtype)
        callbacks = (*callbacks, ewc)
    else:
        method = method or EWC(ewc_lambda, step=kind, consolidates=False)  # type: ignore[arg-type]
        method.penalty = penalty
        module = ContinualLearner(
            network(dtype), optimizer, ["a", "b"], method=method, scheduler=scheduler
        )
        callbacks = (*callbacks, method)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=also.pop("max_epochs", 2),
        logger=also.pop("logger", False),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **also,
    )
    trainer.fit(module, datamodule=data)
    return module.network  # type: ignore[return-value]


def same(one: nn.Module, other: nn.Module, rtol: float, atol: float) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=rtol, atol=atol)


def gap(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).abs().max().detach()) for a, b in pairs)


@pytest.mark.parametrize("kind", ["explicit", "proximal", "drop-in"])
def test_two_accumulated_batches_are_one_of_twice_the_size(kind: str) -> None:
    whole = held(kind, Data(128, 64))
    halves = held(kind, Data(128, 32), accumulate_grad_batches=2)
    same(halves, whole, rtol=1e-12, atol=1e-14)
    # the penalty counted with every batch would be 2λ
    assert gap(held(kind, Data(128, 64), ewc_lambda=2 * LAMBDA), whole) > 1e-3


@pytest.mark.parametrize("kind", ["explicit", "drop-in"])
def test_a_step_that_lacks_batches_weighs_loss_and_penalty_alike(kind: str) -> None:
    # 5 batches make steps of 2, 2 and 1; Lightning halves the loss of the last all the same
    trained = held(kind, Data(40, 8), accumulate_grad_batches=2, max_epochs=1)
    model, penalty = network(), consolidated()
    x, y = examples(40).tensors
    optimizer = SGD(model.parameters())
    for start, stop, share in ((0, 16, 1.0), (16, 32, 1.0), (32, 40, 0.5)):
        optimizer.zero_grad()
        loss = cross_entropy(model(x[start:stop]), y[start:stop])
        (share * (loss + LAMBDA * penalty(dict(model.named_parameters())))).backward()
        optimizer.step()
    same(trained, model, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["explicit", "drop-in"])
def test_clipping_sees_the_gradient_of_loss_and_penalty(kind: str) -> None:
    seen = Gradients()
    held(kind, Data(64, 64), gradient_clip_val=0.01, callbacks=(seen,), max_epochs=1)
    model, penalty = network(), consolidated()
    x, y = examples(64).tensors
    task = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    cross_entropy(model(x), y).backward()
    (LAMBDA * penalty(dict(model.named_parameters()))).backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert norm > 0.1
    (step,) = seen.steps
    clipped = torch.cat([g.flatten() for g in step.values()])
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-4)
    for (name, p), alone in zip(model.named_parameters(), task, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(step[name], 0.01 * p.grad / norm, rtol=1e-4, atol=1e-9)
        if name == "0.weight":  # the anchor is elsewhere in this one
            assert (p.grad - alone).abs().max() > 1e-2 * p.grad.abs().max()


@pytest.mark.parametrize(("batch_size", "accumulate", "steps"), [(8, 1, 10), (8, 2, 6), (16, 4, 2)])
def test_the_learning_rate_falls_to_zero_over_the_steps_of_a_task(
    batch_size: int, accumulate: int, steps: int
) -> None:
    # 5 batches of 8, or 3 of 16, in each of two epochs
    for _ in ("first task", "second task"):
        seen = Gradients()
        schedule = partial(torch.optim.lr_scheduler.PolynomialLR, power=1.0)
        data = Data(40, batch_size)
        also = {"accumulate_grad_batches": accumulate, "callbacks": (seen,)}
        held("explicit", data, scheduler=schedule, **also)
        expected = [0.1 * (1 - step / steps) for step in range(steps)]
        assert seen.rates == pytest.approx(expected, abs=1e-12)


def test_a_limit_on_batches_shortens_the_schedule() -> None:
    for limit, steps in ((3, 6), (0.4, 4)):
        seen = Gradients()
        schedule = partial(torch.optim.lr_scheduler.PolynomialLR, power=1.0)
        also: Any = {"limit_train_batches": limit, "callbacks": (seen,)}
        held("explicit", Data(40, 8), scheduler=schedule, **also)
        assert seen.rates == pytest.approx([0.1 * (1 - s / steps) for s in range(steps)], abs=1e-12)


BF16 = {"precision": "bf16-mixed", "dtype": torch.float32}


@pytest.mark.parametrize("kind", ["explicit", "proximal", "drop-in"])
def test_in_bfloat16_lambda_zero_is_plain_training_bit_for_bit(kind: str) -> None:
    data = Data(64, 16, torch.float32)
    zero = held(kind, data, ewc_lambda=0.0, **BF16)
    plain = held(kind, data, ewc_lambda=0.0, penalty=QuadraticPenalty(), **BF16)
    assert gap(zero, plain) == 0.0
    assert gap(held(kind, data, **BF16), plain) > 1e-3
    full = held(kind, data, ewc_lambda=0.0, dtype=torch.float32)
    assert gap(zero, full) > 1e-5, "the run was not in bfloat16"


@pytest.mark.parametrize("kind", ["explicit", "drop-in"])
def test_in_bfloat16_the_gradient_of_the_penalty_stays_in_float32(kind: str) -> None:
    data, with_penalty, without = Data(64, 64, torch.float32), Gradients(), Gradients()
    held(kind, data, callbacks=(with_penalty,), max_epochs=1, **BF16)
    held(kind, data, callbacks=(without,), max_epochs=1, ewc_lambda=0.0, **BF16)
    penalty, start = consolidated(torch.float32), network(torch.float32)
    anchors, importances = penalty.anchors(), penalty.importances()
    for name, theta in start.named_parameters():
        pull = LAMBDA * importances[name] * (theta - anchors[name])
        added = with_penalty.steps[0][name] - without.steps[0][name]
        # bfloat16 would be off by 4e-3 of the pull
        torch.testing.assert_close(added, pull, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("estimator", "kind"), [(fisher_diagonal, EWC), (kronecker_factors, KroneckerEWC)]
)
def test_in_bfloat16_importances_are_those_of_float32(estimator: Any, kind: Any) -> None:
    data = Data(64, 16, torch.float32)
    penalty = QuadraticPenalty() if estimator is fisher_diagonal else KroneckerPenalty()
    trained = held("explicit", data, penalty=penalty, method=kind(LAMBDA), **BF16)
    fresh = type(penalty)()
    expected = estimator(trained, [data.dataset.tensors])
    fresh.fold(dict(trained.named_parameters()), expected)
    kept, again = dict(penalty.named_buffers()), dict(fresh.named_buffers())
    assert kept.keys() == again.keys()
    for name, buffer in kept.items():
        assert buffer.dtype in (torch.float32, torch.float64), name
        assert torch.equal(buffer, again[name]), name


def test_in_bfloat16_the_logged_penalty_is_that_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    penalty, other = KroneckerPenalty(), network(torch.float32)
    data = Data(64, 64, torch.float32)
    with torch.no_grad():
        other[0].weight.add_(0.1)
    penalty.fold(dict(other.named_parameters()), kronecker_factors(other, [data.dataset.tensors]))
    logged: list[float] = []

    def keep(module: Any, task_loss: Tensor, omega: float, ewc_lambda: float) -> None:
        logged.append(omega)

    monkeypatch.setattr(penalty_method, "log_objective", keep)
    monkeypatch.setattr(penalty_method, "begins_logging_step", lambda *_: True)
    held("explicit", data, penalty=penalty, max_epochs=1, **BF16)
    exact = penalty.value(dict(network(torch.float32).named_parameters()))
    assert exact > 1e-4
    assert logged == pytest.approx([float(exact)], rel=1e-6)


def float16(scale: float) -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


@pytest.mark.parametrize("kind", ["explicit", "proximal", "drop-in"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_in_float16_a_fused_step_feels_the_penalty_as_any_other(kind: str, optimizer: Any) -> None:
    # a fused optimizer unscales in its step, after the penalty's gradient was added
    data = Data(64, 16, torch.float32)
    fused, plain, free = (
        held(
            kind,
            data,
            optimizer=partial(optimizer, lr=0.05, fused=flag),
            ewc_lambda=ewc_lambda,
            dtype=torch.float32,
            plugins=[float16(4096.0)],
        )
        for flag, ewc_lambda in ((True, LAMBDA), (False, LAMBDA), (True, 0.0))
    )
    same(fused, plain, rtol=1e-4, atol=1e-5)
    assert gap(fused, free) > 1e-2


@pytest.mark.parametrize("fused", [True, False])
def test_in_float16_a_step_that_overflows_leaves_the_network_as_it_was(fused: bool) -> None:
    seen = Gradients()
    trained = held(
        "proximal",
        Data(64, 64, torch.float32),
        optimizer=partial(torch.optim.Adam, lr=0.05, fused=fused),
        dtype=torch.float32,
        max_epochs=1,
        plugins=[float16(2.0**60)],
        callbacks=(seen,),
    )
    assert gap(trained, network(torch.float32)) == 0.0
    if fused:
        assert not torch.isfinite(seen.steps[0]["2.weight"]).all()
