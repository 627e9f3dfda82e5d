"""What one parameter's share of Ω costs and where it pulls, without temporaries of its size.

Each function takes θ where it is, θ̄ and F̄ as they are kept, maybe on another device and in another
type, and brings what is needed to θ: on the CPU piece by piece, elsewhere one parameter at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lifelong.core.penalty.storage import Kept

# Elements handled together, so that θ − θ̄ stays in the cache between the two passes over a piece;
# the fastest of 2¹⁵ to 2¹⁸ on two threads with 1 MiB of second-level cache each.
PIECE = 262_144


def price(theta: Tensor, anchor: Tensor, f: Kept) -> Tensor:
    """½ Σ F̄ (θ − θ̄)².

    Args:
        theta: θ, [*shape].
        anchor: θ̄, [*shape].
        f: F̄.

    Returns:
        A scalar in float64, on θ's device.
    """
    prices = []
    for gap, w, _ in _gaps(theta, anchor, f):
        prices.append(torch.dot((gap * w).flatten(), gap.flatten()))
    return 0.5 * torch.stack(prices).sum(dtype=torch.float64)


def price_and_pull(theta: Tensor, anchor: Tensor, f: Kept, weight: float) -> tuple[Tensor, Tensor]:
    """½ Σ F̄ (θ − θ̄)², and ``weight`` · F̄ ⊙ (θ − θ̄) in fresh memory, both in one pass.

    Args:
        theta: θ, [*shape].
        anchor: θ̄, [*shape].
        f: F̄.
        weight: λ > 0.

    Returns:
        A scalar in float64, and a tensor in θ's shape and type.
    """
    pull = torch.empty_like(theta)
    prices, nothing = [], None
    for gap, w, p in _gaps(theta.detach(), anchor, f, pull):
        # A number takes the place of a tensor of zeros.
        nothing = gap.new_zeros(()) if nothing is None else nothing
        if p.dtype == gap.dtype:
            found = torch.addcmul(nothing, w, gap, value=weight, out=p)
        else:
            found = torch.addcmul(nothing, w, gap, value=weight)
            p.copy_(found)
        prices.append(torch.dot(found.flatten(), gap.flatten()))
    return (0.5 / weight) * torch.stack(prices).sum(dtype=torch.float64), pull


def add_pull_(grad: Tensor, theta: Tensor, anchor: Tensor, f: Kept, weight: float) -> None:
    """Add ``weight`` · F̄ ⊙ (θ − θ̄) to a gradient.

    Args:
        grad: changed in place, [*shape].
        theta: θ, [*shape].
        anchor: θ̄, [*shape].
        f: F̄.
        weight: λ.
    """
    for gap, w, g in _gaps(theta.detach(), anchor, f, grad):
        if g.dtype == gap.dtype:
            g.addcmul_(w, gap, value=weight)
        else:
            g.add_((w * gap).mul_(weight))


def _gaps(
    theta: Tensor, anchor: Tensor, f: Kept, beside: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    # Pieces of θ − θ̄, F̄, and of a tensor in θ's shape, which lie together.
    # One type for θ − θ̄ and F̄, of at least 32 bits: Ω in 16 would be a sum of rounding errors.
    types = {theta.dtype, anchor.dtype, f.numbers.dtype}
    wide = torch.float64 if torch.float64 in types else torch.float32
    anchor, f = anchor.to(theta.device, non_blocking=True), f.to(theta.device)
    beside = theta if beside is None else beside
    rows = (theta, anchor, f.numbers, beside)
    together = theta.device.type != "cpu" or not all(x.is_contiguous() for x in rows)
    if together or theta.numel() <= PIECE:
        yield theta.to(wide) - anchor.to(wide), f.decoded(wide), beside
        return
    # One scratch for all pieces: fresh memory for each would cost more than the arithmetic.
    scratch, levels = theta.new_empty(PIECE, dtype=wide), theta.new_empty(0)
    if f.numbers.dtype == torch.uint8:
        levels = theta.new_empty(PIECE, dtype=torch.float32)
    parts = zip(
        theta.view(-1).split(PIECE),
        anchor.view(-1).split(PIECE),
        f.pieces(PIECE),
        beside.view(-1).split(PIECE),
        strict=True,
    )
    for t, a, w, b in parts:
        out = scratch[: len(t)]
        gap = torch.sub(t.to(wide), a.to(wide), out=out)
        yield gap, w.decoded(wide, levels[: len(t)]), b
