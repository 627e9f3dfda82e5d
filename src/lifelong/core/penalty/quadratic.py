"""The quadratic penalty Ω: any number of consolidated tasks, folded into one."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lifelong.core.penalty.proximal import proximal_step_
from lifelong.core.penalty.pull import add_pull_, price, price_and_pull
from lifelong.core.penalty.sharded import Sum, check_whole, like, local, over_parts
from lifelong.core.penalty.storage import Kept
from lifelong.core.penalty.stored import Anchors, StoredDiagonal


class Row(NamedTuple):
    """One parameter as this process has it: whole, or the part that is its own."""

    name: str
    param: Tensor
    theta: Tensor
    anchor: Tensor
    f: Kept


class QuadraticPenalty(StoredDiagonal):
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

    Memory: θ̄ and F̄ take as much as the parameters each; less F̄ as ``storage`` says. What is
    rounded there is F̄, which is known to some per cent at best; θ̄ never is, so that Ω and its
    gradient stay zero at θ̄. Of T equal tasks the error of an entry is

    ============ ============== ============================ =====================================
    storage      bytes an entry one task                     T tasks, root mean square
    ============ ============== ============================ =====================================
    ``float32``  as the F given none                         2⁻²⁴ √T or less
    ``bfloat16`` 2              at most 2⁻⁸ = 0.4 %          at most 0.4 % · √(1 + T/3)
    ``log8``     1              at most 6.8 %, or F̄_max/2⁴⁸  at most 6.8 % · √(1 + T/3)
    ============ ============== ============================ =====================================

    for the first fold goes to the nearest number and each later one (old F̄ made whole, folded, kept
    again) at random to one of the two neighbours, right in the mean: nearest numbers would lose
    every task that adds less than half a step. The draws follow from the name and the number of
    folds, so that a state that is loaded goes on with the same bits, in every process.

    Args:
        damping: d in F + d · mean(F), added to every importance that is folded, the mean taken over
            all its entries. It gives the directions that F leaves free a small price.
        anchors: ``each``: every task has its own θ_t, as above; ``last``: F̄ is the same sum and
            all of it holds to the newest θ*, with c = 0, as published for several methods.
        storage: how F̄ is kept: as it is given (``float32``), in two bytes or in one, see above.
        device: where F̄ and θ̄ stay, whatever ``to`` says: ``"cpu"`` leaves an accelerator its
            memory. They are then brought to each parameter one at a time, also for the gradient,
            which waits for no backward pass in a memory of its own (see ``PenaltyTerm``); each step
            sends them twice. On the CPU that memory is pinned where there is a CUDA device. By
            default they follow ``to``.

    Raises:
        ValueError: when ``damping`` is negative or not finite, or ``anchors`` or ``storage`` is
            none of these.

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

    def __init__(
        self,
        damping: float = 0.0,
        anchors: Anchors = "each",
        *,
        storage: str = "float32",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(storage, device, anchors)
        if not 0.0 <= damping < float("inf"):
            raise ValueError(f"damping is {damping}; it must be a finite number of at least 0")
        self.damping = damping

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
        old = {name: (anchor, f) for name, anchor, f in self._consolidated()}
        self._begin_fold()
        self.constant.mul_(decay)
        for name in old.keys() - importance.keys():
            if decay != 1.0:
                f = old[name][1].decoded()
                self._keep(name, f.double() * decay, f.dtype, is_new=False)
        for name, f in importance.items():
            place = f.device if self.device is None else self.device
            new, theta = f.to(place).double() + shift, params[name].detach().to(place).double()
            if name not in old:
                merged, mean = new, theta
            else:
                anchor, kept = old[name]
                before = decay * kept.decoded().double()
                merged = before + new
                # Where nothing weighs anything the newest θ stands: w = 1.
                w = torch.where(merged > 0, new / merged, 1.0)
                gap = theta - anchor.double()
                mean = theta - (1 - w) * gap
                self.constant.add_(0.5 * (before * w * gap.square()).sum())
            self._keep(name, merged, f.dtype, is_new=name not in old)
            self._remember(name, mean, params[name].dtype)
        if self.anchored == "last":
            self._hold_to(params)

    def forward(self, params: Mapping[str, Tensor]) -> Tensor:
        """Ω at these parameters, differentiable by autograd: the plain formula.

        Args:
            params: parameter name → θ; names that were not consolidated are ignored.

        Returns:
            Ω, a scalar of the parameters' type, without λ; zero when nothing was consolidated.
        """
        self._check_present(params)
        omega = Sum(self.constant)
        for _, param, theta, anchor, f in self._rows(params):
            gap = theta - anchor.to(theta.device)
            omega.add(0.5 * (f.to(theta.device).decoded() * gap.square()).sum(), param)
        first = next(iter(params.values()), None)
        total = omega.total()
        return total if first is None else total.to(first.dtype)

    @torch.no_grad()
    def value(self, params: Mapping[str, Tensor]) -> Tensor:
        """Ω at these parameters, without a graph and without whole-size temporaries.

        Args:
            params: parameter name → θ.

        Returns:
            The same number as calling the penalty, a scalar in float64.
        """
        self._check_present(params)
        omega = Sum(self.constant.clone())
        for _, param, theta, anchor, f in self._rows(params):
            omega.add(price(theta, anchor, f), param)
        return omega.total()

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
        omega, gradients = Sum(self.constant.clone()), {}
        for name, param, theta, anchor, f in self._rows(params):
            if param.requires_grad:
                value, pull = price_and_pull(theta, anchor, f, weight)
                gradients[name] = like(pull, param)
            else:
                value = price(theta, anchor, f)
            omega.add(value, param)
        return omega.total(), gradients

    def pull_of(
        self, params: Mapping[str, Tensor], weight: float
    ) -> Callable[[str], Tensor] | None:
        """A function that gives ``weight`` · ∂Ω/∂θ of one parameter, where F̄ and θ̄ stay elsewhere.

        Args:
            params: parameter name → θ.
            weight: λ > 0.

        Returns:
            Name → the gradient, fresh; None where all are to be had at once.
        """
        whole = {name: (anchor, f) for name, anchor, f in self._consolidated()}
        if self.device is None or any(local(params[n]) is not params[n] for n in whole):
            return None

        @torch.no_grad()
        def pull(name: str) -> Tensor:
            return price_and_pull(params[name], *whole[name], weight)[1]

        return pull

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
        for _, param, theta, anchor, f in self._rows(params):
            if not param.requires_grad:
                continue
            if param.grad is None:
                param.grad = torch.zeros_like(param)
            add_pull_(local(param.grad), theta, anchor, f, weight)

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
        for _, param, theta, anchor, f in self._rows(params):
            if param in step_sizes:
                step = step_sizes[param]
                own = local(step) if isinstance(step, Tensor) else step
                whole = f.to(theta.device).decoded(torch.promote_types(theta.dtype, torch.float32))
                proximal_step_(theta, anchor.to(theta.device), whole, own, weight)

    def largest_curvature(self) -> float:
        """F̄_max, the largest eigenvalue of Ω's Hessian, which is diagonal; 0 when empty.

        Returns:
            F̄_max: an explicit step of size s is stable for s · λ · F̄_max < 2.
        """
        largest = [0.0]
        for name, _, f in self._consolidated():
            found = torch.tensor(f.largest(), device=f.numbers.device)
            whole = self.importance.get_buffer(name)
            largest.append(float(over_parts(found, whole, "MAX")))
        return max(largest)

    def single_importances(self) -> Mapping[str, Tensor]:
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
            The damping, how F̄ is kept, and how many parameters are consolidated.
        """
        how = f"damping={self.damping}, storage={self.storage}, device={self.device}"
        return f"{how}, parameters={len(self._consolidated())}"

    def _rows(self, params: Mapping[str, Tensor]) -> Iterator[Row]:
        for name, anchor, f in self._consolidated():
            yield Row(name, params[name], local(params[name]), anchor, f)

    def _check_present(self, params: Mapping[str, Tensor]) -> None:
        gone = [name for name, _, _ in self._consolidated() if name not in params]
        if gone:
            raise ValueError(
                f"consolidated parameters are missing: {', '.join(gone)}; "
                "call the penalty with every parameter that was folded"
            )


def _check_fold(
    params: Mapping[str, Tensor], importance: Mapping[str, Tensor], decay: float
) -> None:
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay is {decay}; it must lie in [0, 1]")
    check_whole(params, "a fold")
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
