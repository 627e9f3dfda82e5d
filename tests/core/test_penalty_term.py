"""λΩ in the loss: in every setting the gradient of the formula written down."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding

from lifelong.core import (
    KroneckerPenalty,
    Penalty,
    PenaltyTerm,
    QuadraticPenalty,
    fisher_diagonal,
    kronecker_factors,
)

LAMBDA = 30.0
KINDS = ("diagonal", "kronecker", "offloaded")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 3)).double()


def batch(seed: int, count: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=g, dtype=torch.float64)
    return x, torch.randint(3, (count,), generator=g)


def consolidated(kind: str, net: nn.Module, seeds: tuple[int, ...] = (1, 2)) -> Penalty:
    """A penalty of some tasks; the network has moved away from the last of them."""
    device = "cpu" if kind == "offloaded" else None
    factors = kind == "kronecker"
    penalty: Penalty = KroneckerPenalty(0.1) if factors else QuadraticPenalty(0.1, device=device)
    for seed in seeds:
        fold(kind, penalty, net, seed)
    return penalty


def fold(kind: str, penalty: Penalty, net: nn.Module, seed: int) -> None:
    estimator = kronecker_factors if kind == "kronecker" else fisher_diagonal
    penalty.fold(dict(net.named_parameters()), estimator(net, [batch(seed)]))
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))


def task_loss(net: nn.Module, seed: int = 9) -> Tensor:
    x, y = batch(seed)
    return cross_entropy(net(x), y)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


class Formula:
    """The oracle: the same call, with the penalty's formula under plain autograd."""

    def __init__(self, penalty: Penalty, params: dict[str, nn.Parameter]) -> None:
        self.penalty, self.params = penalty, params

    def __call__(self, loss: Tensor, weight: float) -> Tensor:
        return loss + weight * self.penalty(self.params).to(loss.dtype)


def both(kind: str) -> list[tuple[nn.Module, Penalty, Any]]:
    """Twice the same network and penalty, with the term and with the formula."""
    found = []
    for made in (PenaltyTerm, Formula):
        net = network()
        penalty = consolidated(kind, net)
        found.append((net, penalty, made(penalty, dict(net.named_parameters()))))
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_of_the_formula(kind: str) -> None:
    found = []
    for net, penalty, term in both(kind):
        loss = term(task_loss(net), LAMBDA)
        loss.backward()
        found.append((loss.item(), gradients(net)))
        if isinstance(term, PenaltyTerm):
            omega = penalty(dict(net.named_parameters())).item()
            assert term.omega.dtype == torch.float64
            assert not term.omega.requires_grad
            assert term.omega.item() == pytest.approx(omega, rel=1e-12)
            assert omega > 1e-3
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    same(found[0][1], found[1][1])


def alone(net: nn.Module, term: Any) -> None:
    term(task_loss(net), LAMBDA).backward()


def micro_batches(net: nn.Module, term: Any) -> None:
    for seed in range(4):
        (term(task_loss(net, seed), LAMBDA) / 4).backward()


def loss_scale(net: nn.Module, term: Any) -> None:
    (term(task_loss(net), LAMBDA) * torch.tensor(65536.0)).backward()
    for p in net.parameters():
        assert p.grad is not None
        p.grad.div_(65536.0)


def clipping(net: nn.Module, term: Any) -> None:
    term(task_loss(net), LAMBDA).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 0.01)


def retained_graph(net: nn.Module, term: Any) -> None:
    loss = term(task_loss(net), LAMBDA)
    (0.5 * loss).backward(retain_graph=True)
    loss.backward(retain_graph=True)
    (0.5 * loss).backward()


def sum_of_two_calls(net: nn.Module, term: Any) -> None:
    (term(task_loss(net, 3), LAMBDA) + 3 * term(task_loss(net, 4), 2 * LAMBDA)).backward()


def call_in_a_call(net: nn.Module, term: Any) -> None:
    term(term(task_loss(net), LAMBDA), 5.0).backward()


def two_backwards_in_the_other_order(net: nn.Module, term: Any) -> None:
    first, second = term(task_loss(net, 3), LAMBDA), term(task_loss(net, 4), 5.0)
    second.backward()
    first.backward()


def call_without_a_backward(net: nn.Module, term: Any) -> None:
    term(task_loss(net, 3), 7 * LAMBDA)
    task_loss(net, 4).backward()
    term(task_loss(net), LAMBDA).backward()


def another_loss_beside_it(net: nn.Module, term: Any) -> None:
    kept = term(task_loss(net, 3), LAMBDA)
    task_loss(net, 4).backward()
    kept.backward()


def part_of_the_network(net: nn.Module, term: Any) -> None:
    # what the loss does not reach is pulled to its anchor all the same
    x, _ = batch(5)
    term(net[0](x).square().mean(), LAMBDA).backward()  # type: ignore[index]


def frozen_parameters(net: nn.Module, term: Any) -> None:
    net[0].bias.requires_grad_(False)  # type: ignore[index]
    net[3].weight.requires_grad_(False)  # type: ignore[index]
    term(task_loss(net), LAMBDA).backward()


def loss_of_one_entry(net: nn.Module, term: Any) -> None:
    term(task_loss(net).reshape(1), LAMBDA).backward()


def steps_of_adam(net: nn.Module, term: Any) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for seed in range(5):
        optimizer.zero_grad(set_to_none=seed % 2 == 0)
        term(task_loss(net, seed), LAMBDA).backward()
        optimizer.step()


SETTINGS = (
    alone,
    micro_batches,
    loss_scale,
    clipping,
    retained_graph,
    sum_of_two_calls,
    call_in_a_call,
    two_backwards_in_the_other_order,
    call_without_a_backward,
    another_loss_beside_it,
    part_of_the_network,
    frozen_parameters,
    loss_of_one_entry,
    steps_of_adam,
)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_in_every_setting_the_gradient_is_that_of_the_formula(kind: str, setting: Any) -> None:
    (net, _, term), (plain, _, formula) = both(kind)
    setting(net, term)
    setting(plain, formula)
    same(gradients(net), gradients(plain))
    same(dict(net.named_parameters()), dict(plain.named_parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_asked_for_by_name_hold_the_penalty(kind: str) -> None:
    found = []
    for net, _, term in both(kind):
        params = list(net.parameters())
        found.append(torch.autograd.grad(term(task_loss(net), LAMBDA), params[:3]))
        assert all(p.grad is None for p in params)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_hold_the_penalty(kind: str) -> None:
    found = []
    for net, _, term in both(kind):
        params = list(net.parameters())
        loss = term(task_loss(net), LAMBDA) ** 2  # so that the scale depends on the loss as well
        first = torch.autograd.grad(loss, params, create_graph=True)
        found.append(
            torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), params)
        )
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_zero_and_an_empty_penalty_return_the_very_loss(kind: str) -> None:
    net = network()
    empty: Penalty = KroneckerPenalty() if kind == "kronecker" else QuadraticPenalty()
    loss = task_loss(net)
    before = PenaltyTerm(empty, dict(net.named_parameters()))
    assert before(loss, LAMBDA) is loss
    assert before.omega.item() == 0.0
    penalty = consolidated(kind, net)
    term = PenaltyTerm(penalty, dict(net.named_parameters()))
    loss = task_loss(net)
    assert term(loss, 0.0) is loss
    assert term.omega.item() == penalty.value(dict(net.named_parameters())).item() > 0
    loss.backward()
    plain = copy.deepcopy(net)
    plain.zero_grad()
    task_loss(plain).backward()
    assert all(torch.equal(g, gradients(plain)[n]) for n, g in gradients(net).items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_folded_later_counts_from_the_next_call(kind: str) -> None:
    found = []
    for made in (PenaltyTerm, Formula):
        net = network()
        penalty: Penalty = KroneckerPenalty() if kind == "kronecker" else QuadraticPenalty()
        term = made(penalty, dict(net.named_parameters()))
        term(task_loss(net), LAMBDA).backward()
        net[0].requires_grad_(False)  # type: ignore[index]
        fold(kind, penalty, net, 1)  # all but the first layer
        net[0].requires_grad_(True)  # type: ignore[index]
        term(task_loss(net), LAMBDA).backward()
        fold(kind, penalty, net, 2)
        term(task_loss(net), LAMBDA).backward()
        found.append(gradients(net))
    same(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_trained_gets_a_gradient_of_its_own(kind: str) -> None:
    net, penalty, _ = both(kind)[0]
    net[0].bias.requires_grad_(False)  # type: ignore[index]
    params = dict(net.named_parameters())
    omega, found = penalty.value_and_gradient(params, LAMBDA)
    assert found.keys() == params.keys() - {"0.bias"}
    assert omega.item() == pytest.approx(penalty.value(params).item(), rel=1e-12)


def test_two_penalties_on_the_same_parameters_add_up() -> None:
    found = []
    for made in (PenaltyTerm, Formula):
        net = network()
        params = dict(net.named_parameters())
        diagonal, factored = consolidated("diagonal", net), consolidated("kronecker", net)
        loss = made(factored, params)(made(diagonal, params)(task_loss(net), LAMBDA), 7.0)
        loss.backward()
        found.append(gradients(net))
    same(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_term_follows_a_network_that_moves_to_another_precision(kind: str) -> None:
    (net, penalty, term), _ = both(kind)
    net.float()
    penalty.float()  # type: ignore[attr-defined]
    x, y = batch(9)
    term(cross_entropy(net(x.float()), y), LAMBDA).backward()
    plain, _, formula = both(kind)[1]
    alone(plain, formula)
    for name, g in gradients(net).items():
        assert g.dtype == torch.float32
        torch.testing.assert_close(g.double(), gradients(plain)[name], rtol=1e-5, atol=1e-6)


def test_pieces_of_large_parameters_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifelong.core.penalty.pull.PIECE", 4)
    test_value_and_gradient_are_those_of_the_formula("diagonal")


def test_a_parameter_that_lies_transposed_in_memory_is_pulled_right() -> None:
    w = nn.Parameter(torch.rand(3, 4, dtype=torch.float64).T)
    penalty = QuadraticPenalty()
    penalty.fold({"w": torch.rand(4, 3).double()}, {"w": torch.rand(4, 3).double()})
    PenaltyTerm(penalty, {"w": w})(w.sum(), 2.0).backward()
    term = w.grad
    w.grad = None
    (w.sum() + 2.0 * penalty({"w": w})).backward()
    torch.testing.assert_close(term, w.grad, rtol=1e-13, atol=0)


def test_bfloat16_parameters_are_priced_in_more_bits_than_they_have() -> None:
    g = torch.Generator().manual_seed(0)
    theta, anchor, f = (torch.rand(64, 64, generator=g).bfloat16() for _ in range(3))
    w = nn.Parameter(theta.clone())
    penalty = QuadraticPenalty()
    penalty.fold({"w": anchor}, {"w": f})
    term = PenaltyTerm(penalty, {"w": w})
    term(w.sum().float() * 0, 3.0).backward()
    gap = theta.double() - anchor.double()
    assert term.omega.item() == pytest.approx(
        (0.5 * f.double() * gap.square()).sum().item(), rel=1e-6
    )
    assert w.grad is not None
    exact = (3.0 * f.double() * gap).bfloat16()
    torch.testing.assert_close(w.grad, exact, rtol=2**-8, atol=0)


def test_a_sparse_gradient_becomes_dense_for_the_pull_is() -> None:
    found = []
    for made in (PenaltyTerm, Formula):
        table = nn.Parameter(torch.arange(12.0, dtype=torch.float64).reshape(4, 3))
        penalty = QuadraticPenalty()
        ones = torch.ones(4, 3, dtype=torch.float64)
        penalty.fold({"w": torch.zeros_like(ones)}, {"w": ones})
        rows = embedding(torch.tensor([1, 1, 3]), table, sparse=True)
        made(penalty, {"w": table})(rows.sum(), 2.0).backward()
        assert table.grad is not None
        found.append(table.grad.to_dense())
    torch.testing.assert_close(found[0], found[1], rtol=1e-13, atol=0)


def test_mixed_precision_leaves_the_penalty_exact() -> None:
    found = []
    for kind in KINDS:
        for made in (PenaltyTerm, Formula):
            net = network().float()
            penalty: Penalty = KroneckerPenalty() if kind == "kronecker" else QuadraticPenalty()
            estimator = kronecker_factors if kind == "kronecker" else fisher_diagonal
            x, y = batch(1)
            params = dict(net.named_parameters())
            penalty.fold(params, estimator(net, [(x.float(), y)]))
            with torch.no_grad():
                net[0].weight.add_(0.1)  # type: ignore[index, operator]
            term = made(penalty, params)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=made is PenaltyTerm):
                loss = term(next(iter(params.values())).sum().float() * 0, LAMBDA)
            loss.backward()
            found.append((loss.item(), gradients(net)))
        assert found[-2][0] == pytest.approx(found[-1][0], rel=1e-6)
        for name, g in found[-2][1].items():
            other = found[-1][1].get(name, torch.zeros_like(g))
            torch.testing.assert_close(g, other, rtol=1e-5, atol=1e-7)


def test_without_gradients_the_value_is_the_same() -> None:
    net, _, term = both("diagonal")[0]
    with torch.no_grad():
        loss = term(task_loss(net), LAMBDA)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(term(task_loss(net), LAMBDA).item(), rel=1e-12)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    net, _, term = both("diagonal")[0]
    with pytest.raises(ValueError, match=f"weight is {weight}"):
        term(task_loss(net), weight)


def test_a_loss_of_many_numbers_is_refused() -> None:
    net, _, term = both("diagonal")[0]
    x, y = batch(9)
    with pytest.raises(ValueError, match=r"the loss has shape \(8,\)"):
        term(cross_entropy(net(x), y, reduction="none"), LAMBDA)


def test_a_missing_parameter_is_named() -> None:
    net, penalty, _ = both("diagonal")[0]
    params = dict(net.named_parameters())
    del params["3.bias"]
    with pytest.raises(ValueError, match=r"consolidated parameters are missing: 3\.bias"):
        PenaltyTerm(penalty, params)(task_loss(net), LAMBDA)
