"""The batches of a fit once more: as many as it had, and as its training step saw them."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from lifelong.errors import LifelongError
from lifelong.learning.shards import share_of_loader


class FitBatches:
    """One epoch of a fit's training batches, no more of them than the fit had.

    ``limit_train_batches``, ``overfit_batches`` and ``max_steps`` count here, too.

    Args:
        trainer: whose loaders and limits they are.
    """

    def __init__(self, trainer: Trainer) -> None:
        combined = trainer.fit_loop._combined_loader
        assert combined is not None
        self.most = most_batches(trainer)
        self._combined = combined
        flat = combined.flattened
        self._is_single = len(flat) == 1 and combined.iterables is flat[0]
        if self._is_single:
            share = share_of_loader(combined.iterables, trainer.global_rank, trainer.world_size)
            self._loader: Iterable[Any] = share

    def __iter__(self) -> Iterator[Any]:
        """The batches.

        Returns:
            An iterator over them, as the loader made them.
        """
        if self._is_single:
            return islice(iter(self._loader), self.most)
        again = CombinedLoader(self._combined.iterables, self._combined._mode)
        again.limits = self._combined.limits
        return islice((batch for batch, _, _ in iter(again)), self.most)

    def count(self) -> int | None:
        """How many batches there will be.

        Returns:
            The number, None where nothing says so.
        """
        try:
            there = len(self._loader) if self._is_single else len(self._combined)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError, RuntimeError):
            return self.most
        return there if self.most is None else min(there, self.most)

    def examples(self) -> int | None:
        """How many examples there will be, where the loader says so.

        Returns:
            The number, None where it does not.
        """
        loader = self._loader if self._is_single else None
        if not isinstance(loader, DataLoader) or loader.batch_size is None:
            return None
        batches = self.count()
        if batches is None:
            return None
        try:
            held = len(loader.sampler)  # type: ignore[arg-type]
        except TypeError:
            return batches * loader.batch_size
        return min(held, batches * loader.batch_size)


def gives_its_own(trainer: Trainer) -> bool:
    """Whether a fit's data module says by itself what a task is consolidated on.

    Args:
        trainer: whose data module it is.

    Returns:
        True for those of a benchmark: neither shuffled nor augmented, each example once.
    """
    return callable(getattr(trainer.datamodule, "consolidation_batches", None))  # type: ignore[attr-defined]


def batches_of_task(trainer: Trainer, given: Iterable[Any] | None = None) -> Iterable[Any]:
    """What the task that a fit learns is consolidated on: this process's share of it.

    Args:
        trainer: at the end of its fit.
        given: by the user, in place of it.

    Returns:
        Batches: those given, else what the data module gives for it, else those of the fit.
    """
    rank, world_size = trainer.global_rank, trainer.world_size
    if given is not None:
        return share_of_loader(given, rank, world_size)
    if gives_its_own(trainer):
        own: Iterable[Any] = trainer.datamodule.consolidation_batches(  # type: ignore[attr-defined]
            rank=rank, world_size=world_size
        )
        return own
    return FitBatches(trainer)


def most_batches(trainer: Trainer) -> int | None:
    """How many training batches of an epoch the fit's own limits allow.

    Args:
        trainer: whose limits they are.

    Returns:
        The number, None where nothing limits them.
    """
    found: float = float("inf")
    limit: int | float | None = trainer.limit_train_batches
    if isinstance(limit, int) or limit not in (None, 1.0):  # 1 is one batch, 1.0 all
        found = trainer.num_training_batches
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        steps = trainer.max_steps * trainer.accumulate_grad_batches
        if steps < trainer.num_training_batches:
            found = min(found, steps)
    return None if found == float("inf") else int(found)


def refuse_used_up(trainer: Trainer) -> None:
    """Refuse training data that are gone when the fit has read them, before it begins.

    Args:
        trainer: about to train.

    Raises:
        LifelongError: when the loader is an iterator.
    """
    combined = trainer.fit_loop._combined_loader
    for loader in combined.flattened if combined is not None else ():
        if isinstance(loader, Iterator):
            raise LifelongError(
                f"the training data are a {type(loader).__name__}, which is used up when the fit "
                "ends; wanted something to go through once more: pass a DataLoader or a list, or "
                "batches=[...] for what matters"
            )


def refuse_endless(trainer: Trainer) -> None:
    """Refuse a fit whose data may never end, before it begins.

    Args:
        trainer: about to train.

    Raises:
        LifelongError: when neither the data nor the fit says when to stop.
    """
    if trainer.num_training_batches != float("inf") or most_batches(trainer) is not None:
        return
    timed = any(type(callback).__name__ == "Timer" for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if trainer.max_epochs in (None, -1) or timed:
        raise LifelongError(
            "the training data have no length and the fit no number of steps, so that the estimate "
            "of what matters might never end; wanted a number of examples: type samples=2000, "
            "or Trainer(max_steps=...) or Trainer(limit_train_batches=...)"
        )


def as_step_sees(module: LightningModule, batches: Iterable[Any]) -> Iterator[Any]:
    """Batches in the Trainer's precision, after the module's transfer hooks, on its device.

    Args:
        module: the one that learns; without a Trainer its hooks are called as they are.
        batches: as a loader made them.

    Yields:
        What ``training_step`` is given.
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    trainer = module._trainer
    # a Trainer that has fitted nothing yet does not know whose hooks they are
    knows = trainer is not None and trainer._data_connector._datahook_selector is not None
    for batch in batches:
        if trainer is not None:
            batch = trainer.precision_plugin.convert_input(batch)
        if knows:
            batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
            yield module._apply_batch_transfer_handler(batch, device=device, dataloader_idx=0)
        else:
            batch = module.on_before_batch_transfer(batch, 0)
            batch = module.transfer_batch_to_device(batch, device, 0)
            yield module.on_after_batch_transfer(batch, 0)
