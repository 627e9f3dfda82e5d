"""The Kronecker-factored penalty Ω: layer by layer ½ tr(Δᵀ G Δ A), a diagonal for what remains."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.core.fisher.factors import KroneckerFactors
from lifelong.core.penalty.kronecker_layers import as_matrix, matched_term, names_of, weight_of
from lifelong.core.penalty.kronecker_step import KroneckerStep, joined
from lifelong.core.penalty.kronecker_sum import nearest_product
from lifelong.core.penalty.kronecker_term import KroneckerTerm
from lifelong.core.penalty.proximal import StepSize, StepSizes
from lifelong.core.penalty.quadratic import QuadraticPenalty
from lifelong.core.penalty.reshaping import ReshapedLayers

MERGES = ("sum", "nearest")
PRECISIONS = ("float32", "bfloat16")


class KroneckerPenalty(ReshapedLayers):
    r"""The price of moving away from what earlier tasks consolidated, with correlations in a layer.

    Ω(θ) = Σ_t Σ_layers ½ tr(Δ_tᵀ G_t Δ_t A_t) + ½ Σ_i F_i (θ_i − θ*_i)², Δ_t = [W − W_t, b − b_t],
    the second sum over the parameters that no pair of factors covers.

    Scale: A is a mean over examples of ā āᵀ and G one of the expected δ δᵀ, so that A ⊗ G stands in
    the place of the Fisher information of the layer, a mean over examples too: Ω is without λ, in
    nats, comparable with ``QuadraticPenalty``'s.

    Several tasks. ``merge="sum"`` keeps every task's anchor and factors: value and gradient are the
    exact sum, while state and time grow with the number of tasks. ``merge="nearest"`` keeps one of
    each, in the way of the online Laplace approximation: the newest anchor (the mode of the
    posterior so far) with the one product A ⊗ G nearest to the sum of the old and the new one in
    the Frobenius norm; state and time do not grow, the sum is approximate.

    The state is buffers: it follows ``.to()``, is part of ``state_dict()``, and loads with
    ``strict=True`` into a fresh instance. Parameters that were never consolidated are free; a
    consolidated parameter that is missing is an error that names it.

    Args:
        damping: d in A ⊗ G + d · m · I, m the mean over all parameters of the diagonal of what is
            folded (of a_jj g_ii and of F); the remaining diagonal gets F + d · m.
        merge: "sum" or "nearest".
        precision: of the products GΔA in ``add_gradient_`` for float32 weights. "bfloat16" rounds
            Δ, A, G, ΔA and GΔA to 8 significant bits (each by at most 2⁻⁸ of itself), so that each
            entry of the gradient is off by at most 2% of |G| |Δ| |A|, and takes about half the time
            where the processor multiplies bfloat16 numbers. Value, ``forward`` and the proximal
            step stay in full precision.

    Raises:
        ValueError: when an argument is none of these.

    Source:
        Ritter, Botev and Barber 2018, "Online structured Laplace approximations for overcoming
        catastrophic forgetting"; Martens and Grosse 2015 for the factors; Van Loan and Pitsianis
        1993 for the nearest product.

    Example:
        >>> penalty = KroneckerPenalty()
        >>> factors = KroneckerFactors({"": (torch.tensor([[3.0]]), torch.tensor([[2.0]]))})
        >>> penalty.fold({"weight": torch.tensor([[1.0]])}, factors)
        >>> penalty({"weight": torch.tensor([[2.0]])})  # ½ · 2 · 3 · (2 − 1)²
        tensor(3.)
    """

    def __init__(
        self,
        damping: float = 0.0,
        merge: str = "sum",
        precision: str = "float32",
    ) -> None:
        super().__init__()
        if not 0.0 <= damping < float("inf"):
            raise ValueError(f"damping is {damping}; it must be a finite number of at least 0")
        for name, came, kinds in (("merge", merge, MERGES), ("precision", precision, PRECISIONS)):
            if came not in kinds:
                wanted = " or ".join(repr(kind) for kind in kinds)
                raise ValueError(f"{name} is {came!r}; it must be {wanted}")
        self.damping = damping
        self.merge = merge
        self.precision = precision
        # a weight's name, with / for . since module names have none → its terms, one a task
        self.layers = nn.ModuleDict()
        self.rest: QuadraticPenalty = QuadraticPenalty()
        self._steps: dict[str, KroneckerStep] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing was consolidated yet, so that Ω is zero everywhere."""
        return not self.layers and self.rest.is_empty

    @torch.no_grad()
    def fold(
        self, params: Mapping[str, Tensor], importance: KroneckerFactors, decay: float = 1.0
    ) -> None:
        """Consolidate one more task: its parameters θ* and its factors.

        Args:
            params: parameter name → θ*, the values to remember; may hold more than is needed.
            importance: what ``kronecker_factors`` returned.
            decay: γ in [0, 1], what the tasks before keep of their weight; 1 is the plain sum.

        Raises:
            ValueError: when a name, shape or value does not fit; nothing is changed then.
        """  # noqa: DOC502 - raised by what is called
        terms = {
            weight_of(layer): matched_term(params, layer, A, G)
            for layer, (A, G) in importance.items()
        }
        shift = self.damping * importance.mean_diagonal()
        rest = {name: f + shift for name, f in importance.diagonal.items()}
        # copies, for the network will move on
        here = {name: params[name].detach().clone() for name in rest if name in params}
        self.rest.fold(here, rest, decay)
        for key in self.layers:
            for term in self._terms(key):
                term.scale_(decay)
        if decay == 0.0:  # nothing of the tasks before is left, also of layers that this one lacks
            self.layers = nn.ModuleDict()
        for weight, term in terms.items():
            term.shift.fill_(shift)
            key = weight.replace(".", "/")
            before = list(self._terms(key)) if key in self.layers else []
            if self.merge == "nearest" and before:
                before, term = [], _merged(before, term)
            self.layers[key] = nn.ModuleList([*before, term])
        self._steps.clear()

    def forward(self, params: Mapping[str, Tensor]) -> Tensor:
        """Ω at these parameters, differentiable by autograd: the plain formula.

        Args:
            params: parameter name → θ; names that were not consolidated are ignored.

        Returns:
            Ω, a scalar of the parameters' type, without λ; zero when nothing was consolidated.
        """
        omega = self.rest(params)
        for key in self.layers:
            weights = self._matrix(key, params)
            for term in self._terms(key):
                gap = weights - term.anchor
                priced = 0.5 * (gap * (term.G @ gap @ term.A)).sum()
                omega = omega + priced + 0.5 * term.shift.to(gap.dtype) * gap.square().sum()
        return omega

    @torch.no_grad()
    def value(self, params: Mapping[str, Tensor]) -> Tensor:
        """Ω at these parameters, without a graph.

        Args:
            params: parameter name → θ.

        Returns:
            The same number as calling the penalty, a scalar in float64.
        """
        omega = self.rest.value(params)
        for key in self.layers:
            weights = self._matrix(key, params)
            for term in self._terms(key):
                omega += term.price_and_gradient(weights)[0]
        return omega

    @torch.no_grad()
    def value_and_gradient(
        self, params: Mapping[str, Tensor], weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Ω and ``weight`` · ∂Ω/∂θ, from the same two matrix products a layer and a task.

        With ``precision="bfloat16"`` Ω comes from the rounded products too; ``value`` does not.

        Args:
            params: parameter name → θ.
            weight: λ > 0.

        Returns:
            Ω, a scalar in float64 without λ, and the gradient by parameter name, of the
            consolidated parameters that require one.
        """
        omega, gradients = self.rest.value_and_gradient(params, weight)
        for key in self.layers:
            weights, pull = self._matrix(key, params), None
            for term in self._terms(key):
                price, one = term.price_and_gradient(weights, self.precision)
                omega += price
                pull = one if pull is None else pull.add_(one)
            assert pull is not None
            for name, (part, columns) in zip(
                names_of(key), self._split(key, params, pull), strict=False
            ):
                if part.requires_grad:
                    gradients[name] = columns * weight
        return omega, gradients

    @torch.no_grad()
    def add_gradient_(self, params: Mapping[str, Tensor], weight: float) -> None:
        """Add ``weight`` · ∂Ω/∂θ, per layer ``weight`` · Σ_t G_t Δ_t A_t, to every ``.grad``.

        Two matrix products a layer and a task; no graph. A parameter whose ``.grad`` is None gets
        one, one that does not require a gradient is left alone.

        Args:
            params: parameter name → θ, the leaves that the optimizer steps.
            weight: λ.
        """
        self.rest.add_gradient_(params, weight)
        for key in self.layers:
            parts = [part for part in self._parts(key, params) if part.requires_grad]
            if not parts:
                continue
            weights = self._matrix(key, params)
            pull = sum(
                (term.gradient(weights, self.precision) for term in self._terms(key)),
                torch.zeros(()),
            )
            for part, columns in self._split(key, params, pull):
                if part.requires_grad:
                    part.grad = torch.zeros_like(part) if part.grad is None else part.grad
                    part.grad.add_(columns, alpha=weight)

    @torch.no_grad()
    def proximal_step_(
        self,
        params: Mapping[str, Tensor],
        step_sizes: Mapping[Tensor, StepSize],
        weight: float,
    ) -> None:
        """Move every parameter against ``weight`` · Ω, after the optimizer's step on the loss.

        In the eigenbasis of the factors, which is computed at the first call after a fold and is
        not part of the state. ``KroneckerStep`` says what holds: for SGD and one term it is the
        exact proximal step, for Adam's step sizes one with the same fixed point; stable for all λ.

        Args:
            params: parameter name → θ, after the optimizer's own step.
            step_sizes: what ``step_sizes(optimizer)`` returned; a plain mapping to numbers does
                for one term.
            weight: λ; 0 leaves every parameter as it is.

        Raises:
            ValueError: when ``weight`` is negative or not finite, or when the step needs to know
                where the optimizer came from and ``step_sizes`` does not.
        """
        if not 0.0 <= weight < float("inf"):
            raise ValueError(f"weight is {weight}; it must be a finite number of at least 0")
        self.rest.proximal_step_(params, step_sizes, weight)
        if weight == 0.0:
            return
        for key in self.layers:
            parts = self._parts(key, params)
            stepped = [part for part in parts if part in step_sizes]
            if not stepped:
                continue
            if len(stepped) < len(parts):
                raise ValueError(
                    f"of {names_of(key)[0]!r} and its bias only one is trained: that has no "
                    "proximal step; train or freeze both, or take the explicit step"
                )
            self._step_layer_(key, params, step_sizes, weight)

    @torch.no_grad()
    def largest_curvature(self) -> float:
        """A bound on Ω's largest curvature; 0 when empty.

        Returns:
            The largest over the layers of Σ_t (a_max g_max + μ), with the largest eigenvalues of A
            and G, and over the remaining diagonal: exact for one term, else at most T times it.
        """
        layers = [sum(term.largest_curvature() for term in self._terms(key)) for key in self.layers]
        return max([self.rest.largest_curvature(), *layers])

    def single_importances(self) -> dict[str, Tensor]:
        """None: the entries of a layer are priced together.

        Returns:
            An empty dictionary.
        """
        return {}

    def single_anchors(self) -> dict[str, Tensor]:
        """None, as there are no importances of single entries.

        Returns:
            An empty dictionary.
        """
        return {}

    def extra_repr(self) -> str:
        """What ``print`` shows.

        Returns:
            The settings and how many layers are consolidated.
        """
        return f"damping={self.damping}, merge={self.merge!r}, layers={len(self.layers)}"

    def _step_layer_(
        self,
        key: str,
        params: Mapping[str, Tensor],
        step_sizes: Mapping[Tensor, StepSize],
        weight: float,
    ) -> None:
        if key not in self._steps:
            self._steps[key] = KroneckerStep(self._terms(key))
        step, parts, weights = self._steps[key], self._parts(key, params), self._matrix(key, params)
        s = joined(step_sizes[parts[0]], step_sizes[parts[1]] if parts[1:] else None, weights)
        start = None
        if step.needs_start or isinstance(s, Tensor):
            if not isinstance(step_sizes, StepSizes):
                raise ValueError(
                    "this proximal step starts where the optimizer came from; "
                    "pass step_sizes(optimizer), or take the explicit step"
                )
            start = as_matrix([step_sizes.before(part) for part in parts])
        if isinstance(s, Tensor):
            assert start is not None
            new = step.with_sizes(weights, start, s, weight)
        else:
            new = step.with_one_size(weights, start, s, weight)
        for part, columns in self._split(key, params, new):
            part.copy_(columns)

    def _terms(self, key: str) -> list[KroneckerTerm]:
        return list(self.layers[key])  # type: ignore[call-overload]

    def _parts(self, key: str, params: Mapping[str, Tensor]) -> list[Tensor]:
        """Find the layer's weight, and its bias if the factors cover it.

        Returns:
            One or two parameters.

        Raises:
            ValueError: when one of them is missing.
        """
        terms = self._terms(key)
        weight, bias = names_of(key)
        gone = [name for name in (weight, bias) if name not in params]
        if terms and weight not in gone:
            columns = terms[0].anchor.shape[1]
            if columns == params[weight][0].numel():
                return [params[weight]]
            if not gone:
                return [params[weight], params[bias]]
        raise ValueError(
            f"consolidated parameters are missing: {', '.join(gone)}; "
            "call the penalty with every parameter that was folded"
        )

    def _matrix(self, key: str, params: Mapping[str, Tensor]) -> Tensor:
        return as_matrix(self._parts(key, params))

    def _split(
        self, key: str, params: Mapping[str, Tensor], matrix: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Cut a layer's matrix up.

        Yields:
            The layer's parameters, each with its columns of the matrix, in its own shape.
        """
        start = 0
        for part in self._parts(key, params):
            width = part[0].numel()
            yield part, matrix[:, start : start + width].reshape(part.shape)
            start += width

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # The terms of this instance become those that the state has, so that a fresh penalty loads
        # any state strictly; their values are then copied in by torch as ever.
        start, device = f"{prefix}layers.", self.rest.constant.device
        found: dict[str, list[KroneckerTerm]] = {}
        for name, value in state_dict.items():
            if name.startswith(start) and name.endswith(".anchor"):
                key = name.removeprefix(start).split(".")[0]
                found.setdefault(key, []).append(KroneckerTerm.empty_like(value, device))
        self.layers = nn.ModuleDict({key: nn.ModuleList(terms) for key, terms in found.items()})
        self._steps.clear()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _merged(before: list[KroneckerTerm], new: KroneckerTerm) -> KroneckerTerm:
    A, G = nearest_product([(term.A, term.G) for term in (*before, new)])
    return KroneckerTerm(new.anchor, A, G, sum(float(term.shift) for term in (*before, new)))
