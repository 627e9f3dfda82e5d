"""The sensitivity of the output against a loop over single examples."""

import pytest
import torch
from torch import Tensor, nn

from lifelong.core import output_sensitivity
from lifelong.core.fisher.rules import LINEAR
from lifelong.core.fisher.squares import LinearSquares, Source

from .test_fisher_modules import IMAGES, Flat, Mean, normed

pytestmark = pytest.mark.usefixtures("double")


def looped(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    params = dict(network.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    network.eval()
    for one in x:
        norm = network(one.unsqueeze(0)).square().sum()
        for name, g in zip(params, torch.autograd.grad(norm, list(params.values())), strict=True):
            total[name] += g.abs()
    return {name: t / len(x) for name, t in total.items()}


class Scaled(nn.Module):
    """A parameter that no rule covers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.tanh()


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 4, padding_idx=0), Mean(), nn.Linear(4, 3))


NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), (7, 6)),
    "positions": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (7, 4, 6)),
    "few large": (lambda: nn.Sequential(nn.Linear(600, 500), Mean()), (3, 2, 600)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(4, 3, 3), normed(nn.BatchNorm2d(3)), nn.Tanh(), Flat()),
        IMAGES,
    ),
    "no rule": (lambda: nn.Sequential(nn.Linear(6, 5), Scaled(), nn.Linear(5, 3)), (7, 6)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("vectorised", [True, False])
def test_it_is_the_mean_over_single_examples(
    name: str, vectorised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, shape = NETWORKS[name]
    network, x = make(), torch.randn(shape)
    if not vectorised:
        monkeypatch.setattr("lifelong.core.fisher.diagonal.vectorised_squares", _unknown)
    came = output_sensitivity(network, [(x[:2], None), (x[2:], None)])
    for key, expected in looped(network, x).items():
        assert expected.any()
        torch.testing.assert_close(came[key], expected, rtol=1e-9, atol=1e-12)


def _unknown(*_: object) -> None:
    raise NotImplementedError("vmap")


def test_a_table_of_words_counts_each_example_once() -> None:
    network, words = embedding(), torch.tensor([[1, 1, 2], [3, 0, 1], [2, 2, 2]])
    came = output_sensitivity(network, [(words, None)])
    for key, expected in looped(network, words).items():
        torch.testing.assert_close(came[key], expected, rtol=1e-9, atol=1e-12)


def test_each_argument_counts() -> None:
    network, x = NETWORKS["linear"][0](), torch.randn(7, 6)
    whole = looped(network, x)
    first = output_sensitivity(network, [(x, None)], samples=3)
    torch.testing.assert_close(first["0.weight"], looped(network, x[:3])["0.weight"])
    assert not torch.allclose(first["0.weight"], whole["0.weight"])
    doubled = output_sensitivity(network, [x], forward=lambda n, batch: 2 * n(batch))
    torch.testing.assert_close(doubled["0.weight"], 4 * whole["0.weight"])
    seen: list[int] = []
    again = output_sensitivity(
        network, [(x, None)], chunk=2, progress=lambda done, _: seen.append(done)
    )
    assert seen == [2, 4, 6, 7]
    torch.testing.assert_close(again["2.bias"], whole["2.bias"])
    network[0].requires_grad_(False)
    assert list(output_sensitivity(network, [(x, None)])) == ["2.weight", "2.bias"]
    assert len(output_sensitivity(network, [(x, None)], include_frozen=True)) == 4
    with pytest.raises(ValueError, match="zero for every parameter"):
        output_sensitivity(network, [x], forward=lambda n, batch: 0 * n(batch))


def test_magnitudes_of_several_directions_add_up() -> None:
    linear, a = nn.Linear(2, 3), torch.randn(4, 2)
    weight, bias = (Source(0, linear, n, LINEAR, a, 0, True) for n in ("weight", "bias"))
    one = LinearSquares(weight, bias, ("w", "b"), torch.abs)
    deltas = torch.randn(2, 4, 3)
    for delta in deltas:
        one.add([delta])
    total = {"w": torch.zeros(3, 2), "b": torch.zeros(3)}
    one.finish(total)
    expected = torch.einsum("rno,ni->rnoi", deltas, a).abs().sum(dim=(0, 1))
    torch.testing.assert_close(total["w"], expected)
    torch.testing.assert_close(total["b"], deltas.abs().sum(dim=(0, 1)))
