"""A softmax over classes, for each example or each of its positions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lifelong.core.fisher.likelihoods.base import (
    Likelihood,
    at_least_float32,
    check_finite,
    uniform,
)
from lifelong.core.fisher.likelihoods.directions import Contrasts, Directions, widest


class Categorical(Likelihood):
    r"""A softmax over classes: one label an example, or one at each of its positions.

        log p(y | z) = Σ_t (z_{t, y_t} − log Σ_c exp z_{t, c})

    Scale: the positions of an example (tokens, pixels) are independent labels and add up. Exact
    labels add the outer products of every position's own score. Sampled and empirical labels square
    the example's score, which is the sum over its positions; the expectation is the same. Where the
    training loss is a mean over the P positions of an example, F is P times the curvature of that
    loss: there λ means what it does for one label an example if it is divided by P.

    Args:
        class_dim: The dimension that counts classes. If None it follows from the shape of the
            targets, and is the last one where there are none.
        ignore_index: Positions with this target count for nothing, whatever the kind of labels. An
            example of which no position is left still counts as an example.
        active: The classes that take part in the softmax, all if None. Targets keep their numbers.

    Raises:
        ValueError: If fewer than two different classes are active.

    >>> z = torch.zeros(1, 2, 3)  # two classes in dimension 1, three positions
    >>> Categorical().empirical(z, torch.tensor([[0, 1, -100]]))  # e_y − p
    tensor([[[ 0.5000, -0.5000,  0.0000],
             [-0.5000,  0.5000,  0.0000]]])
    """

    def __init__(
        self,
        class_dim: int | None = None,
        ignore_index: int = -100,
        active: Sequence[int] | None = None,
    ) -> None:
        self.class_dim, self.ignore_index = class_dim, ignore_index
        self.active = None if active is None else tuple(int(c) for c in active)
        if self.active is not None and (len(set(self.active)) < 2 or min(self.active) < 0):
            raise ValueError(
                f"active={self.active} came; wanted two different classes or more: type active=None"
            )

    def check(self, output: Tensor) -> None:
        """Refuse an output that cannot be scores of classes.

        Args:
            output: The network's output `[N, ..., C, ...]`.

        Raises:
            ValueError: If it has no dimension of classes, or a score is not finite.
        """
        dim = -1 if self.class_dim is None else self.class_dim
        if output.ndim < 2 or not -output.ndim < dim < output.ndim or dim == 0:
            raise ValueError(_no_scores(output))
        if self.active is None:
            check_finite(output)

    def log_prob(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return `log p(target | output)`, summed over the positions that count.

        Args:
            output: The network's output `[N, ..., C, ...]`.
            target: The labels `[N, ...]`.

        Returns:
            For each example its log-probability in nats `[N]`.
        """
        logits, _ = self._logits(output, target)
        y, counts = self._labels(logits, target)
        log_p = logits.log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
        return log_p.where(counts, 0).reshape(len(output), -1).sum(dim=1)

    def divergence(self, before: Tensor, after: Tensor, target: Tensor | None) -> Tensor:
        """Return `Σ_c p_c (log p_c − log q_c)`, the mean over the positions that count.

        Args:
            before: The scores `[N, ..., C, ...]` whose softmax is p.
            after: Those whose softmax is q.
            target: The labels `[N, ...]`, which say what is ignored; None where there are none.

        Returns:
            For each example its divergence in nats `[N]`; 0 where no position counts.
        """
        p, _ = self._logits(before, target)
        q, _ = self._logits(after, target)
        return _mean_over(self._counts(p, target), kl_of_classes(p, q))

    def uncertainty(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return `1 − Σ_c p_c²`, the mean over the positions that count.

        Args:
            output: The scores `[N, ..., C, ...]`.
            target: The labels `[N, ...]`, which say what is ignored; None where there are none.

        Returns:
            For each example a number from 0 to 1 `[N]`.
        """
        logits, _ = self._logits(output, target)
        each = 1 - at_least_float32(logits).softmax(-1).square().sum(-1)
        return _mean_over(self._counts(logits, target), each)

    def exact(self, output: Tensor, target: Tensor | None) -> Directions:
        """Return the `C − 1` contrasts of every position, see `Contrasts`.

        Args:
            output: The network's output `[N, ..., C, ...]`.
            target: The labels `[N, ...]`, which say what is ignored; None where there are none.

        Returns:
            The directions.
        """
        logits, dim = self._logits(output, target)
        contrasts = Contrasts(logits, self._counts(logits, target))
        if dim == output.ndim - 1 and self.active is None:
            return contrasts
        return _Placed(contrasts, self, output, dim)

    def sampled(
        self, output: Tensor, target: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """Return `e_y − p` for one label a position, drawn from the network's own probabilities.

        Args:
            output: The network's output `[N, ..., C, ...]`.
            target: The labels `[N, ...]`, which say what is ignored; None where there are none.
            generator: Where the randomness comes from; the global generator of the CPU if None.

        Returns:
            The directions, in the shape of the output.
        """
        logits, dim = self._logits(output.detach(), target)
        counts = self._counts(logits, target)
        p = at_least_float32(logits).softmax(-1)
        # one uniform number a label: the draw depends on neither the number of classes nor device
        draws = uniform(p.shape[:-1], generator).to(p.device, p.dtype)
        y = (draws.unsqueeze(-1) >= p.cumsum(-1)).sum(-1).clamp_max(p.shape[-1] - 1)
        return self.placed(_one_hot_minus(p, y, counts), output, dim)

    def empirical(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return `e_y − p` for the given labels.

        Args:
            output: The network's output `[N, ..., C, ...]`.
            target: The labels `[N, ...]`, integers.

        Returns:
            The directions, in the shape of the output.
        """
        logits, dim = self._logits(output.detach(), target)
        y, counts = self._labels(logits, target)
        p = at_least_float32(logits).softmax(-1)
        return self.placed(_one_hot_minus(p, y, None if counts.all() else counts), output, dim)

    def placed(self, u: Tensor, output: Tensor, dim: int) -> Tensor:
        """Put directions over the active classes where the output has these classes.

        Args:
            u: Directions over the active classes `[N, ..., A]`.
            output: The network's output `[N, ..., C, ...]`.
            dim: Its dimension of classes.

        Returns:
            The directions, in the shape and precision of the output.
        """
        u = u.to(output.dtype)
        if self.active is not None:
            whole = u.new_zeros(*u.shape[:-1], output.shape[dim])
            u = whole.index_copy(-1, torch.tensor(self.active, device=u.device), u)
        return u.movedim(-1, dim)

    def _logits(self, output: Tensor, target: Tensor | None) -> tuple[Tensor, int]:
        # the scores of the active classes, classes last, and the output's dimension of classes
        dim = self._dim(output, target)
        if output.shape[dim] < 2:
            raise ValueError(_no_scores(output))
        logits = output.movedim(dim, -1)
        if self.active is not None:
            if max(self.active) >= logits.shape[-1]:
                raise ValueError(
                    f"active={self.active} came; wanted classes from 0 to {logits.shape[-1] - 1}, "
                    "for the network has no more outputs"
                )
            logits = logits[..., list(self.active)]
            check_finite(logits)
        return logits, dim

    def _dim(self, output: Tensor, target: Tensor | None) -> int:
        if self.class_dim is not None:
            return self.class_dim % output.ndim
        last = output.ndim - 1
        if target is None or target.is_floating_point() or target.ndim != last:
            return last
        fitting = [
            d for d in range(1, output.ndim) if _without(output.shape, d) == tuple(target.shape)
        ]
        if len(fitting) > 1:
            raise ValueError(
                f"an output of shape {tuple(output.shape)} came with targets of shape "
                f"{tuple(target.shape)}, which leave open what counts classes: pass "
                f"likelihood=Categorical(class_dim={fitting[0]}) or class_dim={fitting[-1]}"
            )
        return fitting[0] if fitting else last

    def _counts(self, logits: Tensor, target: Tensor | None) -> Tensor | None:
        # which positions count, None for all; whether a label is a class matters to its score alone
        if target is None or target.is_floating_point():
            return None
        counts = self._fitting(logits, target) != self.ignore_index
        return None if counts.all() else counts

    def _fitting(self, logits: Tensor, y: Tensor | None) -> Tensor:
        if y is None or y.is_floating_point() or y.shape != logits.shape[:-1]:
            came = "no tensor" if y is None else f"{y.dtype} labels of shape {tuple(y.shape)}"
            raise ValueError(
                f"{came} came as targets; wanted integers of shape {tuple(logits.shape[:-1])} for "
                f"class scores of shape {tuple(logits.shape)}: correct the batches, or pass "
                "likelihood= or forward= (labels='exact' needs no targets)"
            )
        return y.to(logits.device)

    def _labels(self, logits: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        # numbers within the active classes, and which positions count
        y = self._fitting(logits, target).long()
        counts = y != self.ignore_index
        if self.active is not None:
            places = (y.unsqueeze(-1) == y.new_tensor(self.active)).int()
            y, known = places.argmax(-1), places.any(-1)
            wanted = f"one of the active classes {list(self.active)}"
        else:
            known = (y >= 0) & (y < logits.shape[-1])
            wanted = f"0 to {logits.shape[-1] - 1}"
        if not bool((known | ~counts).all()):
            raise ValueError(_strange(y if self.active is None else None, counts, wanted))
        return y.where(counts, 0), counts


def kl_of_classes(before: Tensor, after: Tensor) -> Tensor:
    """Return `Σ_c p_c (log p_c − log q_c)` in nats, p and q the softmax of the last dimension.

    Args:
        before: The scores `[..., C]` of p.
        after: Those of q.

    Returns:
        The divergence of each position `[...]`, differentiable in both.

    >>> kl_of_classes(torch.zeros(2), torch.tensor([1.0, 1.0]))  # the same softmax
    tensor(0.)
    """
    log_p, log_q = (at_least_float32(scores).log_softmax(-1) for scores in (before, after))
    # a class that p rules out adds nothing, whatever q says of it
    return (log_p.exp() * (log_p - log_q)).where(log_p > -torch.inf, 0).sum(-1)


class Assumed(Categorical):
    """What is assumed where no likelihood is named: a softmax, unless the batches contradict."""

    def _logits(self, output: Tensor, target: Tensor | None) -> tuple[Tensor, int]:
        logits, dim = super()._logits(output, target)
        wide = widest(logits.detach())
        off = (wide.sum(-1) - 1).abs().max()
        if bool((wide >= 0).all()) and off < 8 * wide.shape[-1] * torch.finfo(output.dtype).eps:
            raise ValueError(
                f"the network's output of shape {tuple(output.shape)} is ≥ 0 and sums to 1: these "
                "are probabilities; wanted scores before the softmax: pass forward= that returns "
                "them, or the logarithms of the probabilities"
            )
        return logits, dim

    def _dim(self, output: Tensor, target: Tensor | None) -> int:
        if target is not None and (target.is_floating_point() or target.is_complex()):
            raise ValueError(
                f"{target.dtype} targets of shape {tuple(target.shape)} came for an output of "
                f"shape {tuple(output.shape)}; wanted integer classes: pass likelihood=Gaussian() "
                "for numbers, Bernoulli() for yes-or-no labels, Categorical() for class "
                "probabilities, or forward= if this is no target"
            )
        return super()._dim(output, target)


class _Placed:
    """Contrasts of the active classes, brought to where the output has them."""

    def __init__(self, inner: Contrasts, owner: Categorical, output: Tensor, dim: int) -> None:
        self.weights = inner.weights
        self._inner, self._owner, self._output, self._dim = inner, owner, output.detach(), dim

    def direction(self, index: int) -> Tensor:
        return self._owner.placed(self._inner.direction(index), self._output, self._dim)


def _mean_over(counts: Tensor | None, each: Tensor) -> Tensor:
    # over the positions that count, 0 where none does
    if counts is None:
        return each.reshape(len(each), -1).mean(dim=1)
    number = counts.reshape(len(each), -1).sum(dim=1).clamp_min(1)
    return each.where(counts, 0).reshape(len(each), -1).sum(dim=1) / number


def _one_hot_minus(p: Tensor, y: Tensor, counts: Tensor | None) -> Tensor:
    u = -p.scatter_add(-1, y.unsqueeze(-1), -torch.ones_like(p[..., :1]))
    return u if counts is None else u.where(counts.unsqueeze(-1), 0)


def _strange(y: Tensor | None, counts: Tensor, wanted: str) -> str:
    if y is None:
        return f"labels outside the active classes came; wanted {wanted}: correct the batches"
    low, high = int(y[counts].min()), int(y[counts].max())
    return (
        f"labels from {low} to {high} came; wanted {wanted}, for the network has that many "
        "outputs: correct the labels, or pass likelihood=Categorical(ignore_index=...) if one of "
        "them means no label"
    )


def _no_scores(output: Tensor) -> str:
    return (
        f"the network's output has shape {tuple(output.shape)}; wanted the scores of C ≥ 2 classes "
        "[N, ..., C]: pass likelihood=Gaussian() for numbers, Bernoulli() for one logit a "
        "yes-or-no label, Categorical(class_dim=...) for another dimension, or forward="
    )


def _without(shape: torch.Size, dim: int) -> tuple[int, ...]:
    return (*shape[:dim], *shape[dim + 1 :])
