import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lifelong.core.fisher.diagonal import fisher_diagonal


class Rude(nn.Module):
    """Changes a buffer, a gradient and the random numbers in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.others: list[Tensor] = []
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        torch.rand(3)
        with torch.enable_grad():
            for other in self.others:
                other.sum().backward()
        return x


def network() -> nn.Sequential:
    built = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        Rude(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(48, 8),
        nn.Linear(8, 4),
    )
    built.train()
    built[1].eval()  # a mixture that one call of train() would not bring back
    built[7].requires_grad_(False)
    built[3].others = [built[6].weight]
    built(torch.randn(5, 1, 6, 6)).sum().backward()
    return built


def state_of(built: nn.Module) -> dict[str, Any]:
    return {
        "tensors": copy.deepcopy(built.state_dict()),
        "modes": [module.training for module in built.modules()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in built.parameters()],
        "same gradients": [id(p.grad) for p in built.parameters()],
        "requires": [p.requires_grad for p in built.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in built.modules()],
        "attributes": [sorted(vars(module)) for module in built.modules()],
        "random": torch.get_rng_state(),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_same_state(came: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in wanted:
        if key in {"tensors", "gradients", "random"}:
            torch.testing.assert_close(came[key], wanted[key], rtol=0, atol=0, msg=key)
        else:
            assert came[key] == wanted[key], key


@pytest.mark.parametrize("labels", ["exact", "sampled", "empirical"])
def test_the_network_is_left_as_it_was(labels: str) -> None:
    built = network()
    batches = [(torch.randn(9, 1, 6, 6), torch.arange(9) % 4)]
    before = state_of(built)
    fisher_diagonal(built, batches, labels=labels)
    assert_same_state(state_of(built), before)


@pytest.mark.parametrize("after", [0, 2, 3, 4, 5, 6])
def test_an_exception_anywhere_leaves_the_network_as_it_was(after: int) -> None:
    built, x = network(), torch.randn(9, 1, 6, 6)
    before = state_of(built)
    calls = 0
    plain = built[5].forward

    def failing(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError("the disk is full")
        return plain(x)

    built[5].forward = failing
    with pytest.raises(OSError, match="disk"):
        fisher_diagonal(built, [(x, None)], chunk=3)
    del built[5].forward
    assert_same_state(state_of(built), before)


def test_an_exception_in_the_batches_leaves_the_network_as_it_was() -> None:
    built = network()
    before = state_of(built)

    def batches() -> Any:
        yield torch.randn(9, 1, 6, 6), None
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        fisher_diagonal(built, batches())
    assert_same_state(state_of(built), before)


def test_the_fisher_is_that_of_eval_mode() -> None:
    built, x = network(), torch.randn(9, 1, 6, 6)
    training = fisher_diagonal(built, [(x, None)])
    evaluating = fisher_diagonal(built.eval(), [(x, None)])
    torch.testing.assert_close(training, evaluating, rtol=0, atol=0)


def test_surroundings_make_no_difference() -> None:
    built, x = network(), torch.randn(9, 1, 6, 6)
    wanted = fisher_diagonal(built, [(x, None)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = fisher_diagonal(built, [(x, None)])
    with torch.no_grad():
        without_gradients = fisher_diagonal(built, [(x, None)])
    with torch.inference_mode():
        inference = fisher_diagonal(built, [(x, None)])
    for came in (autocast, without_gradients, inference):
        assert all(entry.dtype == torch.float32 for entry in came.values())
        torch.testing.assert_close(came, wanted, rtol=0, atol=0)


def test_half_precision_parameters_are_squared_in_float32() -> None:
    torch.manual_seed(0)
    # scores near 1e-5: their squares would underflow in float16
    half = nn.Linear(3, 4).to(torch.float16)
    x = torch.randn(6, 3).to(torch.float16) * 1e-3
    wide = copy.deepcopy(half).float()
    wanted = fisher_diagonal(wide, [(x.float(), None)])["bias"]
    came = fisher_diagonal(half, [(x, None)])
    torch.testing.assert_close(came["bias"].float(), wanted, rtol=5e-3, atol=0)


def test_sampling_repeats_with_the_global_seed_and_with_a_generator() -> None:
    built, x = network(), torch.randn(9, 1, 6, 6)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(fisher_diagonal(built, [(x, None)], labels="sampled"))
        generator = torch.Generator().manual_seed(6)
        found.append(fisher_diagonal(built, [(x, None)], labels="sampled", generator=generator))
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)
    torch.testing.assert_close(found[1], found[3], rtol=0, atol=0)
    assert not torch.equal(found[0]["6.weight"], found[1]["6.weight"])


def linear(classes: int = 3) -> nn.Module:
    return nn.Linear(4, classes)


X, Y = torch.ones(6, 4), torch.zeros(6, dtype=torch.long)


def diverged() -> nn.Module:
    network = linear()
    network.weight.data[0, 0] = float("nan")
    return network


ERRORS: dict[str, tuple[nn.Module, Any, dict[str, Any], type[Exception], str]] = {
    "no batch": (linear(), [], {}, ValueError, "hold no example"),
    "empty batch": (linear(), [(X[:0], Y[:0])], {}, ValueError, "hold no example"),
    "nan": (diverged(), [(X, Y)], {}, ValueError, "output is nan for 2 of 2 examples"),
    "kind": (linear(), [(X, Y)], {"labels": "true"}, ValueError, "labels='true'.*'exact'"),
    "range": (linear(), [(X, Y + 3)], {"labels": "empirical"}, ValueError, "from 3 to 3.*0 to 2"),
    "shape": (linear(), [(X, Y[:, None])], {"labels": "empirical"}, ValueError, r"\(6, 1\)"),
    "missing": (linear(), [(X, None)], {"labels": "empirical"}, ValueError, "no tensor came"),
    "threshold": (linear(), [(X, Y)], {"threshold": -1.0}, ValueError, "threshold=-1.0"),
    "samples": (linear(), [(X, Y)], {"samples": 0}, ValueError, "samples=0"),
    "chunk": (linear(), [(X, Y)], {"chunk": 0}, ValueError, "chunk=0"),
    "one class": (linear(1), [(X, Y)], {}, ValueError, "C ≥ 2"),
    "no pair": (linear(), [X], {}, ValueError, "Tensor; wanted a pair.*forward="),
    "no tensor": (linear(), [(["a"], Y)], {}, ValueError, "holds a list without"),
    "coupled": (
        nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), linear()),
        [(torch.randn(6, 4), Y)],
        {},
        ValueError,
        "depends on the other examples",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_right_is_one_line_that_names_it(name: str) -> None:
    built, batches, options, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message) as caught:
        fisher_diagonal(built, batches, **options)
    assert "\n" not in str(caught.value)
