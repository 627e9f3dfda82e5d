"""A draw depends on what the examples are, not on how they come; its sums are right in the mean."""

import torch
from torch import Tensor

from lifelong.learning.sample import Sample


def pairs(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, generator=generator), torch.arange(count)


def drawn(sample: Sample) -> list[int]:
    return [int(y) for piece in sample.drawn()[0] for y in piece[1]]


def test_order_batches_and_shares_change_nothing() -> None:
    x, y = pairs(100)
    weights = x[:, 0].abs() + 0.1
    whole = Sample(10, salt=3)
    whole.add((x, y), weights)
    other = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    shares = [Sample(10, salt=3), Sample(10, salt=3)]
    for number, part in enumerate(other.split(7)):
        shares[number % 2].add((x[part], y[part]), weights[part])
    merged = Sample(10)
    merged.merge(shares)
    assert drawn(merged) == drawn(whole)
    torch.testing.assert_close(merged.drawn()[1], whole.drawn()[1], rtol=1e-12, atol=0)
    again = Sample(10, salt=4)
    again.add((x, y), weights)
    assert drawn(again) != drawn(whole)


def test_an_example_that_comes_twice_is_kept_once() -> None:
    x, y = pairs(4)
    sample = Sample(8)
    sample.add((x, y))
    sample.add((x, y))
    assert sorted(drawn(sample)) == [0, 1, 2, 3]


def mean_of(value: Tensor, weights: Tensor, salt: int) -> float:
    x, y = pairs(60)
    sample = Sample(12, salt=salt)
    sample.add((x, y), weights)
    pieces, numbers = sample.drawn()
    return float((numbers * value[torch.cat([piece[1] for piece in pieces])]).mean())


def test_means_are_right_in_the_mean_and_surer_where_large_ones_are_likelier() -> None:
    value = pairs(60)[0][:, 1].exp().double()
    noise = torch.rand(60, generator=torch.Generator().manual_seed(5))
    found = torch.tensor([mean_of(value, value + 0.2 * noise, salt) for salt in range(80)])
    assert abs(float(found.mean() / value.mean()) - 1) < 0.02
    # equal weights would leave s / √n
    assert found.std() < 0.2 * value.std() / 12**0.5
    assert abs(mean_of(value, value, 7) - float(value.mean())) < 1e-12


def test_equal_weights_are_a_plain_draw() -> None:
    value = pairs(60)[0][:, 1].exp().double()
    found = torch.tensor([mean_of(value, torch.ones(60), salt) for salt in range(80)])
    assert abs(float(found.mean() - value.mean())) < 3 * float(found.std()) / 80**0.5


def test_few_examples_are_all_kept_and_count_alike() -> None:
    x, y = pairs(5)
    sample = Sample(10)
    sample.add((x, y), torch.rand(5) + 0.1)
    pieces, numbers = sample.drawn()
    assert sorted(drawn(sample)) == [0, 1, 2, 3, 4]
    assert numbers.tolist() == [1.0] * 5
    assert {type(piece) for piece in pieces} == {tuple}
