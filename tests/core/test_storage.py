"""F̄ in fewer bytes, or on another device: bounds, and the formula under plain autograd."""

import weakref
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from lifelong.core import PenaltyTerm, QuadraticPenalty
from lifelong.core.penalty.storage import Kept, from_log8, to_bfloat16, to_log8
from lifelong.learning.diagnose import drift, protecting_bound

SMALL = ("bfloat16", "log8")
OFF = {"bfloat16": 2**-8, "log8": 0.068}
every_storage = pytest.mark.parametrize("storage", ["float32", *SMALL])
small = pytest.mark.parametrize("storage", SMALL)


def wide_range(count: int = 5000, octaves: float = 46.0, seed: int = 0) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.exp2(-octaves * torch.rand(count, generator=generator)) * 1e-3


def decoded(storage: str, f: Tensor, draws: Generator | None = None) -> Tensor:
    if storage == "bfloat16":
        return to_bfloat16(f, draws).float()
    return from_log8(*to_log8(f, draws))


def params(dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, nn.Parameter]:
    g = Generator().manual_seed(seed)
    shapes = {"a.weight": (40, 30), "a.bias": (40,), "b": (3, 4, 5)}
    return {
        name: nn.Parameter(torch.randn(shape, generator=g, dtype=torch.float64).to(dtype))
        for name, shape in shapes.items()
    }


def fisher(seed: int = 1, scale: float = 1.0) -> dict[str, Tensor]:
    return {
        name: scale * wide_range(p.numel(), 20.0, seed + i).view(p.shape).double()
        for i, (name, p) in enumerate(params().items())
    }


def penalty_of(*tasks: int, **settings: Any) -> QuadraticPenalty:
    penalty = QuadraticPenalty(0.1, **settings)
    for task in tasks:
        penalty.fold(params(seed=task), fisher(task))
    return penalty


@small
def test_what_is_kept_in_less_is_off_by_no_more_than_is_said(storage: str) -> None:
    for f in (wide_range(), wide_range(octaves=3.0), wide_range(octaves=100.0)):
        kept = decoded(storage, f)
        off = (kept - f).abs()
        bound = torch.full_like(f, 0.0 if storage == "bfloat16" else float(f.max()) * 2.0**-48)
        assert bool((off <= OFF[storage] * f + bound).all())
        assert float((off / f)[f > f.max() / 2**40].max()) > 0.1 * OFF[storage] / 10


@small
def test_zeros_and_the_largest_stay_and_a_constant_is_kept(storage: str) -> None:
    f = torch.tensor([0.0, 0.5, 0.0, 2.0])
    assert decoded(storage, f)[0] == 0
    torch.testing.assert_close(decoded(storage, f), f, rtol=1e-5, atol=0)
    assert decoded(storage, torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(decoded(storage, torch.full((3,), 0.3)), torch.full((3,), 0.3),
                               rtol=2**-8, atol=0)  # fmt: skip


@small
def test_what_is_drawn_is_one_of_two_neighbours_and_right_in_the_mean(storage: str) -> None:
    draws, each = Generator().manual_seed(0), 4000
    base = torch.tensor([1.0, 0.7123, 0.0123, 3.3e-9, 1e-16, 0.0])
    f = base.repeat_interleave(each)
    kept = decoded(storage, f, draws).view(len(base), each).double()
    assert max(len(row.unique()) for row in kept) == 2
    tolerance = 5 * OFF[storage] / each**0.5
    torch.testing.assert_close(kept.mean(1)[:4], base[:4].double(), rtol=tolerance, atol=0)
    assert kept[5].max() == 0
    if storage == "log8":  # below the lowest level of 48 octaves: 0, or that level now and then
        lowest = 2.0**-48
        assert bool(((kept[4] == 0) | (kept[4] < 2 * lowest)).all())


@small
@pytest.mark.parametrize("tasks", [30, 100])
def test_many_tasks_add_up_and_no_entry_is_further_off_than_is_said(
    storage: str, tasks: int
) -> None:
    f, theta = wide_range(20000, 20.0), torch.zeros(20000)
    penalty = QuadraticPenalty(storage=storage)  # type: ignore[arg-type]
    for _ in range(tasks):
        penalty.fold({"w": theta}, {"w": f})
    ratio = penalty.importances()["w"] / (tasks * f)
    bound = OFF[storage] * (1 + tasks / 3) ** 0.5
    assert float((ratio - 1).square().mean().sqrt()) <= bound
    # Nearest numbers would stand still: at about 8 of 100 tasks in log8.
    assert float(ratio.mean()) == pytest.approx(1.0, abs=6 * bound / 20000**0.5)


@small
def test_faded_tasks_fade_though_a_step_is_smaller_than_the_rounding(storage: str) -> None:
    f = wide_range(20000, 20.0)
    penalty = QuadraticPenalty(storage=storage)  # type: ignore[arg-type]
    penalty.fold({"w": torch.zeros(20000)}, {"w": f})
    for _ in range(100):
        penalty.fold({"v": torch.zeros(1)}, {"v": torch.ones(1)}, decay=0.999)
    ratio = penalty.importances()["w"] / f
    assert float(ratio.mean()) == pytest.approx(0.999**100, rel=0.02)


@every_storage
@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_gradient_and_step_are_those_of_the_formula(
    storage: Any, device: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifelong.core.penalty.pull.PIECE", 7)
    penalty = penalty_of(1, 2, 3, storage=storage, device=device)
    theta, bound = params(dtype, 9), 1e-12 if dtype == torch.float64 else 1e-5
    omega = sum(
        0.5 * (penalty.importances()[n].double() * (theta[n].double() - a).square()).sum()
        for n, a in penalty.anchors().items()
    ) + float(penalty.constant)
    assert float(penalty.value(theta)) == pytest.approx(float(omega), rel=bound)
    expected = torch.autograd.grad(30.0 * omega, list(theta.values()))
    loss = sum(p.square().sum() for p in theta.values())
    whole = PenaltyTerm(penalty, theta)(loss, 30.0)
    assert float(whole) == pytest.approx(float(loss) + 30.0 * float(omega), rel=bound)
    (0.25 * whole).backward()
    for p, pull in zip(theta.values(), expected, strict=True):
        whole_gradient = (0.25 * (2 * p + pull)).detach()
        torch.testing.assert_close(p.grad, whole_gradient, rtol=10 * bound, atol=bound)
    before = {n: p.detach().clone() for n, p in theta.items()}
    penalty.proximal_step_(theta, dict.fromkeys(theta.values(), 0.1), 30.0)
    for n, f in penalty.importances().items():
        w = 0.1 * 30.0 * f.double()
        there = (before[n].double() + w * penalty.anchors()[n]) / (1 + w)
        torch.testing.assert_close(theta[n].double(), there, rtol=10 * bound, atol=bound)


@every_storage
def test_ω_and_its_gradient_are_zero_where_it_was_consolidated(storage: Any) -> None:
    penalty, theta = penalty_of(1, storage=storage), params(seed=1)
    omega, pulls = penalty.value_and_gradient(theta, 5.0)
    assert float(omega) == 0.0
    assert all(not bool(pull.any()) for pull in pulls.values())


@every_storage
def test_a_state_that_is_loaded_goes_on_with_the_same_bits(storage: Any) -> None:
    whole, part = (penalty_of(1, 2, storage=storage) for _ in range(2))
    fresh = QuadraticPenalty(0.1, storage=storage)
    fresh.load_state_dict(part.state_dict())
    for penalty in (whole, fresh):
        penalty.fold(params(seed=3), fisher(3), decay=0.9)
    one, other = whole.state_dict(), fresh.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@every_storage
@pytest.mark.parametrize("into", ["float32", *SMALL])
def test_a_state_is_loaded_into_a_penalty_that_keeps_f_otherwise(storage: Any, into: Any) -> None:
    source, target = penalty_of(1, storage=storage), QuadraticPenalty(storage=into)
    target.load_state_dict(source.state_dict())
    off = OFF.get(into, 0.0) if storage != into else 0.0
    for name, f in source.importances().items():
        f, kept = f.double(), target.importances()[name].double()
        assert bool(((kept - f).abs() <= 1.001 * off * f).all())
        assert torch.equal(target.anchors()[name], source.anchors()[name])
    target.fold(params(seed=2), fisher(2))


def test_it_takes_the_bytes_that_are_said() -> None:
    theta = {"w": torch.zeros(1000)}
    found = {}
    for storage in ("float32", *SMALL):
        penalty = QuadraticPenalty(storage=storage)  # type: ignore[arg-type]
        penalty.fold(theta, {"w": torch.rand(1000)})
        found[storage] = sum(b.nbytes for b in penalty.importance.buffers())
    assert found == {"float32": 4000, "bfloat16": 2000, "log8": 1000}


@small
def test_what_grows_or_is_let_go_is_followed(storage: Any) -> None:
    penalty, theta = penalty_of(1, 2, storage=storage), dict(params(seed=5))
    before = penalty.importances()["a.weight"]
    theta["a.weight"] = nn.Parameter(torch.zeros(43, 30, dtype=torch.float64))
    penalty.grow(theta, ["a.weight"])
    assert torch.equal(penalty.importances()["a.weight"][:40], before)
    assert not penalty.importances()["a.weight"][40:].any()
    penalty.let_go(["a.weight"])
    assert sorted(penalty.held(theta)) == ["a.bias", "b"]
    assert not [name for name in penalty.state_dict() if "a.weight" in name]


@every_storage
def test_the_largest_curvature_is_that_of_what_is_kept(storage: Any) -> None:
    penalty = penalty_of(1, 2, storage=storage)
    largest = max(float(f.max()) for f in penalty.importances().values())
    assert penalty.largest_curvature() == pytest.approx(largest, rel=1e-6)


def test_storage_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="storage is 'int4'; it must be one of float32, bfloat16"):
        QuadraticPenalty(storage="int4")  # type: ignore[arg-type]


def test_what_stays_on_a_device_is_not_moved_and_nothing_waits_for_the_backward_pass() -> None:
    here, there = penalty_of(1, device="cpu"), penalty_of(1)
    for penalty in (here, there):
        penalty.to("meta")
    assert {b.device.type for b in here.buffers()} == {"cpu"}
    assert {b.device.type for b in there.buffers()} == {"meta"}
    theta = params(seed=4)
    loss = PenaltyTerm(here, theta)(sum(p.sum() for p in theta.values()), 3.0)
    assert loss.grad_fn.gradients == {}
    assert penalty_of(1).pull_of(theta, 3.0) is None


def test_one_parameter_at_a_time_is_brought_and_made(monkeypatch: pytest.MonkeyPatch) -> None:
    penalty, theta, alive = penalty_of(1, device="cpu"), params(seed=4), [0, 0]

    def gone(size: int) -> None:
        alive[0] -= size

    class Bytes(torch.utils._python_dispatch.TorchDispatchMode):
        """Counts what was asked for and is still there, as a device's allocator would."""

        def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), also: Any = None) -> Any:
            out = func(*args, **(also or {}))
            if isinstance(out, Tensor) and not out._is_view() and out.nbytes > 1000:
                alive[0] += out.nbytes
                alive[1] = max(alive)
                weakref.finalize(out, gone, out.nbytes)
            return out

    for p in theta.values():
        p.grad = torch.zeros_like(p)
    loss = PenaltyTerm(penalty, theta)(sum(p.sum() for p in theta.values()), 3.0)
    with Bytes():
        loss.backward()
    whole = sum(p.nbytes for p in theta.values())
    assert alive[1] < 6 * max(p.nbytes for p in theta.values()) + whole


def test_hooks_last_for_their_own_backward_pass_alone() -> None:
    found = []
    for device in (None, "cpu"):
        theta = params(seed=4)
        term = PenaltyTerm(penalty_of(1, 2, device=device), theta)
        loss = term(theta["b"].square().sum(), 3.0)
        # a part of the parameters, twice through one graph, then two terms in one sum
        some = torch.autograd.grad(loss, [theta["b"]], retain_graph=True)
        loss.backward(retain_graph=True)
        loss.backward()
        (term(theta["b"].sum(), 2.0) + 0.5 * term(theta["a.bias"].sum(), 1.0)).backward()
        theta["b"].square().sum().backward()
        twice = torch.autograd.grad(term(theta["b"].sum(), 3.0), [theta["b"]], create_graph=True)
        twice[0].square().sum().backward()
        assert not any(p._backward_hooks for p in theta.values())
        found.append([*some, *(p.grad for p in theta.values())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@every_storage
def test_a_parameter_that_is_not_trained_counts_and_gets_no_gradient(storage: Any) -> None:
    theta = params(seed=4)
    theta["b"].requires_grad_(False)
    penalty = penalty_of(1, storage=storage, device="cpu")
    PenaltyTerm(penalty, theta)(theta["a.bias"].sum(), 3.0).backward()
    assert theta["b"].grad is None
    assert theta["a.weight"].grad is not None  # L does not reach it, Ω does


@small
def test_importances_are_made_whole_one_at_a_time(storage: Any) -> None:
    penalty = penalty_of(1, storage=storage)
    lazy = penalty.importances()
    assert list(lazy) == list(penalty.anchors())
    assert len(lazy) == 3
    assert lazy["b"] is not lazy["b"]
    theta = dict(params(seed=5))
    assert drift(penalty, theta, protecting_bound(penalty))[0] > 0


def test_kept_numbers_go_where_they_are_needed_as_they_are() -> None:
    codes, scale = to_log8(wide_range(100))
    kept = Kept(codes, scale)
    assert kept.to(torch.device("cpu")) is kept
    assert kept.to(torch.device("meta")).numbers.dtype == torch.uint8
