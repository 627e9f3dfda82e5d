"""Directions in a network's output whose squared pullbacks make up the Fisher information.

Whatever the likelihood, one example's share of the Fisher information is `Σ_r (Jᵀ u_r)(Jᵀ u_r)ᵀ`
with directions `u_r` in the space of outputs and the outputs' Jacobian J: one backward pass each.
Here are the directions of an exact expectation over the network's own labels.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class Directions(Protocol):
    """The directions of an exact expectation, the heaviest of each example first.

    Attributes:
        weights: The squared length that a direction brings in, falling `[N, R]`.
    """

    weights: Tensor

    def direction(self, index: int) -> Tensor:
        """Return the `index`-th direction of every example, in the shape of the output."""


class Contrasts:
    r"""The covariance of a one-hot label, split into C − 1 directions of falling weight.

    With the classes sorted by falling probability and tails `q_r = Σ_{j≥r} p_j`,

        diag(p) − p pᵀ = Σ_{r<C} w_r d_r d_rᵀ,  d_r = e_r − Σ_{j>r} (p_j / q_{r+1}) e_j,
        w_r = p_r q_{r+1} / q_r,

    each class against the mean of those less probable: the Cholesky factor of a multinomial
    covariance in closed form. So the expectation over C classes costs C − 1 backward passes,
    exactly, and `w_r ≤ min(p_r, q_{r+1})` falls with r: a confident network needs the first few.

    Scale: nothing is averaged. Several positions of one example, `[N, ..., C]`, are independent
    labels, so that the directions of all of them add up; they are sorted by weight together.

    Args:
        logits: The scores of the classes `[N, ..., C]`.
        counts: Which positions have a label at all `[N, ...]`; all if None. The directions of the
            others weigh nothing.

    Attributes:
        weights: `w_r` of every direction of each example, falling `[N, P (C − 1)]`.

    Source: Tanabe and Sagae (1992), An exact Cholesky decomposition of the multinomial covariance.

    >>> p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    >>> contrasts = Contrasts(p.log())
    >>> contrasts.weights  # p₁ q₂ / q₁ and p₂ q₃ / q₂
    tensor([[0.2500, 0.1250]], dtype=torch.float64)
    >>> u = torch.cat([contrasts.direction(0), contrasts.direction(1)])
    >>> torch.allclose(u.T @ u, torch.diag(p[0]) - p.T @ p)
    True
    """

    def __init__(
        self, logits: Float[Tensor, "n *p c"], counts: Bool[Tensor, " n *p"] | None = None
    ) -> None:
        self._dtype, self._shape = logits.dtype, logits.shape
        wide = logits.detach()
        wide = wide.flatten(1, -2) if wide.ndim > 2 else wide.unsqueeze(1)
        wide = widest(wide)
        self._p, self._order = wide.softmax(-1).sort(dim=-1, descending=True)
        # summed from the small end: 1 − Σ would lose what a confident network leaves
        self._tail = self._p.flip(-1).cumsum(-1).flip(-1)
        whole = self._tail[..., :-1].clamp_min(torch.finfo(wide.dtype).tiny)
        weights = self._p[..., :-1] * self._tail[..., 1:] / whole
        if counts is not None:
            weights = weights * counts.reshape(*weights.shape[:2], 1)
        weights = weights.flatten(1)
        self._rank: Tensor | None = None
        if wide.shape[1] > 1:
            weights, self._rank = weights.sort(dim=-1, descending=True)
        self.weights = weights

    def direction(self, index: int) -> Tensor:
        """Return the `index`-th direction of every example, `√w d`.

        Args:
            index: Which, from the heaviest.

        Returns:
            The directions, in the shape and the precision of the logits `[N, ..., C]`.
        """
        n, _, classes = self._p.shape
        example = torch.arange(n, device=self._p.device)
        if self._rank is None:
            position = torch.zeros_like(example)
            rank = torch.full_like(example, index)
        else:
            position = self._rank[:, index] // (classes - 1)
            rank = self._rank[:, index] % (classes - 1)
        p, order = self._p[example, position], self._order[example, position]
        rest = self._tail[example, position, rank + 1].unsqueeze(1)
        column = torch.arange(classes, device=p.device)
        rank = rank.unsqueeze(1)
        d = torch.where(column > rank, -p / rest, (column == rank).to(p.dtype))
        d = torch.where(rest > 0, d, 0) * self.weights[:, index : index + 1].sqrt()
        u = torch.zeros_like(self._p)
        u[example, position] = torch.zeros_like(p).scatter_(1, order, d)
        return u.to(self._dtype).view(self._shape)


class Axes:
    """The directions of outputs that are independent of each other: one axis each, `√w_d e_d`.

    Scale: nothing is averaged; an example's outputs add up.

    Args:
        information: The Fisher information w of each single output `[N, ...]`, ≥ 0.
        dtype: The precision of the directions.

    Attributes:
        weights: w, falling within each example `[N, D]`.

    >>> axes = Axes(torch.tensor([[1.0, 4.0]]), torch.float32)
    >>> axes.weights, axes.direction(0)
    (tensor([[4., 1.]]), tensor([[0., 2.]]))
    """

    def __init__(self, information: Float[Tensor, " n *d"], dtype: torch.dtype) -> None:
        self._shape, self._dtype = information.shape, dtype
        flat = information.detach().reshape(len(information), -1)
        self.weights, self._order = flat.sort(dim=-1, descending=True, stable=True)

    def direction(self, index: int) -> Tensor:
        """Return the `index`-th direction of every example, in the shape of the output.

        Args:
            index: Which, from the heaviest.

        Returns:
            The directions `[N, ...]`.
        """
        place = slice(index, index + 1)
        u = torch.zeros_like(self.weights)
        u.scatter_(1, self._order[:, place], self.weights[:, place].sqrt())
        return u.to(self._dtype).view(self._shape)


def kept_directions(weights: Tensor, threshold: int | float) -> Tensor:
    """Count the directions of each example that are needed.

    The lightest ones of all examples together are left out as long as their weights sum to at most
    the share `threshold` of the whole.

    Args:
        weights: Falling weights `[N, R]`.
        threshold: The share that may be left out; 0 leaves out what weighs nothing.

    Returns:
        How many of its first directions each example needs `[N]`.
    """
    flat = weights.flatten().sort().values
    dropped = int((flat.cumsum(0) <= threshold * flat.sum()).sum())
    if dropped == len(flat):
        return torch.zeros(len(weights), dtype=torch.long, device=weights.device)
    # ≥ the lightest one that is kept: among equals none is left out beyond the share
    return (weights >= flat[dropped]).sum(dim=1)


def widest(t: Tensor) -> Tensor:
    """Return numbers in float64, in float32 on devices that lack it."""
    return t.float() if t.device.type == "mps" else t.double()
