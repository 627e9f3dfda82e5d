"""Runs small enough to be repeated for every method: three tasks of 3 classes, 6 numbers each.

In another process, with RANK and WORLD_SIZE in the environment, ``jobs.py FOLDER METHOD...`` learns
the run of each method there and leaves what it found in FOLDER/METHOD-RANK.pt.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lifelong import methods
from lifelong.data.benchmark import Benchmark
from lifelong.learning import ContinualLearner
from lifelong.methods import Method
from lifelong.run import Job, NoStore, StageStore

TASKS = ("a", "b", "c")
# At once: Lightning takes it out of the environment when a Trainer is done.
WORLD = int(os.environ.get("WORLD_SIZE", "1"))

# Method → settings with which it holds on, and settings with which it is fine-tuning bit for bit.
# What follows an @ tells two ways of the same method apart.
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "Finetune": ({}, {}),
    "Joint": ({}, None),
    "EWC": ({"ewc_lambda": 50.0, "threshold": 0.0}, {"ewc_lambda": 0.0}),
    "EWC@budget": ({"at_most": 0.05, "watch": 10, "threshold": 0.0}, None),
    "OnlineEWC": ({"ewc_lambda": 50.0, "step": "proximal", "threshold": 0.0}, {"ewc_lambda": 0.0}),
    "KroneckerEWC": (
        {"ewc_lambda": 50.0, "threshold": 0.0, "precision": "float32"},
        {"ewc_lambda": 0.0},
    ),
    "L2": ({"ewc_lambda": 0.5}, {"ewc_lambda": 0.0}),
    "MAS": ({"ewc_lambda": 2.0}, {"ewc_lambda": 0.0}),
    "LwF": ({"ewc_lambda": 1.0}, {"ewc_lambda": 0.0}),
    "DERpp": ({"buffer_size": 20, "minibatch_size": 8}, {"alpha": 0.0, "beta": 0.0}),
    "AGEM": ({"buffer_size": 20, "minibatch_size": 8}, {"buffer_size": 0}),
    "Replay": ({"buffer_size": 20, "minibatch_size": 8}, {"buffer_size": 0}),
    "SI": ({"ewc_lambda": 1.0}, {"ewc_lambda": 0.0}),
}


class Points(LightningDataModule):
    """Three clouds of points, turned by another angle in each task."""

    def __init__(self, task: int) -> None:
        super().__init__()
        self.task = task

    def examples(self, part: int, count: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(10 * self.task + part)
        means = 2 * torch.randn(3, 6, generator=torch.Generator().manual_seed(self.task))
        labels = torch.randint(3, (count,), generator=generator)
        points = means[labels] + torch.randn(count, 6, generator=generator)
        return TensorDataset(points.double(), labels)

    def train_dataloader(self) -> DataLoader[Any]:
        # In order the batches of two processes make up those of one.
        shuffle = "IN_ORDER" not in os.environ
        return DataLoader(self.examples(0, 48), batch_size=12 // WORLD, shuffle=shuffle)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.examples(1, 30), batch_size=30)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.examples(2, 31), batch_size=30)


class OwnModule(LightningModule):
    """A module that knows nothing of continual learning."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return {"loss": cross_entropy(self(x), y), "more": batch_idx}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.5)


class InterruptError(Exception):
    pass


class InterruptAt(Callback):
    """Ends a run in the middle of a stage, as a lost machine would."""

    def __init__(self, task: str, step: int) -> None:
        self.task, self.step = task, step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.current_task == self.task and trainer.global_step == self.step:
            raise InterruptError


def network() -> nn.Module:
    # Float64, so that only a wrong formula can differ.
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def make(name: str, **settings: Any) -> Method:
    method: Method = getattr(methods, class_of(name))(**settings)
    return method


def class_of(name: str) -> str:
    return name.partition("@")[0]


def trainer(*callbacks: Callback, **also: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=WORLD,
        strategy="ddp" if WORLD > 1 else "auto",
        max_epochs=2,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=2,
        callbacks=list(callbacks),
        **{"logger": False, **also},
    )


def job(
    name: str,
    directory: Path,
    settings: dict[str, Any] | None = None,
    *,
    store: StageStore | None = None,
    resume: bool = False,
    interrupt: Callback | None = None,
    norm: bool = True,
) -> Job:
    settings = METHODS[name][0] if settings is None else settings
    tasks = {task: Points(index) for index, task in enumerate(TASKS)}
    benchmark = Benchmark("points", tasks, seed=3)
    for task in benchmark.tasks:
        task.setup("fit")

    def make_trainer(*, callbacks: Any = (), **also: Any) -> Trainer:
        return trainer(*callbacks, *([interrupt] if interrupt and callbacks else []), **also)

    def make_learner(method: Method) -> ContinualLearner:
        own = network() if norm else nn.Sequential(network()[0], nn.Tanh(), network()[3])
        sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.5)
        return ContinualLearner(own, sgd, TASKS, method=method)

    return Job(
        benchmark=benchmark,
        make_method=lambda: make(name, **settings),
        make_learner=make_learner,
        make_trainer=make_trainer,
        method=name,
        seed=0,
        max_epochs=2,
        directory=directory,
        config={
            "model": {"norm": norm},
            "method": {"_target_": f"lifelong.methods.{class_of(name)}", "name": name, **settings},
            "benchmark": {"name": "points", "tasks": {task: {"of": task} for task in TASKS}},
        },
        store=store or NoStore(),
        resume=resume,
        checkpoint_every=0.0 if interrupt else 1e9,
        tell=lambda _: None,
    )


def left(directory: Path) -> dict[str, Any]:
    """What a run left that must not depend on how it came about."""
    (path,) = directory.glob("checkpoints/stage-2-*.ckpt")
    kept = torch.load(path, weights_only=True)
    stages = [{k: s[k] for k in ("task", "accuracy", "steps", "curves")} for s in kept["stages"]]
    return {"network": kept["network"], "method": kept["method"], "stages": stages}


def main(folder: Path, names: list[str], learn: Callable[[Job], Any]) -> None:
    torch.set_num_threads(1)
    for name in names:
        # Each process has batch statistics of its own: without BatchNorm two are as one.
        learn(job(name, folder / f"{name}-{WORLD}", norm=False))
        if int(os.environ.get("RANK", "0")) == 0:
            torch.save(as_callback(name), folder / f"{name}-callback-{WORLD}.pt")
        else:
            as_callback(name)


def as_callback(name: str) -> dict[str, Any]:
    """What two fits of a module that is not ours leave."""
    torch.manual_seed(5)
    module, method = OwnModule(), make(name, **METHODS[name][0])
    module.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    for task in range(2):
        data, rank = Points(task).examples(0, 48), int(os.environ.get("RANK", "0"))
        shares = DistributedSampler(data, WORLD, rank, shuffle=False)
        loader = DataLoader(data, batch_size=12 // WORLD, sampler=shares)
        trainer(method).fit(module, loader)
    return {"module": module.state_dict(), "method": method.state_dict()}


if __name__ == "__main__":
    from lifelong.run import learn_sequence

    main(Path(sys.argv[1]), sys.argv[2:], learn_sequence)
