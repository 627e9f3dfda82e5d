"""The path integral: it adds up to what the loss has fallen by."""

import pytest
import torch
from torch import Tensor

from lifelong.core.path_integral import PathIntegral

H = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)


def loss(theta: Tensor) -> Tensor:
    return 0.5 * theta @ H @ theta


def walk(rate: float, steps: int) -> tuple[PathIntegral, Tensor]:
    theta = torch.tensor([2.0, -1.0], dtype=torch.float64)
    path = PathIntegral({"w": theta})
    for _ in range(steps):
        gradient = H @ theta
        path.leave({"w": theta}, {"w": gradient})
        theta = theta - rate * gradient
        path.arrive({"w": theta})
    return path, theta


@pytest.mark.parametrize("rate", [1e-2, 1e-3, 1e-4])
def test_it_is_the_fall_of_the_loss_on_a_quadratic_under_small_steps(rate: float) -> None:
    path, theta = walk(rate, round(2 / rate))
    fall = float(loss(path.start["w"]) - loss(theta))
    assert fall > 4.0
    # a step counts its gradient where it began: too high by half a step
    excess = float(path.omega["w"].sum()) / fall - 1
    assert 0 < excess < 2 * rate
    assert excess > 0.5 * rate


def test_the_importance_is_the_curvature_of_what_was_gone_down() -> None:
    curvature = torch.tensor([4.0, 0.5], dtype=torch.float64)
    theta = torch.tensor([1.0, -3.0], dtype=torch.float64)
    path = PathIntegral({"w": theta})
    for _ in range(40_000):
        path.leave({"w": theta}, {"w": curvature * theta})
        theta = theta - 1e-3 * curvature * theta
        path.arrive({"w": theta})
    found = path.importance({"w": theta}, xi=1e-12)["w"]
    torch.testing.assert_close(found, curvature, rtol=3e-3, atol=0)
    damped = path.importance({"w": theta}, xi=1.0)["w"]
    torch.testing.assert_close(damped[0], found[0] / 2, rtol=1e-6, atol=0)  # Δ² = 1 and ξ = 1


def test_what_went_up_hill_does_not_matter() -> None:
    theta = torch.tensor([1.0, 1.0])
    path = PathIntegral({"w": theta})
    path.leave({"w": theta}, {"w": torch.tensor([1.0, -1.0])})
    moved = torch.tensor([0.5, 0.5])
    path.arrive({"w": moved})
    assert path.omega["w"].tolist() == [0.5, -0.5]
    assert path.importance({"w": moved}, xi=0.75)["w"].tolist() == [1.0, 0.0]  # 2 · ½ / (¼ + ¾)


def test_a_step_that_was_left_out_or_not_looked_at_does_not_count() -> None:
    theta = torch.ones(1)
    path = PathIntegral({"w": theta, "v": theta})
    path.leave({"w": theta, "v": theta}, {"w": torch.tensor([float("inf")])})
    path.forget()
    path.arrive({"w": theta - 1, "v": theta - 1})
    assert path.omega["w"].tolist() == path.omega["v"].tolist() == [0.0]
    path.leave({"w": theta, "v": theta}, {"w": theta, "v": theta})
    path.arrive({"w": theta - 1, "v": theta - 1}, ["v"])
    assert (path.omega["w"].item(), path.omega["v"].item()) == (0.0, 1.0)


def test_its_state_goes_round() -> None:
    path, theta = walk(0.1, 3)
    again = PathIntegral.of_state(path.state())
    assert torch.equal(
        again.importance({"w": theta}, 0.1)["w"], path.importance({"w": theta}, 0.1)["w"]
    )
    again.leave({"w": theta}, {"w": theta})
    again.arrive({"w": theta + 1})
    assert not torch.equal(again.omega["w"], path.omega["w"])
