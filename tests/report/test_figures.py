"""The figures of a sweep, and pictures that hold what they are given."""

from math import isclose, sqrt

import pytest
import torch

from lifelong.errors import LifelongError
from lifelong.report.best import TradeOffPoint, trade_off
from lifelong.report.figures import (
    accuracy_matrix_figure,
    digits_figure,
    lambda_figure,
    retention_figure,
    trade_off_figure,
)
from lifelong.report.results import read_scalars
from lifelong.run import Summary


def summary(ewc_lambda: float, seed: int, old: float, new: float) -> Summary:
    return Summary(
        benchmark="b",
        scenario="domain",
        method="ewc",
        method_title="EWC",
        has_lambda=True,
        ewc_lambda=ewc_lambda,
        seed=seed,
        max_epochs=2,
        tasks=["first", "second"],
        data_source={"first": "somewhere", "second": "elsewhere"},
        accuracy=[[0.9, 0.5], [0.25, 0.75]],
        untrained_accuracy=[0.1, 0.1],
        average_accuracy=0.5,
        backward_transfer=-0.65,
        forward_transfer=0.4,
        forgetting=0.65,
        retained={"first": 0.25, "second": 0.75},
        seconds={},
        curves=[
            {"val/first/accuracy": [0.8, 0.95]},
            {"retained/first": [0.9, old], "val/second/accuracy": [0.2, new]},
        ],
        parameters=1,
        versions={},
    )


RUNS = [
    summary(100.0, 0, 0.8, 0.9),
    summary(0.0, 0, 0.4, 1.0),
    summary(100.0, 1, 0.6, 0.8),
    summary(0.0, 1, 0.4, 0.9),
]


def test_a_point_is_the_mean_of_the_last_validation_figures_over_seeds() -> None:
    free, held = trade_off(RUNS)
    assert (free.ewc_lambda, held.ewc_lambda) == (0.0, 100.0)
    assert isclose(held.old, 70.0)
    assert isclose(held.new, 85.0)
    assert isclose(held.average, 77.5)
    # two values a and b have the standard error |a − b| / 2
    assert isclose(held.old_error, 10.0)
    assert isclose(held.new_error, 5.0)
    assert free.old_error == 0.0


def test_the_standard_error_of_three_seeds_is_by_n_minus_one() -> None:
    (point,) = trade_off([summary(1.0, s, old, 0.5) for s, old in enumerate((0.1, 0.2, 0.6))])
    mean = 0.3
    variance = ((0.1 - mean) ** 2 + (0.2 - mean) ** 2 + (0.6 - mean) ** 2) / 2
    assert isclose(point.old_error, 100 * sqrt(variance / 3))


def test_one_seed_has_no_standard_error() -> None:
    assert trade_off(RUNS[:1]) == [TradeOffPoint(100.0, 80.0, 90.0)]


def test_the_figures_of_a_sweep_hold_every_point_and_name_the_tasks() -> None:
    points = trade_off(RUNS)
    figure = lambda_figure({"one": points, "two": points}, ["first", "second"])
    assert [axes.get_title() for axes in figure.axes] == ["one", "two"]
    old, new = (container[0].get_xydata().tolist() for container in figure.axes[0].containers)
    assert old == [[0.0, points[0].old], [100.0, points[1].old]]
    assert new == [[0.0, points[0].new], [100.0, points[1].new]]

    axes = trade_off_figure({"one": points, "two": points}, ["first", "second"]).axes[0]
    assert "second" in axes.get_xlabel()
    assert "first" in axes.get_ylabel()
    for container in axes.containers:
        assert container[0].get_xydata().tolist() == [[p.new, p.old] for p in points]
    # the second curve lies on the first: each λ is written once
    assert [text.get_text() for text in axes.texts] == ["λ = 0", "$10^{2}$"]


def test_the_accuracy_matrix_is_written_out_in_per_cent() -> None:
    figure = accuracy_matrix_figure(RUNS[:2])
    assert len(figure.axes) == 2
    assert [t.get_text() for t in figure.axes[0].texts] == ["90.0", "50.0", "25.0", "75.0"]


def test_the_retention_curve_begins_where_the_first_task_ended() -> None:
    axes = retention_figure(RUNS[:1]).axes[0]
    torch.testing.assert_close(
        torch.tensor(axes.lines[0].get_xydata().tolist()),
        torch.tensor([[0.0, 95.0], [1.0, 90.0], [2.0, 80.0]]),
        rtol=0,
        atol=1e-4,
    )


def test_an_image_keeps_its_pixels_and_its_caption() -> None:
    images = torch.arange(2 * 3 * 3).reshape(2, 3, 3)
    figure = digits_figure(images, ["a", "b"])
    for axes, image, caption in zip(figure.axes, images, ("a", "b"), strict=True):
        assert axes.images[0].get_array().tolist() == image.tolist()
        assert axes.images[0].get_clim() == (0.0, 17.0)
        assert axes.get_title() == caption


@pytest.mark.parametrize(("count", "captions"), [(0, []), (2, ["a"])])
def test_images_without_as_many_captions_are_refused(count: int, captions: list[str]) -> None:
    with pytest.raises(ValueError, match=f"{count} images and {len(captions)} captions"):
        digits_figure(torch.zeros(count, 3, 3), captions)


def test_a_logged_curve_is_read_back_whole(tmp_path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "tensorboard") as writer:
        for step in range(0, 3000, 2):  # TensorBoard's own reader thins beyond a thousand
            writer.add_scalar("train/penalty", step / 4, step)
    steps, values = read_scalars(tmp_path, "train/penalty")
    assert steps == list(range(0, 3000, 2))
    assert values == [step / 4 for step in steps]
    with pytest.raises(LifelongError, match=r"no curve train/loss; it has train/penalty"):
        read_scalars(tmp_path, "train/loss")
    with pytest.raises(LifelongError, match=r"it has none"):
        read_scalars(tmp_path / "empty", "train/loss")
