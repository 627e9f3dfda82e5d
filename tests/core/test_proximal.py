"""The proximal arithmetic and the step sizes of the optimizers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lifelong.core.penalty.proximal import proximal_step_, shrinkage, step_sizes
from lifelong.core.penalty.quadratic import QuadraticPenalty

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, dampening=0.4),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8, nesterov=True),
    "decayed": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adam with decay": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.0),
    "adamw with decay": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
}


def test_the_step_is_the_minimum_of_its_objective() -> None:
    generator = torch.Generator().manual_seed(0)
    theta, anchor, f, s = (
        torch.rand(50, dtype=torch.float64, generator=generator) for _ in range(4)
    )
    new = theta.clone()
    proximal_step_(new, anchor, f, s, 3.0)
    slope = 3.0 * f * (new - anchor) + (new - theta) / s
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)


def test_a_weight_of_zero_changes_no_bit() -> None:
    theta = torch.randn(1000)
    before = theta.clone()
    proximal_step_(theta, torch.randn(1000), torch.rand(1000) * 1e30, torch.rand(1000), 0.0)
    assert torch.equal(theta, before)


@pytest.mark.parametrize("weight", [0.0, 1e-12, 1.0, 1e6, 1e12, 1e38])
@pytest.mark.parametrize("step", [1e-30, 1e-3, 1e5])
def test_the_shrinkage_is_a_share_whatever_the_weight(weight: float, step: float) -> None:
    f = torch.tensor([0.0, 1e-45, 1e-38, 1e-10, 1.0, 1e10, 3e38])
    for s in (step, torch.full_like(f, step)):
        w = shrinkage(f, s, weight)
        assert bool(((w >= 0) & (w <= 1)).all()), w
        # in two orders, for each alone may overflow
        exact = f.double() * step * weight
        torch.testing.assert_close(w.double(), exact / (1 + exact), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_an_impossible_weight_is_an_error_that_names_it(weight: float) -> None:
    with pytest.raises(ValueError, match=f"weight is {weight}"):
        proximal_step_(torch.ones(1), torch.ones(1), torch.ones(1), 0.1, weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_start_of_a_step_is_known_from_the_optimizers_state(name: str) -> None:
    theta = nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64))
    optimizer = OPTIMIZERS[name]([theta])
    for _ in range(5):
        before = theta.detach().clone()
        optimizer.zero_grad()
        (theta - 2).pow(4).sum().backward()
        optimizer.step()
        found = step_sizes(optimizer).before(theta)
        torch.testing.assert_close(found, before, rtol=1e-12, atol=1e-12)


def at_rest(optimizer: torch.optim.Optimizer, gradients: dict[nn.Parameter, Tensor]) -> None:
    """Give the optimizer the state that it reaches where these gradients stay, and step once."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            g = param.grad = gradients[param].clone()
            if isinstance(optimizer, torch.optim.SGD):
                gathered = (1 - group["dampening"]) / (1 - group["momentum"])
                optimizer.state[param]["momentum_buffer"] = g * gathered
                continue
            # the second moments are free: noise of the batches
            second = torch.rand_like(param) * 10.0 ** torch.randint_like(param, -8, 2)
            optimizer.state[param] = {
                "step": torch.tensor(1e6),
                "exp_avg": g.clone(),
                "exp_avg_sq": second,
                "max_exp_avg_sq": 2.0 * second,
            }
    optimizer.step()


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if "decay" not in n])
def test_the_proximal_step_has_the_explicit_steps_fixed_point(name: str) -> None:
    theta = nn.Parameter(torch.randn(20, dtype=torch.float64))
    anchor, f, weight = torch.randn_like(theta), torch.rand_like(theta), 2.5
    f[:5] = 0.0
    penalty = QuadraticPenalty()
    penalty.fold({"theta": anchor}, {"theta": f})
    before = theta.detach().clone()
    optimizer = OPTIMIZERS[name]([theta])
    # where ∇L + λ∇Ω = 0 the two steps undo each other
    at_rest(optimizer, {theta: -weight * f * (before - anchor)})
    assert float((theta.detach() - before).abs().max()) > 1e-3
    penalty.proximal_step_({"theta": theta}, step_sizes(optimizer), weight)
    torch.testing.assert_close(theta.detach(), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "momentum", "dampened", "nesterov"])
def test_training_with_proximal_steps_ends_at_the_known_optimum(name: str) -> None:
    # ½ Σ c (θ − t)² + λ ½ Σ F (θ − θ*)²
    c = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    target = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    f, weight = torch.tensor([0.0, 0.1, 4.0], dtype=torch.float64), 2.5
    theta = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    penalty = QuadraticPenalty()
    penalty.fold({"theta": theta.detach().clone()}, {"theta": f})
    optimizer = OPTIMIZERS[name]([theta])
    for _ in range(600):
        optimizer.zero_grad()
        (0.5 * c * (theta - target).square()).sum().backward()
        optimizer.step()
        penalty.proximal_step_({"theta": theta}, step_sizes(optimizer), weight)
    torch.testing.assert_close(theta.detach(), c * target / (c + weight * f), rtol=0, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, *(10.0**k for k in range(13))])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_every_weight_gives_finite_parameters(name: str, weight: float) -> None:
    torch.manual_seed(0)
    theta = nn.Parameter(torch.randn(100))
    start = theta.detach().clone()
    penalty = QuadraticPenalty()
    penalty.fold({"theta": start}, {"theta": torch.logspace(-20, 10, 100)})
    optimizer = OPTIMIZERS[name]([theta])
    for _ in range(30):
        optimizer.zero_grad()
        (theta - 1).square().sum().backward()
        optimizer.step()
        penalty.proximal_step_({"theta": theta}, step_sizes(optimizer), weight)
    assert bool(torch.isfinite(theta).all())
    bound = (1 - start).abs() * 2.0 + 1e-6
    assert bool(((theta - start).abs() <= bound).all())


def test_another_optimizer_is_an_error_that_names_it() -> None:
    optimizer = torch.optim.RMSprop([nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match=r"RMSprop; use .* take the explicit step"):
        step_sizes(optimizer)


def test_a_maximizing_optimizer_is_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, maximize=True)
    with pytest.raises(ValueError, match="maximize"):
        step_sizes(optimizer)


def test_a_parameter_that_was_not_stepped_has_no_step_size() -> None:
    used, idle = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    for kind in (torch.optim.SGD, torch.optim.Adam):
        optimizer = kind([used, idle], lr=0.1)
        optimizer.zero_grad()
        used.sum().backward()
        optimizer.step()
        sizes = step_sizes(optimizer)
        assert used in sizes
        assert idle not in sizes


def sizes_as_tensor(size: float | Tensor, like: Tensor) -> Tensor:
    return size if isinstance(size, Tensor) else torch.full_like(like, size)


def test_adams_step_size_is_what_it_moved_per_unit_of_first_moment() -> None:
    theta = nn.Parameter(torch.tensor([1.0, -3.0], dtype=torch.float64))
    optimizer = torch.optim.Adam([theta], lr=0.1)
    before = theta.detach().clone()
    theta.pow(3).sum().backward()
    optimizer.step()
    assert theta.grad is not None
    moved = before - theta.detach()
    expected = sizes_as_tensor(step_sizes(optimizer)[theta], theta) * theta.grad
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=0)
