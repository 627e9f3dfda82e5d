"""The diagonal of the Fisher information, exact and in batches, for every network."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.core.fisher.capture import Call, Capture, uses_of_parameters
from lifelong.core.fisher.evaluation import AnyLikelihood, Evaluation, Forward, total
from lifelong.core.fisher.likelihoods.base import Labels
from lifelong.core.fisher.passes import Chunk, Plan, Progress, chunks
from lifelong.core.fisher.per_example import looped_squares, vectorised_squares
from lifelong.core.fisher.rules import LINEAR, rule_for
from lifelong.core.fisher.squares import (
    BLOCK,
    BlockSquares,
    LinearSquares,
    Measure,
    Source,
    Squares,
    TokenSquares,
)
from lifelong.core.fisher.traceless import thawed, traceless
from lifelong.core.importance import DiagonalImportance

# the error on trained perceptrons is about this share: a third of the promised 1e-6
THRESHOLD = 3e-7


def fisher_diagonal(
    network: nn.Module,
    batches: Iterable[Any],
    *,
    labels: Labels = "exact",
    likelihood: AnyLikelihood | None = None,
    forward: Forward | None = None,
    samples: int | None = None,
    threshold: int | float = THRESHOLD,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
    chunk: int | None = None,
    include_frozen: bool = False,
) -> DiagonalImportance:
    """Return how much each parameter matters to the predictions, the Fisher information's diagonal.

        F_i = (1/N) Σ_n E_y [(∂ log p(y | x_n) / ∂θ_i)²]

    Scale: a mean over examples of squared scores of single examples, in nats per squared unit of
    the parameter. It does not grow with the number of examples, and how they are cut into batches
    makes no difference. Where an example has several labels (tokens, pixels, outputs) its score is
    their sum: exact labels add the squares of each label's own score, sampled and empirical ones
    square the sum, with the same expectation. For a training loss that is a mean over the P labels
    of an example F is P times that loss's curvature: divide λ by P.

    Exact labels take the expectation over the network's own probabilities p, in C − 1 backward
    passes for C classes. With the classes sorted by falling probability, ḡ the mean score of those
    after r, tails `q_r = Σ_{j≥r} p_j` and weights `w_r = p_r q_{r+1} / q_r`,

        Σ_c p_c g_c² = Σ_{r<C} w_r (g_r − ḡ)².

    Of these terms the lightest are left out: those whose weights sum to at most `threshold` times
    the weights of all terms (of some thousand examples at a time). Every term is ≥ 0, so that no
    entry gets too large, and the trace falls short, and the absolute errors sum up, by at most the
    share `threshold · max ‖g_r − ḡ‖² / mean ‖g_r − ḡ‖²` (maximum over the terms left out, mean over
    all, weighted). Measured at the default on perceptrons 784-1024-512-256-128-128-10 after 1 and 5
    epochs of MNIST: 2.4e-7 and 3.1e-7. With 0 the sum is the true one.

    Linear, Conv1d, Conv2d, Embedding, LayerNorm, GroupNorm, BatchNorm, self-attention
    (MultiheadAttention, Transformer layers) and LSTM, GRU, RNN take all examples of a chunk at
    once. Parameters that are used in any other way take per-example gradients: the same
    numbers, more slowly. The network is evaluated in eval mode, without autocast, and left as it
    was. A network that `torch.compile` wrapped is evaluated as it was written.

    Args:
        network: The network, on any device. Its output is a tensor `[N, ...]`, an object with
            `.logits`, a mapping with "logits" or a tuple that begins with it.
        batches: Batches with the examples along the first dimension of each tensor `[N, ...]`.
            Pairs `(x, y)`, longer tuples (whose first two entries count), or dicts of keyword
            arguments with the targets under "labels", "label", "targets" or "target" (not handed
            to the network). A tuple or list x becomes the network's arguments, a dict x its keyword
            arguments. Exact and sampled labels look at y only for what it leaves out.
        labels: "exact", the expectation over the network's probabilities; "sampled", one draw from
            them; "empirical", the y of the batches. Exact ones take a backward pass for each
            position and each class but one, or for each output; the others one in all.
        likelihood: What the output says about the labels: `Categorical(...)`, `Gaussian(...)`,
            `Bernoulli()`, a `Likelihood` of one's own, or, for empirical labels, a function of
            `(network, batch)` that returns log-likelihoods `[N]`. If None a softmax over classes is
            assumed; targets that contradict it are refused.
        forward: A function of `(network, batch)`, or of the batch, that returns the output or
            `(output, target)`, for networks and batches of another form.
        samples: Use the first so many examples only (shuffle the batches if they are ordered).
        threshold: The share of the labels' variance that exact labels may leave out, below 1.
        generator: The randomness of sampled labels; the global one if None, its state is put back.
        progress: Called with the number of examples done and in all (None where unknown).
        chunk: How many examples are evaluated at once; by memory, at most 512, if None.
        include_frozen: Whether parameters that require no gradient now get an F, too (a backbone
            that later tasks will unfreeze).

    Returns:
        A dictionary: for the name of every parameter that requires a gradient a tensor of its
        shape; zeros where the output does not depend on it. The names are those of the network that
        is not compiled, as in `parameters_by_name(network)`.

    Raises:
        ValueError: If there is no example, a batch or an output does not fit the likelihood or is
            not finite, the output has no graph, F is zero everywhere, examples of a batch influence
            each other, the targets do not fit, or an option is out of range.

    Source: Kirkpatrick et al. (2017), Overcoming catastrophic forgetting, eq. 3; Martens (2020),
    New insights and perspectives on the natural gradient method, for the expectation over the
    network's own labels.

    >>> network = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.zeros_(network.weight)  # so p = (½, ½) for every x
    >>> batches = [(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))]
    >>> fisher_diagonal(network, batches)["weight"]  # mean of p (1 − p) x² = ¼ (1 + 9) / 2
    tensor([[1.2500],
            [1.2500]])
    """  # noqa: DOC502 - raised by what is called
    evaluation = Evaluation(network, forward, likelihood)
    plan = Plan(labels, samples, threshold, generator, progress, chunk)
    plan.total = total(evaluation, batches, samples)
    with (
        traceless(evaluation.network),
        thawed(evaluation.network, include_frozen),
        Capture(evaluation, lambda m: rule_for(m) is not None) as capture,
    ):
        diagonal = Diagonal(evaluation)
        for part in chunks(capture, evaluation.pairs(batches), plan):
            diagonal.add(part)
        found = DiagonalImportance(diagonal.mean(plan.done))
    not_all_zero(found.values(), found)
    return found


class Diagonal:
    """The sum of squared scores over the chunks that it was given.

    Args:
        evaluation: The network, and how it is evaluated.
        measure: What becomes of each gradient of an example before it is summed.
    """

    def __init__(self, evaluation: Evaluation, measure: Measure = torch.square) -> None:
        self._evaluation, self._measure = evaluation, measure
        self._params = evaluation.parameters_by_name()
        self._name = {p: n for n, p in self._params.items()}
        self._vectorise = True
        self._total = {
            n: torch.zeros_like(p, dtype=_wide(p), memory_format=torch.contiguous_format)
            for n, p in self._params.items()
        }

    def add(self, chunk: Chunk) -> None:
        """Add the squared scores of a chunk.

        Args:
            chunk: The examples, their graph and the directions to pull back.
        """
        covered, rest = self._sources(chunk)
        squares = self._squares(covered)
        kept: list[Tensor] = []
        for direction in chunk.directions if squares or rest else ():
            if squares:
                deltas = Capture.gradients(chunk.output, direction, chunk.calls)
                for one in squares:
                    one.add(deltas)
            if rest:
                kept.append(direction)
                if (len(kept) + 1) * direction.numel() > BLOCK:
                    self._fall_back(chunk, rest, kept)
                    kept = []
        for one in squares:
            one.finish(self._total)
        if kept:
            self._fall_back(chunk, rest, kept)

    def mean(self, n: int) -> dict[str, Tensor]:
        """Return the sums divided by the number of examples, in the parameters' precision.

        Args:
            n: The number of examples.

        Returns:
            The diagonal, by the parameters' names.
        """
        return {name: (t / n).to(self._params[name].dtype) for name, t in self._total.items()}

    def _sources(self, chunk: Chunk) -> tuple[dict[str, list[Source]], dict[str, nn.Parameter]]:
        # parameters whose every use is a call that a rule covers, and the rest that is used
        uses, nodes = uses_of_parameters(chunk.output)
        sources: dict[str, list[Source]] = {}
        covered_uses: dict[str, int] = {}
        for index, one in enumerate(chunk.calls):
            if one.edge.node not in nodes:
                continue
            for parameter, (role, times) in one.parts.items():
                source = _source(chunk, one, index, role)
                if source is not None and parameter in self._name:
                    name = self._name[parameter]
                    sources.setdefault(name, []).append(source)
                    covered_uses[name] = covered_uses.get(name, 0) + times
        used = {p: k for p, k in uses.items() if p in self._name}
        covered = {
            name: found
            for name, found in sources.items()
            if used.get(self._params[name]) == covered_uses[name]
        }
        rest = {self._name[p]: p for p in used if self._name[p] not in covered}
        return covered, rest

    def _squares(self, sources: dict[str, list[Source]]) -> list[Squares]:
        squares: list[Squares] = []
        linear: dict[int, dict[str, tuple[str, Source]]] = {}
        room = BLOCK // max(1, len(sources))
        for name, found in sources.items():
            first = found[0]
            alone = len(found) == 1
            if alone and first.meets_once:
                linear.setdefault(first.index, {})[first.name] = (name, first)
            elif alone and isinstance(first.module, nn.Embedding):
                squares.append(TokenSquares(first, name, self._measure))
            else:
                numel = self._params[name].numel()
                squares.append(BlockSquares(found, name, numel, room, self._measure))
        for parts in linear.values():
            weight_name, weight = parts.get("weight", ("", None))
            bias_name, bias = parts.get("bias", ("", None))
            names = weight_name, bias_name
            squares.append(LinearSquares(weight, bias, names, self._measure))
        return squares

    def _fall_back(
        self, chunk: Chunk, rest: dict[str, nn.Parameter], kept: Sequence[Tensor]
    ) -> None:
        found = None
        if self._vectorise:
            try:
                found = vectorised_squares(self._evaluation, rest, chunk.x, kept, self._measure)
            except (RuntimeError, NotImplementedError, TypeError, ValueError):
                self._vectorise = False  # vmap does not know some operation: one by one, then
        if found is None:
            found = looped_squares(self._evaluation, rest, chunk.x, kept, self._measure)
        for name, squares in found.items():
            self._total[name] += squares


class NothingMattersError(ValueError):
    """An importance in which every number is zero: it would protect nothing.

    Args:
        message: What to do about it.
        importance: That importance: where it is one process's share, others may have more.
    """

    def __init__(self, message: str, importance: Any) -> None:
        super().__init__(message)
        self.importance = importance


def not_all_zero(tensors: Iterable[Tensor], importance: Any) -> None:
    """Refuse an importance in which nothing matters.

    Args:
        tensors: What of it has to matter; nothing at all is no refusal.
        importance: What they are of.

    Raises:
        NothingMattersError: If every number is zero.
    """
    found = list(tensors)
    if found and not any(bool(t.any()) for t in found):
        raise NothingMattersError(
            "the Fisher information is zero for every parameter, which would protect nothing; "
            "wanted a forward that depends on the parameters, positions whose targets are not all "
            "ignored and a network that is not certain of every label: correct the batches, or "
            "pass forward= or likelihood=",
            importance,
        )


def _source(chunk: Chunk, one: Call, index: int, role: str) -> Source | None:
    """Return a use of a parameter if the rule of its module holds for this call."""
    dim = chunk.example_dim.get(one.module)
    if one.rule is None or dim is None or not one.input_is_intact:
        return None
    if dim and not one.rule.any_leading_dimension:
        return None
    if one.output_shape[dim] != len(chunk) or one.input.shape[dim] != len(chunk):
        return None
    a = one.input.movedim(dim, 0)
    once = one.rule is LINEAR and a[0].numel() == a.shape[-1]
    if isinstance(one.module, nn.Conv1d | nn.Conv2d):
        once = one.module.groups == 1 and one.output_shape[2:].numel() == 1
    return Source(index, one.module, role, one.rule, a, dim, once)


def _wide(p: Tensor) -> torch.dtype:
    return torch.float32 if p.device.type == "mps" else torch.float64
