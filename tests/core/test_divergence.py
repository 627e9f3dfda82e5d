"""What two predictions differ by, against torch's own distributions."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli as Coin
from torch.distributions import Categorical as Classes
from torch.distributions import Normal, kl_divergence
from torch.distributions import Poisson as Rate

from lifelong.core import Bernoulli, Categorical, Gaussian, Heteroscedastic, Poisson
from lifelong.core.fisher.likelihoods.base import Given
from lifelong.core.fisher.likelihoods.product import Product


def two(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return one, one + torch.randn(*shape, generator=generator, dtype=torch.float64)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_of_classes_it_is_that_of_two_softmaxes() -> None:
    p, q = two(5, 4)
    wanted = kl_divergence(Classes(logits=p), Classes(logits=q))
    close(Categorical().divergence(p, q, None), wanted)
    close(Categorical().uncertainty(p, None), 1 - p.softmax(-1).square().sum(-1))


def test_positions_that_are_ignored_count_for_nothing() -> None:
    p, q = two(2, 3, 4)
    y = torch.tensor([[0, -100, 2], [-100, -100, -100]])
    each = kl_divergence(Classes(logits=p), Classes(logits=q))
    close(
        Categorical().divergence(p, q, y),
        torch.stack([(each[0, 0] + each[0, 2]) / 2, each.new_zeros(())]),
    )


def test_only_active_classes_take_part_and_ruled_out_ones_add_nothing() -> None:
    p, q = two(5, 4)
    found = Categorical(active=(0, 2)).divergence(p, q, None)
    close(found, kl_divergence(Classes(logits=p[:, [0, 2]]), Classes(logits=q[:, [0, 2]])))
    p[:, 1] = q[:, 1] = -torch.inf  # masked
    some = [0, 2, 3]
    wanted = kl_divergence(Classes(logits=p[:, some]), Classes(logits=q[:, some]))
    close(Categorical().divergence(p, q, None), wanted)


def test_of_numbers_and_of_coins_it_is_the_mean_over_the_outputs() -> None:
    p, q = two(5, 3)
    close(
        Gaussian(2.0).divergence(p, q, None), kl_divergence(Normal(p, 2.0), Normal(q, 2.0)).mean(1)
    )
    close(Bernoulli().divergence(p, q, None), kl_divergence(Coin(logits=p), Coin(logits=q)).mean(1))
    close(Bernoulli().uncertainty(p, None), (p.sigmoid() * (1 - p.sigmoid())).mean(1))


def test_of_counts_and_of_numbers_with_their_own_noise_it_is_torchs_too() -> None:
    p, q = two(5, 3)
    wanted = kl_divergence(Rate(p.exp()), Rate(q.exp())).mean(1)
    close(Poisson().divergence(p, q, None), wanted)
    p, q = two(5, 3, 2)
    one, other = (Normal(x[..., 0], (x[..., 1] / 2).exp()) for x in (p, q))
    close(Heteroscedastic().divergence(p, q, None), kl_divergence(one, other).mean(1))


def test_heads_add_up() -> None:
    p, q = two(5, 3)
    both = Product([Gaussian(), Categorical()])
    before, _ = both.join([p, p], [None, None])
    after, _ = both.join([q, q], [None, None])
    close(
        both.divergence(before, after, None),
        Gaussian().divergence(p, q, None) + Categorical().divergence(p, q, None),
    )


def test_a_likelihood_that_cannot_compare_says_what_can() -> None:
    p, q = two(5)
    with pytest.raises(ValueError, match=r"Given cannot compare .* pass Categorical\(\)"):
        Given().divergence(p, q, None)
