"""What the test of sharded networks runs in each process: ``sharded.py FOLDER``.

With RANK and WORLD_SIZE in the environment it is one of several, which hold parts of the network.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import lifelong
from lifelong import EWC
from lifelong.errors import LifelongError
from lifelong.methods import KroneckerEWC

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "log8": {"storage": "log8"},
    "cpu": {"device": "cpu"},
    "part": {"ignore": "2"},
}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double()


def examples(seed: int) -> TensorDataset:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 6, generator=g, dtype=torch.float64)
    return TensorDataset(x, torch.randint(3, (24,), generator=g))


def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    x, y = examples(seed).tensors
    return list(
        zip(x[RANK::WORLD].split(8 // WORLD), y[RANK::WORLD].split(8 // WORLD), strict=True)
    )


def spread(net: nn.Module) -> nn.Module:
    if WORLD > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (WORLD,))
        fully_shard(net[0], mesh=mesh)  # type: ignore[index]
        fully_shard(net, mesh=mesh)
    return net


def whole(tensor: Any) -> Tensor:
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().clone()


def consolidated(folder: Path) -> Path:
    """A file of the network before it is spread, the same in every process."""
    method = EWC(20.0)
    x, y = examples(0).tensors
    method.consolidate(network(), [(x, y)])
    method.save(folder / f"old-{WORLD}-{RANK}")
    return folder / f"old-{WORLD}-{RANK}"


def looped(file: Path, how: str, **settings: Any) -> dict[str, Any]:
    """A plain loop, by a guard and by a term: 6 steps."""
    net, method = spread(network()), EWC.load(file, **settings)
    proximal = how == "proximal"
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    guard: Any = None
    if how != "term":
        step: Any = "proximal" if proximal else "explicit"
        guard = lifelong.protect(net, optimizer, method, step=step)
    values = []
    for x, y in batches(1) * 2:
        optimizer.zero_grad()
        task = cross_entropy(net(x), y)
        loss = task + (method.term(net) if guard is None else guard.term())
        values.append(float((loss - task).detach()))
        loss.backward()
        optimizer.step()
    sizes = {
        name: sum(b.to_local().numel() if hasattr(b, "to_local") else b.numel() for b in buffers)
        for name, buffers in (
            ("F", list(method.penalty.importance.buffers())),
            ("anchor", list(method.penalty.anchor.buffers())),
        )
    }
    state = method.state_dict()["penalty"]
    again = EWC.load(file, **settings).state_dict()["penalty"]
    return {
        "network": {name: whole(p) for name, p in net.named_parameters()},
        "values": values,
        "sizes": sizes,
        "state is whole": all(torch.equal(again[name], t) for name, t in state.items()),
        "curvature": method.penalty.largest_curvature(),
    }


class Own(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def configure_model(self) -> None:
        mesh = self.device_mesh
        if mesh is not None and not hasattr(self, "is_spread"):
            from torch.distributed.fsdp import fully_shard

            self.is_spread = True
            fully_shard(self.body, mesh=mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self.body(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def loader(seed: int) -> DataLoader[Any]:
    data = examples(seed)
    ranks: Any = DistributedSampler(data, WORLD, RANK, shuffle=False) if WORLD > 1 else None
    return DataLoader(data, batch_size=8 // WORLD, sampler=ranks)


def trainer(*callbacks: Callback) -> Trainer:
    from lightning.pytorch.strategies import ModelParallelStrategy

    strategy: Any = "auto"
    if WORLD > 1:
        strategy = ModelParallelStrategy(data_parallel_size=WORLD, tensor_parallel_size=1)
    return Trainer(
        accelerator="cpu",
        devices=WORLD,
        strategy=strategy,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
    )


def by_lightning(folder: Path) -> dict[str, Any]:
    method, file = EWC(20.0), folder / f"lightning-{WORLD}-{RANK}"
    method.consolidate(Own(), [examples(0).tensors])
    method.save(file)
    held = EWC(20.0, anchor=file, consolidates=False)
    module = Own()
    trainer(held).fit(module, loader(1))
    found: dict[str, Any] = {"network": {n: whole(p) for n, p in module.named_parameters()}}
    if WORLD > 1:
        try:
            trainer(EWC(20.0)).fit(Own(), loader(1))
        except LifelongError as error:
            found["estimate"] = str(error)
    return found


def refusals(file: Path) -> dict[str, str]:
    found = {}
    factors = KroneckerEWC(20.0)
    factors.consolidate(network(), [examples(0).tensors])
    for name, call in (
        ("factors", lambda net: factors.hold(net)),
        ("estimate", lambda net: EWC(1.0).consolidate(net, batches(0))),
        (
            "fold",
            lambda net: EWC.load(file).fold(net, EWC.load(file).estimate(network(), batches(0))),
        ),
    ):
        try:
            call(spread(network()))
        except (LifelongError, ValueError) as error:
            found[name] = str(error)
    return found


def find(folder: Path) -> dict[str, Any]:
    file = consolidated(folder)
    found: dict[str, Any] = {
        f"{how} {name}": looped(file, how, **settings)
        for how in ("guard", "term", "proximal")
        for name, settings in SETTINGS.items()
    }
    if WORLD > 1:
        found["refusals"] = refusals(file)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = Path(sys.argv[1])
    if sys.argv[2] == "loops":
        distributed.init_process_group("gloo")
        left = find(here)
    else:
        left = by_lightning(here)
    torch.save(left, here / f"{RANK}.pt")
    distributed.barrier()
    # Threads of gloo may outlive an ordered end, and abort it.
    os._exit(0)
