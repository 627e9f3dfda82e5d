"""A network that does not read the images, or lacks classes, is refused before anything runs."""

from typing import Any

import pytest
import torch
from torch import nn

from lifelong.config.fits import check_fits
from lifelong.data.image_task import ImageTask
from lifelong.data.task import ModuleTask
from lifelong.errors import LifelongError
from lifelong.models import CNN, Perceptron
from tests.run.own_benchmark import Textures


def colour() -> ModuleTask:
    made = ModuleTask("red", Textures(0))
    made.setup("fit")
    return made


def grey() -> ImageTask:
    made = ImageTask("embedded_mnist", "nowhere", name="mnist")
    made.setup()
    return made


@pytest.mark.parametrize(
    ("network", "made", "said"),
    [
        (
            lambda: Perceptron(784),
            colour,
            r"images of red are \[3, 32, 32\] = 3072 values and model.in_features is 784; "
            "type model.in_features=3072 or model=cnn model.channels_in=3",
        ),
        (lambda: Perceptron(1536), colour, "type model.in_features=3072"),  # two fit into one image
        (lambda: CNN(1), colour, "model.channels_in is 1; type model.channels_in=3"),
        (lambda: CNN(3), grey, "model.channels_in is 3; type model.channels_in=1"),
        (
            lambda: CNN(3, num_classes=5),
            colour,
            "labels of red reach 6 and model.num_classes is 5; type model.num_classes=7",
        ),
        (lambda: Perceptron(num_classes=9), grey, "labels of mnist reach 9.*num_classes=10"),
        (lambda: nn.Conv2d(5, 7, 3), colour, r"\[3, 32, 32\] and Conv2d does not read them"),
        (lambda: nn.Flatten(0), colour, r"2 images of red the model gives \[6144\]; wanted logits"),
    ],
)
def test_a_network_that_does_not_fit_is_told_in_one_line(
    network: Any, made: Any, said: str
) -> None:
    with pytest.raises(LifelongError, match=said) as caught:
        check_fits(network(), [made()])
    assert "\n" not in str(caught.value)


def test_networks_that_fit_pass_and_keep_their_state() -> None:
    network = CNN(3, num_classes=7)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    check_fits(network, [colour(), colour()])
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    check_fits(Perceptron(3072, num_classes=7), [colour()])
    check_fits(Perceptron(), [grey()])
