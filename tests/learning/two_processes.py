"""What the tests of several processes run in each of them: ``two_processes.py FOLDER``.

With RANK and WORLD_SIZE in the environment it is one process of several, without the only one. It
leaves what it found in FOLDER/RANK.pt.
"""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lifelong import EWC
from lifelong.core import KroneckerFactors, QuadraticPenalty, fisher_diagonal, kronecker_factors
from lifelong.data.batches import TensorBatches
from lifelong.learning import ContinualLearner
from lifelong.learning.distributed import estimate_over_processes

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
EXAMPLES = 9
ESTIMATORS = {
    f"{name} {labels}": partial(estimator, labels=labels, threshold=0.0)
    for name, estimator in (("diagonal", fisher_diagonal), ("kronecker", kronecker_factors))
    for labels in ("exact", "sampled", "empirical")
}


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def network(*, batch_norm: bool = False, seed: int = 0) -> nn.Module:
    """In float64, so that only a wrong formula can differ."""
    torch.manual_seed(seed)
    norm = [nn.BatchNorm1d(5)] if batch_norm else []
    layers = [nn.Flatten(), Double(), nn.Linear(784, 5), *norm, nn.Tanh(), nn.Linear(5, 3)]
    return nn.Sequential(*layers).double()


def examples(seed: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 28, 28), generator=generator, dtype=torch.uint8)
    return images, torch.randint(3, (count,), generator=generator)


def share(kind: str, rank: int, world: int) -> list[tuple[Tensor, Tensor]]:
    """Nine examples in shares of 5 and 4, or all in the first process; every second ignored."""
    images, y = examples(5, EXAMPLES)
    if kind == "ignored":
        y[1::2] = -100
    x = images / 255
    if kind == "empty":
        rank, world = (0, 1) if rank == 0 else (EXAMPLES, 1)
    return list(zip(x[rank::world].split(2), y[rank::world].split(2), strict=True))


def shown(importance: dict[str, Tensor] | KroneckerFactors) -> dict[str, Tensor]:
    if not isinstance(importance, KroneckerFactors):
        return dict(importance)
    inputs = {f"A {name}": A for name, (A, _) in importance.items()}
    gradients = {f"G {name}": G for name, (_, G) in importance.items()}
    return inputs | gradients | {f"diagonal {n}": f for n, f in importance.diagonal.items()}


class Stage(LightningDataModule):
    """48 images to learn, and validation images whose shares differ in their number of batches."""

    def __init__(self, seed: int, val_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.seed, self.val_sizes = seed, val_sizes

    def train_dataloader(self) -> TensorBatches:
        return self._batches(48, 8 // WORLD, seed=self.seed, shuffle=True)

    def val_dataloader(self) -> list[TensorBatches]:
        return [self._batches(n, 10, seed=100 + i) for i, n in enumerate(self.val_sizes)]

    test_dataloader = val_dataloader

    def consolidation_batches(self, **own: int) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = examples(self.seed, 45)
        return iter(TensorBatches(images, labels, batch_size=7, shuffle=False, **own))

    def _batches(self, count: int, size: int, *, seed: int, shuffle: bool = False) -> TensorBatches:
        images, labels = examples(seed, count)
        return TensorBatches(
            images, labels, batch_size=size, shuffle=shuffle, rank=RANK, world_size=WORLD
        )


class OwnModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = network(seed=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def trainer(*callbacks: Callback, **also: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=WORLD,
        strategy="ddp" if WORLD > 1 else "auto",
        max_epochs=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **also,
    )


class Probe(Callback):
    """Estimates while the processes are joined and the network is wrapped."""

    found: dict[str, Any]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        probed = network(seed=9)
        seed_everything(7, verbose=False)
        self.found = {
            f"{name} {kind}": shown(
                estimate_over_processes(trainer, estimator, probed, share(kind, RANK, WORLD))
            )
            for name, estimator in ESTIMATORS.items()
            for kind in ("uneven", "empty", "ignored")
        }
        self.found["draw after"] = torch.rand(3)


def sequence(*, batch_norm: bool) -> dict[str, Any]:
    """Two stages of the learner with λ, consolidated after each."""
    probe = Probe()
    ewc = EWC(ewc_lambda=30.0, threshold=0.0, damping=0.01)
    learner = ContinualLearner(
        network(batch_norm=batch_norm),
        partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        ["a", "b"],
        method=ewc,
        scheduler=partial(torch.optim.lr_scheduler.PolynomialLR, power=1.0),
    )
    found: dict[str, Any] = {}
    for index, task in enumerate(learner.tasks):
        learner.current_task = task
        data = Stage(index, (101, 33)[: index + 1])
        one = trainer(ewc, probe)
        one.fit(learner, datamodule=data)
        found[f"{index} last rate"] = one.optimizers[0].param_groups[0]["lr"]
        found |= {f"{index} {name}": float(f) for name, f in one.callback_metrics.items()}
        one.test(learner, datamodule=Stage(index, (101, 33)), verbose=False)
        found |= {f"{index} {name}": float(f) for name, f in one.callback_metrics.items()}
    return {
        "network": dict(learner.network.state_dict()),
        "penalty": dict(ewc.penalty.state_dict()),
        "metrics": found,
        "estimates": probe.found,
    }


def drop_in() -> dict[str, Any]:
    """The callback, with 13 examples that the sampler pads to 14, then 16 that need no padding."""
    ewc, module = EWC(ewc_lambda=30.0, damping=0.0), OwnModule()

    def loader(seed: int, count: int, **also: Any) -> DataLoader[Any]:
        images, y = examples(seed, count)
        return DataLoader(TensorDataset(images / 255, y), batch_size=8 // WORLD, **also)

    def in_order(seed: int) -> DataLoader[Any]:
        if WORLD == 1:
            return loader(seed, 16)
        # Lightning's own sampler would shuffle.
        ranks: Any = range(16)
        return loader(seed, 16, sampler=DistributedSampler(ranks, WORLD, RANK, shuffle=False))

    found: dict[str, Any] = {}
    trainer(ewc).fit(module, loader(3, 13, shuffle=True))
    found["after padding"] = dict(module.state_dict())
    found["fisher"] = {n: f.clone() for n, f in ewc.penalty.importances().items()}
    # The same start for one process and for two, whose batches above differed.
    module, ewc.penalty = OwnModule(), QuadraticPenalty()
    trainer(ewc).fit(module, in_order(3))
    trainer(ewc, accumulate_grad_batches=2, gradient_clip_val=0.5).fit(module, in_order(4))
    found["network"] = dict(module.state_dict())
    found["penalty"] = dict(ewc.penalty.state_dict())
    return found


def find() -> dict[str, Any]:
    """All of the above, in this process."""
    seed_everything(1, verbose=False)
    return {
        "learner": sequence(batch_norm=False),
        "batch norm": sequence(batch_norm=True),
        "drop-in": drop_in(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(find(), Path(sys.argv[1]) / f"{RANK}.pt")
