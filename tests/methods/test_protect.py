"""The same protection in any loop: each is compared with the Lightning callback, step by step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch.nn.functional import cross_entropy

import lifelong
from lifelong.errors import LifelongError
from lifelong.methods import EWC, KroneckerEWC
from lifelong.methods.protect import Guard

from .strangers import Stranger, data, loader, params, trainer

kinds = pytest.mark.parametrize("kind", [EWC, KroneckerEWC])
steps = pytest.mark.parametrize("step", ["explicit", "proximal"])
EPOCHS = 3


def learnt(kind: Any) -> tuple[dict[str, Any], Any]:
    module, method = Stranger(), kind(30.0)
    trainer(method).fit(module, loader())
    return module.state_dict(), method


def started(weights: dict[str, Any]) -> tuple[Stranger, torch.optim.Optimizer]:
    module = Stranger()
    module.load_state_dict(weights)
    return module, module.configure_optimizers()


def by_the_callback(weights: dict[str, Any], method: Any, step: str) -> dict[str, torch.Tensor]:
    module, callback = started(weights)[0], type(method)(30.0, step=step, consolidates=False)
    callback.load_state_dict(method.state_dict())
    trainer(callback, max_epochs=EPOCHS).fit(module, loader(1))
    return params(module)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, p in one.items():
        torch.testing.assert_close(p, other[name], rtol=0, atol=1e-6)


@kinds
@steps
def test_a_plain_loop_is_the_callback(kind: Any, step: Any, tmp_path: Path) -> None:
    weights, method = learnt(kind)
    method.save(tmp_path / "old.safetensors")
    module, optimizer = started(weights)
    guard = lifelong.protect(module, optimizer, tmp_path / "old.safetensors", step=step)
    for _ in range(EPOCHS):
        for x, y in loader(1):
            optimizer.zero_grad()
            (cross_entropy(module(x), y) + guard.term()).backward()
            optimizer.step()
    assert_same(params(module), by_the_callback(weights, method, step))
    free, _ = started(weights)
    trainer(max_epochs=EPOCHS).fit(free, loader(1))
    gap = max(float((params(free)[n] - p).abs().max()) for n, p in params(module).items())
    assert gap > 1e-2  # it did hold


@kinds
def test_the_term_alone_is_the_callback(kind: Any) -> None:
    weights, method = learnt(kind)
    module, optimizer = started(weights)
    for _ in range(EPOCHS):
        for x, y in loader(1):
            optimizer.zero_grad()
            (cross_entropy(module(x), y) + method.term(module)).backward()
            optimizer.step()
    assert_same(params(module), by_the_callback(weights, method, "explicit"))


@steps
def test_fabric_is_the_callback(step: Any) -> None:
    weights, method = learnt(EWC)
    bare, optimizer = started(weights)
    fabric = Fabric(accelerator="cpu", devices=1)
    module, optimizer = fabric.setup(bare, optimizer)
    guard = lifelong.protect(module, optimizer, method, step=step)
    for _ in range(EPOCHS):
        for x, y in loader(1):
            optimizer.zero_grad()
            fabric.backward(cross_entropy(module(x), y) + guard.term())
            optimizer.step()
    assert_same(params(bare), by_the_callback(weights, method, step))


@steps
def test_accelerate_is_the_callback(step: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    weights, method = learnt(EWC)
    bare, optimizer = started(weights)
    accelerator = accelerate.Accelerator(cpu=True)
    module, optimizer = accelerator.prepare(bare, optimizer)
    guard = lifelong.protect(module, optimizer, method, step=step)
    for _ in range(EPOCHS):
        for x, y in loader(1):
            optimizer.zero_grad()
            accelerator.backward(cross_entropy(module(x), y) + guard.term())
            optimizer.step()
    assert_same(params(bare), by_the_callback(weights, method, step))


def test_hugging_faces_trainer_is_the_callback(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from lifelong.methods.hugging_face import ProtectCallback

    class Model(Stranger):
        def forward(self, x: Any, labels: Any = None) -> Any:
            logits = super().forward(x)
            return logits if labels is None else {"loss": cross_entropy(logits, labels)}

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    weights, method = learnt(EWC)
    method.save(tmp_path / "old")
    module = Model()
    module.load_state_dict(weights)
    rows = [{"x": x, "labels": y} for x, y in data(1)]
    arguments = transformers.TrainingArguments(
        tmp_path / "out",
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=12,
        use_cpu=True,
        max_grad_norm=0.0,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        lr_scheduler_type="constant",
    )
    InOrder(
        module,
        arguments,
        train_dataset=rows,
        optimizers=(module.configure_optimizers(), None),
        callbacks=[ProtectCallback(tmp_path / "old", ewc_lambda=30.0)],
    ).train()
    assert_same(params(module), by_the_callback(weights, method, "proximal"))


def test_what_is_removed_holds_no_longer() -> None:
    weights, method = learnt(EWC)
    module, optimizer = started(weights)
    with lifelong.protect(module, optimizer, method, step="proximal") as guard:
        assert guard.omega == pytest.approx(0.0, abs=1e-12)
    assert not optimizer._optimizer_step_post_hooks
    assert not module._forward_pre_hooks
    assert float(guard.term()) == 0.0


def test_running_statistics_stay_in_any_loop() -> None:
    module, method = Stranger(norm=True), EWC(1.0)
    trainer(method).fit(module, loader())
    before = module.body[1].running_mean.clone()
    guard = lifelong.protect(module, module.configure_optimizers(), method)
    module.train()(loader(1).dataset[:][0])
    assert torch.equal(module.body[1].running_mean, before)
    guard.remove()
    module.train()(loader(1).dataset[:][0])
    assert not torch.equal(module.body[1].running_mean, before)


def test_nothing_is_protected_by_nothing() -> None:
    module, optimizer = started(Stranger().state_dict())
    with pytest.raises(LifelongError, match=r"holds nothing.*consolidate"):
        lifelong.protect(module, optimizer, EWC(1.0))
    _, method = learnt(EWC)
    with pytest.raises(ValueError, match="step is 'both'"):
        Guard(module, optimizer, method, step="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ignore came along"):
        lifelong.protect(module, optimizer, method, ignore="head")
