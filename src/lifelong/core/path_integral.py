"""What each parameter has done to the loss on its way: the path integral of the gradient."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lifelong.core.importance import DiagonalImportance

Tensors = dict[str, Tensor]


class PathIntegral:
    r"""ω_i = −∫ g_i dθ_i, summed over the steps of an optimizer.

    Around each step call ``leave`` with the gradient of the loss, and ``arrive``: ω grows by
    −g ⊙ (θ' − θ). Under small steps Σ_i ω_i is the fall of the loss. (Each step counts the gradient
    where it began: on a quadratic of curvature h a step d is counted h d²/2 too high.)

    Scale: in nats where the loss is; a sum over steps that the learning rate does not change, as
    long as it is small.

    Args:
        params: parameter name → θ where the path begins.

    Source:
        Zenke, Poole and Ganguli 2017, eqs. 1 to 3.

    Example:
        >>> theta = torch.tensor([2.0])  # L = θ², g = 2θ
        >>> path = PathIntegral({"w": theta})
        >>> path.leave({"w": theta}, {"w": 2 * theta})
        >>> path.arrive({"w": torch.tensor([1.5])})
        >>> path.omega["w"]  # −4 · (1.5 − 2)
        tensor([2.])
    """

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        self.start: Tensors = {name: p.detach().clone() for name, p in params.items()}
        self.omega: Tensors = {name: torch.zeros_like(p) for name, p in self.start.items()}
        self._left: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def leave(self, params: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Note where parameters are before a step, and the gradient of the loss there.

        Args:
            params: parameter name → θ.
            gradients: parameter name → g, of those that have one.
        """
        for name, gradient in gradients.items():
            if name in self.omega:
                self._left[name] = params[name].detach().clone(), gradient.detach().clone()

    @torch.no_grad()
    def arrive(self, params: Mapping[str, Tensor], names: Iterable[str] | None = None) -> None:
        """Count a step.

        Args:
            params: parameter name → θ after it.
            names: which parameters it was of; by default all that were left.
        """
        for name in list(self._left) if names is None else names:
            if name in self._left:
                theta, gradient = self._left.pop(name)
                moved = torch.sub(params[name].detach(), theta, out=theta)
                self.omega[name].addcmul_(gradient, moved, value=-1.0)

    def forget(self) -> None:
        """Count no step: it was left out."""
        self._left = {}

    def importance(self, params: Mapping[str, Tensor], xi: float) -> DiagonalImportance:
        """F_i = 2 max(ω_i, 0) / ((θ_i − θ_i,start)² + ξ).

        On a quadratic that was gone down to its minimum, with ξ = 0, F is its curvature: hence the
        2, which goes with the ½ of Ω.

        Args:
            params: parameter name → θ where the path ends.
            xi: ξ > 0, in squared units of the parameters: what F is damped by where little moved.

        Returns:
            F by parameter name.

        Source:
            Zenke, Poole and Ganguli 2017, eq. 5; negative ω count as none, as in the authors' code.
        """
        found = DiagonalImportance()
        for name, omega in self.omega.items():
            squared = (params[name].detach() - self.start[name]).square_()
            found[name] = omega.clamp(min=0.0).mul_(2.0).div_(squared.add_(xi))
        return found

    def to(self, device: torch.device) -> "PathIntegral":
        """Move to a device.

        Args:
            device: where to.

        Returns:
            Itself.
        """
        self.start = {name: p.to(device) for name, p in self.start.items()}
        self.omega = {name: p.to(device) for name, p in self.omega.items()}
        return self

    def state(self) -> dict[str, Tensors]:
        """For a checkpoint.

        Returns:
            Where it began, and ω.
        """
        return {"start": dict(self.start), "omega": dict(self.omega)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "PathIntegral":
        """What ``state`` returned.

        Args:
            state: tensors by name.

        Returns:
            The same again.
        """
        path = cls(state["start"])
        path.omega = {name: omega.clone() for name, omega in state["omega"].items()}
        return path
