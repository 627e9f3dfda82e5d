"""Over which labels the score is averaged, as directions in the network's output.

The score of label c is the gradient of `log p_c`; at the logits it is `e_c − p`. Whatever the kind
of labels, one example's share of the Fisher information is `Σ_r (Jᵀ u_r)(Jᵀ u_r)ᵀ` with directions
`u_r` in the space of logits and the logits' Jacobian J: one backward pass for each direction.
"""

from collections.abc import Iterator
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

KINDS = ("exact", "sampled", "empirical")
# one of KINDS: checked with a message that names them, as it is what users type
Labels: TypeAlias = str


def check_labels(labels: Labels) -> None:
    """Refuse an unknown kind of labels.

    Args:
        labels: What came.

    Raises:
        ValueError: If it is not one of the three.
    """
    if labels not in KINDS:
        wanted = ", ".join(repr(kind) for kind in KINDS)
        raise ValueError(f"labels={labels!r} came; wanted one of {wanted}: type labels='exact'")


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
        logits: The network's output `[N, ..., C]`.

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

    def __init__(self, logits: Float[Tensor, "n *p c"]) -> None:
        self._dtype, self._shape = logits.dtype, logits.shape
        wide = logits.detach()
        wide = wide.flatten(1, -2) if wide.ndim > 2 else wide.unsqueeze(1)
        if logits.device.type != "mps":  # which has no float64
            wide = wide.double()
        self._p, self._order = wide.softmax(-1).sort(dim=-1, descending=True)
        # summed from the small end: 1 − Σ would lose what a confident network leaves
        self._tail = self._p.flip(-1).cumsum(-1).flip(-1)
        whole = self._tail[..., :-1].clamp_min(torch.finfo(wide.dtype).tiny)
        weights = (self._p[..., :-1] * self._tail[..., 1:] / whole).flatten(1)
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


def sampled_direction(
    logits: Float[Tensor, "n *p c"], generator: torch.Generator | None
) -> Float[Tensor, "n *p c"]:
    """Return `e_y − p` for one label a position, drawn from the model's own probabilities.

    Args:
        logits: The network's output `[N, ..., C]`.
        generator: Where the randomness comes from; the global generator of the CPU if None.

    Returns:
        The directions `[N, ..., C]`.
    """
    p = logits.detach().softmax(-1)
    device = torch.device("cpu") if generator is None else generator.device
    # one uniform number a label: the draw does not depend on the number of classes or the device
    uniform = torch.rand(p.shape[:-1], generator=generator, device=device, dtype=torch.float64)
    reached = uniform.to(p.device, p.dtype).unsqueeze(-1) >= p.cumsum(-1)
    y = reached.sum(-1).clamp_max(p.shape[-1] - 1)
    return _one_hot_minus(p, y)


def empirical_direction(
    logits: Float[Tensor, "n *p c"], y: Tensor | None
) -> Float[Tensor, "n *p c"]:
    """Return `e_y − p` for the given labels.

    Args:
        logits: The network's output `[N, ..., C]`.
        y: The labels `[N, ...]`, integers from 0 to C − 1.

    Returns:
        The directions `[N, ..., C]`.

    Raises:
        ValueError: If the labels are missing, of another shape or out of range.
    """
    classes = logits.shape[-1]
    if y is None or y.is_floating_point() or y.shape != logits.shape[:-1]:
        came = "no tensor" if y is None else f"{y.dtype} labels of shape {tuple(y.shape)}"
        raise ValueError(
            f"{came} came as y; wanted integers of shape {tuple(logits.shape[:-1])} for "
            "labels='empirical': correct the batches or type labels='exact'"
        )
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels from {low} to {high} came; wanted 0 to {classes - 1}, for the network has "
            f"{classes} outputs: correct the labels or type labels='exact'"
        )
    return _one_hot_minus(logits.detach().softmax(-1), y.to(logits.device).long())


def _one_hot_minus(p: Tensor, y: Tensor) -> Tensor:
    return -p.scatter_add(-1, y.unsqueeze(-1), -torch.ones_like(p[..., :1]))


def directions(
    logits: Float[Tensor, "n *p c"],
    labels: Labels,
    y: Tensor | None,
    generator: torch.Generator | None,
    needed: int | None = None,
) -> Iterator[Tensor]:
    """Yield the directions whose squared pullbacks make up the Fisher information.

    Args:
        logits: The network's output `[N, ..., C]`.
        labels: Over which labels the score is averaged.
        y: The targets, for `empirical`.
        generator: The randomness, for `sampled`.
        needed: How many of the heaviest directions of `exact` to yield; all that weigh if None.

    Yields:
        Directions `[N, ..., C]`.
    """
    logits = logits.detach()  # a direction holds no graph
    if labels == "sampled":
        yield sampled_direction(logits, generator)
    elif labels == "empirical":
        yield empirical_direction(logits, y)
    else:
        contrasts = Contrasts(logits)
        if needed is None:
            needed = int((contrasts.weights > 0).sum(dim=1).max())
        for index in range(needed):
            yield contrasts.direction(index)
