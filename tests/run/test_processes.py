"""``trainer=ddp``: two processes learn as one, and end together whatever ends one of them."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from omegaconf import OmegaConf

from lifelong.config import processes
from lifelong.config.compose import compose_run
from lifelong.config.processes import run_processes, starts_processes
from lifelong.errors import LifelongError

from .conftest import SMALL, Command

# From the death of a process to the end of the whole command, in seconds.
ENDS_WITHIN = 10.0


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(command: Command, tmp_path: Path) -> None:
    words = [*SMALL, "method.ewc_lambda=100", "val_fraction=0.1"]
    one = command("train", *words, "batch_size=64", "hydra.run.dir=one")
    two = command("train", *words, "trainer=ddp", "batch_size=32", "hydra.run.dir=two")
    assert (one.code, two.code) == (0, 0), one.err + two.err
    # said once, and nothing else
    assert two.out.count("Test accuracy") == 1
    assert len(two.err.splitlines()) == len(one.err.splitlines()) == 2, two.err
    summaries = [
        json.loads((tmp_path / run / "summary.json").read_text()) for run in ("one", "two")
    ]
    for of_one, of_two in zip(*(s["accuracy"] for s in summaries), strict=True):
        # in float32, so that an image on the border may fall to the other side: 1 of 199
        assert of_two == pytest.approx(of_one, abs=1 / 198 + 1e-6)
    curves = [{name: len(c) for name, c in s["curves"][1].items()} for s in summaries]
    assert curves[0] == curves[1]
    states = [
        torch.load(tmp_path / run / "checkpoints/stage-1-digits_as_usps.ckpt")["network"]
        for run in ("one", "two")
    ]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        scale = float(tensor.abs().max())
        # float32 through 40 steps
        torch.testing.assert_close(states[1][name], tensor, rtol=0, atol=2e-3 * scale, msg=name)
    files = {
        run: sorted(p.name for p in (tmp_path / run).rglob("*") if "tfevents" not in p.name)
        for run in ("one", "two")
    }
    assert files["one"] == files["two"]
    events = [len(list((tmp_path / run).rglob("*tfevents*"))) for run in ("one", "two")]
    assert events[0] == events[1]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_with_an_error(tmp_path: Path) -> None:
    words = [*SMALL, "trainer=ddp", "max_epochs=100000", "hydra.run.dir=run"]
    run = subprocess.Popen(
        [sys.executable, "-m", "lifelong.train", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    _wait_for(lambda: list((tmp_path / "run").rglob("*tfevents*")), 60)
    ranks = {int(p.environ()["RANK"]): p for p in psutil.Process(run.pid).children()}
    assert set(ranks) == {0, 1}
    time.sleep(0.5)
    ranks[0].kill()  # the one that Lightning's own launcher would not miss
    begin = time.monotonic()
    out, err = run.communicate(timeout=60)
    assert time.monotonic() - begin < ENDS_WITHIN
    assert (run.returncode, out) == (1, "")
    assert "process 0 of 2 was killed by SIGKILL" in err.splitlines()[-1]
    assert not any(_runs(p) for p in ranks.values())


def test_the_processes_end_when_the_one_that_started_them_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom lifelong.config import processes\n"
        "processes.RANK = (sys.executable, '-c', "
        "'import os, time; from lifelong.cli import worker; worker._first_line(); "
        "import threading; threading.Thread(target=worker._end_with_the_parent).start(); "
        "print(os.getpid(), flush=True); time.sleep(60)')\n"
        "from omegaconf import OmegaConf\n"
        "processes.run_processes(OmegaConf.create({'trainer': {'devices': 1}}))\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    child = psutil.Process(int(run.stdout.readline()))
    assert _runs(child)
    run.kill()
    run.wait()
    _wait_for(lambda: not _runs(child), 5)


@pytest.mark.slow
def test_an_error_of_the_user_in_a_process_is_the_commands_one_line(tmp_path: Path) -> None:
    config = compose_run([*SMALL, "logger=none", "optimizer.lr=1e30", f"output_dir={tmp_path}"])
    with pytest.raises(LifelongError, match=r"while learning digits_as_mnist.*optimizer\.lr"):
        run_processes(config)


PRETEND = "import os, sys, time; rank, said = os.environ['RANK'], sys.argv[1]; "


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("sys.exit(3 if rank == '0' else 7)", "process 1 of 2 ended with code 7 without a word"),
        (
            "from lifelong.config.processes import LastWords; from pathlib import Path\n"
            "LastWords('Connection closed', False, '').write(Path(said), int(rank)); sys.exit(3)",
            "process [01] of 2 lost touch with another one \\(Connection closed\\)",
        ),
        (
            "rank == '0' and time.sleep(60); os.kill(os.getpid(), 11)",
            "1 of 2 was killed by SIGSEGV",
        ),
    ],
    ids=["the cause before its effects", "touch lost", "one hangs and one crashes"],
)
def test_the_first_cause_is_named_and_nobody_is_left(
    monkeypatch: pytest.MonkeyPatch, script: str, says: str
) -> None:
    monkeypatch.setattr(processes, "RANK", (sys.executable, "-c", PRETEND + script))
    before = set(psutil.Process().children())
    begin = time.monotonic()
    with pytest.raises(LifelongError, match=says):
        run_processes(OmegaConf.create({"trainer": {"devices": 2}}))
    assert time.monotonic() - begin < ENDS_WITHIN
    assert set(psutil.Process().children()) <= before


def test_a_process_that_does_not_obey_is_ended_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.5)
    deaf = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "rank == '0' and time.sleep(60); time.sleep(0.5); sys.exit(7)"
    )
    monkeypatch.setattr(processes, "RANK", (sys.executable, "-c", PRETEND + deaf))
    with pytest.raises(LifelongError, match="process 1 of 2 ended with code 7"):
        run_processes(OmegaConf.create({"trainer": {"devices": 2}}))
    assert not [p for p in psutil.Process().children() if _runs(p)]


@pytest.mark.parametrize(
    ("devices", "environment", "starts"),
    [
        (1, {}, False),
        (2, {}, True),
        ([0, 1, 2], {}, True),
        ("auto", {}, False),
        (2, {"LOCAL_RANK": "1"}, False),
        (2, {"SLURM_STEP_NUM_TASKS": "2"}, False),
        (2, {"SLURM_STEP_NUM_TASKS": "1"}, True),
    ],
)
def test_processes_are_started_unless_something_else_did(
    monkeypatch: pytest.MonkeyPatch, devices: object, environment: dict[str, str], starts: bool
) -> None:
    for name in ("LOCAL_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert starts_processes(OmegaConf.create({"trainer": {"devices": devices}})) is starts


def test_a_command_of_one_process_says_that_it_is_one(command: Command) -> None:
    done = command("quickstart", "benchmark=embedded_digits", "trainer=ddp")
    assert done.code == 1
    assert "trainer.devices is 2" in done.errors[-1]
    assert "lifelong-train" in done.errors[-1]


def _wait_for(happens: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happens():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
