"""The importance over all examples from the importances over shares of them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lifelong.core.importance import as_importance
from lifelong.core.protocols import Importance

# what to build of the means, and of each its name, shape and precision
Layout = tuple[type[Importance], list[tuple[str, tuple[int, ...], torch.dtype]]]


class ShareSums:
    r"""What one share of the examples adds to an importance: sums that are not divided yet.

    An importance F is a mean over examples, so that with shares r of n_r examples

        F = Σ_r n_r F_r / Σ_r n_r,

    exactly, however the examples were shared out, and whatever F is a mean of: the diagonal's
    squares, and of Kronecker factors A and G each by itself.

    Scale: each tensor is n_r · F_r, in float64, so that adding up rounds no entry of a float32
    importance. Add the shares' sums, in one process or in many, and take the mean.

    Args:
        layout: what importance the means make, which tensors there are, and in what precision
            their means are wanted.
        sums: the tensors, in the layout's order.
        count: the number of examples n_r.

    Example:
        >>> one = ShareSums.of({"w": torch.tensor([1.0])}, 3)
        >>> other = ShareSums.of({"w": torch.tensor([5.0])}, 1)
        >>> (one + other).mean()  # (3 · 1 + 1 · 5) / 4
        {'w': tensor([2.])}
    """

    def __init__(self, layout: Layout, sums: Sequence[Tensor], count: int) -> None:
        self.layout = layout
        self.sums = list(sums)
        self.count = count

    @classmethod
    def of(cls, importance: Importance | Mapping[str, Tensor], count: int) -> "ShareSums":
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
        whole = as_importance(importance)
        means = whole.tensors()
        layout = [(name, tuple(t.shape), t.dtype) for name, t in means.items()]
        return cls((type(whole), layout), [t.double() * count for t in means.values()], count)

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
            torch.zeros(shape, dtype=torch.float64, device=device) for _, shape, _ in layout[1]
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

    def mean(self) -> Importance:
        """The importance over all the examples that were added up.

        Returns:
            What the estimator returns, in its precision.

        Raises:
            ValueError: when there is no example.
        """
        if not self.count:
            raise ValueError("no share holds an example; wanted at least one in all of them")
        kind, layout = self.layout
        return kind.from_tensors(
            {
                name: (total / self.count).to(dtype)
                for (name, _, dtype), total in zip(layout, self.sums, strict=True)
            }
        )
