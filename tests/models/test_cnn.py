"""The convolutional network takes any channels, size and classes; its Fisher is right."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from lifelong.core import fisher_diagonal, kronecker_factors
from lifelong.models import CNN, Perceptron


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 17)])
def test_any_channels_and_sizes_give_the_classes(shape: tuple[int, ...]) -> None:
    network = CNN(channels_in=shape[0], num_classes=7)
    assert network(torch.zeros(4, *shape)).shape == (4, 7)


def test_widths_and_classes_are_what_was_asked_for() -> None:
    network = CNN(3, widths=[4, 6], num_classes=5)
    assert [tuple(p.shape) for p in network.parameters() if p.ndim > 1] == [
        (4, 3, 3, 3),
        (6, 4, 3, 3),
        (5, 6),
    ]
    assert network.classifier.bias.shape == (5,)


def test_a_perceptron_reads_images_of_any_shape_and_no_others() -> None:
    network = Perceptron(3 * 8 * 8, [5], 4)
    images = torch.randn(6, 3, 8, 8)
    assert torch.equal(network(images), network(images.flatten(1)))
    with pytest.raises(RuntimeError):
        network(torch.zeros(6, 3, 8, 16))  # twice as many values are no two images


def test_the_exact_fisher_of_the_network_is_the_mean_squared_score_in_eval_mode() -> None:
    torch.manual_seed(0)
    network = CNN(1, widths=[2, 3], num_classes=3).double()
    with torch.no_grad():
        network(torch.randn(20, 1, 8, 8, dtype=torch.float64))  # running statistics of some data
    images, labels = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.zeros(4).long()
    expected = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    network.eval()
    for image in images.split(1):
        for label in range(3):
            network.zero_grad()
            logits = network(image)
            cross_entropy(logits, torch.tensor([label])).backward()
            weight = float(logits.detach().softmax(-1)[0, label]) / len(images)
            for name, parameter in network.named_parameters():
                expected[name] += weight * parameter.grad**2
    network.train().zero_grad()
    found = fisher_diagonal(network, [(images, labels)], labels="exact")
    for name, fisher in found.items():
        torch.testing.assert_close(fisher, expected[name], atol=1e-9, rtol=1e-5)
    assert {"blocks.0", "blocks.4", "classifier"} <= set(
        kronecker_factors(network, [(images, labels)])
    )
