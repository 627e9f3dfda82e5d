"""One Kronecker product in the place of a sum of them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def nearest_product(
    pairs: Sequence[tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """The one product A ⊗ G that is nearest to a sum of products, in the Frobenius norm.

    min ‖Σ_t A_t ⊗ G_t − A ⊗ G‖_F. Rearranged, the sum is the matrix Σ_t vec(A_t) vec(G_t)ᵀ of rank
    T, and the answer its first singular pair; that needs T × T inner products only. A = Σ u_t A_t
    and G = Σ v_t G_t with u, v ≥ 0, so both stay positive semi-definite.

    Args:
        pairs: (A_t [in, in], G_t [out, out]), at least one.

    Returns:
        A and G, with tr A = in when it can be, the scale in G.

    Source:
        Van Loan and Pitsianis 1993, "Approximation with Kronecker products".

    Example:
        >>> one = torch.eye(2)
        >>> a, g = nearest_product([(one, one), (one, 2 * one)])  # a common factor: exact
        >>> a[0, 0] * g[0, 0]
        tensor(3.)
    """
    if len(pairs) == 1:
        return pairs[0]
    a = torch.stack([a.double().flatten() for a, _ in pairs])
    g = torch.stack([g.double().flatten() for _, g in pairs])
    # Σ vec(A_t) vec(G_t)ᵀ = aᵀ g; with a = Lₐ Qₐ and g = L_g Q_g its singular pairs are those of
    # Lₐᵀ L_g, seen through orthonormal rows.
    rows_a, rows_g = _orthonormal_rows(a), _orthonormal_rows(g)
    core = (rows_a @ a.T) @ (rows_g @ g.T).T
    u, scale, v = torch.linalg.svd(core)
    best_a, best_g = u[:, 0] @ rows_a, scale[0] * (v[0] @ rows_g)
    size_a, size_g = pairs[0][0].shape[0], pairs[0][1].shape[0]
    A, G = best_a.view(size_a, size_a), best_g.view(size_g, size_g)
    trace = A.trace() / size_a
    if trace != 0:  # fixes the sign too: u and v come with any
        A, G = A / trace, G * trace
    return A.to(pairs[0][0].dtype), G.to(pairs[0][1].dtype)


def _orthonormal_rows(matrix: Tensor) -> Tensor:
    return torch.linalg.qr(matrix.T).Q.T


def bounding_product(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One product that bounds a sum of products: A ⊗ G − Σ_t A_t ⊗ G_t is positive semi-definite.

    A = Σ_t c_t A_t, G = Σ_t G_t / c_t with c_t = √(tr G_t / tr A_t): the smallest trace.
    For one pair it is the pair's own product.

    Args:
        pairs: (A_t [in, in], G_t [out, out]), at least one.

    Returns:
        A and G.

    Example:
        >>> one = torch.eye(1)
        >>> a, g = bounding_product([(one, one), (4 * one, 4 * one)])
        >>> a * g >= 1 * 1 + 4 * 4
        tensor([[True]])
    """
    scales = [float(g.trace() / a.trace()) ** 0.5 if a.trace() > 0 else 1.0 for a, g in pairs]
    scales = [c if c > 0 else 1.0 for c in scales]
    A = sum((c * a for c, (a, _) in zip(scales, pairs, strict=True)), torch.zeros(()))
    G = sum((g / c for c, (_, g) in zip(scales, pairs, strict=True)), torch.zeros(()))
    return A, G
