"""What the drop-in estimates F of: the training step itself, against brute force in float64."""

import pytest
import torch

from lifelong.learning.seen import see
from lifelong.methods import EWC, KroneckerEWC

from .steps import (
    FAMILIES,
    brute,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fisher_information_is_that_of_the_training_step(family: str) -> None:
    make, batches, log_p = FAMILIES[family]
    module = make()
    got = EWC(1.0, threshold=0.0, labels="exact").estimate(module, batches)
    want = brute(module, lambda i: log_p(module, i))
    assert see(module, batches[0]).remarks == []
    assert set(got) == set(want)
    for name, one in want.items():
        torch.testing.assert_close(got[name], one, rtol=1e-9, atol=1e-12)
    assert sum(float(one.sum()) for one in want.values()) > 1e-3


@pytest.mark.parametrize("family", ["segmentation", "padded tokens, flat", "two heads"])
def test_kronecker_factors_are_those_of_the_training_step(family: str) -> None:
    make, batches, _ = FAMILIES[family]
    module = make()
    got = KroneckerEWC(1.0, threshold=0.0).estimate(module, batches)
    assert got.traces()
    assert all(trace > 0 for trace in got.traces().values())


@pytest.mark.parametrize("family", ["two heads", "several labels", "padded tokens, flat"])
def test_empirical_labels_are_those_that_the_loss_function_was_given(family: str) -> None:
    make, batches, _ = FAMILIES[family]
    module = make()
    got = EWC(1.0, labels="empirical").estimate(module, batches[:1])
    batch = batches[0]
    n = len(batch[0])
    want = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for i in range(n):
        one = tuple(t[i : i + 1] for t in batch)
        counted = int((one[1] != -100).sum()) if family != "two heads" else 1
        loss = module.step(module, one) * counted if counted else None
        if loss is None:
            continue
        for name, g in zip(want, torch.autograd.grad(loss, list(module.parameters())), strict=True):
            want[name] += g.square() / n
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-12)
