"""The importance over all examples from the importances over shares of them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lifelong.core.fisher.factors import KroneckerFactors

# kind ("A", "G" or "diagonal"), name of the layer or parameter, shape, precision
Layout = Sequence[tuple[str, str, tuple[int, ...], torch.dtype]]


class ShareSums:
    r"""What one share of the examples adds to an importance: sums that are not divided yet.

    An importance F is a mean over examples, so that with shares r of n_r examples

        F = Σ_r n_r F_r / Σ_r n_r,

    exactly, however the examples were shared out, and whatever F is a mean of: the diagonal's
    squares, and of Kronecker factors A and G each by itself.

    Scale: each tensor is n_r · F_r, in float64, so that adding up rounds no entry of a float32
    importance. Add the shares' sums, in one process or in many, and take the mean.

    Args:
        layout: which tensors there are, and in what precision their means are wanted.
        sums: the tensors, in the layout's order.
        count: the number of examples n_r.

    Example:
        >>> one = ShareSums.of({"w": torch.tensor([1.0])}, 3)
        >>> other = ShareSums.of({"w": torch.tensor([5.0])}, 1)
        >>> (one + other).mean()  # (3 · 1 + 1 · 5) / 4
        {'w': tensor([2.])}
    """

    def __init__(self, layout: Layout, sums: Sequence[Tensor], count: int) -> None:
        self.layout = list(layout)
        self.sums = list(sums)
        self.count = count

    @classmethod
    def of(cls, importance: Mapping[str, Tensor] | KroneckerFactors, count: int) -> "ShareSums":
        """The sums behind an importance.

        Args:
            importance: a mean over ``count`` examples.
            count: n_r ≥ 1.

        Returns:
            The sums.

        Raises:
            ValueError: when ``count`` is below 1.
        """
        if count < 1:
            raise ValueError(f"count is {count}; a mean is over at least 1 example")
        means = _tensors(importance)
        layout = [(kind, name, tuple(t.shape), t.dtype) for kind, name, t in means]
        return cls(layout, [t.double() * count for _, _, t in means], count)

    @classmethod
    def none(cls, layout: Layout, device: torch.device | str = "cpu") -> "ShareSums":
        """The sums over no example at all.

        Args:
            layout: that of another share.
            device: where the zeros are to lie.

        Returns:
            Zeros.
        """
        zeros = [
            torch.zeros(shape, dtype=torch.float64, device=device) for _, _, shape, _ in layout
        ]
        return cls(layout, zeros, 0)

    def __add__(self, other: "ShareSums") -> "ShareSums":
        """The sums over the examples of both shares.

        Args:
            other: a share of the same layout.

        Returns:
            Their sums.

        Raises:
            ValueError: when the layouts differ.
        """
        if self.layout != other.layout:
            raise ValueError(
                "two shares have importances of other names or shapes; "
                "estimate both with the same estimator and network"
            )
        pairs = zip(self.sums, other.sums, strict=True)
        return ShareSums(self.layout, [a + b for a, b in pairs], self.count + other.count)

    def mean(self) -> dict[str, Tensor] | KroneckerFactors:
        """The importance over all the examples that were added up.

        Returns:
            What the estimator returns, in its precision.

        Raises:
            ValueError: when there is no example.
        """
        if not self.count:
            raise ValueError("no share holds an example; wanted at least one in all of them")
        parts: dict[str, dict[str, Tensor]] = {"A": {}, "G": {}, "diagonal": {}, "": {}}
        for (kind, name, _, dtype), total in zip(self.layout, self.sums, strict=True):
            parts[kind][name] = (total / self.count).to(dtype)
        if parts["A"] or parts["diagonal"]:
            pairs = {name: (A, parts["G"][name]) for name, A in parts["A"].items()}
            return KroneckerFactors(pairs, parts["diagonal"])
        return parts[""]


def _tensors(
    importance: Mapping[str, Tensor] | KroneckerFactors,
) -> list[tuple[str, str, Tensor]]:
    if not isinstance(importance, KroneckerFactors):
        return [("", name, f) for name, f in importance.items()]
    found = []
    for name, (A, G) in importance.items():
        found += [("A", name, A), ("G", name, G)]
    return found + [("diagonal", name, f) for name, f in importance.diagonal.items()]
