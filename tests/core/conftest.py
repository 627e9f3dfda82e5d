"""The slow oracle of the Fisher information: a loop over single examples, positions and classes."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

Oracle = Callable[[nn.Module, Tensor], dict[str, Tensor]]


@pytest.fixture
def double() -> Iterator[None]:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def _looped_fisher(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    params = {name: p for name, p in network.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    for one in x:
        output = network(one.unsqueeze(0))
        # positions are independent labels: the squares of their scores add up
        for log_p in output.log_softmax(-1).reshape(-1, output.shape[-1]):
            for log_p_c in log_p:
                scores = torch.autograd.grad(
                    log_p_c, list(params.values()), retain_graph=True, allow_unused=True
                )
                for name, score in zip(params, scores, strict=True):
                    if score is not None:
                        total[name] += log_p_c.detach().exp() * score**2
    for module, training in modes:
        module.training = training
    return {name: squares / len(x) for name, squares in total.items()}


@pytest.fixture
def looped_fisher() -> Oracle:
    return _looped_fisher
