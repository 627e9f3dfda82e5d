"""A bounded buffer of real examples, the same in every process and however it was filled."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from lightning import Trainer
from torch import Tensor, distributed

from lifelong.core.fisher.evaluation import TARGETS
from lifelong.core.fisher.examples import count, has_words, tensors_of, with_tensors
from lifelong.errors import LifelongError

Fill = Literal["reservoir", "balanced"]
_MASK = (1 << 63) - 1


class Buffer:
    """Some of the examples of the tasks before, as plain tensors on the CPU.

    ``reservoir``: every example of every task so far is in it with the same probability, as with
    Vitter's algorithm R; a large task has more of it than a small one. ``balanced``: as many of
    each class of each task as there is room for, each class's a reservoir of its own.

    Both by a random key of each example, made of the seed, the task and the example's place in its
    data: those with the lowest keys stay. So it does not matter how the examples were cut into
    batches, shared among processes, or in which order they came.

    Args:
        size: how many examples it holds at most.
        fill: which.
        seed: of the keys and of what is drawn.

    Raises:
        ValueError: when an argument does not fit.

    Source:
        Vitter 1985, "Random sampling with a reservoir"; by keys: Efraimidis and Spirakis 2006.

    Example:
        >>> buffer = Buffer(3)
        >>> buffer.add([(torch.arange(10.0), torch.arange(10))])
        >>> len(buffer), buffer.tasks
        (3, 1)
    """

    def __init__(self, size: int, fill: Fill = "reservoir", seed: int = 0) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"buffer_size is {size}; it must be a whole number of at least 0")
        if fill not in get_args(Fill):
            raise ValueError(f"fill is {fill!r}; it must be one of {', '.join(get_args(Fill))}")
        self.size, self.fill, self.seed = size, fill, seed
        self.tasks = 0  # how many were added
        self.columns: list[Tensor] = []  # an example's tensors, each [n, ...]
        self.keys = torch.zeros(0, dtype=torch.int64)
        self.task = torch.zeros(0, dtype=torch.int64)
        self.label = torch.zeros(0, dtype=torch.int64)  # 0 where classes do not matter

    def __len__(self) -> int:
        """How many examples it holds.

        Returns:
            At most ``size``.
        """
        return len(self.keys)

    @property
    def bytes(self) -> int:
        """What it takes beside the network."""
        every = (*self.columns, self.keys, self.task, self.label)
        return sum(t.numel() * t.element_size() for t in every)

    def add(
        self,
        batches: Iterable[Any],
        *,
        rank: int = 0,
        world_size: int = 1,
        trainer: Trainer | None = None,
    ) -> None:
        """Take up a task.

        Args:
            batches: of its examples, those of this process.
            rank: this process: its j-th example is number ``rank`` + j · ``world_size`` of all.
            world_size: how many processes share the examples.
            trainer: of several processes, whose buffers become one.

        Raises:
            LifelongError: when a batch cannot be kept.
        """  # noqa: DOC502
        place = 0
        for batch in batches if self.size else ():
            columns, labels = _kept(batch), self._labels(batch)
            n = count(batch)
            places = rank + world_size * torch.arange(place, place + n)
            place += n
            self._join(columns, _keys(self.seed, self.tasks, places), labels)
            if len(self) > 2 * self.size + 1024:
                self._prune()
        if trainer is not None and world_size > 1 and self.size:
            self._gather(world_size)
        self.tasks += 1
        self._prune()

    def draw(self, number: int, *salt: int) -> Tensor:
        """Some of the examples, without replacement, always the same for the same salt.

        Args:
            number: how many; fewer where the buffer holds fewer.
            *salt: what tells this draw from others: the step, the batch.

        Returns:
            Their places in the buffer.
        """
        generator = torch.Generator().manual_seed(_mixed(self.seed, self.tasks, *salt))
        return torch.randperm(len(self), generator=generator)[:number]

    def like(self, batch: Any, places: Tensor) -> Any:
        """Examples of the buffer as a batch.

        Args:
            batch: any batch of the kind, whose structure and device the result has.
            places: which examples.

        Returns:
            A batch of them.
        """
        own = tensors_of(batch)
        self.check_fits(own)
        rows = [c[places] for c in self.columns[: len(own)]]
        moved = (r.to(t.device, t.dtype) for r, t in zip(rows, own, strict=True))
        return with_tensors(batch, moved)

    def mixed_into(self, batch: Any, places: Tensor) -> Any:
        """A batch with examples of the buffer behind its own.

        Args:
            batch: as a training step sees it.
            places: which examples.

        Returns:
            One batch of both.
        """
        own = tensors_of(batch)
        old = tensors_of(self.like(batch, places))
        return with_tensors(batch, [torch.cat(pair) for pair in zip(own, old, strict=True)])

    def check_fits(self, own: list[Tensor]) -> None:
        """Refuse batches that those of the buffer cannot stand beside.

        Args:
            own: the tensors of a batch.

        Raises:
            LifelongError: when their number or shapes differ.
        """
        came, held = ([list(t.shape[1:]) for t in ts] for ts in (own, self.columns[: len(own)]))
        if came != held:
            raise LifelongError(
                f"the examples of this task have tensors of shapes {came}, and those that are kept "
                f"{held}; wanted one shape for all tasks: bring them to it in the data sets, or "
                "begin with a new method"
            )

    def state(self) -> dict[str, Any]:
        """For a checkpoint.

        Returns:
            Plain tensors and a number.
        """
        return {
            "columns": list(self.columns),
            "keys": self.keys,
            "task": self.task,
            "label": self.label,
            "tasks": self.tasks,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned.

        Args:
            state: plain tensors.
        """
        self.columns = [column.cpu().clone() for column in state["columns"]]
        self.keys, self.task, self.label = (
            state[name].cpu().clone() for name in ("keys", "task", "label")
        )
        self.tasks = int(state["tasks"])

    def _join(self, columns: list[Tensor], keys: Tensor, labels: Tensor) -> None:
        if self.columns:
            self.check_fits(columns)
            # what a method has kept beside the examples follows when they are chosen
            more = [c.new_zeros(len(keys), *c.shape[1:]) for c in self.columns[len(columns) :]]
            pairs = zip(self.columns, [*columns, *more], strict=True)
            columns = [torch.cat([a, b.to(a.dtype)]) for a, b in pairs]
        self.columns = columns
        self.keys = torch.cat([self.keys, keys])
        self.task = torch.cat([self.task, torch.full_like(keys, self.tasks)])
        self.label = torch.cat([self.label, labels])

    def _prune(self) -> None:
        # in one order, whatever the one in which they came
        order = _order(self.task, self.keys)
        if len(order) > self.size:
            order = order[self._chosen(order)]
        self.columns = [column[order] for column in self.columns]
        self.keys, self.task, self.label = self.keys[order], self.task[order], self.label[order]

    def _chosen(self, order: Tensor) -> Tensor:
        keys, task, label = self.keys[order], self.task[order], self.label[order]
        first = torch.zeros_like(keys)
        if self.fill == "balanced":
            for one in torch.stack([task, label]).unique(dim=1).T:
                group = ((task == one[0]) & (label == one[1])).nonzero()[:, 0]
                first[group[keys[group].argsort()]] = torch.arange(len(group))
        return _order(first, keys)[: self.size].sort().values

    def _labels(self, batch: Any) -> Tensor:
        if self.fill != "balanced":
            return torch.zeros(count(batch), dtype=torch.int64)
        labels: Any = None
        if isinstance(batch, Mapping):
            labels = next((batch[key] for key in TARGETS if key in batch), None)
        elif isinstance(batch, tuple | list) and len(batch) > 1:
            labels = batch[1]
        if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
            came = (
                f"{labels.dtype} of shape {tuple(labels.shape)}"
                if isinstance(labels, Tensor)
                else "none"
            )
            raise LifelongError(
                f"a buffer that is balanced wants one class an example, and the labels are {came}; "
                "take fill=reservoir"
            )
        return labels.detach().cpu().long()

    def _gather(self, world_size: int) -> None:
        # the examples of the tasks before are in every process already
        new = self.task == self.tasks
        own = [c[new] for c in self.columns], self.keys[new], self.label[new]
        every: list[Any] = [None] * world_size
        distributed.all_gather_object(every, own)
        old = ~new
        self.columns = [c[old] for c in self.columns]
        self.keys, self.task, self.label = self.keys[old], self.task[old], self.label[old]
        for columns, keys, labels in every:
            if len(keys):
                self._join(columns, keys, labels)


def _kept(batch: Any) -> list[Tensor]:
    if has_words(batch):
        raise LifelongError(
            "a batch holds words, and a buffer keeps tensors; wanted examples that are tensors "
            "along the first dimension: turn the words into numbers in the data set"
        )
    try:
        count(batch)
    except ValueError as error:
        raise LifelongError(
            f"the examples of a batch ({type(batch).__name__}) cannot be told apart: "
            f"{str(error).split(';')[0]}; wanted the examples along the first dimension of every "
            "tensor"
        ) from error
    return [t.detach().cpu().clone() for t in tensors_of(batch)]


def _order(first: Tensor, then: Tensor) -> Tensor:
    # by the one, then by the other
    order = then.argsort(stable=True)
    return order[first[order].argsort(stable=True)]


def _mixed(*numbers: int) -> int:
    # 63 bits that any change of these changes everywhere: splitmix64
    mixed = 0
    for number in numbers:
        z = (mixed + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed = z ^ (z >> 31)
    return mixed & _MASK


def _keys(seed: int, task: int, places: Tensor) -> Tensor:
    # splitmix64 again, in torch's signed numbers: multiplication wraps, shifts are made logical
    def shifted(z: Tensor, by: int) -> Tensor:
        return (z >> by) & ((1 << (64 - by)) - 1)

    def signed(number: int) -> int:
        return number - (1 << 64) if number >= 1 << 63 else number

    z = places * signed(0x9E3779B97F4A7C15) + _mixed(seed, task)
    z = (z ^ shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ shifted(z, 27)) * signed(0x94D049BB133111EB)
    return (z ^ shifted(z, 31)) & _MASK
