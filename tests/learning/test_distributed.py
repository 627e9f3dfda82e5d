"""Two processes are one: joined by gloo on the CPU, in float64, against one process and by hand."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.core import fisher_diagonal
from lifelong.core.fisher.partial_sums import ShareSums

from .two_processes import ESTIMATORS, OwnModule, examples, find, network, share, shown

SCRIPT = Path(__file__).with_name("two_processes.py")
# Rounding of float64 through some ten steps of training; a wrong formula is off by more than 1e-3.
ROUNDING = {"rtol": 1e-9, "atol": 1e-12}
Found = dict[str, Any]


# The contract of the methods has two processes beside one in `make test`.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found, Found]:
    """What one process found, this one, and each of two."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            env={**os.environ, **joined, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for rank in ("0", "1")
    ]
    one = find()
    said = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    return one, first, second


def assert_same_bits(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_bits(one[key], other[key])
    else:
        assert one == other


def test_the_processes_end_with_the_same_bits(found: tuple[Found, Found, Found]) -> None:
    _, first, second = found
    assert_same_bits(first, second)


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if "sampled" not in n])
@pytest.mark.parametrize("kind", ["uneven", "empty", "ignored"])
def test_an_importance_over_two_processes_is_that_of_one(
    found: tuple[Found, Found, Found], name: str, kind: str
) -> None:
    whole = "ignored" if kind == "ignored" else "uneven"  # the second share has no label then
    everything = [part for rank in (0, 1) for part in share(whole, rank, 2)]
    expected = shown(ESTIMATORS[name](network(seed=9), everything))
    for one in found:
        # float64 throughout: two roundings more than in one pass
        torch.testing.assert_close(
            one["learner"]["estimates"][f"{name} {kind}"], expected, rtol=1e-12, atol=1e-16
        )


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if "sampled" in n])
def test_sampled_labels_are_drawn_apart_and_weighted_by_the_shares(
    found: tuple[Found, Found, Found], name: str
) -> None:
    sums = []
    for rank, count in ((0, 5), (1, 4)):
        probed = network(seed=9)
        torch.manual_seed(7 + rank)
        sums.append(ShareSums.of(ESTIMATORS[name](probed, share("uneven", rank, 2)), count))
    expected = shown((sums[0] + sums[1]).mean())
    _, first, second = found
    estimates = first["learner"]["estimates"]
    torch.testing.assert_close(estimates[f"{name} uneven"], expected, rtol=1e-12, atol=1e-16)
    torch.manual_seed(7)
    assert torch.equal(estimates["draw after"], torch.rand(3)), "the global randomness moved"
    assert torch.equal(second["learner"]["estimates"]["draw after"], estimates["draw after"])


def test_two_stages_over_two_processes_end_where_one_process_ends(
    found: tuple[Found, Found, Found],
) -> None:
    one, two, _ = found
    for part in ("network", "penalty"):
        torch.testing.assert_close(two["learner"][part], one["learner"][part], **ROUNDING)
    penalty = two["learner"]["penalty"]
    assert penalty["importance.2.weight"].sum() > 1e-3
    assert [two["learner"]["metrics"][f"{stage} last rate"] for stage in (0, 1)] == [0.0, 0.0]
    start = network().state_dict()["2.weight"]
    assert (two["learner"]["network"]["2.weight"] - start).abs().max() > 1e-2


def test_every_image_is_counted_once_in_validation_and_test(
    found: tuple[Found, Found, Found],
) -> None:
    one, two, _ = found
    assert two["learner"]["metrics"] == one["learner"]["metrics"]
    metrics = two["learner"]["metrics"]
    assert {"0 val/a/accuracy", "1 val/b/accuracy", "1 retained/a", "1 test/b/accuracy"} <= set(
        metrics
    )
    learnt = network()
    learnt.load_state_dict(two["learner"]["network"])
    # 101 and 33 images: shares of 51 and 50, 17 and 16, whose numbers of batches differ
    for seed, size, name in ((100, 101, "a"), (101, 33, "b")):
        images, y = examples(seed, size)
        x = (images / 255 - 0.1307) / 0.3081
        right = int((learnt(x).argmax(-1) == y).sum())
        assert metrics[f"1 test/{name}/accuracy"] == pytest.approx(right / size, abs=1e-7)


def test_running_statistics_are_those_of_the_first_process_everywhere(
    found: tuple[Found, Found, Found],
) -> None:
    one, first, second = found
    for name in ("3.running_mean", "3.running_var"):
        moved = first["batch norm"]["network"][name]
        assert torch.equal(moved, second["batch norm"]["network"][name])
        # of half the batch each, so not those of one process
        assert (moved - one["batch norm"]["network"][name]).abs().max() > 1e-6
    assert first["batch norm"]["metrics"] == second["batch norm"]["metrics"]
    learnt = network(batch_norm=True)
    learnt.load_state_dict(first["batch norm"]["network"])
    images, y = examples(100, 101)
    right = int((learnt.eval()((images / 255 - 0.1307) / 0.3081).argmax(-1) == y).sum())
    accuracy = first["batch norm"]["metrics"]["1 test/a/accuracy"]
    assert accuracy == pytest.approx(right / 101, abs=1e-7)


def test_the_drop_in_callback_does_not_count_what_pads_the_sampler(
    found: tuple[Found, Found, Found],
) -> None:
    images, y = examples(3, 13)
    for one in found:
        module = OwnModule()
        module.load_state_dict(one["drop-in"]["after padding"])
        expected = fisher_diagonal(module, [(images / 255, y)])
        torch.testing.assert_close(one["drop-in"]["fisher"], expected, rtol=1e-5, atol=1e-9)
        padded = torch.cat([images, images[:1]])
        wrong = fisher_diagonal(module, [(padded / 255, torch.cat([y, y[:1]]))])
        off = (wrong["body.2.weight"] - expected["body.2.weight"]).abs().max()
        assert off > 1e-3 * expected["body.2.weight"].max()


def test_the_drop_in_callback_holds_in_two_processes_as_in_one(
    found: tuple[Found, Found, Found],
) -> None:
    one, two, _ = found
    # The exact Fisher information leaves out 3e-7 of the labels' variance, by chunks.
    for part in ("network", "penalty"):
        torch.testing.assert_close(two["drop-in"][part], one["drop-in"][part], rtol=1e-5, atol=1e-8)
