"""The quadratic penalty Ω: any number of consolidated tasks, folded into one."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lifelong.core.penalty.proximal import proximal_step_
from lifelong.core.penalty.reshaping import ReshapedDiagonal, set_buffer

# Elements handled together, so that θ − θ̄ stays in the cache between the two passes over a piece;
# the fastest of 2¹⁵ to 2¹⁸ on two threads with 1 MiB of second-level cache each.
PIECE = 262_144
ANCHORS = ("each", "last")
# one of ANCHORS: checked with a message that names them, as it is what users type
Anchors: TypeAlias = str


class QuadraticPenalty(ReshapedDiagonal):
    r"""The price of moving away from what earlier tasks consolidated.

    Ω(θ) = ½ Σ_t Σ_i F_t,i (θ_i − θ_t,i)², kept as **one** quadratic
    ½ Σ_i F̄_i (θ_i − θ̄_i)² + c with F̄ = Σ_t F_t and θ̄ = Σ_t F_t θ_t / F̄ (where F̄ = 0, the newest
    θ).
    Memory and time do not grow with the number of tasks, and the value is the true sum because the
    constant c is kept. The ½ lives here and nowhere else; Ω is without λ, in nats when F is a
    Fisher information.

    The state is buffers: it follows ``.to()``, is part of ``state_dict()``, and loads with
    ``strict=True`` into a fresh instance. Parameters that were never consolidated (a head added
    later) are free; a consolidated parameter that is missing is an error that names it.

    Args:
        damping: d in F + d · mean(F), added to every importance that is folded, the mean taken over
            all its entries. It gives the directions that F leaves free a small price.
        anchors: ``each``: every task has its own θ_t, as above; ``last``: F̄ is the same sum and
            all of it holds to the newest θ*, with c = 0, as published for several methods.

    Raises:
        ValueError: when ``damping`` is negative or not finite, or ``anchors`` is neither.

    Source:
        Kirkpatrick et al. 2017, eq. 3, for one anchor; the fold is completing the square
        (Huszár 2018 names it the correct form for several tasks).

    Example:
        >>> penalty = QuadraticPenalty()
        >>> penalty.fold({"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])})
        >>> penalty.fold({"w": torch.tensor([3.0])}, {"w": torch.tensor([2.0])})
        >>> penalty({"w": torch.tensor([2.0])})  # ½·2·(2−1)² + ½·2·(2−3)²
        tensor(2.)
    """

    constant: Tensor

    def __init__(self, damping: float = 0.0, anchors: Anchors = "each") -> None:
        super().__init__()
        if anchors not in ANCHORS:
            raise ValueError(f"anchors is {anchors!r}; it must be one of {', '.join(ANCHORS)}")
        if not 0.0 <= damping < float("inf"):
            raise ValueError(f"damping is {damping}; it must be a finite number of at least 0")
        self.damping = damping
        self.anchored: Anchors = anchors
        self.importance = nn.Module()
        self.anchor = nn.Module()
        self.register_buffer("constant", torch.zeros((), dtype=torch.float64))
        # Walking the trees of buffers in every step would cost 3 % of it.
        self._flat: list[tuple[str, Tensor, Tensor]] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was consolidated yet, so that Ω is zero everywhere."""
        return next(self.importance.buffers(), None) is None

    def importances(self) -> dict[str, Tensor]:
        """The folded importance F̄ of every consolidated parameter.

        Returns:
            Parameter name → F̄, in the parameter's shape.
        """
        return dict(self.importance.named_buffers())

    def anchors(self) -> dict[str, Tensor]:
        """The folded anchor θ̄ of every consolidated parameter.

        Returns:
            Parameter name → θ̄, in the parameter's shape.
        """
        return dict(self.anchor.named_buffers())

    @torch.no_grad()
    def fold(
        self,
        params: Mapping[str, Tensor],
        importance: Mapping[str, Tensor],
        decay: float = 1.0,
    ) -> None:
        """Consolidate one more task: its parameters θ* and their importance F.

        F̄ ← γF̄ + F, θ̄ ← (γF̄ θ̄ + F θ*) / (γF̄ + F), c ← γc + ½ Σ γF̄ F/(γF̄ + F) (θ̄ − θ*)².

        Args:
            params: parameter name → θ*, the values to remember; may hold more than ``importance``.
            importance: parameter name → F ≥ 0, in the parameter's shape, a mean over examples.
            decay: γ in [0, 1], what the tasks before keep of their weight; 1 is the plain sum,
                less than 1 is online EWC.

        Raises:
            ValueError: when a name, shape or value does not fit; nothing is changed then.

        Source:
            Schwarz et al. 2018, eq. 9, for γ < 1.
        """  # noqa: DOC502
        _check_fold(params, importance, decay)
        total = sum(float(f.double().sum()) for f in importance.values())
        shift = self.damping * total / max(1, sum(f.numel() for f in importance.values()))
        old_importance, old_anchor = self.importances(), self.anchors()
        self.constant.mul_(decay)
        for name in old_importance.keys() - importance.keys():
            old_importance[name].mul_(decay)
        for name, f in importance.items():
            new, theta = f.double() + shift, params[name].detach().double()
            if name not in old_importance:
                merged, mean = new, theta
            else:
                before = decay * old_importance[name].double()
                merged = before + new
                # Where nothing weighs anything the newest θ stands: w = 1.
                w = torch.where(merged > 0, new / merged, 1.0)
                gap = theta - old_anchor[name].double()
                mean = theta - (1 - w) * gap
                self.constant.add_(0.5 * (before * w * gap.square()).sum())
            # Copies: a float64 parameter that is folded first would otherwise be its own anchor.
            set_buffer(self.importance, name, merged.to(f.dtype, copy=True))
            set_buffer(self.anchor, name, mean.to(params[name].dtype, copy=True))
        if self.anchored == "last":
            self.constant.zero_()
            for name, anchor in self.anchors().items():
                anchor.copy_(params[name].detach())
        self._flat = None

    def forward(self, params: Mapping[str, Tensor]) -> Tensor:
        """Ω at these parameters, differentiable by autograd: the plain formula.

        Args:
            params: parameter name → θ; names that were not consolidated are ignored.

        Returns:
            Ω, a scalar of the parameters' type, without λ; zero when nothing was consolidated.
        """
        self._check_present(params)
        omega = self.constant
        for name, theta, anchor, f in self._rows(params):
            del name
            omega = omega + 0.5 * (f * (theta - anchor).square()).sum()
        first = next(iter(params.values()), None)
        return omega if first is None else omega.to(first.dtype)

    @torch.no_grad()
    def value(self, params: Mapping[str, Tensor]) -> Tensor:
        """Ω at these parameters, without a graph and without whole-size temporaries.

        Args:
            params: parameter name → θ.

        Returns:
            The same number as calling the penalty, a scalar in float64.
        """
        self._check_present(params)
        omega = self.constant.clone()
        for _, theta, anchor, f in self._rows(params):
            omega += _price(theta, anchor, f)
        return omega

    @torch.no_grad()
    def value_and_gradient(
        self, params: Mapping[str, Tensor], weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Ω and ``weight`` · ∂Ω/∂θ = ``weight`` · F̄ ⊙ (θ − θ̄), F̄ and θ̄ read once for both.

        Args:
            params: parameter name → θ.
            weight: λ > 0.

        Returns:
            Ω, a scalar in float64 without λ, and the gradient by parameter name, of the
            consolidated parameters that require one.
        """
        self._check_present(params)
        omega, gradients = self.constant.clone(), {}
        for name, theta, anchor, f in self._rows(params):
            if theta.requires_grad:
                price, gradients[name] = _price_and_pull(theta, anchor, f, weight)
                omega += price
            else:
                omega += _price(theta, anchor, f)
        return omega, gradients

    @torch.no_grad()
    def add_gradient_(self, params: Mapping[str, Tensor], weight: float) -> None:
        """Add ``weight`` · ∂Ω/∂θ = ``weight`` · F̄ ⊙ (θ − θ̄) to every parameter's ``.grad``.

        The closed form in one pass over memory: no graph, no temporaries of a parameter's size.
        A parameter whose ``.grad`` is None gets one, since the penalty acts on it all the same.

        Args:
            params: parameter name → θ, the leaves that the optimizer steps; those that do not
                require a gradient are left alone.
            weight: λ.
        """
        self._check_present(params)
        for _, theta, anchor, f in self._rows(params):
            if not theta.requires_grad:
                continue
            if theta.grad is None:
                theta.grad = torch.zeros_like(theta)
            _add_pull_(theta.grad, theta, anchor, f, weight)

    @torch.no_grad()
    def proximal_step_(
        self,
        params: Mapping[str, Tensor],
        step_sizes: Mapping[Tensor, Tensor | float],
        weight: float,
    ) -> None:
        """Move every parameter to the minimum of ``weight`` · Ω + ½ (θ' − θ)²/s, its proximal step.

        θ ← (θ + s λ F̄ θ̄) / (1 + s λ F̄); stable for every λ.

        Args:
            params: parameter name → θ, after the optimizer's own step.
            step_sizes: parameter → s, the optimizer's step size for it (a number or in its shape).
            weight: λ.
        """
        self._check_present(params)
        for _, theta, anchor, f in self._rows(params):
            if theta in step_sizes:
                proximal_step_(theta, anchor, f, step_sizes[theta], weight)

    def largest_curvature(self) -> float:
        """F̄_max, the largest eigenvalue of Ω's Hessian, which is diagonal; 0 when empty.

        Returns:
            F̄_max: an explicit step of size s is stable for s · λ · F̄_max < 2.
        """
        return max((float(f.max()) for f in self.importances().values() if f.numel()), default=0.0)

    def single_importances(self) -> dict[str, Tensor]:
        """F̄ by parameter: every entry is priced by itself.

        Returns:
            What ``importances`` returns.
        """
        return self.importances()

    def single_anchors(self) -> dict[str, Tensor]:
        """θ̄ by parameter.

        Returns:
            What ``anchors`` returns.
        """
        return self.anchors()

    def extra_repr(self) -> str:
        """What ``print`` shows.

        Returns:
            The damping and how many parameters are consolidated.
        """
        return f"damping={self.damping}, parameters={len(self.importances())}"

    def _rows(self, params: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        for name, anchor, f in self._consolidated():
            yield name, params[name], anchor, f

    def _consolidated(self) -> list[tuple[str, Tensor, Tensor]]:
        if self._flat is None:
            importances = self.importances()
            self._flat = [(name, a, importances[name]) for name, a in self.anchors().items()]
        return self._flat

    def _apply(self, *args: Any, **kwargs: Any) -> "QuadraticPenalty":
        self._flat = None  # the buffers that move to another device are other tensors
        return super()._apply(*args, **kwargs)

    def _check_present(self, params: Mapping[str, Tensor]) -> None:
        gone = [name for name, _, _ in self._consolidated() if name not in params]
        if gone:
            raise ValueError(
                f"consolidated parameters are missing: {', '.join(gone)}; "
                "call the penalty with every parameter that was folded"
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # The buffers of this instance become those that the state has, so that a fresh penalty
        # loads any state strictly; their values are then copied in by torch as ever.
        for tree in ("importance", "anchor"):
            fresh, start = nn.Module(), f"{prefix}{tree}."
            for key, value in state_dict.items():
                if key.startswith(start):
                    like = torch.empty_like(value, device=self.constant.device)
                    set_buffer(fresh, key.removeprefix(start), like)
            setattr(self, tree, fresh)
        self._flat = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.numel() <= PIECE or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return (tensor,)
    return tensor.view(-1).split(PIECE)


def _price(theta: Tensor, anchor: Tensor, f: Tensor) -> Tensor:
    rows = _wide(theta, anchor, f)
    whole = not all(x.is_contiguous() for x in rows)
    prices = []
    for t, a, w in zip(*((x,) if whole else _pieces(x) for x in rows), strict=True):
        gap = t - a
        prices.append(torch.dot((gap * w).flatten(), gap.flatten()))
    return 0.5 * torch.stack(prices).sum(dtype=torch.float64)


def _price_and_pull(
    theta: Tensor, anchor: Tensor, f: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    # ½ Σ F (θ − θ̄)² in float64, and weight · F ⊙ (θ − θ̄) in fresh memory and θ's type
    rows = _wide(theta.detach(), anchor, f)
    pull = torch.empty_like(theta, dtype=rows[0].dtype)
    rows = (pull, *rows)
    whole = not all(x.is_contiguous() for x in rows)
    pieces = [(x,) if whole else _pieces(x) for x in rows]
    # One scratch for all pieces, as in _add_pull_; a number takes the place of a tensor of zeros.
    scratch, nothing = torch.empty_like(pieces[1][0]), pull.new_zeros(())
    prices = []
    for p, t, a, w in zip(*pieces, strict=True):
        gap = torch.sub(t, a, out=scratch if t.shape == scratch.shape else torch.empty_like(t))
        torch.addcmul(nothing, w, gap, value=weight, out=p)
        prices.append(torch.dot(p.flatten(), gap.flatten()))
    price = (0.5 / weight) * torch.stack(prices).sum(dtype=torch.float64)
    return price, pull.to(theta.dtype)


def _wide(*rows: Tensor) -> tuple[Tensor, ...]:
    # One type for all, and at least 32 bits: Ω in 16 bits would be a sum of rounding errors.
    types = {x.dtype for x in rows}
    if len(types) == 1 and rows[0].element_size() > 2:
        return rows
    wide = torch.float64 if torch.float64 in types else torch.float32
    return tuple(x.to(wide) for x in rows)


def _add_pull_(grad: Tensor, theta: Tensor, anchor: Tensor, f: Tensor, weight: float) -> None:
    same_layout = all(x.is_contiguous() for x in (grad, theta, anchor, f))
    rows = (grad, theta, anchor, f)
    pieces = [_pieces(x) for x in rows] if same_layout else [(x,) for x in rows]
    # One scratch for all pieces: fresh memory for each would cost more than the arithmetic.
    scratch = torch.empty_like(pieces[1][0])
    for g, t, a, w in zip(*pieces, strict=True):
        gap = torch.sub(t, a, out=scratch if t.shape == scratch.shape else torch.empty_like(t))
        g.addcmul_(w, gap, value=weight)


def _check_fold(
    params: Mapping[str, Tensor], importance: Mapping[str, Tensor], decay: float
) -> None:
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay is {decay}; it must lie in [0, 1]")
    for name, f in importance.items():
        if name not in params:
            raise ValueError(f"importance names {name!r}, which params lacks")
        if f.shape != params[name].shape:
            raise ValueError(
                f"importance of {name!r} has shape {tuple(f.shape)}; "
                f"its parameter has {tuple(params[name].shape)}"
            )
        if not bool(torch.isfinite(f).all() & (f >= 0).all()):
            raise ValueError(f"importance of {name!r} has negative or non-finite entries")
