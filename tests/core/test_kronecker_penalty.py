"""The Kronecker penalty against the dense quadratic form, and its proximal step."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from lifelong.core.fisher.factors import KroneckerFactors
from lifelong.core.penalty.kronecker import KroneckerPenalty
from lifelong.core.penalty.kronecker_sum import bounding_product, nearest_product
from lifelong.core.penalty.proximal import step_sizes

EXACT = {"rtol": 1e-10, "atol": 1e-12}
Params = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def semidefinite(size: int, rank: int | None = None) -> Tensor:
    root = torch.randn(size, rank or size, dtype=torch.float64)
    return root @ root.T / size


def network() -> nn.Module:
    """A convolution, a linear layer with a bias and one without, a normalisation."""
    net = nn.Module()
    net.conv, net.norm = nn.Conv2d(2, 3, 2), nn.LayerNorm(4)
    net.mid, net.out = nn.Linear(5, 4), nn.Linear(4, 3, bias=False)
    return net.double()


def moved(net: nn.Module) -> Params:
    return {name: p.detach() + torch.randn_like(p) for name, p in net.named_parameters()}


def factors(net: nn.Module, rank: int | None = None) -> KroneckerFactors:
    sizes = {"conv": (9, 3), "mid": (6, 4), "out": (4, 3)}
    like = next(net.parameters())
    pairs = {
        name: (semidefinite(a, rank and min(rank, a)), semidefinite(g, rank and min(rank, g)))
        for name, (a, g) in sizes.items()
    }
    rest = {f"norm.{part}": torch.rand(4).to(like) for part in ("weight", "bias")}
    return KroneckerFactors({n: (a.to(like), g.to(like)) for n, (a, g) in pairs.items()}, rest)


def matrix(params: Params, layer: str) -> Tensor:
    parts = [params[f"{layer}.weight"].flatten(1)]
    if f"{layer}.bias" in params:
        parts.append(params[f"{layer}.bias"][:, None])
    return torch.cat(parts, 1)


def dense(
    params: Params, anchor: Params, importance: KroneckerFactors, shift: float = 0.0
) -> Tensor:
    """½ vec(Δ)ᵀ (G ⊗ A + μI) vec(Δ) with the whole matrix, and the diagonal's part."""
    omega = torch.zeros((), dtype=torch.float64)
    for layer, (A, G) in importance.items():
        gap = (matrix(params, layer) - matrix(anchor, layer)).flatten()
        block = torch.kron(G, A) + shift * torch.eye(len(gap), dtype=torch.float64)
        omega = omega + 0.5 * gap @ block @ gap
    for name, f in importance.diagonal.items():
        omega = omega + 0.5 * ((f + shift) * (params[name] - anchor[name]).square()).sum()
    return omega


def folded(
    net: nn.Module, tasks: int, decay: float = 1.0, **options: object
) -> tuple[KroneckerPenalty, list]:
    penalty, told = KroneckerPenalty(**options), []
    for _ in range(tasks):
        told.append((moved(net), factors(net)))
        penalty.fold(*told[-1], decay=decay)
    return penalty, told


def stepped(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    params = dict(net.named_parameters())
    optimizer.zero_grad()
    sum((p - 1).square().sum() for p in params.values()).backward()
    optimizer.step()
    return params


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_value_and_gradient_are_those_of_the_dense_quadratic_form(
    tasks: int, damping: float
) -> None:
    net = network()
    penalty, told = folded(net, tasks, decay=0.7, damping=damping)
    params = dict(net.named_parameters())
    omega = torch.zeros((), dtype=torch.float64)
    for age, (anchor, importance) in enumerate(reversed(told)):
        entries = sum(len(a) * len(g) for a, g in importance.values()) + 8
        trace = sum(a.trace() * g.trace() for a, g in importance.values())
        trace += sum(f.sum() for f in importance.diagonal.values())
        shift = damping * float(trace) / entries
        omega = omega + 0.7**age * dense(params, anchor, importance, shift)
    torch.testing.assert_close(penalty(params), omega, **EXACT)
    torch.testing.assert_close(penalty.value(params), omega.detach(), **EXACT)
    expected = torch.autograd.grad(omega, list(params.values()))
    found = torch.autograd.grad(penalty(params), list(params.values()))
    torch.testing.assert_close(found, expected, **EXACT)
    start = [torch.randn_like(p) for p in params.values()]
    for p, g in zip(params.values(), start, strict=True):
        p.grad = g.clone()
    penalty.add_gradient_(params, 3.0)
    for p, g, e in zip(params.values(), start, expected, strict=True):
        torch.testing.assert_close(p.grad, g + 3.0 * e, **EXACT)


def test_an_absent_gradient_is_made_and_a_frozen_parameter_left_alone() -> None:
    net = network()
    net.mid.bias.requires_grad_(False)
    penalty, _ = folded(net, 1)
    penalty.add_gradient_(dict(net.named_parameters()), 1.0)
    assert net.mid.weight.grad is not None
    assert net.mid.bias.grad is None


@pytest.mark.parametrize("merge", ["sum", "nearest"])
def test_the_state_loads_strictly_into_a_fresh_instance(merge: str) -> None:
    net = network()
    penalty, _ = folded(net, 3, damping=0.1, merge=merge)
    fresh = KroneckerPenalty(damping=0.1, merge=merge)
    assert fresh.is_empty
    fresh.load_state_dict(penalty.state_dict(), strict=True)
    params = dict(net.named_parameters())
    assert not fresh.is_empty
    assert torch.equal(fresh.value(params), penalty.value(params))
    anchor, importance = moved(net), factors(net)
    for one in (penalty, fresh):
        one.fold(anchor, importance)
    assert torch.equal(fresh.value(params), penalty.value(params))


def test_loading_forgets_what_was_there_before() -> None:
    net = network()
    old, _ = folded(net, 2)
    new, _ = folded(net, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    params = stepped(net, optimizer)
    old.proximal_step_(params, step_sizes(optimizer), 1.0)
    old.load_state_dict(new.state_dict())
    copy = {n: nn.Parameter(p.detach().clone()) for n, p in params.items()}
    old.proximal_step_(params, step_sizes(optimizer), 1.0)
    new.proximal_step_(copy, dict.fromkeys(copy.values(), 0.1), 1.0)
    torch.testing.assert_close(dict(params), dict(copy), **EXACT)


def test_what_was_folded_does_not_change_with_the_network_or_the_factors() -> None:
    net = network()
    params = dict(net.named_parameters())
    anchor, importance = moved(net), factors(net)
    penalty = KroneckerPenalty()
    penalty.fold(anchor, importance)
    before = penalty.value(params)
    for tensor in (*anchor.values(), *importance["mid"]):
        tensor.mul_(2.0)
    assert torch.equal(penalty.value(params), before)


def test_a_decay_of_zero_forgets_and_frees_the_state() -> None:
    net = network()
    penalty, told = folded(net, 3, decay=0.0)
    params = dict(net.named_parameters())
    torch.testing.assert_close(penalty.value(params), dense(params, *told[-1]).detach(), **EXACT)
    assert len(penalty.state_dict()) == len(folded(net, 1)[0].state_dict())


def test_nearest_keeps_one_term_and_is_exact_for_a_common_factor() -> None:
    net = network()
    params, anchor, importance = dict(net.named_parameters()), moved(net), factors(net)
    scaled = KroneckerFactors({n: (a, 3.0 * g) for n, (a, g) in importance.items()})
    penalty = KroneckerPenalty(merge="nearest")
    penalty.fold(anchor, KroneckerFactors(dict(importance)))
    penalty.fold(anchor, scaled)
    assert all(len(terms) == 1 for terms in penalty.layers.values())
    expected = 4.0 * dense(params, anchor, KroneckerFactors(dict(importance)))
    torch.testing.assert_close(penalty(params), expected, **EXACT)


def shift_of(importance: KroneckerFactors, damping: float) -> float:
    """d · m by hand: the mean of the dense diagonal over all its entries."""
    blocks = [torch.kron(G, A).diagonal() for A, G in importance.values()]
    rest = [f.flatten() for f in importance.diagonal.values()]
    return damping * float(torch.cat([*blocks, *rest]).mean())


def test_nearest_keeps_the_damping_of_every_task_by_its_age() -> None:
    net = network()
    anchor, importance = moved(net), factors(net)
    twice = KroneckerFactors(
        {n: (2.0 * a, g) for n, (a, g) in importance.items()},
        {n: 5.0 * f for n, f in importance.diagonal.items()},
    )
    penalty = KroneckerPenalty(damping=0.3, merge="nearest")
    penalty.fold(anchor, importance)
    penalty.fold(anchor, twice, decay=0.5)
    params = dict(net.named_parameters())
    # a common factor: the nearest product is the sum itself, and only the damping is in question
    expected = 0.5 * dense(params, anchor, importance, shift_of(importance, 0.3))
    expected = expected + dense(params, anchor, twice, shift_of(twice, 0.3))
    torch.testing.assert_close(penalty(params), expected, **EXACT)
    step = torch.optim.SGD(params.values(), lr=0.1)
    for p in params.values():
        p.grad = torch.zeros_like(p)
    step.step()
    start = {name: p.detach().clone() for name, p in params.items()}
    penalty.proximal_step_(params, step_sizes(step), 2.0)
    for name in ("mid", "out"):
        hessian = sum(
            age
            * (
                torch.kron(one[name][1], one[name][0])
                + shift_of(one, 0.3) * torch.eye(rows).double()
            )
            for age, one, rows in (
                (0.5, importance, matrix(params, name).numel()),
                (1.0, twice, matrix(params, name).numel()),
            )
        )
        gap = (matrix(start, name) - matrix(anchor, name)).flatten()
        shrunk = torch.linalg.solve(torch.eye(len(gap)).double() + 0.2 * hessian, gap)
        found = (matrix(params, name) - matrix(anchor, name)).flatten()
        torch.testing.assert_close(found.detach(), shrunk, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("merge", ["sum", "nearest"])
def test_layers_that_a_later_task_lacks_decay_with_their_damping(merge: str) -> None:
    net = network()
    params, told = dict(net.named_parameters()), (moved(net), factors(net))
    penalty = KroneckerPenalty(damping=0.3, merge=merge)
    penalty.fold(*told)
    later, here = factors(net), moved(net)
    part = KroneckerFactors({"mid": later["mid"]}, {"norm.bias": later.diagonal["norm.bias"]})
    before = KroneckerPenalty(damping=0.3, merge=merge)
    before.fold(*told, decay=1.0)
    penalty.fold(here, part, decay=0.25)
    gone = KroneckerFactors(
        {n: f for n, f in told[1].items() if n != "mid"},
        {"norm.weight": told[1].diagonal["norm.weight"]},
    )
    expected = 0.25 * dense(params, told[0], gone, shift_of(told[1], 0.3))
    # what both tasks have takes no part: its parameters are put where it costs nothing more
    both = KroneckerFactors({"mid": told[1]["mid"]}, {"norm.bias": told[1].diagonal["norm.bias"]})
    if merge == "sum":
        expected = expected + 0.25 * dense(params, told[0], both, shift_of(told[1], 0.3))
        expected = expected + dense(params, here, part, shift_of(part, 0.3))
        torch.testing.assert_close(penalty(params), expected, **EXACT)
    names = ("conv.weight", "conv.bias", "out.weight", "norm.weight")
    found = torch.autograd.grad(penalty(params), [params[n] for n in names])
    wanted = torch.autograd.grad(
        0.25 * dense(params, told[0], gone, shift_of(told[1], 0.3)), [params[n] for n in names]
    )
    torch.testing.assert_close(found, wanted, **EXACT)


def test_a_decay_of_zero_also_frees_layers_that_the_later_task_lacks() -> None:
    net = network()
    params = dict(net.named_parameters())
    penalty = folded(net, 1)[0]
    part = KroneckerFactors({"mid": factors(net)["mid"]})
    here = moved(net)
    penalty.fold(here, part, decay=0.0)
    torch.testing.assert_close(penalty.value(params), dense(params, here, part).detach(), **EXACT)
    assert [name for name in penalty.state_dict() if name.startswith("layers.out")] == []


def test_the_largest_curvature_is_that_of_the_dense_hessian_or_above() -> None:
    net = network()
    assert KroneckerPenalty().largest_curvature() == 0.0
    for tasks in (1, 3):
        penalty, told = folded(net, tasks, decay=0.5, damping=0.3)
        blocks = []
        for layer in told[0][1]:
            hessian = sum(
                0.5**age
                * (
                    torch.kron(one[layer][1], one[layer][0])
                    + shift_of(one, 0.3) * torch.eye(matrix(told[0][0], layer).numel()).double()
                )
                for age, (_, one) in enumerate(reversed(told))
            )
            blocks.append(float(torch.linalg.eigvalsh(hessian)[-1]))
        blocks += [float(f.max()) for f in penalty.rest.importances().values()]
        bound = penalty.largest_curvature()
        assert max(blocks) * (1 - 1e-9) <= bound <= tasks * max(blocks) * (1 + 1e-9)


def test_the_nearest_product_is_the_best_rank_one_rearrangement() -> None:
    pairs = [(semidefinite(3), semidefinite(4)) for _ in range(3)]
    A, G = nearest_product(pairs)
    rearranged = sum(torch.outer(a.flatten(), g.flatten()) for a, g in pairs)
    u, s, v = torch.linalg.svd(rearranged)
    torch.testing.assert_close(
        torch.outer(A.flatten(), G.flatten()), s[0] * torch.outer(u[:, 0], v[0]), **EXACT
    )
    assert float(torch.linalg.eigvalsh(torch.kron(A, G)).min()) >= -1e-12


def test_the_bounding_product_bounds() -> None:
    pairs = [(semidefinite(3, 1), semidefinite(4, 2)) for _ in range(3)]
    bound = torch.kron(*bounding_product(pairs))
    rest = bound - sum(torch.kron(a, g) for a, g in pairs)
    assert float(torch.linalg.eigvalsh(rest).min()) >= -1e-12


def test_bfloat16_products_are_within_their_bound() -> None:
    net = network().float()
    anchor, importance = moved(net), factors(net)
    params = dict(net.named_parameters())
    penalties = [KroneckerPenalty(), KroneckerPenalty(precision="bfloat16")]
    found = []
    for penalty in penalties:
        penalty.fold(anchor, importance)
        net.zero_grad()
        penalty.add_gradient_(params, 1.0)
        found.append(matrix({n: p.grad for n, p in params.items()}, "mid"))
    A, G = importance["mid"]
    gap = (matrix(params, "mid") - matrix(anchor, "mid")).detach().double()
    bound = 0.02 * G.double().abs() @ gap.abs() @ A.double().abs()
    assert bool(((found[1] - found[0]).abs() <= bound).all())
    assert not torch.equal(found[0], found[1])


def test_a_missing_parameter_is_named() -> None:
    net = network()
    penalty, _ = folded(net, 1)
    params = dict(net.named_parameters())
    del params["mid.bias"]
    for use in (penalty, penalty.value, lambda p: penalty.add_gradient_(p, 1.0)):
        with pytest.raises(ValueError, match=r"missing: mid\.bias"):
            use(params)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda i: i.update(nowhere=i["mid"]), "nowhere.weight"),
        (lambda i: i.update(mid=i["out"]), r"\(3, 4\).*\(4, 6\)|\(3, 4\).*\(4, 5\)"),
        (lambda i: i["mid"][0].fill_(float("nan")), "non-finite"),
    ],
)
def test_importance_that_does_not_fit_changes_nothing(
    spoil: Callable[[KroneckerFactors], object], told: str
) -> None:
    net = network()
    penalty, _ = folded(net, 1)
    before = {k: v.clone() for k, v in penalty.state_dict().items()}
    importance = factors(net)
    spoil(importance)
    with pytest.raises(ValueError, match=told):
        penalty.fold(moved(net), importance)
    torch.testing.assert_close(dict(penalty.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"damping": -1.0}, {"merge": "x"}, {"precision": "float16"}])
def test_options_that_do_not_exist_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
        KroneckerPenalty(**options)
