"""A benchmark of a user's own: three tasks of colour images, by YAML and a data module.

As a user would write it: nothing in here knows lifelong, the order and the augmentation come from
torch's global random numbers. In another process it is importable with the repository's root in
PYTHONPATH.
"""

from pathlib import Path

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

CLASSES, SHAPE = 7, (3, 32, 32)
FITS = ("model=cnn", "model.channels_in=3", "model.num_classes=7", "model.widths=[8,16]")


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Images that are moved a little and made noisy at random."""

    def __init__(self, images: Tensor, labels: Tensor, noise: float) -> None:
        self.images, self.labels, self.noise = images, labels, noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index].roll(int(torch.randint(-2, 3, ())), dims=-1)
        return image + self.noise * torch.randn_like(image), self.labels[index]


class Textures(LightningDataModule):
    """Waves in seven directions; a domain turns them, and has a colour and a length of its own."""

    def __init__(
        self,
        domain: int,
        *,
        count: int = 140,
        batch_size: int = 20,
        noise: float = 0.1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.domain, self.count, self.batch_size = domain, count, batch_size
        self.noise, self.num_workers = noise, num_workers

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.train = Augmented(*self._drawn(self.count, part=0), self.noise)
            self.val = TensorDataset(*self._drawn(70, part=1))
        if stage == "test":
            self.test = TensorDataset(*self._drawn(70, part=2))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            self.train, self.batch_size, shuffle=True, drop_last=True, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 35)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, 35)

    def _drawn(self, count: int, part: int) -> tuple[Tensor, Tensor]:
        angle = (torch.arange(CLASSES) + self.domain / 2).view(-1, 1, 1) * torch.pi / CLASSES
        row, column = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
        wave = (column * angle.cos() + row * angle.sin()) * torch.pi / (3 + self.domain)
        textures = wave.cos().unsqueeze(1)
        colours = torch.randn(3, 1, 1, generator=torch.Generator().manual_seed(1 + self.domain))
        noise = torch.Generator().manual_seed(100 + 10 * self.domain + part)
        labels = torch.arange(count) % CLASSES
        static = torch.randn(count, *SHAPE, generator=noise)
        return textures[labels] * colours + 0.3 * static, labels


YAML = """\
name: textures
scenario: domain
tasks:
  red: {_target_: tests.run.own_benchmark.Textures, domain: 0}
  green: {_target_: tests.run.own_benchmark.Textures, domain: 1, noise: 0.2}
  blue: {_target_: tests.run.own_benchmark.Textures, domain: 2}
"""


def write_conf(folder: Path) -> Path:
    """Write the benchmark for ``--config-dir FOLDER benchmark=textures``.

    Args:
        folder: a folder of the test's own.

    Returns:
        The folder to give to ``--config-dir``.
    """
    (folder / "benchmark").mkdir(parents=True)
    (folder / "benchmark/textures.yaml").write_text(YAML, encoding="utf-8")
    return folder
