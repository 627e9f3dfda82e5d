"""A stranger's module and its data, small and in float64, for what is carried about."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class Stranger(LightningModule):
    def __init__(self, classes: int = 3, seed: int = 0, *, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        body: list[nn.Module] = [nn.Linear(6, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh()]
        self.body = nn.Sequential(*body).double()
        self.head = nn.Linear(8, classes).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.02)


def data(task: int = 0, count: int = 48, classes: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(task)
    means = 2 * torch.randn(classes, 6, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    points = means[labels] + torch.randn(count, 6, generator=generator)
    return TensorDataset(points.double(), labels)


def loader(task: int = 0, *, shuffle: bool = False, classes: int = 3) -> DataLoader[Any]:
    return DataLoader(data(task, classes=classes), batch_size=12, shuffle=shuffle)


def trainer(*callbacks: Callback, **also: Any) -> Trainer:
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 2,
    }
    return Trainer(callbacks=list(callbacks), **{**settings, **also})


def params(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.named_parameters()}


class Tagger(LightningModule):
    """Labels every word of a sequence; batches are mappings, what pads a sequence is ignored."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(11, 6).double()
        self.head = nn.Linear(6, 4).double()

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.words(words).cumsum(dim=1).tanh())

    def training_step(self, batch: Any) -> dict[str, Tensor]:
        logits = self(batch["words"])
        return {"loss": cross_entropy(logits.view(-1, 4), batch["tags"].view(-1))}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2)


def tagged(task: int = 0, count: int = 36) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(task)
    words = torch.randint(11, (count, 5), generator=generator)
    tags = (words * (task + 1)).cumsum(dim=1) % 4
    tags[::3, -2:] = -100
    rows = [{"words": w, "tags": t} for w, t in zip(words, tags, strict=True)]
    return DataLoader(rows, batch_size=12)  # type: ignore[arg-type]
