"""One Kronecker-factored quadratic ½ tr(Δᵀ G Δ A), its gradient and its proximal shrinkage."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lifelong.core.penalty.proximal import shrinkage

# Matrix products over sizes that are no multiple of this take up to half as long again (785 columns
# against 784 or 800: 68 and 100 GFLOP/s).
ALIGNMENT = 16
# Eigenvalues of a float32 matrix below this share of its largest are rounding.
ROUNDING = 1e-6


class KroneckerTerm(nn.Module):
    """What one consolidation remembers of a layer: its weights and the two factors of their price.

    ω(W) = ½ tr(Δᵀ G Δ A) + ½ μ ‖Δ‖², Δ = W − W*. Its Hessian with respect to vec(W), row after row,
    is G ⊗ A + μI (with columns stacked A ⊗ G + μI, as in the papers).

    Args:
        anchor: W*, the bias as the last column if there is one, [out, in].
        A: the second moment of what enters the layer, [in, in].
        G: the second moment of the gradient at what leaves it, [out, out].
        shift: μ ≥ 0, the damping.
    """

    anchor: Tensor
    A: Tensor
    G: Tensor
    shift: Tensor

    def __init__(
        self,
        anchor: Float[Tensor, "out in_"],
        A: Float[Tensor, "in_ in_"],  # noqa: N803 - the field's own names
        G: Float[Tensor, "out out"],  # noqa: N803
        shift: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("anchor", anchor)
        self.register_buffer("A", A)
        self.register_buffer("G", G)
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float64))
        self._basis: EigenBasis | None = None
        self._packed: tuple[Tensor, Tensor] | None = None

    @classmethod
    def empty_like(cls, anchor: Tensor, device: torch.device) -> "KroneckerTerm":
        """A term of the right shapes, for a saved state to be copied into.

        Args:
            anchor: the saved anchor, [out, in].
            device: where the term shall lie.

        Returns:
            The term.
        """
        rows, columns = anchor.shape
        new = torch.empty_like(anchor, device=device)
        return cls(new, new.new_empty(columns, columns), new.new_empty(rows, rows)).to(device)

    def gradient(
        self, weights: Float[Tensor, "out in_"], precision: str = "float32"
    ) -> Float[Tensor, "out in_"]:
        """∂ω/∂W = G Δ A + μΔ, in closed form.

        Args:
            weights: W, [out, in].
            precision: of the two matrix products; see ``KroneckerPenalty``.

        Returns:
            The gradient, [out, in].
        """
        return self.price_and_gradient(weights, precision)[1]

    def price_and_gradient(
        self, weights: Float[Tensor, "out in_"], precision: str = "float32"
    ) -> tuple[Tensor, Float[Tensor, "out in_"]]:
        """ω = ½ tr(Δᵀ ∂ω/∂W), and the gradient that it comes from.

        Args:
            weights: W, [out, in].
            precision: of the two matrix products; see ``KroneckerPenalty``.

        Returns:
            The price, a scalar in the weights' type, and the gradient, [out, in].
        """
        gap = weights - self.anchor
        rows, columns = gap.shape
        right, left = self._factors(precision)
        wide = nn.functional.pad(gap, (0, right.shape[0] - columns, 0, left.shape[0] - rows)).to(
            right.dtype
        )
        pull = (left @ (wide @ right))[:rows, :columns].to(gap.dtype).contiguous()
        shift = float(self.shift)
        if shift:
            pull.add_(gap, alpha=shift)
        return 0.5 * torch.dot(gap.flatten(), pull.flatten()), pull

    def largest_curvature(self) -> float:
        """The largest eigenvalue of the Hessian, a_max g_max + μ.

        Returns:
            In nats over squared units of the weights.
        """
        largest = [float(torch.linalg.eigvalsh(m.double())[-1]) for m in (self.A, self.G)]
        return max(largest[0], 0.0) * max(largest[1], 0.0) + float(self.shift)

    def scale_(self, decay: float) -> None:
        """Multiply the term by γ.

        Args:
            decay: γ ≥ 0.
        """
        self.G.mul_(decay)
        self.shift.mul_(decay)
        self._basis = self._packed = None

    def basis(self) -> "EigenBasis":
        """The eigenvectors and eigenvalues of the Hessian, computed once, outside the state.

        Returns:
            The basis, on the term's device.
        """
        if self._basis is None or not _alike(self._basis.left, self.A):
            self._basis = EigenBasis(self.A, self.G, float(self.shift))
        return self._basis

    def _factors(self, precision: str) -> tuple[Tensor, Tensor]:
        """Make A and G ready to be multiplied, once.

        Returns:
            A and G with zeros up to aligned sizes, in the type for the products.
        """
        if self.A.dtype != torch.float32:
            return self.A, self.G
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        packed = self._packed
        if packed is None or packed[0].dtype != dtype or packed[0].device != self.A.device:
            pads = [(-len(m)) % ALIGNMENT for m in (self.A, self.G)]
            wide = [
                nn.functional.pad(m, (0, p, 0, p))
                for m, p in zip((self.A, self.G), pads, strict=True)
            ]
            packed = self._packed = (wide[0].to(dtype), wide[1].to(dtype))
        return packed

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._basis = self._packed = None
        super()._load_from_state_dict(*args, **kwargs)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and one.dtype == other.dtype


class EigenBasis:
    """The eigenvectors of A ⊗ G + μI as a pair of orthogonal matrices, and its eigenvalues.

    Args:
        A: [in, in], symmetric and positive semi-definite.
        G: [out, out], symmetric and positive semi-definite.
        shift: μ ≥ 0.

    Attributes:
        left: The eigenvectors of G in its columns, [out, out].
        right: The eigenvectors of A in its columns, [in, in].
        values: The eigenvalues g_i a_j + μ, [out, in].
    """

    def __init__(self, A: Tensor, G: Tensor, shift: float) -> None:  # noqa: N803
        g, self.left = _eigen(G)
        a, self.right = _eigen(A)
        self.values = g.unsqueeze(1) * a + shift

    def scaled(self, delta: Tensor, factor: Tensor) -> Tensor:
        """Multiply each eigencomponent by its own factor.

        Args:
            delta: [out, in].
            factor: one number a component, [out, in].

        Returns:
            L (factor ⊙ (Lᵀ delta R)) Rᵀ, [out, in].
        """
        components = (self.left.T @ delta @ self.right).mul_(factor)
        return self.left @ components @ self.right.T

    def shrinkage(self, step: float, weight: float) -> Tensor:
        """How far a proximal step with one step size goes along every component, in [0, 1].

        Args:
            step: s.
            weight: λ.

        Returns:
            sλh / (1 + sλh) for the eigenvalues h, [out, in].
        """
        return shrinkage(self.values, step, weight)

    def pseudo_inverse(self) -> Tensor:
        """The factors that divide by the eigenvalues, 0 where these are rounding.

        Returns:
            1/h or 0, [out, in].
        """
        floor = ROUNDING * self.values.max()
        return torch.where(self.values > floor, self.values.reciprocal(), 0.0)


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    # In float64: the small eigenvalues of a float32 matrix are worth having, and must not be < 0.
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.clamp(min=0).to(matrix.dtype), vectors.to(matrix.dtype).contiguous()
