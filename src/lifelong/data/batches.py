"""Batches drawn from images in memory, in an order that is a pure function of seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from lifelong.data.randomness import generator_for
from lifelong.data.resumable import Pair, ResumableBatches
from lifelong.data.sets.images import MEAN, STD, normalised
from lifelong.errors import LifelongError

GREY = 3  # dimensions of images without a channel


class TensorBatches(ResumableBatches):
    """Batches of normalised images, each one index selection from bytes in memory.

    A pixel x becomes `(x / 255 - mean) / std` (`normalised`). Only the batch is converted; the
    store stays uint8.
    The order of epoch e is a permutation drawn from a hash of (seed, e): neither the global random
    state, nor the device, nor what was drawn before has a part in it.

    Of `world_size` processes, process `rank` takes every `world_size`-th example. A shuffled order
    is first padded by wrapping around, so that all processes make the same number of steps; an
    unshuffled one is not, so that an evaluation counts every example exactly once.

    Args:
        images: The pixels [N, height, width] or [N, channels, height, width], uint8.
        labels: The classes [N], int64.
        batch_size: Examples in a batch, for each process.
        shuffle: Whether each epoch has an order of its own; else it is that of the images.
        seed: Of the order.
        mean: Subtracted from pixels in 0..1; that of the data set.
        std: Divided by after that; the data set's standard deviation.
        drop_last: Whether a last batch that is not full is left out.
        rank: This process, 0 to `world_size` - 1.
        world_size: How many processes share the examples.

    Raises:
        LifelongError: `batch_size` is not 1 or more.
        ValueError: `rank` is not one of `world_size` processes.

    Example:
        >>> import torch
        >>> white = torch.full((5, 28, 28), 255, dtype=torch.uint8)
        >>> batches = TensorBatches(white, torch.arange(5), batch_size=2, shuffle=False)
        >>> [y.tolist() for x, y in batches]
        [[0, 1], [2, 3], [4]]
        >>> x, y = next(iter(batches))
        >>> x.shape, round(x.max().item(), 4)  # (1 - 0.1307) / 0.3081
        (torch.Size([2, 1, 28, 28]), 2.8215)
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        mean: float = MEAN,
        std: float = STD,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise LifelongError(f"batch_size={batch_size}: give 1 or more, such as batch_size=128")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} of world_size={world_size}: give 0 <= rank < world_size")
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.mean = mean
        self.std = std
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        """Return the batches of a whole epoch, also where a resumed pass gives fewer."""
        count = self._examples()
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def to(self, device: torch.device | str) -> Self:
        """Move the store, so that batches are selected and converted on that device.

        Args:
            device: Where the images are to lie.

        Returns:
            These batches.
        """
        self.images = self.images.to(device)
        self.labels = self.labels.to(device)
        return self

    def _pass(self, epoch: int, position: int) -> Iterator[Pair]:
        order = self._order(epoch)
        for batch in range(position, len(self)):
            yield self._batch(order, slice(batch * self.batch_size, (batch + 1) * self.batch_size))

    def _meaning(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "examples": len(self.labels),
        }

    def _examples(self) -> int:
        """Return the examples that this process gives in an epoch."""
        if self.shuffle:
            return -(-len(self.labels) // self.world_size)
        return len(range(self.rank, len(self.labels), self.world_size))

    def _order(self, epoch: int) -> Tensor | None:
        if not self.shuffle:
            return None
        count = len(self.labels)
        order = torch.randperm(count, generator=generator_for("epoch", self.seed, epoch))
        if self.world_size > 1:
            padded = torch.arange(self._examples() * self.world_size) % count
            order = order[padded][self.rank :: self.world_size]
        return order.to(self.images.device)

    def _batch(self, order: Tensor | None, part: slice) -> Pair:
        if order is None:
            images = self.images[self.rank :: self.world_size][part]
            labels = self.labels[self.rank :: self.world_size][part].clone()
        else:
            # index_select takes a sixth of the time of indexing by a tensor
            rows = order[part]
            images, labels = self.images.index_select(0, rows), self.labels.index_select(0, rows)
        pixels = normalised(images, mean=self.mean, std=self.std)
        return (pixels.unsqueeze(1) if pixels.ndim == GREY else pixels), labels
