"""λ by a budget: as small as keeps what the network predicts on a few old inputs."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from lifelong.core.fisher.evaluation import Evaluation
from lifelong.core.fisher.examples import Rows
from lifelong.core.fisher.traceless import device_of, traceless
from lifelong.errors import LifelongError
from lifelong.learning.distributed import of_first_process
from lifelong.learning.quiet import has_step, kept_tensors
from lifelong.learning.sample import PIECE, bytes_of, moved

Unit = Literal["nats", "points"]
INPUTS = 200  # that are kept of each task
EVERY = 5  # optimizer steps from one look to the next
CONFIDENCE = 0.9  # of the bound that is held below the budget
# Of log λ for each look: what the excess itself, and its last change, move it by.
INTEGRAL, PROPORTIONAL = 0.2, 1.0
# An excess of e as much counts as this at most, so that λ falls slowly and rises fast.
LOWEST, HIGHEST = -1.0, 3.0
# Added to an input's uncertainty: what one of which the network is sure still counts when drawn.
SURE = 1e-4
SMALLEST, LARGEST = 1e-8, 1e12  # λ


@dataclass
class Memory:
    """Inputs of one task, and what the network that had just learnt it said to them.

    Attributes:
        pieces: batches, in the form that the network or its training step takes.
        before: for each of them the output [N, ...] of then.
        numbers: for each input what its change counts for in the mean [n].
        mean: of the latest look at them, in the budget's unit.
        upper: the bound that the true mean exceeds with a probability of 10 % at most.
    """

    pieces: list[Rows]
    before: list[Tensor]
    numbers: Tensor
    mean: float = 0.0
    upper: float = 0.0


@dataclass
class Budget:
    r"""Moves λ so that the predictions on old inputs change by no more than a budget.

    Every five optimizer steps the network is evaluated on the inputs that are watched. With u the
    upper bound (90 %) of the mean divergence from what it predicted when they were new, b the
    budget, and v = log(u / b) cut to [−1, 3],

        log λ ← log λ + 0.2 v + (v − v of the look before),

    a proportional-integral controller of the logarithm: no search, and λ may begin anywhere. The
    bound, not the mean, is held: few inputs are optimistic. Of several tasks the worst counts.

    Args:
        at_most: b > 0.
        unit: of the budget: ``nats``, the mean of KL(p_then ‖ p_now) of a label; ``points``, by how
            many hundredths the probability of the true label falls in the mean, where what is
            watched has labels.

    Attributes:
        memories: one a consolidation.
        seconds: that the looks of this fit have taken.
        looks: of this fit.
        kept: figures of the end of the last fit.

    Raises:
        ValueError: when an argument does not fit.
    """

    at_most: float
    unit: Unit = "nats"
    memories: list[Memory] = field(default_factory=list)
    seconds: float = 0.0
    looks: int = 0
    kept: dict[str, float] = field(default_factory=dict)
    _excess: float | None = None
    _way: tuple[nn.Module, Evaluation] | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.at_most < math.inf:
            raise ValueError(
                f"at_most is {self.at_most}; it must be a number above 0: 0.02 nats, say"
            )
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit is {self.unit!r}; it must be nats or points")

    @property
    def mean(self) -> float:
        """The mean at the latest look, of the worst task, in the budget's unit."""
        return max((memory.mean for memory in self.memories), default=0.0)

    @property
    def upper(self) -> float:
        """The bound at the latest look, of the worst task, in the budget's unit."""
        return max((memory.upper for memory in self.memories), default=0.0)

    @property
    def bytes(self) -> int:
        """The memory that inputs and outputs take."""
        return sum(bytes_of(memory.pieces) + bytes_of(memory.before) for memory in self.memories)

    @property
    def inputs(self) -> int:
        """How many are watched."""
        return sum(len(before) for memory in self.memories for before in memory.before)

    def begin(self) -> None:
        """Begin a fit: nothing is known of how it moves the network."""
        self._excess, self.seconds, self.looks = None, 0.0, 0

    def remember(
        self, network: nn.Module, pieces: list[Rows], way: "Way", numbers: Tensor | None = None
    ) -> None:
        """Watch more inputs, from the network as it is.

        Args:
            network: the bare one, as learning left it.
            pieces: batches.
            numbers: for each input what its change counts for in the mean [n]; None for 1.
            way: from the network and a batch to an ``Evaluation``.

        Raises:
            LifelongError: when there are fewer than two inputs, or their outputs cannot be had.
        """
        before = [output.cpu() for output, _ in self._outputs(network, pieces, way)]
        if sum(map(len, before)) < 2:
            raise LifelongError(
                f"{sum(map(len, before))} old inputs are watched; wanted two or more, 200 say: "
                "pass watch=200 or watch=old_inputs"
            )
        if numbers is None:
            numbers = torch.ones(sum(map(len, before)), dtype=torch.float64)
        self.memories.append(Memory(pieces, before, numbers))
        self._look_at(self.memories[-1], network, way)

    def weights(self, network: nn.Module, batch: Rows, way: "Way") -> Tensor:
        """How likely inputs are to be drawn: the changes that count are those of unsure ones.

        Args:
            network: the bare one, as learning left it.
            batch: of its inputs.
            way: from the network and a batch to an ``Evaluation``.

        Returns:
            Numbers above 0, one an input [N].
        """
        ((output, target),) = self._outputs(network, [batch], way)
        assert self._way is not None
        return (self._way[1].likelihood.uncertainty(output, target) + SURE).sqrt().cpu()

    def look(self, network: nn.Module, way: "Way", *, everywhere: bool = False) -> None:
        """Evaluate the network on what is watched: one task's at a time, each in its turn.

        Args:
            network: the bare one.
            way: from the network and a batch to an ``Evaluation``.
            everywhere: whether to look at all tasks.
        """
        begin = time.monotonic()
        turn = self.looks % len(self.memories)
        for memory in self.memories if everywhere else [self.memories[turn]]:
            self._look_at(memory, network, way)
        self.looks += 1
        self.seconds += time.monotonic() - begin

    def next_lambda(self, ewc_lambda: float, most: float | None = None) -> float:
        """λ after the latest look; in several processes that of the first.

        Args:
            ewc_lambda: λ until now.
            most: the largest that the optimizer's step can bear; None where it bears all.

        Returns:
            λ from now on.
        """
        ratio = self.upper / self.at_most
        excess = max(LOWEST, min(HIGHEST, math.log(ratio) if ratio > 0 else LOWEST))
        change = 0.0 if self._excess is None else excess - self._excess
        self._excess = excess
        found = ewc_lambda * math.exp(INTEGRAL * excess + PROPORTIONAL * change)
        return of_first_process(max(SMALLEST, min(LARGEST if most is None else most, found)))

    def state(self) -> dict[str, Any]:
        """For a checkpoint.

        Returns:
            Tensors and plain values.
        """
        kept = [vars(memory).copy() for memory in self.memories]
        return {
            "memories": kept,
            "looks": self.looks,
            "excess": self._excess,
            "kept": dict(self.kept),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned.

        Args:
            state: tensors and plain values.
        """
        self.memories = [Memory(**kept) for kept in state["memories"]]
        self.looks, self._excess = state["looks"], state["excess"]
        self.kept = dict(state["kept"])

    def _outputs(
        self, network: nn.Module, pieces: list[Rows], way: "Way"
    ) -> list[tuple[Tensor, Tensor | None]]:
        if self._way is None or self._way[0] is not network:
            self._way = network, way(network, pieces[0])
        evaluation, device = self._way[1], device_of(network)
        found = []
        # a training step that is run for its outputs tells them by their graph
        with_graph = has_step(network) and evaluation.own is not None
        with traceless(network), kept_tensors(network), torch.set_grad_enabled(with_graph):
            for piece in pieces:
                output, target = evaluation(*evaluation.pair(moved(piece, device)))
                evaluation.likelihood.check(output)
                found.append((output.detach(), target))
        return found

    def _look_at(self, memory: Memory, network: nn.Module, way: "Way") -> None:
        each = []
        outputs = self._outputs(network, memory.pieces, way)
        assert self._way is not None
        likelihood = self._way[1].likelihood
        for before, (after, target) in zip(memory.before, outputs, strict=True):
            then = before.to(after.device, after.dtype)
            if self.unit == "nats":
                each.append(likelihood.divergence(then, after, target).double().cpu())
                continue
            if target is None or target.ndim != 1 or target.is_floating_point():
                came = "no labels" if target is None else f"labels of shape {tuple(target.shape)}"
                raise LifelongError(
                    f"what is watched has {came}; a budget in points wants one class an example: "
                    "pass watch=batches of (x, y), or unit='nats'"
                )
            then, now = (likelihood.log_prob(f, target).exp() for f in (then, after))
            each.append(100 * (then - now).double().cpu())
        values = memory.numbers * torch.cat(each)
        memory.mean, memory.upper = float(values.mean()), upper_bound(values)


# from a network and one batch to how its outputs are had, and what they mean
Way = Callable[[nn.Module, Rows], Evaluation]


def upper_bound(values: Tensor, confidence: float = CONFIDENCE) -> float:
    r"""What the mean behind some numbers exceeds with the rest of the probability at most.

        m + γ s / (6 n) + t s / √n,   γ = (1/n) Σ (x − m)³ / s³

    with the mean m, the standard deviation s, and Student's t of n − 1 degrees of freedom. The term
    with γ is for skewed numbers, of which few hold back the rare large ones.

    Scale: in the unit of the numbers.

    Args:
        values: independent draws [N], two or more.
        confidence: between 0.5 and 1.

    Returns:
        The bound; the mean itself where all numbers are the same.

    Source:
        Johnson 1978, Modified t tests and confidence intervals for asymmetrical populations.

    Example:
        >>> round(upper_bound(torch.tensor([0.0, 2.0]), 0.75), 6)  # m = 1, s = √2, t = 1
        2.0
    """
    x = values.detach().double().flatten()
    n, mean, spread = len(x), float(x.mean()), float(x.std())
    if spread == 0.0:
        return mean
    skew = float(((x - mean) ** 3).mean()) / spread**3
    t = float(stdtrit(n - 1, confidence))
    return mean + skew * spread / (6 * n) + t * spread / math.sqrt(n)


def given_inputs(watch: Any) -> Iterable[Rows]:
    """The batches of what a user gave to be watched.

    Args:
        watch: a tensor of inputs, one batch (a tuple or a dict), or several batches.

    Returns:
        The batches.

    Raises:
        ValueError: when it is none of these.
    """
    if isinstance(watch, Tensor):
        return [(piece,) for piece in watch.split(PIECE)]
    if isinstance(watch, Mapping) or (isinstance(watch, tuple) and isinstance(watch[0], Tensor)):
        return [watch]
    if isinstance(watch, Iterable) and not isinstance(watch, str):
        return ((one,) if isinstance(one, Tensor) else one for one in watch)
    raise ValueError(
        f"watch is a {type(watch).__name__}; wanted a number of inputs to keep of each task, a "
        "tensor of inputs, or batches: pass watch=200"
    )
