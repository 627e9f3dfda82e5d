"""Random numbers that are a pure function of what they are for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_for(*purpose: object) -> int:
    """Return a seed that depends on `purpose` alone.

    It is a hash, so that neighbouring purposes (seed 0 epoch 1, seed 1 epoch 0) get unrelated
    numbers.

    Args:
        purpose: What the numbers are for, as values with a stable text (strings, integers).

    Returns:
        A number of 32 bits.

    Example:
        >>> seed_for("order", 0, 1) == seed_for("order", 1, 0)
        False
    """
    hashed = hashlib.sha256(repr(purpose).encode()).digest()
    return int.from_bytes(hashed[:4], "big")


def generator_for(*purpose: object) -> torch.Generator:
    """Return a generator whose numbers depend on `purpose` alone, never on the global state.

    They come from the CPU, hence are the same whatever the device.

    Args:
        purpose: What the numbers are for, as values with a stable text (strings, integers).

    Returns:
        A generator on the CPU.

    Example:
        >>> import torch
        >>> first = torch.randperm(5, generator=generator_for("order", 0, 3))
        >>> again = torch.randperm(5, generator=generator_for("order", 0, 3))
        >>> torch.equal(first, again)
        True
    """
    return torch.Generator().manual_seed(seed_for(*purpose))


class OwnRandomness:
    """Global random numbers of one purpose's own, for code that draws from the global ones.

    Within `swapped` the generators of torch (on the CPU), NumPy and Python stand where this purpose
    left them; outside they are as if nothing had been drawn. A swap takes 0.1 ms.

    Args:
        purpose: What the numbers are for, as values with a stable text (strings, integers).

    Example:
        >>> import torch
        >>> state = torch.get_rng_state()
        >>> with OwnRandomness("augmentation", 0).swapped():
        ...     first = torch.rand(())
        >>> with OwnRandomness("augmentation", 0).swapped():
        ...     print(bool(torch.rand(()) == first))
        True
        >>> torch.equal(torch.get_rng_state(), state)
        True
    """

    def __init__(self, *purpose: object) -> None:
        seed = seed_for(*purpose)
        # not torch.manual_seed, which would seed the GPU's generators too
        self._states = (
            generator_for(*purpose).get_state(),
            np.random.RandomState(seed).get_state(),
            random.Random(seed).getstate(),
        )

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Draw from these numbers in here, going on where the last such block ended.

        Yields:
            Nothing.
        """
        outer = _global_states()
        _set_global_states(self._states)
        try:
            yield
        finally:
            self._states = _global_states()
            _set_global_states(outer)


def _global_states() -> tuple[Any, Any, Any]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _set_global_states(states: tuple[Any, Any, Any]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
