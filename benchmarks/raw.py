"""The raw PyTorch side of the benchmarks: a plain loop over tensors in memory."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lifelong.data.sets.sources import load
from lifelong.models import Perceptron

Data = tuple[Tensor, Tensor]


def images(data_dir: Path, dataset: str = "mnist", *, test: bool = False) -> Data:
    """All training (or test) images, normalised, and their labels."""
    task = load(dataset, data_dir, announce=str)
    part = task.test if test else task.train
    return (part.images.float().div(255).sub(0.1307).div(0.3081).unsqueeze(1), part.labels)


def step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    number: int,
    batch: int,
    objective: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> None:
    """One training step on a batch of the data; ``objective`` makes of its loss what is learnt."""
    part = slice(number * batch, (number + 1) * batch)
    loss = objective(cross_entropy(network(data[0][part]), data[1][part]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def epoch(network: nn.Module, optimizer: torch.optim.Optimizer, data: Data, batch: int) -> None:
    """One training epoch in random order."""
    x, y = data
    for rows in torch.randperm(len(y)).split(batch):
        loss = cross_entropy(network(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def raw_job(data_dir: str, batch: int) -> None:
    """MNIST one epoch, a per-example Fisher, USPS one epoch with the naive penalty, both tested.

    What someone would write: default Adam, the exact diagonal class by class with hooks, and the
    penalty as a sum of tensors in the loss.
    """
    folder = Path(data_dir)
    torch.manual_seed(0)
    network = Perceptron()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    mnist = images(folder)
    epoch(network, optimizer, mnist, batch)
    fisher = exact_by_classes(network, mnist)
    anchor = {n: p.detach().clone() for n, p in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    x, y = images(folder, "usps")
    for rows in torch.randperm(len(y)).split(batch):
        omega = sum((fisher[n] * (p - anchor[n]) ** 2).sum() for n, p in network.named_parameters())
        loss = cross_entropy(network(x[rows]), y[rows]) + 1e3 * 0.5 * omega
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for dataset in ("mnist", "usps"):
            x, y = images(folder, dataset, test=True)
            (network(x).argmax(1) == y).float().mean()


def exact_by_classes(network: Perceptron, data: Data) -> dict[str, Tensor]:
    """The exact Fisher diagonal of the perceptron, every class of every image."""
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    total = {n: torch.zeros_like(p) for n, p in network.named_parameters()}
    for x, _ in zip(data[0].split(1000), data[1].split(1000), strict=True):
        inputs, outputs, h = [], [], x.flatten(1)
        for module in network.layers:
            if isinstance(module, nn.Linear):
                inputs.append(h.detach())
            h = module(h)
            if isinstance(module, nn.Linear):
                outputs.append(h)
        log_p = h.log_softmax(-1)
        p = log_p.detach().exp()
        sums = [torch.zeros_like(o) for o in outputs]
        for c in range(log_p.shape[1]):
            gradients = torch.autograd.grad(log_p[:, c].sum(), outputs, retain_graph=True)
            for s, g in zip(sums, gradients, strict=True):
                s.addcmul_(p[:, c : c + 1], g.square())
        for (name, _), a, s in zip(layers, inputs, sums, strict=True):
            total[f"{name}.weight"] += s.T @ a.square()
            total[f"{name}.bias"] += s.sum(0)
    return {n: t / len(data[1]) for n, t in total.items()}
