"""The learner and the drop-in callback against the plain formula."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lifelong import EWC
from lifelong.core import QuadraticPenalty, fisher_diagonal
from lifelong.errors import LifelongError
from lifelong.learning import ContinualLearner

Batches = list[tuple[Tensor, Tensor]]
SGD = partial(torch.optim.SGD, lr=0.1)


def batches(seed: int, count: int = 6) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(count)
    ]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def consolidated() -> QuadraticPenalty:
    penalty, other = QuadraticPenalty(), network()
    penalty.fold(dict(other.named_parameters()), fisher_diagonal(other, batches(9)))
    return penalty


def fit(
    module: LightningModule, data: Batches, callbacks: Sequence[Callback] = (), **also: object
) -> Trainer:
    own = [module.method] if isinstance(module, ContinualLearner) else []
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[*own, *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **also,  # type: ignore[arg-type]
    )
    # A bare list would be taken for a collection of loaders.
    trainer.fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    return trainer


def learner(ewc_lambda: float, penalty: QuadraticPenalty | None = None) -> ContinualLearner:
    method = EWC(ewc_lambda, consolidates=False)
    method.penalty = penalty or consolidated()
    return ContinualLearner(network(), SGD, ["a", "b"], method=method)


def plain_formula(
    ewc_lambda: float, *, clip: float | None = None, every: int = 1
) -> dict[str, nn.Parameter]:
    """A raw loop over task loss + λ · penalty(parameters), everything by autograd."""
    model, penalty = network(), consolidated()
    optimizer = SGD(model.parameters())
    for _ in range(2):
        data = batches(1)
        for start in range(0, len(data), every):
            part = data[start : start + every]
            optimizer.zero_grad()
            task = sum((cross_entropy(model(x), y) for x, y in part), torch.zeros(())) / len(part)
            (task + ewc_lambda * penalty(dict(model.named_parameters()))).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    return dict(model.named_parameters())


@pytest.mark.parametrize(
    ("also", "same"),
    [
        ({}, {}),
        ({"accumulate_grad_batches": 3}, {"every": 3}),
        ({"gradient_clip_val": 0.5}, {"clip": 0.5}),
    ],
    ids=["plain", "accumulated", "clipped"],
)
def test_the_closed_form_trains_as_the_plain_formula(
    also: dict[str, object], same: dict[str, float]
) -> None:
    module = learner(20.0)
    fit(module, batches(1), **also)
    expected = plain_formula(20.0, **same)  # type: ignore[arg-type]
    unheld = plain_formula(0.0, **same)  # type: ignore[arg-type]
    for name, theta in module.network.named_parameters():
        torch.testing.assert_close(theta, expected[name], rtol=1e-5, atol=1e-6)
        assert (theta - unheld[name]).abs().max() > 1e-3, name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_trains_as_the_plain_one() -> None:
    plain = learner(10.0)
    made = ContinualLearner(
        network(), SGD, ["a", "b"], method=learner(10.0).method, compile_network=True
    )
    assert list(made.state_dict()) == list(plain.state_dict())
    for one in (plain, made):
        fit(one, batches(1))
    start = network().state_dict()
    for name, tensor in made.network.state_dict().items():
        expected = plain.network.state_dict()[name]
        assert float((expected - start[name]).abs().max()) > 5e-3
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


def test_lambda_zero_is_fine_tuning_bit_for_bit() -> None:
    held, free = learner(0.0), learner(0.0, QuadraticPenalty())
    assert not held.method.penalty.is_empty
    assert free.method.penalty.is_empty
    for module in (held, free):
        fit(module, batches(1))
    for one, other in zip(held.network.parameters(), free.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_very_large_lambda_with_the_proximal_step_stays_at_the_anchor() -> None:
    module = learner(1e12)
    module.method.step = "proximal"
    fit(module, batches(1))
    penalty = module.method.penalty
    anchors, importances = penalty.anchors(), penalty.importances()
    for name, theta in module.network.named_parameters():
        moved = (theta - anchors[name]).abs()[importances[name] > 1e-6]
        assert moved.max() < 1e-5, name


class OwnModule(LightningModule):
    """A module that knows nothing of continual learning."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer] = SGD) -> None:
        super().__init__()
        self.body = network()
        self.make_optimizer = optimizer

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


def test_the_drop_in_callback_does_what_the_formula_says_for_a_module_of_ones_own() -> None:
    ewc = EWC(ewc_lambda=20.0, damping=0.0)
    module = OwnModule()
    fit(module, batches(0), callbacks=[ewc])
    first = {name: theta.detach().clone() for name, theta in module.named_parameters()}
    fisher = fisher_diagonal(module, batches(0))
    for name, anchor in ewc.penalty.anchors().items():
        assert torch.equal(anchor, first[name])
        torch.testing.assert_close(ewc.penalty.importances()[name], fisher[name], rtol=1e-6, atol=0)

    penalty = QuadraticPenalty()
    penalty.fold(first, fisher)
    expected = OwnModule()
    expected.load_state_dict(first)
    optimizer = SGD(expected.parameters())
    for x, y in batches(1) * 2:
        optimizer.zero_grad()
        omega = penalty(dict(expected.named_parameters()))
        (cross_entropy(expected(x), y) + 20.0 * omega).backward()
        optimizer.step()
    fit(module, batches(1), callbacks=[ewc])
    assert module.training
    for name, theta in expected.named_parameters():
        torch.testing.assert_close(
            module.get_parameter(name), theta, rtol=1e-5, atol=1e-6, msg=name
        )


def test_the_penalty_of_the_drop_in_callback_is_in_the_checkpoint(tmp_path: Path) -> None:
    ewc = EWC(ewc_lambda=1.0)
    trainer = fit(OwnModule(), batches(0), callbacks=[ewc])
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    kept = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    fresh = EWC(ewc_lambda=1.0)
    fresh.load_state_dict(kept["callbacks"]["EWC"])
    theta = {name: t + 1 for name, t in OwnModule().named_parameters()}
    assert fresh.penalty.value(theta).item() == ewc.penalty.value(theta).item() > 0


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_a_lambda_out_of_range_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="ewc_lambda is"):
        EWC(ewc_lambda=wrong)


@pytest.mark.parametrize(
    ("ewc_lambda", "cause"), [(0.0, "learning rate that is too large"), (1e30, "too stiff")]
)
def test_a_loss_that_is_no_number_stops_the_stage_and_names_it(
    ewc_lambda: float, cause: str
) -> None:
    module = learner(ewc_lambda)
    rate = 1e38 if ewc_lambda == 0 else 0.1
    module.make_optimizer = partial(torch.optim.SGD, lr=rate)
    module.current_task = "usps"
    with pytest.raises(LifelongError, match=f"(?s)while learning usps, at step.*{cause}"):
        fit(module, batches(1))
