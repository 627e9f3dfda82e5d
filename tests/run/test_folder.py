"""A folder belongs to one run."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path

import pytest

from lifelong.config import folder as folders
from lifelong.config.compose import compose_run
from lifelong.config.folder import claim, hold, let_go, own_folder
from lifelong.errors import LifelongError
from lifelong.search.branches import learn_branches

from .conftest import SMALL, Command

QUIET = (*SMALL, "logger=none", "stages=off", "max_epochs=1")

HOLD = """
import sys, time
from lifelong.config.folder import hold
hold(sys.argv[1])
print("held", flush=True)
time.sleep(100)
"""


@contextmanager
def another_process_holds(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    yield
    assert folders._held == {}
    let_go()


def _claim_many(wanted: Path) -> list[Path]:
    return [claim(wanted) for _ in range(25)]


def test_a_taken_name_becomes_another_whoever_else_asks(tmp_path: Path) -> None:
    assert claim(tmp_path / "x" / "a") == tmp_path / "x" / "a"
    assert claim(tmp_path / "x" / "a") == tmp_path / "x" / "a_02"
    with get_context("fork").Pool(4) as pool:
        lists = pool.map(_claim_many, [tmp_path / "12-00-00"] * 4)
    found = [folder for some in lists for folder in some]
    assert len(set(found)) == 100
    assert {p.name for p in found} == {"12-00-00", *(f"12-00-00_{n:02}" for n in range(2, 101))}


def test_a_lock_names_its_owner_and_dies_with_it(tmp_path: Path) -> None:
    with another_process_holds(tmp_path / "run") as owner:
        with pytest.raises(LifelongError) as refused:
            hold(tmp_path / "run")
        line = str(refused.value)
        assert f"process {owner.pid} on {os.uname().nodename}, since 20" in line
        assert "hydra.run.dir=DIR" in line
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert hold(tmp_path / "run")
    facts = json.loads((tmp_path / "run/.hydra/run.lock").read_text())
    assert facts["pid"] == os.getpid()
    assert not hold(tmp_path / "run")  # ours already
    let_go()
    assert not (tmp_path / "run").exists()
    assert hold(tmp_path / "run")
    (tmp_path / "run/result").touch()
    let_go()
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "result"]


def test_a_lock_file_that_its_owner_has_just_taken_away_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls, path = fcntl.flock, [], tmp_path / ".hydra/run.lock"

    def late(descriptor: int, how: int) -> None:
        if not calls:
            path.unlink()  # between the opening and the locking
        calls.append(how)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert hold(tmp_path)
    assert len(calls) == 2
    assert json.loads(path.read_text())["pid"] == os.getpid()
    (tmp_path / "result").touch()
    let_go()


def test_where_there_are_no_locks_a_run_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", missing)
    for _ in range(2):
        with own_folder(tmp_path / "run"):
            pass
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be locked (No locks available)" in line


def test_of_several_processes_the_first_holds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    assert not hold(tmp_path / "run")
    monkeypatch.setenv("RANK", "0")
    assert hold(tmp_path / "run")
    let_go()


def test_a_folder_that_a_living_run_holds_is_refused_and_left_as_it_is(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "run/.hydra").mkdir(parents=True)
    (tmp_path / "run/.hydra/config.yaml").write_text("of the living run")
    with another_process_holds(tmp_path / "run") as owner:
        before = sorted(tmp_path.rglob("*"))
        for words in (
            [*QUIET, "hydra.run.dir=run"],
            ["resume=true", "hydra.run.dir=run"],
            [*QUIET, f"hydra.run.dir={tmp_path}/run", "method.ewc_lambda=auto"],
            ["-m", *QUIET, "hydra.sweep.dir=run", "seed=0,1"],
        ):
            done = command("train", *words)
            assert done.code == 1
            (line,) = done.err.splitlines()
            assert f"still going on (process {owner.pid} on " in line
            assert ("hydra.sweep.dir=DIR" if words[0] == "-m" else "hydra.run.dir=DIR") in line
        assert sorted(tmp_path.rglob("*")) == before
        assert (tmp_path / "run/.hydra/config.yaml").read_text() == "of the living run"
        with pytest.raises(LifelongError, match="still going on"):
            list(learn_branches([compose_run([*QUIET, f"output_dir={tmp_path}/run"])]))
    # a job of a sweep is refused alone
    with another_process_holds(tmp_path / "sweep/seed=0"):
        done = command("train", "-m", *QUIET, "hydra.sweep.dir=sweep", "seed=0,1")
    assert done.code == 1
    assert "1 of 2 runs failed (seed=0)" in done.errors[-1]
    assert (tmp_path / "sweep/seed=1/summary.json").exists()
    assert (tmp_path / "sweep/seed=0/.hydra/run.lock").exists()


@pytest.mark.slow
def test_two_runs_that_begin_in_the_same_second_have_a_folder_each(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Frozen(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Frozen":
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("hydra.core.utils.datetime", Frozen)
    monkeypatch.setattr("lifelong.cli.quickstart.datetime", Frozen)
    for words in ([*QUIET, "seed=1"], [*QUIET, "seed=2"], ["-m", *QUIET, "seed=3,4"]) * 2:
        assert command("train", *words).code == 0
    found = {
        str(path.parent.relative_to(tmp_path)): json.loads(path.read_text())["seed"]
        for path in tmp_path.rglob("summary.json")
    }
    time = "2026-01-02_03-04-05"
    runs = {f"outputs/embedded_digits/ewc/{time}{x}": n % 2 + 1 for n, x in
            enumerate(("", "_02", "_03", "_04"))}  # fmt: skip
    sweeps = {
        f"multirun/embedded_digits/{time}{x}/seed={n}": n for x in ("", "_02") for n in (3, 4)
    }
    assert found == runs | sweeps
    # what Hydra keeps of a run is in its own folder, and the lock is gone
    for folder in runs:
        assert {p.name for p in (tmp_path / folder / ".hydra").iterdir()} == {
            *("config.yaml", "hydra.yaml", "overrides.yaml", "run.json")
        }
    assert not list(tmp_path.rglob("run.lock"))
    for _ in range(2):
        assert command("quickstart", *QUIET[1:], "benchmark=embedded_digits").code == 0
    assert {p.name for p in (tmp_path / "outputs/quickstart").iterdir()} == {time, f"{time}_02"}


def test_what_only_shows_something_makes_no_folder(command: Command, tmp_path: Path) -> None:
    for words in (["--cfg", "job"], ["--cfg", "hydra", "--resolve"], ["--help"]):
        command("train", *words)
        assert not list(tmp_path.iterdir()), words
    assert command("train", "-m", "seed=0,1", "choice.rule=none").code == 1
    assert not list(tmp_path.rglob("run.lock"))
    assert command("quickstart", "max_epochs=0").code == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
