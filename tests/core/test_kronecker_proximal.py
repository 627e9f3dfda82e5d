"""The proximal step of Kronecker factors, against the minimum of its objective."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from lifelong.core.fisher.factors import KroneckerFactors
from lifelong.core.penalty.kronecker import KroneckerPenalty
from lifelong.core.penalty.proximal import step_sizes
from lifelong.core.penalty.quadratic import QuadraticPenalty

from .test_kronecker_penalty import (
    EXACT,
    _seeded,  # noqa: F401 - a fixture of every test here
    factors,
    folded,
    network,
    semidefinite,
    stepped,
)


def test_with_one_step_size_the_proximal_step_is_the_minimum_of_its_objective() -> None:
    net, weight, s = network(), 2.5, 0.1
    penalty, _ = folded(net, 1, damping=0.2)
    start = {n: p.detach().clone() for n, p in net.named_parameters()}
    params = dict(net.named_parameters())
    penalty.proximal_step_(params, dict.fromkeys(params.values(), s), weight)
    penalty.add_gradient_(params, weight)
    for name, p in params.items():
        slope = p.grad + (p.detach() - start[name]) / s
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-10)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.7, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.0, amsgrad=True),
}


def two_quadratic_tasks(
    tasks: int, weight: float
) -> tuple[KroneckerPenalty, Tensor, Tensor, Tensor]:
    """The penalty, c and T of the loss ½ Σ c (W − T)², and the minimum of loss + λΩ."""
    penalty = KroneckerPenalty()
    c, target = torch.rand(2, 4).double() + 0.5, torch.randn(2, 4).double()
    system, right = torch.diag(c.flatten()), (c * target).flatten()
    for _ in range(tasks):
        pair = semidefinite(4, 2), semidefinite(2)
        anchor = {"weight": torch.randn(2, 3).double(), "bias": torch.randn(2).double()}
        penalty.fold(anchor, KroneckerFactors({"": pair}))
        block = weight * torch.kron(pair[1], pair[0])
        w = torch.cat([anchor["weight"], anchor["bias"][:, None]], 1)
        system, right = system + block, right + block @ w.flatten()
    return penalty, c, target, torch.linalg.solve(system, right).view(2, 4)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_proximal_step_stays_at_the_optimum_of_quadratic_tasks(name: str, tasks: int) -> None:
    for weight in (0.1, 2.0, 1e3):
        penalty, c, target, best = two_quadratic_tasks(tasks, weight)
        layer = nn.Linear(3, 2).double()
        with torch.no_grad():
            layer.weight.copy_(best[:, :3])
            layer.bias.copy_(best[:, 3])
        params = dict(layer.named_parameters())
        optimizer = OPTIMIZERS[name](list(params.values()))
        slope = c * (best - target)
        for p, g in ((layer.weight, slope[:, :3]), (layer.bias, slope[:, 3])):
            p.grad = g.clone()
            # the state where these gradients stay; second moments over six orders of magnitude
            second = torch.rand_like(p) * 10.0 ** torch.randint_like(p, -8, -1)
            momentum = optimizer.param_groups[0].get("momentum", 0.0)
            optimizer.state[p].update(
                {"momentum_buffer": g / (1 - momentum)}
                if name in ("sgd", "momentum")
                else {"step": torch.tensor(1e6), "exp_avg": g.clone(), "exp_avg_sq": second}
            )
            if name == "amsgrad":
                optimizer.state[p]["max_exp_avg_sq"] = 2.0 * second
        optimizer.step()
        assert float((layer.bias.detach() - best[:, 3]).abs().max()) > 1e-5
        penalty.proximal_step_(params, step_sizes(optimizer), weight)
        found = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
        torch.testing.assert_close(found, best, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "tasks"), [("sgd", 1), ("momentum", 3), ("adam", 1)])
def test_training_with_proximal_steps_ends_at_the_known_optimum(name: str, tasks: int) -> None:
    penalty, c, target, best = two_quadratic_tasks(tasks, 2.0)
    layer = nn.Linear(3, 2).double()
    params = dict(layer.named_parameters())
    optimizer = OPTIMIZERS[name](list(params.values()))
    for k in range(500):
        if name == "adam":  # whose step sizes never settle at a constant rate
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + k / 50)
        optimizer.zero_grad()
        w = torch.cat([layer.weight, layer.bias[:, None]], 1)
        (0.5 * c * (w - target).square()).sum().backward()
        optimizer.step()
        penalty.proximal_step_(params, step_sizes(optimizer), 2.0)
    found = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    torch.testing.assert_close(found, best, rtol=0, atol=1e-3)


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_weight_gives_finite_parameters_that_stay_near(name: str, tasks: int) -> None:
    for weight in (0.0, 1e-6, 1.0, 1e2, 1e4, 1e6, 1e9, 1e12):
        torch.manual_seed(1)
        net = network().float()
        penalty = KroneckerPenalty()
        anchor = {n: p.detach().clone() for n, p in net.named_parameters()}
        for _ in range(tasks):
            penalty.fold(anchor, factors(net, rank=2))
        optimizer = OPTIMIZERS[name](net.parameters())
        for _ in range(10):
            params = stepped(net, optimizer)
            penalty.proximal_step_(params, step_sizes(optimizer), weight)
        for n, p in params.items():
            assert bool(torch.isfinite(p).all()), (weight, n)
            assert float((p.detach() - anchor[n]).abs().max()) < 10.0, (weight, n)
        # the price falls without end as the weight grows
        price = float(penalty.value(params)) * min(weight, 1e3)
        assert price < 200.0, (weight, price)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_weight_of_zero_changes_no_bit(name: str) -> None:
    net = network()
    penalty, _ = folded(net, 2)
    optimizer = OPTIMIZERS[name](net.parameters())
    params = stepped(net, optimizer)
    before = {n: p.detach().clone() for n, p in params.items()}
    penalty.proximal_step_(params, step_sizes(optimizer), 0.0)
    assert all(torch.equal(p, before[n]) for n, p in params.items())


@pytest.mark.parametrize("name", ["adam", "amsgrad"])
def test_the_step_becomes_the_optimizers_as_the_weight_vanishes(name: str) -> None:
    net = network()
    penalty, _ = folded(net, 1)
    optimizer = OPTIMIZERS[name](net.parameters())
    params = stepped(net, optimizer)
    before = {n: p.detach().clone() for n, p in params.items()}
    penalty.proximal_step_(params, step_sizes(optimizer), 1e-18)
    torch.testing.assert_close(
        {n: p.detach() for n, p in params.items()}, before, rtol=0, atol=1e-9
    )


def test_without_a_loss_the_price_falls_in_every_step_of_any_size() -> None:
    for weight in (1e-2, 1.0, 1e4, 1e10):
        layer = nn.Linear(5, 4).double()
        penalty = KroneckerPenalty()
        anchor = {n: torch.randn_like(p) for n, p in layer.named_parameters()}
        for _ in range(2):
            penalty.fold(anchor, KroneckerFactors({"": (semidefinite(6, 3), semidefinite(4))}))
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.0)
        params = dict(layer.named_parameters())
        optimizer.zero_grad()
        sum((torch.rand_like(p) * p).sum() for p in params.values()).backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.1
        for p in params.values():
            optimizer.state[p]["exp_avg"].zero_()
        values = [float(penalty.value(params))]
        for _ in range(20):
            penalty.proximal_step_(params, step_sizes(optimizer), weight)
            values.append(float(penalty.value(params)))
        assert all(b <= a * (1 + 1e-9) for a, b in pairwise(values)), values
        assert values[-1] < 0.999 * values[0]


def test_the_remaining_parameters_step_as_with_the_quadratic_penalty() -> None:
    net = network()
    penalty, told = folded(net, 1)
    plain = QuadraticPenalty()
    plain.fold(told[0][0], told[0][1].diagonal)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    params = stepped(net, optimizer)
    expected = {n: p.detach().clone() for n, p in params.items() if "norm" in n}
    sizes = {expected[n]: step_sizes(optimizer)[params[n]] for n in expected}
    plain.proximal_step_({**params, **expected}, sizes, 5.0)
    penalty.proximal_step_(params, step_sizes(optimizer), 5.0)
    torch.testing.assert_close({n: params[n].detach() for n in expected}, expected, **EXACT)


def test_plain_numbers_do_not_tell_where_adam_came_from() -> None:
    net = network()
    penalty, _ = folded(net, 1)
    sizes = {p: torch.rand_like(p) for p in net.parameters()}
    with pytest.raises(ValueError, match=r"step_sizes\(optimizer\)"):
        penalty.proximal_step_(dict(net.named_parameters()), sizes, 1.0)
