"""Learnt stages that runs share: the same bits, learnt once, whatever happens to an owner."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.run.store import StageStore

from .conftest import SMALL, Command
from .test_resume import difference, results

FIRST, SECOND = "digits_as_mnist", "digits_as_usps"


def summary(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_text())


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"stages={tmp_path_factory.mktemp('st')}"


@pytest.mark.parametrize(
    "words",
    [
        ["method.ewc_lambda=10"],
        *(
            pytest.param(words, marks=pytest.mark.slow)
            for words in (
                ["method=finetune"],
                ["method.ewc_lambda=0"],
                ["method=kronecker_ewc"],
                ["method.labels=sampled"],
                ["method=online_ewc", "method.step=proximal"],
            )
        ),
    ],
    ids=lambda words: words[0],
)
def test_shared_and_unshared_runs_agree_bit_for_bit(
    command: Command, tmp_path: Path, own_store: str, words: list[str]
) -> None:
    # The first leaves a stage whose importance some of the others can use and some cannot.
    for name, own in {"first": [own_store], "shared": [*words, own_store]}.items():
        done = command("train", *SMALL, *own, f"hydra.run.dir={name}")
        assert done.code == 0, done.err
    assert f"{FIRST}: taken from the stage store" in done.err
    assert summary(tmp_path / "shared")["reused"][FIRST]["fit"] > 0
    assert summary(tmp_path / "shared")["seconds"][FIRST]["fit"] == 0
    alone = command("train", *SMALL, *words, "stages=off", "hydra.run.dir=alone")
    assert alone.code == 0, alone.err
    assert "stage store" not in alone.err
    assert summary(tmp_path / "alone")["reused"] == {}
    expected = results(tmp_path / "alone")
    assert difference(results(tmp_path / "shared"), expected) is None
    once_more = command("train", *SMALL, *words, own_store, "hydra.run.dir=again")
    assert f"{SECOND}: taken from the stage store" in once_more.err
    assert difference(results(tmp_path / "again"), expected) is None


def test_a_damaged_entry_is_told_of_and_learnt_again(command: Command, tmp_path: Path) -> None:
    words = [*SMALL, "stages=st", "method=finetune"]
    assert command("train", *words, "hydra.run.dir=a").code == 0
    for path in (tmp_path / "st").glob("*.fit"):
        path.write_bytes(path.read_bytes()[:-100])
    done = command("train", *words, "hydra.run.dir=b")
    assert done.code == 0, done.err
    assert "is removed from the stage store and learnt again" in done.err
    assert "taken from" not in done.err
    assert difference(results(tmp_path / "b"), results(tmp_path / "a")) is None
    assert "taken from" in command("train", *words, "hydra.run.dir=c").err


def test_the_store_keeps_within_its_bound_and_drops_what_was_not_used(tmp_path: Path) -> None:
    store = StageStore(tmp_path, 25_000, print)
    for number in range(3):
        store.keep("fit", f"key{number}", {"x": torch.zeros(2000)})  # some 10 kB each
        os.utime(tmp_path / f"key{number}.fit", (number, number))
    assert store.recall("fit", "key0") is None
    assert store.recall("fit", "key1") is not None
    store.keep("fit", "key3", {"x": torch.zeros(2000)})
    assert {path.stem for path in tmp_path.glob("*.fit")} == {"key1", "key3"}
    # An entry beyond the bound is kept while it is the newest.
    store.keep("fit", "large", {"x": torch.zeros(20_000)})
    assert {path.stem for path in tmp_path.glob("*.fit")} == {"large"}


def test_who_comes_second_waits_until_the_first_is_done(tmp_path: Path) -> None:
    told: list[str] = []
    store, order = StageStore(tmp_path, 1e9, told.append), []

    def second() -> None:
        with store.exclusive("key", "a"):
            order.append("second")

    thread = threading.Thread(target=second)
    with store.exclusive("key", "a"):
        thread.start()
        deadline = time.monotonic() + 30
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert told == ["another run is learning a; waiting for its result"]


@pytest.mark.slow
def test_of_two_runs_at_once_one_learns_and_the_other_waits(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lifelong.train", "benchmark=embedded_digits", "max_epochs=20"]
    words += ["stages=st", "logger=none", "model.hidden=[64]"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [*words, f"method.ewc_lambda={x}", f"hydra.run.dir={x}"],
            cwd=tmp_path,
            env=env,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for x in (1, 2)
    ]
    said = [run.communicate(timeout=200)[1] for run in both]
    assert [run.returncode for run in both] == [0, 0], said
    assert sum(f"{FIRST}: taken from the stage store" in words for words in said) == 1
    one, other = (
        torch.load(tmp_path / f"{x}/checkpoints/stage-0-{FIRST}.ckpt")["network"] for x in (1, 2)
    )
    assert difference(one, other) is None
    assert len(list((tmp_path / "st").glob("*.fit"))) == 3


def test_the_lock_of_a_dead_owner_is_taken_over(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from lifelong.run.store import StageStore\n"
        "with StageStore(Path(sys.argv[1]), 1e9, print).exclusive('key', 'a'):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        told: list[str] = []
        owner.kill()
        owner.wait()
        begin = time.monotonic()
        with StageStore(tmp_path, 1e9, told.append).exclusive("key", "a"):
            waited = time.monotonic() - begin
    assert waited < 5
