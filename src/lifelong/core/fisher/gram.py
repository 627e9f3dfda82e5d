"""Sums of outer products, Σ_n x_n x_nᵀ, taken half and mirrored."""

import torch
from torch import Tensor

# Blocks of columns: of b × b of them only b (b + 1) / 2 are multiplied. Smaller ones would make the
# products too small to be fast.
BLOCK = 256
# Rows that are summed in their own precision before the sum goes into the wide one.
ROWS = 4096


class Gram:
    """The sum of outer products of all rows that it was given, in float64 where the device has it.

    Args:
        size: the length of a row.
        device: where the rows lie.

    Example:
        >>> gram = Gram(2, torch.device("cpu"))
        >>> gram.add(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        >>> gram.total()  # [1, 2]ᵀ[1, 2] + [0, 1]ᵀ[0, 1]
        tensor([[1., 2.],
                [2., 5.]], dtype=torch.float64)
    """

    def __init__(self, size: int, device: torch.device) -> None:
        wide = torch.float32 if device.type == "mps" else torch.float64
        self._sum = torch.zeros(size, size, dtype=wide, device=device)
        self._part: Tensor | None = None
        self._held = 0
        self._starts = range(0, size, BLOCK)

    def add(self, rows: Tensor, weight: float = 1.0) -> None:
        """Add weight · Σ_n x_n x_nᵀ.

        Args:
            rows: x, [n, size].
            weight: a factor.
        """
        if self._held + len(rows) > ROWS:
            self._flush()
        if self._part is None:
            self._part = torch.zeros_like(self._sum, dtype=rows.dtype)
        for i in self._starts:
            # the lower triangle, a strip of blocks at a time
            strip = self._part[i : i + BLOCK, : i + BLOCK]
            strip.addmm_(rows[:, i : i + BLOCK].T, rows[:, : i + BLOCK], alpha=weight)
        self._held += len(rows)

    def total(self) -> Tensor:
        """The sum.

        Returns:
            A symmetric matrix, [size, size].
        """
        self._flush()
        lower = self._sum.tril()
        return lower + lower.tril(-1).T

    def _flush(self) -> None:
        if self._part is not None and self._held:
            self._sum += self._part
            self._part.zero_()
        self._held = 0
