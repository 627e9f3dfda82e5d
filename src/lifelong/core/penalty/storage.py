"""F̄ in fewer bytes, in memory and in files: bfloat16, or logarithms of one byte."""

from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor

Storage = Literal["float32", "bfloat16", "log8"]
OCTAVES = 48  # what 254 steps of a logarithm reach down from the largest F
LEVELS = 255


def check_storage(storage: str) -> None:
    """Refuse a way to keep F̄ that is none.

    Args:
        storage: what came.

    Raises:
        ValueError: when it is none of ``Storage``.
    """
    if storage not in get_args(Storage):
        wanted = ", ".join(get_args(Storage))
        raise ValueError(f"storage is {storage!r}; it must be one of {wanted}")


def to_bfloat16(f: Tensor, draws: Generator | None = None) -> Tensor:
    """F in two bytes an entry.

    Args:
        f: F ≥ 0, [*shape].
        draws: without it each entry goes to the nearest number, off by at most 2⁻⁸ of itself; with
            it to one of its two neighbours at random, off by less than 2⁻⁷ and right in the mean.

    Returns:
        F in bfloat16, [*shape].
    """
    if draws is None:
        return f.to(torch.bfloat16)
    # The upper half of a float32 is a bfloat16: what is added to the lower half carries over with
    # just the probability that the lower half is of a whole step.
    bits = f.float().view(torch.int32)
    more = torch.randint(1 << 16, f.shape, generator=draws, dtype=torch.int32).to(f.device)
    return ((bits + more) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def to_log8(f: Tensor, draws: Generator | None = None) -> tuple[Tensor, Tensor]:
    """F in one byte an entry: 0, or one of 255 levels in equal ratios.

    The levels reach from the largest F down to the smallest, or over 48 octaves, where a step is a
    factor of 1.14 at most. What lies below them is 0, or in the mean of what is drawn itself.

    Args:
        f: F ≥ 0, [*shape].
        draws: without it each entry goes to the level that is nearest in its logarithm, off by at
            most 6.8 %; with it to one of its two neighbours at random, off by less than 14 % and
            right in the mean.

    Returns:
        The levels' numbers, uint8 [*shape], and [2] in float32: log₂ of level 1, and a step.
    """
    logs = f.detach().double().log2()
    finite = logs[torch.isfinite(logs)]
    if not finite.numel():
        return torch.zeros_like(f, dtype=torch.uint8), torch.zeros(2, device=f.device)
    top = float(finite.max())
    low = max(float(finite.min()), top - OCTAVES)
    scale = torch.tensor([low, (top - low) / (LEVELS - 1) or 1.0], dtype=torch.float32)
    low, step = scale.double().tolist()
    places = logs.sub_(low).div_(step)
    if draws is None:
        places = places.round_().add_(1)
    else:
        # Between two levels a < x < b the upper one with probability (x − a) / (b − a).
        below = places.floor().clamp_(min=-1)
        share = torch.exp2((places - below).mul_(step)).sub_(1).div_(2**step - 1)
        share = torch.where(below < 0, torch.exp2(places.mul_(step)), share)
        drawn = torch.rand(f.shape, generator=draws, dtype=torch.float64).to(f.device)
        places = below.add_(1).add_(drawn < share)
    codes = places.nan_to_num_(neginf=0.0).clamp_(0, LEVELS)
    return codes.to(torch.uint8), scale.to(f.device)


def from_log8(codes: Tensor, scale: Tensor) -> Tensor:
    """What ``to_log8`` kept.

    Args:
        codes: the levels' numbers, uint8 [*shape].
        scale: [2], log₂ of level 1 and a step.

    Returns:
        F in float32, [*shape].
    """
    return _looked_up(codes, _levels(scale, codes.device))


def rekeyed(
    state: MutableMapping[str, Any], prefix: str, names: Iterable[str], storage: str
) -> None:
    """Make a penalty's state one whose F̄ is kept in another way.

    Args:
        state: of a penalty, changed: ``importance.NAME``, with ``scale.NAME`` beside it in log8,
            and ``folds`` in all but float32.
        prefix: of its keys.
        names: of the parameters.
        storage: how F̄ is to be kept; what is kept so already stays bit for bit.
    """
    for name in names:
        numbers, scale = f"{prefix}importance.{name}", f"{prefix}scale.{name}"
        f = state[numbers]
        kind = {torch.uint8: "log8", torch.bfloat16: "bfloat16"}.get(f.dtype, "float32")
        if kind == storage:
            continue
        f = Kept(f, state.pop(scale, None)).decoded()
        if storage == "log8":
            state[numbers], state[scale] = to_log8(f)
        else:
            state[numbers] = to_bfloat16(f) if storage == "bfloat16" else f
    if storage == "float32":
        state.pop(f"{prefix}folds", None)
    else:
        state.setdefault(f"{prefix}folds", torch.zeros((), dtype=torch.int64))


class Kept:
    """The importance of one parameter as it is kept.

    Args:
        numbers: F itself, or the levels' numbers, [*shape].
        scale: [2] of levels, see ``to_log8``; None where the numbers are F.
    """

    def __init__(self, numbers: Tensor, scale: Tensor | None = None) -> None:
        self.numbers = numbers
        self._levels = None if scale is None else _levels(scale, numbers.device)

    def to(self, device: torch.device) -> "Kept":
        """The same on another device; only what is kept is copied.

        Args:
            device: where to.

        Returns:
            The same object where it is there already.
        """
        if self.numbers.device == device:
            return self
        levels = None if self._levels is None else self._levels.to(device)
        return self._with(self.numbers.to(device, non_blocking=True), levels)

    def pieces(self, size: int) -> Iterator["Kept"]:
        """The same in pieces.

        Args:
            size: entries of each but the last.

        Yields:
            So many entries as a vector.
        """
        for numbers in self.numbers.view(-1).split(size):
            yield self._with(numbers, self._levels)

    def decoded(self, dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
        """F.

        Args:
            dtype: of the result; by default that of F itself, float32 where it is kept in less.
            out: a float32 vector that may take the result.

        Returns:
            F, [*shape]; what is kept itself where that is the same.
        """
        if self._levels is not None:
            f = _looked_up(self.numbers, self._levels, out)
            return f if dtype is None else f.to(dtype)
        if dtype is None:
            dtype = torch.float32 if self.numbers.dtype == torch.bfloat16 else self.numbers.dtype
        return self.numbers.to(dtype)

    def largest(self) -> float:
        """The largest entry; 0 where there is none.

        Returns:
            F_max.
        """
        if not self.numbers.numel():
            return 0.0
        return float(self._with(self.numbers.max().reshape(1), self._levels).decoded())

    @staticmethod
    def _with(numbers: Tensor, levels: Tensor | None) -> "Kept":
        kept = Kept(numbers)
        kept._levels = levels
        return kept


def _levels(scale: Tensor, device: torch.device) -> Tensor:
    # What each of the 256 numbers stands for. A look-up is exact on every device, also where the
    # function 2ˣ is not, and takes 0.9 ns an entry on one core.
    low, step = scale.double().tolist()
    exponents = torch.arange(-1, LEVELS, dtype=torch.float64).mul_(step).add_(low)
    values = torch.exp2(exponents).float()
    values[0] = 0.0
    return values.to(device)


def _looked_up(codes: Tensor, levels: Tensor, out: Tensor | None = None) -> Tensor:
    flat = codes.reshape(-1).int()
    if out is not None and out.shape == flat.shape:
        return torch.index_select(levels, 0, flat, out=out).view(codes.shape)
    return levels.index_select(0, flat).view(codes.shape)
