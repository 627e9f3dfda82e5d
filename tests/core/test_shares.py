"""Shares of the examples add up to the whole."""

import pytest
import torch
from torch import Tensor, nn

from lifelong.core import KroneckerFactors, fisher_diagonal, kronecker_factors
from lifelong.core.fisher.partial_sums import ShareSums

pytestmark = pytest.mark.usefixtures("double")
SIZES = (5, 1, 9, 2)


def data() -> list[tuple[Tensor, Tensor]]:
    x, y = torch.randn(sum(SIZES), 4), torch.randint(3, (sum(SIZES),))
    return list(zip(x.split(SIZES), y.split(SIZES), strict=True))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("labels", ["exact", "empirical"])
def test_the_mean_over_shares_weighs_them_by_their_examples(labels: str) -> None:
    net, shares = network(), data()
    whole = fisher_diagonal(net, shares, labels=labels, threshold=0)
    sums = [
        ShareSums.of(fisher_diagonal(net, [s], labels=labels, threshold=0), len(s[0]))
        for s in shares
    ]
    total = sums[0] + sums[1] + sums[2] + sums[3]
    assert total.count == 17
    torch.testing.assert_close(total.mean(), whole, rtol=1e-12, atol=1e-16)
    unweighted = torch.stack([s.sums[0] / s.count for s in sums]).mean(0)
    assert (unweighted - whole["0.weight"]).abs().max() > 1e-3 * whole["0.weight"].max()


def test_factors_and_what_they_leave_add_up_each_by_itself() -> None:
    net, shares = network(), data()
    whole = kronecker_factors(net, shares, threshold=0.0)
    assert set(whole.diagonal) == {"1.weight", "1.bias"}
    parts = [ShareSums.of(kronecker_factors(net, [s], threshold=0.0), len(s[0])) for s in shares]
    merged = (parts[3] + parts[1] + parts[0] + parts[2]).mean()
    assert isinstance(merged, KroneckerFactors)
    assert merged.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(merged[name], whole[name], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(merged.diagonal, whole.diagonal, rtol=1e-12, atol=1e-16)


def test_one_share_alone_keeps_its_bits_and_its_precision() -> None:
    importance = {"w": torch.rand(1000, dtype=torch.float32) * 1e-20, "b": torch.rand(3).bfloat16()}
    kept = ShareSums.of(importance, 7).mean()
    assert all(torch.equal(kept[n], f) and kept[n].dtype == f.dtype for n, f in importance.items())


def test_a_share_without_examples_changes_nothing() -> None:
    own = ShareSums.of({"w": torch.rand(5)}, 4)
    both = ShareSums.none(own.layout) + own
    assert both.count == 4
    assert torch.equal(both.mean()["w"], own.mean()["w"])


def test_what_cannot_be_added_or_divided_is_refused() -> None:
    one = ShareSums.of({"w": torch.ones(2)}, 1)
    with pytest.raises(ValueError, match="other names or shapes"):
        one + ShareSums.of({"w": torch.ones(3)}, 1)
    with pytest.raises(ValueError, match="no share holds an example"):
        ShareSums.none(one.layout).mean()
    with pytest.raises(ValueError, match="count is 0"):
        ShareSums.of({"w": torch.ones(2)}, 0)
