import pytest
import torch

from lifelong.core.fisher.likelihoods import Categorical
from lifelong.core.fisher.likelihoods.base import directions
from lifelong.core.fisher.likelihoods.directions import Contrasts, kept_directions


@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0])
def test_contrasts_factor_the_covariance_of_the_label(scale: float) -> None:
    torch.manual_seed(0)
    logits = scale * torch.randn(8, 6, dtype=torch.float64)
    u = torch.stack(list(directions(Categorical(), logits, "exact", None, None)), dim=1)
    p = logits.softmax(-1)
    wanted = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(u.mT @ u, wanted, rtol=0, atol=1e-15)
    assert u.shape[1] <= 5


def test_contrasts_keep_what_one_minus_the_top_probability_would_lose() -> None:
    # 1 − p of the top class is 0 in float64; the variance of the second is e^−50
    logits = torch.tensor([[0.0, -50.0, -60.0]], dtype=torch.float64)
    weights = Contrasts(logits).weights[0]
    p = logits[0].exp()
    wanted = torch.stack([p[1] + p[2], p[1] * p[2] / (p[1] + p[2])])
    torch.testing.assert_close(weights, wanted, rtol=1e-12, atol=0)


def test_certainty_needs_no_direction() -> None:
    logits = torch.tensor([[0.0, -1e6, -1e6], [0.0, -1e6, 0.0]])
    contrasts = Contrasts(logits)
    assert kept_directions(contrasts.weights, 0.0).tolist() == [0, 1]
    assert contrasts.direction(0).isfinite().all()
    assert contrasts.direction(1).isfinite().all()


def test_weights_fall_and_their_sum_bounds_what_is_left_out() -> None:
    torch.manual_seed(0)
    weights = Contrasts(5 * torch.randn(50, 10)).weights
    assert (weights.diff(dim=1) <= 0).all()
    for threshold in (0.0, 1e-6, 1e-2, 0.5):
        kept = torch.arange(9) < kept_directions(weights, threshold)[:, None]
        assert float(weights[~kept].sum()) <= threshold * float(weights.sum())


def test_equal_weights_are_not_left_out_together() -> None:
    weights = torch.ones(10, 1, dtype=torch.float64)
    assert kept_directions(weights, 0.25).sum() == 10


def test_positions_are_independent_labels() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 4, dtype=torch.float64)
    found = list(directions(Categorical(), logits, "exact", None, None))
    assert len(found) == 6
    u = torch.stack(found, dim=1).flatten(2)
    wanted = torch.zeros(3, 8, 8, dtype=torch.float64)
    for position in range(2):
        p, part = logits[:, position].softmax(-1), slice(4 * position, 4 * position + 4)
        wanted[:, part, part] = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(u.mT @ u, wanted, rtol=0, atol=1e-15)


def test_sampled_labels_come_as_often_as_the_network_says() -> None:
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    u = Categorical().sampled(p.log().expand(20_000, 3), None, generator)
    # the mean of e_y − p, within four standard errors
    torch.testing.assert_close(
        u.mean(dim=0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=0.014
    )
    assert set((u + p).round(decimals=9).unique().tolist()) == {0.0, 1.0}
