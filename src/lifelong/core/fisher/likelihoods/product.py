"""Several outputs of one network, each with a likelihood of its own: two heads, two losses."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lifelong.core.fisher.likelihoods.base import Likelihood
from lifelong.core.fisher.likelihoods.directions import Directions


class Product(Likelihood):
    r"""Independent labels for several outputs, laid out one after another in one row an example.

        log p(y | f) = Σ_k log p_k(y_k | f_k),   so that the Fisher informations add up

    `join` makes the row `[N, D]` of the parts' outputs and one of their targets, and remembers
    their shapes; the methods take apart what was joined last.

    Args:
        parts: The likelihood of each output.

    >>> from lifelong.core import Bernoulli, Gaussian
    >>> both = Product([Gaussian(), Bernoulli()])
    >>> f, y = both.join([torch.zeros(1, 2), torch.zeros(1, 1)], [None, None])
    >>> both.exact(f, y).weights
    tensor([[1.0000, 1.0000, 0.2500]], dtype=torch.float64)
    """

    def __init__(self, parts: Sequence[Likelihood]) -> None:
        self.parts = list(parts)
        self._shapes: list[torch.Size] = []
        self._targets: list[tuple[torch.Size, torch.dtype] | None] = []

    def join(
        self, outputs: Sequence[Tensor], targets: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """Lay outputs and targets out in one row an example.

        Args:
            outputs: For each part its output `[N, ...]`.
            targets: For each part its labels `[N, ...]`, None where it has none.

        Returns:
            The row of outputs `[N, D]`, and that of the targets in float64, None without any.
        """
        self._shapes = [f.shape[1:] for f in outputs]
        self._targets = [None if y is None else (y.shape[1:], y.dtype) for y in targets]
        given = [y.reshape(len(y), -1).double() for y in targets if y is not None]
        row = torch.cat([f.reshape(len(f), -1) for f in outputs], dim=1)
        return row, torch.cat(given, dim=1) if given else None

    def check(self, output: Tensor) -> None:
        """Refuse what a part refuses.

        Args:
            output: The row of outputs.
        """
        for part, f in zip(self.parts, self._outputs(output), strict=True):
            part.check(f)

    def log_prob(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return the sum of the parts' log-probabilities.

        Args:
            output: The row of outputs.
            target: The row of targets.

        Returns:
            For each example its log-probability `[N]`.
        """
        each = zip(self.parts, self._outputs(output), self._labels(target), strict=True)
        return torch.stack([part.log_prob(f, y) for part, f, y in each]).sum(dim=0)

    def divergence(self, before: Tensor, after: Tensor, target: Tensor | None) -> Tensor:
        """Return the sum of the parts' divergences.

        Args:
            before: The row of outputs of the network as it was.
            after: That of the network as it is.
            target: The row of targets; they say at most which positions count.

        Returns:
            For each example its divergence in nats `[N]`.
        """
        each = zip(
            self.parts,
            self._outputs(before),
            self._outputs(after),
            self._labels(target),
            strict=True,
        )
        return torch.stack([part.divergence(f, g, y) for part, f, g, y in each]).sum(dim=0)

    def uncertainty(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return the sum of the parts' uncertainties.

        Args:
            output: The row of outputs.
            target: The row of targets; they say at most which positions count.

        Returns:
            For each example a number of at least 0 `[N]`.
        """
        each = zip(self.parts, self._outputs(output), self._labels(target), strict=True)
        return torch.stack([part.uncertainty(f, y) for part, f, y in each]).sum(dim=0)

    def sampled(
        self, output: Tensor, target: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """Return the scores of labels that every part draws by itself.

        Args:
            output: The row of outputs.
            target: The row of targets; they say at most which positions count.
            generator: The randomness.

        Returns:
            The directions, as a row.
        """
        each = zip(self.parts, self._outputs(output), self._labels(target), strict=True)
        return _row([part.sampled(f, y, generator) for part, f, y in each])

    def exact(self, output: Tensor, target: Tensor | None) -> Directions:
        """Return the directions of all parts, the heaviest of each example first.

        Args:
            output: The row of outputs.
            target: The row of targets.

        Returns:
            The directions.
        """
        each = zip(self.parts, self._outputs(output), self._labels(target), strict=True)
        return _Merged([part.exact(f, y) for part, f, y in each], output)

    def _outputs(self, row: Tensor) -> list[Tensor]:
        sizes = [shape.numel() for shape in self._shapes]
        found = zip(row.split(sizes, dim=1), self._shapes, strict=True)
        return [piece.reshape(len(row), *shape) for piece, shape in found]

    def _labels(self, row: Tensor | None) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        start = 0
        for kind in self._targets:
            if kind is None or row is None:
                found.append(None)
                continue
            shape, dtype = kind
            piece = row[:, start : start + shape.numel()]
            start += shape.numel()
            found.append(piece.reshape(len(row), *shape).to(dtype))
        return found


class _Merged:
    """Directions of several parts, sorted together within each example."""

    def __init__(self, parts: Sequence[Directions], output: Tensor) -> None:
        self._parts, self._output = parts, output.detach()
        weights = torch.cat([part.weights for part in parts], dim=1)
        self.weights, self._order = weights.sort(dim=1, descending=True, stable=True)

    def direction(self, index: int) -> Tensor:
        """Return the `index`-th direction of every example, zero in the other parts."""
        places = self._order[:, index]
        found = torch.zeros_like(self._output)
        for place in places.unique().tolist():
            part, local, columns = self._place(place)
            rows = places == place
            whole = part.direction(local).reshape(len(found), -1)
            found[rows, columns] = whole[rows]
        return found

    def _place(self, place: int) -> tuple[Directions, int, slice]:
        column = 0
        for part in self._parts:
            width = part.direction(0)[0].numel()
            if place < part.weights.shape[1]:
                return part, place, slice(column, column + width)
            place -= part.weights.shape[1]
            column += width
        raise IndexError(place)


def _row(pieces: Sequence[Tensor]) -> Tensor:
    return torch.cat([piece.reshape(len(piece), -1) for piece in pieces], dim=1)
