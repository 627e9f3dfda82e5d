"""Networks that ``fully_shard`` has spread over two processes, against one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lifelong.errors import LifelongError
from lifelong.methods import EWC
from lifelong.methods.parts import parameters_of, refuse_other_parts

from .sharded import SETTINGS, by_lightning, find

SCRIPT = Path(__file__).with_name("sharded.py")
Found = dict[str, Any]


def two(folder: Path, what: str) -> tuple[Found, Found]:
    """What each of two processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), what],
            env={**os.environ, **joined, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    return first, second


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found, Found]:
    folder = tmp_path_factory.mktemp("loops")
    return find(folder), *two(folder, "loops")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["guard", "term", "proximal"])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_spread_network_ends_where_a_whole_one_ends(
    loops: tuple[Found, Found, Found], how: str, name: str
) -> None:
    one, *both = (found[f"{how} {name}"] for found in loops)
    for found in both:
        torch.testing.assert_close(found["network"], one["network"], rtol=0, atol=1e-6)
        assert found["values"] == pytest.approx(one["values"], rel=1e-6, abs=1e-9)
        assert found["curvature"] == pytest.approx(one["curvature"], rel=1e-9)
        assert found["state is whole"]
    if how != "proximal":
        assert max(one["values"]) > 1e-3  # it did pull


@pytest.mark.slow
@pytest.mark.parametrize("how", ["guard", "term", "proximal"])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_each_process_holds_its_part_of_f_and_of_the_anchor(
    loops: tuple[Found, Found, Found], how: str, name: str
) -> None:
    one, *both = (found[f"{how} {name}"]["sizes"] for found in loops)
    for part in ("F", "anchor"):
        assert sum(found[part] for found in both) == one[part]
        assert max(found[part] for found in both) < 0.7 * one[part]


@pytest.mark.slow
def test_what_needs_the_whole_network_is_refused(loops: tuple[Found, Found, Found]) -> None:
    for found in loops[1:]:
        refusals = found["refusals"]
        assert (
            "Kronecker factors needs the whole; do that before fully_shard" in refusals["factors"]
        )
        assert "EWC(anchor=FILE, consolidates=False)" in refusals["estimate"]
        assert "a fold needs the whole" in refusals["fold"]
        assert not any("\n" in line for line in refusals.values())


@pytest.mark.slow
def test_lightnings_strategy_ends_where_one_process_ends(tmp_path: Path) -> None:
    one, both = by_lightning(tmp_path), two(tmp_path, "lightning")
    for found in both:
        torch.testing.assert_close(found["network"], one["network"], rtol=0, atol=1e-6)
        assert "EWC(anchor=FILE, consolidates=False)" in found["estimate"]


class FSDPStrategy:
    pass


class DeepSpeedEngine(nn.Linear):
    pass


def test_other_ways_to_spread_a_network_are_refused_before_the_first_step() -> None:
    class Asked:
        strategy = FSDPStrategy()

    with pytest.raises(LifelongError, match=r"strategy is FSDPStrategy.*ModelParallelStrategy"):
        refuse_other_parts(Asked())
    with pytest.raises(LifelongError, match=r"network is a DeepSpeedEngine.*take DDP"):
        parameters_of(nn.Sequential(DeepSpeedEngine(2, 2)))
    net = nn.Linear(2, 2)
    net.weight.ds_id = 3  # type: ignore[assignment]
    with pytest.raises(LifelongError, match="DeepSpeed has the parameters"):
        EWC(1.0).hold(net)
