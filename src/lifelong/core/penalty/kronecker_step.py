"""The proximal step of a layer in the eigenbasis of its Kronecker factors, for any step sizes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lifelong.core.penalty.kronecker_sum import bounding_product
from lifelong.core.penalty.kronecker_term import EigenBasis, KroneckerTerm
from lifelong.core.penalty.proximal import StepSize

# Step sizes above this many times the layer's harmonic mean are cut down to it.
LARGEST = 10.0


class KroneckerStep:
    r"""Moves a layer's weights W, after the optimizer's step on the loss, against λω.

    With one step size s (SGD) and one term it is the proximal step itself,
    W ← W* + (I + sλH)⁻¹ (W − W*), an element-wise shrinkage in the eigenbasis of H: the minimum of
    λω(W') + ‖W' − W‖² / 2s, exact and stable for every λ.

    Adam has a step size for each weight, s ∈ [out, in], and no basis in which both S = diag(s) and
    H are diagonal. The exact proximal step (S⁻¹ + λH)⁻¹ would take hundreds of iterations (s spans
    six orders of magnitude), and one with a single s would have another fixed point. Instead the
    whole step is W ← W₀ − K (g + λ∇ω(W₀)) from the weights W₀ before the optimizer's step, which
    moved them by −s ⊙ g, with the symmetric, positive definite

        K = R S R + σ R P,   R = (I + σλH)⁻¹,   P = I − R,   σ = max s.

    What holds, exactly: (1) at rest g + λ∇ω = 0, the fixed point of the explicit step, since K is
    invertible; (2) K ≤ (I/σ + λH)⁻¹, so that without a loss ω falls in every step, whatever λ;
    (3) where H is zero W takes the optimizer's own step, and so it does everywhere for λ → 0;
    (4) with s = σ everywhere it is the exact proximal step. What does not hold: a direction in
    which sλh ≥ 1 approaches its fixed point at the rate s/σ of the exact proximal step's.

    Since σ = max s would be ruled by weights that Adam has hardly seen a gradient of (s → lr/ε), s
    is cut at σ = max(10 / mean(1/s), 1 / (λ max h)); a weight above it takes its step with s = σ,
    which changes its speed and not the fixed point.

    Several terms have no common eigenbasis. R and P then use one product H' ≥ Σ_t H_t
    (``bounding_product``), which keeps (1) to (3), and ∇ω is the exact sum; components of it whose
    eigenvalue of H' is below 1e-6 of the largest are rounding and are dropped.

    Args:
        terms: the layer's terms, at least one.
    """

    def __init__(self, terms: Sequence[KroneckerTerm]) -> None:
        self._terms = list(terms)
        if len(self._terms) == 1:
            self._basis = self._terms[0].basis()
        else:
            A, G = bounding_product([(term.A, term.G) for term in self._terms])
            self._basis = EigenBasis(A, G, sum(float(term.shift) for term in self._terms))

    @property
    def needs_start(self) -> bool:
        """Whether the step must know the weights before the optimizer's step, even with one s."""
        return len(self._terms) > 1

    def with_one_size(
        self, weights: Tensor, start: Tensor | None, s: float, weight: float
    ) -> Tensor:
        """The weights after the step, when every weight has the same step size.

        Args:
            weights: W, after the optimizer's step, [out, in].
            start: W₀, before it, [out, in]; needed for several terms.
            s: the step size.
            weight: λ.

        Returns:
            The new weights, [out, in].
        """
        shrink = self._basis.shrinkage(s, weight)
        if start is None:
            return weights - self._basis.scaled(weights - self._terms[0].anchor, shrink)
        return weights - self._basis.scaled(weights - start + self._gap(start), shrink)

    def with_sizes(self, weights: Tensor, start: Tensor, s: Tensor, weight: float) -> Tensor:
        """The weights after the step, when every weight has its own step size.

        Args:
            weights: W, after the optimizer's step, [out, in].
            start: W₀, before it, [out, in].
            s: the step sizes, [out, in].
            weight: λ.

        Returns:
            The new weights, [out, in].
        """
        sigma = self._largest(s, weight)
        shrink = self._basis.shrinkage(sigma, weight)
        share = (s / sigma).clamp_(max=1.0)
        # q = σR (g + λ∇ω) = σg + P (gap − σg), the step in the one metric σ; with d = s/σ and
        # R = I − P then K (g + λ∇ω) = R (d ⊙ q) + P q = d ⊙ q + P (q − d ⊙ q).
        q = (start - weights).mul_(sigma / s)
        q += self._basis.scaled(self._gap(start) - q, shrink)
        direct = share * q
        return start - direct - self._basis.scaled(q - direct, shrink)

    def _gap(self, start: Tensor) -> Tensor:
        """Tell how far from here the anchor lies.

        Returns:
            H'⁺ ∇ω, which is W₀ − W* for one term.
        """
        if len(self._terms) == 1:
            return start - self._terms[0].anchor
        pull = sum((term.gradient(start) for term in self._terms), torch.zeros_like(start))
        return self._basis.scaled(pull, self._basis.pseudo_inverse())

    def _largest(self, s: Tensor, weight: float) -> float:
        typical = 1.0 / float(s.reciprocal().mean())
        steepest = float(self._basis.values.max()) * weight
        harmless = 1.0 / steepest if steepest > 0 else float("inf")
        return min(float(s.max()), max(LARGEST * typical, harmless))


def joined(weight: StepSize, bias: StepSize | None, like: Tensor) -> StepSize:
    """The step sizes of a layer's weight and bias as those of its one matrix.

    Args:
        weight: of the weight, a number or in its shape.
        bias: of the bias, a number or [out]; None for a layer without.
        like: the layer's matrix, [out, in].

    Returns:
        One number where all are the same number, else [out, in].
    """
    if not isinstance(weight, Tensor) and (bias is None or weight == bias):
        return weight
    sizes = torch.empty_like(like)
    columns = like.shape[1] - (bias is not None)
    sizes[:, :columns] = weight.reshape(len(like), -1) if isinstance(weight, Tensor) else weight
    if bias is not None:
        sizes[:, columns] = bias
    return sizes
