"""Batches drawn from images in memory, in an order that is a pure function of seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from lifelong.data.randomness import generator_for
from lifelong.data.sets.images import MEAN, STD
from lifelong.errors import LifelongError


class TensorBatches:
    """Batches of normalised images, each one index selection from bytes in memory.

    A pixel x becomes `(x / 255 - mean) / std`. Only the batch is converted; the store stays uint8.
    The order of epoch e is a permutation drawn from a hash of (seed, e): neither the global random
    state, nor the device, nor what was drawn before has a part in it.

    Of `world_size` processes, process `rank` takes every `world_size`-th example. A shuffled order
    is first padded by wrapping around, so that all processes make the same number of steps; an
    unshuffled one is not, so that an evaluation counts every example exactly once.

    Without `set_epoch`, each pass is the next epoch. The state (epoch and position) is that of
    Lightning's stateful data loaders: a pass begun after `load_state_dict` goes on where the saved
    one stood.

    Args:
        images: The pixels [N, 28, 28], uint8.
        labels: The classes [N], int64.
        batch_size: Examples in a batch, for each process.
        shuffle: Whether each epoch has an order of its own; else it is that of the images.
        seed: Of the order.
        mean: Subtracted from pixels in 0..1; MNIST's mean.
        std: Divided by after that; MNIST's standard deviation.
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

    # Lightning reads it of every loader that has a sampler.
    batch_sampler = None

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
        self._epoch = 0
        self._position = 0  # batches of this epoch already given
        self._begun = False  # whether a pass over this epoch has begun

    def __len__(self) -> int:
        """Return the batches of a whole epoch, also where a resumed pass gives fewer."""
        count = self._examples()
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the batches of an epoch.

        Yields:
            The images [B, 1, 28, 28], float32, and their labels [B], int64.
        """
        # a generator, so that all below waits for the first batch: Lightning makes its iterator
        # before it calls set_epoch
        if self._begun:
            self._epoch += 1
            self._position = 0
        self._begun = True
        # not the attributes: a later pass changes those while this one may still be read
        order, position = self._order(self._epoch), self._position
        for batch in range(position, len(self)):
            self._position = batch + 1
            yield self._batch(order, slice(batch * self.batch_size, (batch + 1) * self.batch_size))

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

    @property
    def sampler(self) -> Self:
        """These batches themselves: Lightning calls `set_epoch` on a loader's sampler alone."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of an epoch.

        It begins at the epoch's start, or where a state loaded for that same epoch stood.

        Args:
            epoch: The epoch, counted from 0.
        """
        if self._begun or epoch != self._epoch:
            self._position = 0
        self._epoch = epoch
        self._begun = False

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the batches of it already given, and what gives those a meaning.

        Returns:
            Plain numbers, equal for all processes that share the examples.
        """
        return {"epoch": self._epoch, "position": self._position, **self._meaning()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Make the next pass go on where the saved one stood.

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            LifelongError: It was saved with other batches, in which the position has no meaning.
        """
        for name, here in self._meaning().items():
            if state_dict[name] != here:
                raise LifelongError(
                    f"the checkpoint was saved with {name}={state_dict[name]}, now it is {here}: "
                    f"resume with {name}={state_dict[name]} or start anew"
                )
        self._epoch, self._position = state_dict["epoch"], state_dict["position"]
        self._begun = False
        if self._position >= len(self):
            self._epoch, self._position = self._epoch + 1, 0

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

    def _batch(self, order: Tensor | None, part: slice) -> tuple[Tensor, Tensor]:
        if order is None:
            images = self.images[self.rank :: self.world_size][part]
            labels = self.labels[self.rank :: self.world_size][part].clone()
        else:
            # index_select takes a sixth of the time of indexing by a tensor
            rows = order[part]
            images, labels = self.images.index_select(0, rows), self.labels.index_select(0, rows)
        # as few passes over the pixels as can be: x / 255 / std - mean / std
        pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
        pixels.mul_(1 / (255 * self.std)).sub_(self.mean / self.std)
        return pixels.unsqueeze(1), labels
