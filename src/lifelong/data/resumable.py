"""Passes over batches that can be broken off and taken up again at the same batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Self

from torch import Tensor

from lifelong.errors import LifelongError

Pair = tuple[Tensor, Tensor]


class ResumableBatches(ABC):
    """Batches whose every epoch is a pure function of its number.

    Without `set_epoch`, each pass is the next epoch. The state (epoch and position) is that of
    Lightning's stateful data loaders: a pass begun after `load_state_dict` goes on where the saved
    one stood.
    """

    # Lightning reads it of every loader that has a sampler.
    batch_sampler = None

    def __init__(self) -> None:
        self._epoch = 0
        self._position = 0  # batches of this epoch already given
        self._begun = False  # whether a pass over this epoch has begun

    @abstractmethod
    def __len__(self) -> int:
        """Return the batches of a whole epoch, also where a resumed pass gives fewer."""

    @abstractmethod
    def _pass(self, epoch: int, position: int) -> Iterator[Pair]:
        """Give the batches of an epoch from a position on."""

    @abstractmethod
    def _meaning(self) -> dict[str, int]:
        """Return what gives a position its meaning."""

    def __iter__(self) -> Iterator[Pair]:
        """Give the batches of an epoch.

        Yields:
            The images [B, ...], float32, and their labels [B], int64.
        """
        # a generator, so that all below waits for the first batch: Lightning makes its iterator
        # before it calls set_epoch
        if self._begun:
            self._epoch += 1
            self._position = 0
        self._begun = True
        # not the attribute: a later pass changes it while this one may still be read
        position = self._position
        for batch in self._pass(self._epoch, position):
            position += 1
            self._position = position
            yield batch

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
