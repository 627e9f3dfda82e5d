import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lifelong.core.fisher.diagonal import fisher_diagonal

Oracle = Callable[[nn.Module, Tensor], dict[str, Tensor]]

pytestmark = pytest.mark.usefixtures("double")


def perceptron(classes: int = 5) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 7), nn.ReLU(inplace=True), nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, classes)
    )


def batches(x: Tensor, size: int = 4, classes: int = 5) -> list[tuple[Tensor, Tensor]]:
    y = torch.arange(len(x)) % classes
    return list(zip(x.split(size), y.split(size), strict=True))


def assert_equal(came: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float = 1e-9) -> None:
    assert came.keys() == wanted.keys()
    for name, expected in wanted.items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(came[name], expected, rtol=rtol, atol=rtol * scale, msg=name)


def test_softmax_regression_has_its_closed_form() -> None:
    network, x = nn.Linear(6, 4), torch.randn(50, 6)
    p = network(x).softmax(-1).detach()
    variance = p * (1 - p)
    wanted = {"weight": variance.T @ x**2 / len(x), "bias": variance.mean(dim=0)}
    assert_equal(fisher_diagonal(network, batches(x), threshold=0), wanted, rtol=1e-13)


@pytest.mark.parametrize("threshold", [0, 1e-13])
def test_a_perceptron_agrees_with_the_loop(looped_fisher: Oracle, threshold: float) -> None:
    network, x = perceptron(), 3 * torch.randn(23, 6)
    for chunk in (None, 1, 2, 5):
        came = fisher_diagonal(network, batches(x), threshold=threshold, chunk=chunk)
        assert_equal(came, looped_fisher(network, x))


def test_two_classes_and_one_example_are_enough(looped_fisher: Oracle) -> None:
    network, x = perceptron(classes=2), torch.randn(1, 6)
    assert_equal(fisher_diagonal(network, [(x, torch.tensor([0]))]), looped_fisher(network, x))


def test_the_fisher_does_not_depend_on_the_batches() -> None:
    network, x = perceptron(), torch.randn(64, 6)
    for labels in ("exact", "empirical", "sampled"):
        found = []
        for size in (1, 7, 64):
            torch.manual_seed(1)
            found.append(fisher_diagonal(network, batches(x, size), labels=labels))
        for other in found[1:]:
            assert_equal(other, found[0], rtol=1e-13)


def test_the_fisher_is_a_mean_over_examples() -> None:
    network, x = perceptron(), torch.randn(8, 6)
    once, twice = (fisher_diagonal(network, batches(z)) for z in (x, torch.cat([x, x])))
    assert_equal(once, twice, rtol=1e-12)


def test_empirical_labels_square_the_score_of_the_given_label() -> None:
    network, x = perceptron(), torch.randn(9, 6)
    y = torch.arange(9) % 5
    wanted = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for one, label in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(network(one[None]), label[None])
        for name, p in network.named_parameters():
            wanted[name] += torch.autograd.grad(loss, p, retain_graph=True)[0] ** 2 / 9
    assert_equal(fisher_diagonal(network, [(x, y)], labels="empirical"), wanted)


@pytest.mark.slow
def test_sampled_labels_converge_to_the_exact_expectation() -> None:
    network, x = perceptron(), torch.randn(10, 6)
    exact = torch.cat([f.flatten() for f in fisher_diagonal(network, [(x, None)]).values()])
    generator = torch.Generator().manual_seed(0)

    def error(draws: int) -> float:
        many = [(x.repeat(draws, 1), None)]
        came = fisher_diagonal(network, many, labels="sampled", generator=generator)
        found = torch.cat([f.flatten() for f in came.values()])
        return float((found - exact).norm() / exact.norm())

    few = math.sqrt(sum(error(16) ** 2 for _ in range(8)) / 8)
    more = math.sqrt(sum(error(1024) ** 2 for _ in range(8)) / 8)
    assert 5 < few / more < 13  # √64 = 8
    assert more < 0.02


def test_the_quadratic_form_is_twice_the_divergence_of_a_small_step() -> None:
    network, x = perceptron(), torch.randn(12, 6)
    fisher = fisher_diagonal(network, [(x, None)])
    log_p = network(x).log_softmax(-1).detach()

    def divergence() -> float:
        with torch.no_grad():
            moved = network(x).log_softmax(-1)
        return float((log_p.exp() * (log_p - moved)).sum(dim=-1).mean())

    for name, p in network.named_parameters():
        place = int(fisher[name].argmax())
        flat, step = p.data.view(-1), 1e-4
        before = flat[place].clone()
        # the mean of both directions: the cubic terms cancel
        flat[place] = before + step
        up = divergence()
        flat[place] = before - step
        down = divergence()
        flat[place] = before
        wanted = float(fisher[name].view(-1)[place])
        assert (up + down) / step**2 == pytest.approx(wanted, rel=1e-5)


def test_terms_left_out_stay_within_the_bound_and_never_add() -> None:
    network, x = perceptron(classes=9), 4 * torch.randn(50, 6)
    for p in network[-1].parameters():
        p.data *= 6
    true = fisher_diagonal(network, [(x, None)], threshold=0)
    trace = sum(float(f.sum()) for f in true.values())
    dropped_something = False
    for threshold in (1e-9, 1e-6, 1e-3):
        came = fisher_diagonal(network, [(x, None)], threshold=threshold, chunk=1)
        short = sum(float((true[n] - came[n]).sum()) for n in true) / trace
        dropped_something |= short > 1e-12
        # a generous ratio of the largest to the mean squared contrast
        assert -1e-15 <= short <= 50 * threshold
        for name, f in came.items():
            assert (f <= true[name] * (1 + 1e-12)).all()
    assert dropped_something


def test_the_default_threshold_errs_by_less_than_a_millionth() -> None:
    torch.manual_seed(3)
    network = perceptron(classes=10)
    x = torch.randn(2000, 6)
    y = (3 * x[:, 0]).round().long().clamp(-5, 4) + 5
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    true = fisher_diagonal(network, [(x, y)], threshold=0)
    came = fisher_diagonal(network, [(x, y)])
    error = sum(float((came[n] - true[n]).abs().sum()) for n in true)
    assert error <= 1e-6 * sum(float(f.sum()) for f in true.values())


def test_small_terms_are_not_lost_in_float32() -> None:
    # one example weighs 1, 1,000 others 1e-8 each: five at a time added to 1 they would vanish
    network = nn.Linear(1, 2, bias=False).float()
    nn.init.zeros_(network.weight)
    x = torch.full((1001, 1), 2e-4, dtype=torch.float32)
    x[0] = 2
    fisher = fisher_diagonal(network, [(x, None)], chunk=5)["weight"]
    wanted = torch.full((2, 1), 0.25 * (4 + 1000 * 4e-8) / 1001, dtype=torch.float32)
    torch.testing.assert_close(fisher, wanted, rtol=1e-6, atol=0)


def test_samples_takes_the_first_examples() -> None:
    network, x = perceptron(), torch.randn(20, 6)
    came = fisher_diagonal(network, batches(x), samples=10)
    assert_equal(came, fisher_diagonal(network, batches(x[:10])), rtol=1e-13)


def test_frozen_parameters_are_left_out_and_stay_frozen(looped_fisher: Oracle) -> None:
    network, x = perceptron(), torch.randn(7, 6)
    network[0].requires_grad_(False)
    network[2].weight.requires_grad_(False)
    came = fisher_diagonal(network, [(x, None)])
    assert list(came) == ["2.bias", "4.weight", "4.bias"]
    assert_equal(came, looped_fisher(network, x))


def test_parameters_that_the_output_does_not_reach_get_zeros() -> None:
    network = perceptron()
    network.add_module("unused", nn.Linear(3, 3))
    network.forward = lambda x: network[4](network[3](network[2](network[1](network[0](x)))))
    came = fisher_diagonal(network, [(torch.randn(4, 6), None)])
    assert not came["unused.weight"].any()
    assert came["4.weight"].any()


def test_a_network_without_trainable_parameters_has_no_fisher() -> None:
    network = perceptron().requires_grad_(False)
    assert fisher_diagonal(network, [(torch.randn(4, 6), None)]) == {}


def test_many_classes_fit_in_small_chunks(looped_fisher: Oracle) -> None:
    network, x = nn.Linear(3, 60), torch.randn(5, 3)
    assert_equal(fisher_diagonal(network, [(x, None)], chunk=2), looped_fisher(network, x), 1e-6)
    came = fisher_diagonal(network, [(x, None)], threshold=0)
    assert_equal(came, looped_fisher(network, x))


def test_progress_is_told_to_the_end() -> None:
    told: list[tuple[int, int | None]] = []
    x = torch.randn(10, 6)
    fisher_diagonal(
        perceptron(), batches(x), chunk=3, progress=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (10, 10)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
