"""The figures of an accuracy matrix, by hand."""

import math

import pytest
import torch

from lifelong.core import average_accuracy, backward_transfer, forgetting, forward_transfer

MATRIX = torch.tensor([[0.9, 0.4, 0.1], [0.8, 0.9, 0.3], [0.85, 0.6, 0.95]], dtype=torch.float64)


def test_three_tasks_by_hand() -> None:
    untrained = torch.tensor([0.1, 0.1, 0.2], dtype=torch.float64)
    assert average_accuracy(MATRIX) == pytest.approx((0.85 + 0.6 + 0.95) / 3, abs=1e-9)
    assert backward_transfer(MATRIX) == pytest.approx((-0.05 - 0.3) / 2, abs=1e-9)
    assert forward_transfer(MATRIX, untrained) == pytest.approx((0.3 + 0.1) / 2, abs=1e-9)
    assert forgetting(MATRIX) == pytest.approx((0.05 + 0.3) / 2, abs=1e-9)


def test_forgetting_counts_from_the_best_and_not_from_the_first() -> None:
    matrix = torch.tensor([[0.5, 0.1, 0.1], [0.9, 0.8, 0.1], [0.6, 0.8, 0.7]])
    assert forgetting(matrix) == pytest.approx((0.3 + 0.0) / 2, abs=1e-6)
    assert backward_transfer(matrix) == pytest.approx((0.1 + 0.0) / 2, abs=1e-6)


def test_a_task_that_improves_to_the_last_has_negative_forgetting() -> None:
    # the best counts before the last task: 0.6, although the last row is better
    matrix = torch.tensor([[0.5, 0.1, 0.1], [0.6, 0.8, 0.1], [0.9, 0.7, 0.7]])
    assert forgetting(matrix) == pytest.approx((-0.3 + 0.1) / 2, abs=1e-6)


def test_a_single_task_has_an_average_and_no_transfer() -> None:
    single = torch.tensor([[0.7]], dtype=torch.float64)
    assert average_accuracy(single) == 0.7
    assert math.isnan(backward_transfer(single))
    assert math.isnan(forward_transfer(single, torch.tensor([0.1], dtype=torch.float64)))
    assert math.isnan(forgetting(single))
