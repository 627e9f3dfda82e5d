"""What an importance and a penalty have to be able to do: all that the rooms below ask of them."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Importance(Protocol):
    """How much the parameters matter to a task: a mean over examples.

    ``DiagonalImportance`` and ``KroneckerFactors`` are the two that this package knows.
    """

    def tensors(self) -> dict[str, Tensor]:
        """The means that it is made of, under names of its own.

        Returns:
            Name → mean over examples; together they are the whole importance.
        """
        ...

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Importance":
        """The importance that ``tensors`` took apart.

        Args:
            tensors: name → mean over examples.

        Returns:
            The importance.
        """
        ...

    def restricted(self, chosen: Callable[[str], bool]) -> "Importance":
        """The importance of some parameters alone.

        Args:
            chosen: says of a parameter's name whether it stays.

        Returns:
            A new importance.
        """
        ...

    def traces(self) -> dict[str, float]:
        """What each part holds of the trace of the Fisher information.

        Returns:
            Parameter → Σ F; of Kronecker factors layer → tr A · tr G. Their sum is the trace.
        """
        ...


@runtime_checkable
class Penalty(Protocol):
    """The price Ω of moving away from earlier tasks: an ``nn.Module`` whose state is buffers."""

    def to(self, device: torch.device | str) -> Any:
        """Move the buffers.

        Args:
            device: where to.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """The buffers.

        Returns:
            Name → tensor.
        """
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Take up the buffers of another penalty of the same kind, whatever was folded into it.

        Args:
            state_dict: what ``state_dict`` returned.
        """
        ...

    @property
    def is_empty(self) -> bool:
        """Whether nothing was consolidated yet, so that Ω is zero everywhere."""
        ...

    def fold(self, params: Mapping[str, Tensor], importance: Any, decay: float = 1.0) -> None:
        """Consolidate one more task.

        Args:
            params: parameter name → θ*, the values to remember.
            importance: what the estimator that belongs to this penalty returned.
            decay: γ in [0, 1], what the tasks before keep of their weight.
        """
        ...

    def __call__(self, params: Mapping[str, Tensor]) -> Tensor:
        """Ω, differentiable by autograd: the plain formula.

        Args:
            params: parameter name → θ.

        Returns:
            A scalar of the parameters' type, without λ.
        """
        ...

    def value(self, params: Mapping[str, Tensor]) -> Tensor:
        """Ω without a graph.

        Args:
            params: parameter name → θ.

        Returns:
            A scalar in float64, without λ.
        """
        ...

    def value_and_gradient(
        self, params: Mapping[str, Tensor], weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Ω and ``weight`` · ∂Ω/∂θ, in one pass and without a graph.

        Args:
            params: parameter name → θ.
            weight: λ > 0.

        Returns:
            Ω, a scalar in float64 without λ, and parameter name → ``weight`` · ∂Ω/∂θ, tensors of
            the caller's own, for the consolidated parameters that require a gradient.
        """
        ...

    def pull_of(
        self, params: Mapping[str, Tensor], weight: float
    ) -> Callable[[str], Tensor] | None:
        """A function that gives ``weight`` · ∂Ω/∂θ of one parameter at a time.

        Args:
            params: parameter name → θ.
            weight: λ > 0.

        Returns:
            Consolidated name → a tensor of the caller's own; None where ``value_and_gradient`` is
            to be asked, since nothing is saved by one at a time.
        """
        ...

    def shard_like(self, params: Mapping[str, Tensor]) -> None:
        """Keep in each process the part that it has of parameters that are spread over processes.

        Args:
            params: parameter name → θ.
        """
        ...

    def add_gradient_(self, params: Mapping[str, Tensor], weight: float) -> None:
        """Add ``weight`` · ∂Ω/∂θ to every parameter's ``.grad``.

        Args:
            params: parameter name → θ.
            weight: λ.
        """
        ...

    def proximal_step_(
        self,
        params: Mapping[str, Tensor],
        step_sizes: Mapping[Tensor, Tensor | float],
        weight: float,
    ) -> None:
        """Move every parameter against ``weight`` · Ω, after the optimizer's step on the loss.

        Args:
            params: parameter name → θ.
            step_sizes: parameter → s, the optimizer's step size.
            weight: λ.
        """
        ...

    def held(self, params: Mapping[str, Tensor]) -> list[str]:
        """Which parameters have a price.

        Args:
            params: parameter name → θ.

        Returns:
            The names of the consolidated ones.
        """
        ...

    def let_go(self, names: Collection[str]) -> None:
        """Hold some parameters no longer.

        Args:
            names: of parameters.
        """
        ...

    def grow(self, params: Mapping[str, Tensor], names: Collection[str]) -> None:
        """Follow parameters that got more rows: the old rows keep their price, the new are free.

        Args:
            params: parameter name → θ as it is now.
            names: of the consolidated parameters that are longer than their anchors.
        """
        ...

    def largest_curvature(self) -> float:
        """The steepest direction's curvature F_max of Ω, or a bound above it; 0 when empty.

        Returns:
            In nats over θ²; an explicit step of size s is stable for s · λ · F_max < 2.
        """
        ...

    def single_importances(self) -> Mapping[str, Tensor]:
        """F̄ by parameter, where the penalty prices every entry by itself.

        Returns:
            Parameter name → F̄; empty where entries are priced together.
        """
        ...

    def single_anchors(self) -> dict[str, Tensor]:
        """θ̄ of the parameters that ``single_importances`` names.

        Returns:
            Parameter name → θ̄.
        """
        ...
