"""The penalty against the sum that it stands for."""

import pytest
import torch
from torch import Tensor, nn

from lifelong.core import QuadraticPenalty

Tensors = dict[str, Tensor]
SHAPES = {"layers.0.weight": (7, 5), "layers.0.bias": (7,), "scale": ()}


def draw(generator: torch.Generator, *, zeros: bool = False) -> Tensors:
    drawn = {}
    for name, shape in SHAPES.items():
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if zeros:
            keep = torch.rand(shape, generator=generator, dtype=torch.float64) > 0.3
            values = values.square() * keep
        drawn[name] = values
    return drawn


def summed(theta: Tensors, anchors: list[Tensors], fishers: list[Tensors]) -> Tensor:
    return torch.stack(
        [
            0.5 * (f[name] * (theta[name] - a[name]).square()).sum()
            for a, f in zip(anchors, fishers, strict=True)
            for name in SHAPES
        ]
    ).sum()


@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 20])
def test_the_fold_of_many_anchors_is_their_sum_in_value_and_gradient(tasks: int) -> None:
    generator = torch.Generator().manual_seed(tasks)
    anchors = [draw(generator) for _ in range(tasks)]
    fishers = [draw(generator, zeros=True) for _ in range(tasks)]
    penalty = QuadraticPenalty()
    for anchor, fisher in zip(anchors, fishers, strict=True):
        penalty.fold(anchor, fisher)
    theta = {name: t.requires_grad_() for name, t in draw(generator).items()}

    expected = summed(theta, anchors, fishers)
    gradients = torch.autograd.grad(expected, list(theta.values()))
    folded = penalty(theta)
    by_autograd = torch.autograd.grad(folded, list(theta.values()))
    penalty.add_gradient_(theta, 1.0)

    torch.testing.assert_close(folded, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(penalty.value(theta), expected.detach(), rtol=1e-10, atol=0)
    for (name, t), true, graph in zip(theta.items(), gradients, by_autograd, strict=True):
        assert t.grad is not None, name
        torch.testing.assert_close(graph, true, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(t.grad, true, rtol=1e-10, atol=1e-12)


def test_the_state_does_not_grow_with_the_number_of_tasks() -> None:
    generator = torch.Generator().manual_seed(0)
    penalty = QuadraticPenalty()
    sizes = []
    for _ in range(20):
        penalty.fold(draw(generator), draw(generator, zeros=True))
        sizes.append(sum(b.numel() for b in penalty.buffers()))
    assert set(sizes) == {2 * (35 + 7 + 1) + 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_anchor_stays_when_the_parameter_moves_on(dtype: torch.dtype) -> None:
    weight, importance = torch.ones(2, dtype=dtype), torch.ones(2, dtype=dtype)
    penalty = QuadraticPenalty()
    penalty.fold({"w": weight}, {"w": importance})
    weight += 2.0
    importance += 2.0
    assert penalty({"w": weight}).item() == 0.5 * 2 * 2.0**2


def test_decay_weighs_each_task_by_its_age() -> None:
    generator = torch.Generator().manual_seed(1)
    anchors = [draw(generator) for _ in range(3)]
    fishers = [draw(generator, zeros=True) for _ in range(3)]
    penalty = QuadraticPenalty()
    for anchor, fisher in zip(anchors, fishers, strict=True):
        penalty.fold(anchor, fisher, decay=0.5)
    aged = [
        {name: age * f for name, f in fisher.items()}
        for age, fisher in zip((0.25, 0.5, 1.0), fishers, strict=True)
    ]
    theta = draw(generator)
    torch.testing.assert_close(penalty(theta), summed(theta, anchors, aged), rtol=1e-10, atol=0)


def test_damping_adds_the_mean_importance_to_every_entry() -> None:
    penalty = QuadraticPenalty(damping=0.5)
    penalty.fold(
        {"a": torch.zeros(2), "b": torch.zeros(1)},
        {"a": torch.tensor([0.0, 4.0]), "b": torch.tensor([2.0])},
    )
    folded = penalty.importances()
    torch.testing.assert_close(folded["a"], torch.tensor([1.0, 5.0]), rtol=0, atol=0)
    torch.testing.assert_close(folded["b"], torch.tensor([3.0]), rtol=0, atol=0)


def test_damping_decays_with_the_task_that_it_was_added_to() -> None:
    penalty = QuadraticPenalty(damping=0.5)
    penalty.fold({"a": torch.zeros(2)}, {"a": torch.tensor([0.0, 4.0])})  # damped: 1 and 5
    penalty.fold({"a": torch.ones(2)}, {"a": torch.tensor([8.0, 0.0])}, decay=0.25)  # 10 and 2
    folded = penalty.importances()["a"]
    torch.testing.assert_close(folded, torch.tensor([10.25, 3.25]), rtol=0, atol=0)


def test_parameters_that_a_later_task_lacks_decay_too() -> None:
    penalty = QuadraticPenalty()
    penalty.fold({"a": torch.zeros(1), "b": torch.zeros(1)}, {n: torch.ones(1) for n in "ab"})
    penalty.fold({"a": torch.zeros(1)}, {"a": torch.tensor([3.0])}, decay=0.25)
    assert penalty.importances()["a"].item() == 3.25
    assert penalty.importances()["b"].item() == 0.25
    # ½ · 3.25 · 2² + ½ · 0.25 · 4²
    theta = {"a": torch.tensor([2.0]), "b": torch.tensor([4.0])}
    assert penalty(theta).item() == 8.5


def test_the_largest_curvature_is_the_largest_importance() -> None:
    penalty = QuadraticPenalty()
    assert penalty.largest_curvature() == 0.0
    penalty.fold(
        {"a": torch.zeros(2), "b": torch.zeros(1)},
        {"a": torch.tensor([1.0, 7.0]), "b": torch.tensor([5.0])},
    )
    assert penalty.largest_curvature() == 7.0


def test_where_nothing_weighs_anything_the_newest_anchor_stands() -> None:
    penalty = QuadraticPenalty()
    zero = {"w": torch.zeros(1)}
    penalty.fold({"w": torch.tensor([1.0])}, zero)
    penalty.fold({"w": torch.tensor([5.0])}, zero)
    assert penalty.anchors()["w"].item() == 5.0
    assert penalty({"w": torch.tensor([9.0])}).item() == 0.0


def test_pieces_and_whole_tensors_give_the_same_gradient() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = nn.Parameter(torch.randn(300, 1000, generator=generator))
    anchor, fisher = torch.randn(2, 300, 1000, generator=generator).unbind()
    penalty = QuadraticPenalty()
    penalty.fold({"w": anchor}, {"w": fisher.square()})
    for layout in (weight, nn.Parameter(weight.detach().t().contiguous().t())):
        layout.grad = torch.ones_like(layout)
        penalty.add_gradient_({"w": layout}, 3.0)
        expected = 1 + 3 * fisher.square() * (weight.detach() - anchor)
        torch.testing.assert_close(layout.grad, expected, rtol=1e-5, atol=1e-5)


def test_a_fresh_penalty_loads_any_state_strictly() -> None:
    generator = torch.Generator().manual_seed(3)
    penalty = QuadraticPenalty()
    for _ in range(2):
        penalty.fold(draw(generator), draw(generator, zeros=True))
    holder, fresh = (
        nn.ModuleDict({"penalty": penalty}),
        nn.ModuleDict({"penalty": QuadraticPenalty()}),
    )
    fresh.load_state_dict(holder.state_dict(), strict=True)
    theta = draw(generator)
    assert fresh["penalty"](theta).item() == penalty(theta).item() > 0
    assert set(fresh.state_dict()) == set(holder.state_dict())

    emptied = QuadraticPenalty()
    penalty.load_state_dict(emptied.state_dict(), strict=True)
    assert penalty.is_empty
    assert penalty(theta).item() == 0.0


def test_the_buffers_follow_the_module() -> None:
    penalty = QuadraticPenalty()
    penalty.fold({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    assert penalty.to(torch.float64).importances()["w"].dtype == torch.float64


def test_parameters_added_later_are_free_and_removed_ones_are_named() -> None:
    penalty = QuadraticPenalty()
    penalty.fold({"old": torch.zeros(1)}, {"old": torch.ones(1)})
    head = nn.Parameter(torch.ones(1))
    old = nn.Parameter(torch.full((1,), 2.0))
    penalty.add_gradient_({"old": old, "head": head}, 1.0)
    assert head.grad is None
    assert old.grad is not None
    assert old.grad.item() == 2.0
    with pytest.raises(ValueError, match="missing: old;"):
        penalty({"head": head})
    penalty.fold({"old": old, "head": head}, {"head": torch.ones(1)})
    assert set(penalty.importances()) == {"old", "head"}


def test_frozen_parameters_get_no_gradient() -> None:
    penalty = QuadraticPenalty()
    penalty.fold({"w": torch.zeros(1)}, {"w": torch.ones(1)})
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    penalty.add_gradient_({"w": frozen}, 1.0)
    assert frozen.grad is None


@pytest.mark.parametrize(
    ("importance", "decay", "message"),
    [
        ({"w": -torch.ones(2)}, 1.0, "negative or non-finite"),
        ({"w": torch.full((2,), float("nan"))}, 1.0, "negative or non-finite"),
        ({"w": torch.ones(3)}, 1.0, r"shape \(3,\)"),
        ({"v": torch.ones(2)}, 1.0, "'v', which params lacks"),
        ({"w": torch.ones(2)}, 1.5, "decay is 1.5"),
    ],
)
def test_what_cannot_be_folded_is_refused_and_changes_nothing(
    importance: Tensors, decay: float, message: str
) -> None:
    penalty = QuadraticPenalty()
    penalty.fold({"w": torch.ones(2)}, {"w": torch.ones(2)})
    before = {name: buffer.clone() for name, buffer in penalty.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        penalty.fold({"w": torch.zeros(2)}, importance, decay)
    for name, buffer in penalty.state_dict().items():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
def test_a_damping_out_of_range_is_refused(damping: float) -> None:
    with pytest.raises(ValueError, match="damping is"):
        QuadraticPenalty(damping)
