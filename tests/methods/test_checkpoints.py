"""When a fit is consolidated, and what its checkpoints then hold."""

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.tuner import Tuner
from torch import nn

from lifelong.errors import LifelongError
from lifelong.methods import EWC, KroneckerEWC
from lifelong.methods.pretrained import looks_learnt

from .strangers import Stranger, data, loader, params, trainer


def trace(method: Any) -> float:
    return sum(float(f.sum()) for f in method.penalty.importances().values())


def penalty_in(path: str | Path) -> dict[str, Any]:
    return torch.load(path, weights_only=False)["callbacks"]["EWC"]["penalty"]


def test_every_checkpoint_of_the_last_step_holds_the_penalty(tmp_path: Path) -> None:
    module, ewc = Stranger(), EWC(10.0)
    keep = ModelCheckpoint(tmp_path, save_last=True, save_top_k=-1)
    trainer(ewc, keep, enable_checkpointing=True).fit(module, loader())
    own = ewc.penalty.state_dict()
    last = penalty_in(keep.last_model_path)
    assert last.keys() == own.keys()
    assert all(torch.equal(last[n], own[n]) for n in own)
    assert penalty_in(tmp_path / "epoch=1-step=8.ckpt").keys() == own.keys()
    # Its weights are older: this penalty would not be theirs.
    assert list(penalty_in(tmp_path / "epoch=0-step=4.ckpt")) == ["constant"]
    content = torch.load(keep.last_model_path, weights_only=False)
    assert content["global_step"] == 8
    assert content["callbacks"].keys() >= {"EWC"}


def test_a_finished_fit_that_is_resumed_consolidates_nothing_again(tmp_path: Path) -> None:
    ewc, keep = EWC(10.0), ModelCheckpoint(tmp_path, save_last=True)
    trainer(ewc, keep, enable_checkpointing=True).fit(Stranger(), loader())
    fresh = EWC(10.0)
    with pytest.warns(UserWarning, match="took no optimizer step"):
        trainer(fresh).fit(Stranger(), loader(1), ckpt_path=keep.last_model_path)
    assert trace(fresh) == trace(ewc)
    # Another task from it is another task: held to the first, and added to it.
    more, module = EWC(10.0), Stranger()
    trainer(more, max_epochs=4).fit(module, loader(1), ckpt_path=keep.last_model_path)
    assert len(more.remembered.examples) == 2
    assert trace(more) > trace(ewc)


def test_a_checkpoint_of_weights_alone_is_told_of(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, save_weights_only=True)
    with pytest.warns(UserWarning, match=r"holds weights only.*EWC\.save\(FILE\)"):
        trainer(EWC(1.0), keep, enable_checkpointing=True).fit(Stranger(), loader())


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["swa", "ema"])
def test_the_anchor_is_the_weights_that_an_averaging_callback_leaves(
    kind: str, first: bool
) -> None:
    average: Callback = (
        StochasticWeightAveraging(0.05, swa_epoch_start=1)
        if kind == "swa"
        else EMAWeightAveraging(decay=0.9)
    )
    module, ewc = Stranger(), EWC(1.0)
    callbacks = (ewc, average) if first else (average, ewc)
    trainer(*callbacks, max_epochs=4).fit(module, loader())
    anchors = ewc.penalty.anchors()
    assert all(torch.equal(anchors[name], p) for name, p in params(module).items())


def test_the_modules_own_end_of_training_comes_first() -> None:
    class Last(Stranger):
        def on_train_end(self) -> None:
            torch.nn.init.constant_(self.head.bias, 7.0)

    module, ewc = Last(), EWC(1.0)
    trainer(ewc).fit(module, loader())
    assert bool((ewc.penalty.anchors()["head.bias"] == 7.0).all())
    assert "on_train_end" not in vars(module)


def test_trainer_and_module_are_left_as_they_were() -> None:
    module, ewc = Stranger(), EWC(1.0)
    one = trainer(ewc)
    one.fit(module, loader())
    assert not {"on_train_end", "training_step"} & vars(module).keys()
    assert "save_checkpoint" not in vars(one)


def test_fast_dev_run_consolidates_nothing() -> None:
    ewc = EWC(1.0)
    trainer(ewc, fast_dev_run=True).fit(Stranger(), loader())
    assert ewc.penalty.is_empty


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_an_interrupted_fit_consolidates_nothing(error: BaseException) -> None:
    class Break(Callback):
        def on_train_batch_end(self, one: Any, *_: Any) -> None:
            if one.global_step == 3:
                raise error

    module, ewc = Stranger(), EWC(1.0)
    with pytest.raises((SystemExit, RuntimeError)):
        trainer(ewc, Break()).fit(module, loader())
    assert ewc.penalty.is_empty
    assert not {"on_train_end", "training_step"} & vars(module).keys()


def test_a_fit_that_is_stopped_early_is_finished() -> None:
    class Stop(Callback):
        def on_train_batch_end(self, one: Any, *_: Any) -> None:
            one.should_stop = True

    ewc = EWC(1.0)
    trainer(ewc, Stop(), min_epochs=0).fit(Stranger(), loader())
    assert not ewc.penalty.is_empty


def test_a_finder_leaves_no_trace(tmp_path: Path) -> None:
    module, ewc = Stranger(), EWC(1.0)
    module.lr = 0.1
    Tuner(trainer(ewc, default_root_dir=tmp_path)).lr_find(module, loader(), num_training=5)
    assert ewc.penalty.is_empty
    assert "on_train_end" not in vars(module)


def test_testing_and_validating_consolidate_nothing() -> None:
    class Tested(Stranger):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.training_step(batch, batch_idx)

        test_step = validation_step

    module, ewc = Tested(), EWC(1.0)
    one = trainer(ewc)
    one.validate(module, loader(), verbose=False)
    one.test(module, loader(), verbose=False)
    one.predict(module, torch.utils.data.DataLoader(data().tensors[0], batch_size=12))
    assert ewc.penalty.is_empty


def test_consolidating_leaves_every_random_state_as_it_was() -> None:
    # Not compared with a fit without it: beartype, in these tests, draws from Python's numbers.
    before: list[Any] = []

    class Watched(Stranger):
        def on_train_end(self) -> None:
            before.extend(states())

    def states() -> list[Any]:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()]

    class Drawing(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 48

        def __getitem__(self, place: int) -> Any:
            x, y = data()[place]
            return x + random.random() + np.random.rand() + torch.rand(()), y

    ewc = EWC(1.0, labels="sampled")
    drawing = torch.utils.data.DataLoader(Drawing(), batch_size=12, shuffle=True)
    trainer(ewc).fit(Watched(), drawing)
    after = states()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert not ewc.penalty.is_empty


def test_going_on_with_the_same_data_does_not_count_them_twice() -> None:
    module, ewc = Stranger(), EWC(1e-3)
    one = trainer(ewc)
    one.fit(module, loader())
    one.fit_loop.max_epochs = 4
    one.fit(module, loader())
    alone = EWC(1.0)
    alone.consolidate(module, loader())
    assert ewc.remembered.examples == [48]
    for name, f in alone.penalty.importances().items():
        torch.testing.assert_close(ewc.penalty.importances()[name], f, rtol=1e-12, atol=0)


def test_the_same_data_in_another_fit_are_told_of() -> None:
    module, ewc = Stranger(), EWC(1e-3)
    trainer(ewc).fit(module, loader())
    with pytest.warns(UserWarning, match="counts twice"):
        trainer(ewc).fit(module, loader())
    assert ewc.remembered.examples == [48, 48]


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_processes_that_end_with_the_fit_are_refused(
    start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

    module, ewc = Stranger(), EWC(1.0)
    one = trainer(ewc)
    launcher = _MultiProcessingLauncher(DDPStrategy(), start_method=start)  # type: ignore[arg-type]
    monkeypatch.setattr(launcher, "launch", lambda f, *a, trainer, **k: f(*a, **k))
    one.strategy._launcher = launcher
    with pytest.raises(LifelongError, match=r"end with the fit.*strategy='ddp'.*devices=1"):
        one.fit(module, loader())
    assert one.global_step == 0
    # What consolidates nothing loses nothing.
    again = trainer(EWC(1.0, consolidates=False))
    again.strategy._launcher = launcher
    again.fit(module, loader())
    assert again.global_step == 8


def test_a_fresh_callback_on_a_module_that_is_held_elsewhere_is_told_of() -> None:
    module = Stranger()
    trainer(EWC(1.0)).fit(module, loader())
    with pytest.warns(UserWarning, match="holds nothing of it"):
        trainer(KroneckerEWC(1.0)).fit(module, loader(1))


def test_another_network_with_the_same_callback_is_told_of() -> None:
    ewc = EWC(100.0)
    trainer(ewc).fit(Stranger(seed=0), loader())
    with pytest.warns(UserWarning, match="not the weights that were consolidated"):
        trainer(ewc).fit(Stranger(seed=1), loader(1))


def test_weights_that_were_trained_elsewhere_and_a_fresh_callback_are_told_of(
    tmp_path: Path,
) -> None:
    class Known(Stranger):
        pass

    first, ewc = Known(), EWC(10.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*have learnt something.*")
        whole = trainer(ewc, max_epochs=30)
        whole.fit(first, loader())
    whole.save_checkpoint(tmp_path / "old.ckpt")
    again = Known.load_from_checkpoint(tmp_path / "old.ckpt")
    with pytest.warns(UserWarning, match=r"have learnt something already.*anchor=FILE"):
        trainer(EWC(10.0)).fit(again, loader(1))


NORMS = {
    "a batch norm": (nn.BatchNorm1d(4), "has seen 1 batches"),
    "a layer norm": (nn.LayerNorm(4), "no longer constant"),
}


@pytest.mark.parametrize("name", NORMS)
def test_what_a_norm_shows_is_seen(name: str) -> None:
    norm, words = NORMS[name]
    network = nn.Sequential(nn.Linear(3, 4), norm)
    assert looks_learnt(network) is None
    network(torch.randn(5, 3)).square().sum().backward()
    if name == "a layer norm":
        torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert words in str(looks_learnt(network))


@pytest.mark.parametrize("bias", [nn.init.zeros_, nn.init.ones_, lambda b: b])
def test_how_weights_are_drawn_is_no_evidence(bias: Any) -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Linear(8, 50))
    for layer in (network[0], network[2]):
        nn.init.normal_(layer.weight, std=3.0)
        bias(layer.bias)
    assert looks_learnt(network) is None
