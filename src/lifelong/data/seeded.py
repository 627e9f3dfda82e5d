"""Any loader as one whose every epoch is a pure function of seed and epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lifelong.data.loaders import evaluation_share, training_share
from lifelong.data.randomness import OwnRandomness, seed_for
from lifelong.data.resumable import Pair, ResumableBatches
from lifelong.errors import LifelongError

_END = object()


class SeededLoader(ResumableBatches):
    """The batches of a stranger's loader, so that a pass can be taken up again to the same bits.

    Everything random in an epoch (order, seeds of the workers, augmentations in this process) is
    drawn from global generators of torch, NumPy and Python that are seeded by (seed, purpose,
    epoch) and swapped in while a batch is drawn; what others draw meanwhile has no part in it. A
    resumed pass draws what was given before and drops it. Generators that the loader or its
    samplers hold are seeded alike, and a sampler's `set_epoch` is called. What a data set draws
    from a generator that it keeps to itself is beyond this.

    Of several processes each gets its share. Where the loader is a DataLoader that goes through a
    map-style data set in order or shuffled, it is built anew with a sampler: for training padded,
    so that all make the same number of steps, else each example once. From any other loader process
    r of W takes the batches r, r + W, …; of training the last incomplete round is left out.

    Args:
        loader: Gives (images, labels), or more after these, anew in each pass.
        name: What errors call it, such as "the training loader of birds".
        purpose: What its random numbers are for, beside the seed.
        seed: Of everything random.
        train: Whether each epoch has random numbers of its own and is shared in equal steps; else
            all passes are alike.
        prepare: Applied to each batch as it came, within the same random numbers.
        rank: This process.
        world_size: How many processes share the batches.

    Raises:
        LifelongError: Training batches that have no length, or too few for the processes.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.zeros(5, 1), torch.arange(5))
        >>> loader = DataLoader(data, batch_size=2, shuffle=True)
        >>> first, second = (SeededLoader(loader, name="it", purpose="it", seed=0) for _ in "ab")
        >>> [y.tolist() for _, y in first] == [y.tolist() for _, y in second]
        True
    """

    def __init__(
        self,
        loader: Any,
        *,
        name: str,
        purpose: str,
        seed: int,
        train: bool = True,
        prepare: Callable[[Any], Any] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} of world_size={world_size}: give 0 <= rank < world_size")
        self.name = name
        self.purpose = purpose
        self.seed = seed
        self.train = train
        self.prepare = prepare
        self.rank = rank
        self.world_size = world_size
        self.loader = loader
        self._first, self._step = 0, 1  # of the loader's batches, those that this process gives
        self._own = 0  # other random numbers in each process, where each has examples of its own
        if world_size > 1:
            self._share_out()
        if train:
            self._check_length()

    def __len__(self) -> int:
        """Return the batches of a whole epoch.

        Returns:
            Those of this process.

        Raises:
            TypeError: The loader has no length.
        """  # noqa: DOC502
        count = len(self.loader)
        return count // self._step if self.train else len(range(self._first, count, self._step))

    def _pass(self, epoch: int, position: int) -> Iterator[Pair]:
        number = epoch if self.train else 0
        randomness = OwnRandomness("loader", self.purpose, self.seed, number, self._own)
        with randomness.swapped():
            self._begin(number)
            batches = iter(self.loader)
        last = len(self) if self.train else None
        given = at = 0
        while last is None or given < last:
            with randomness.swapped():
                batch = next(batches, _END)
                if batch is not _END and self.prepare is not None:
                    batch = self.prepare(batch)
            if batch is _END:
                return
            if at % self._step == self._first:
                given += 1
                if given > position:
                    yield self._pair(batch)
            at += 1

    def _begin(self, epoch: int) -> None:
        """Bring what holds random numbers or epochs of its own to this epoch's beginning."""
        loader = self.loader
        batch_sampler = getattr(loader, "batch_sampler", None)
        samplers = [getattr(loader, "sampler", None), batch_sampler]
        samplers.append(getattr(batch_sampler, "sampler", None))
        for holder in (loader, *samplers):
            if isinstance(generator := getattr(holder, "generator", None), torch.Generator):
                generator.manual_seed(seed_for("generator", self.purpose, self.seed, epoch))
        for holder in samplers:
            if callable(set_epoch := getattr(holder, "set_epoch", None)):
                set_epoch(epoch)
        if isinstance(loader, DataLoader):
            # workers that outlive an epoch would go on with its random numbers
            loader._iterator = None

    def _share_out(self) -> None:
        seed = seed_for("order", self.purpose, self.seed)
        own = (
            training_share(self.loader, self.rank, self.world_size, seed)
            if self.train
            else evaluation_share(self.loader, self.rank, self.world_size)
        )
        if own is None:
            self._first, self._step = self.rank, self.world_size
        else:
            self.loader, self._own = own, self.rank

    def _check_length(self) -> None:
        try:
            count = len(self)
        except TypeError as error:
            raise LifelongError(
                f"{self.name} has no length; the schedule and the place within an epoch need one: "
                "give its data set a __len__"
            ) from error
        if count < 1:
            raise LifelongError(
                f"{self.name} gives {len(self.loader)} batches to {self.world_size} processes; "
                "give at least one to each: a smaller batch size or fewer processes"
            )

    def _meaning(self) -> dict[str, int]:
        return {"seed": self.seed, "world_size": self.world_size, "batches": len(self)}

    def _pair(self, batch: Any) -> Pair:
        if isinstance(batch, tuple | list) and len(batch) > 1:
            images, labels = batch[0], batch[1]
            if isinstance(images, Tensor) and isinstance(labels, Tensor):
                whole = not labels.is_floating_point() and not labels.is_complex()
                if images.is_floating_point() and whole and labels.shape == images.shape[:1]:
                    return images, labels.long()
        raise LifelongError(
            f"{self.name} gave {_described(batch)}; wanted (images, labels): images a "
            "floating-point tensor [N, …] and labels a tensor of whole numbers [N]"
        )


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, tuple | list):
        inner = ", ".join(_described(item) for item in value[:3])
        return f"({inner}{', …' if len(value) > 3 else ''})"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, list(value)[:4]))}"
    return f"a {type(value).__name__}"
