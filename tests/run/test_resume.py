"""An interrupted run, resumed, ends with the bits of one that was not interrupted."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from .conftest import SMALL, Command

FIRST, SECOND = "digits_as_mnist", "digits_as_usps"
LAST = f"checkpoints/stage-1-{SECOND}.ckpt"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def forked(tmp_path: Path) -> Iterator[Run]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    env.pop("LIFELONG_DATA", None)
    script = Path(__file__).with_name("forked.py")
    with subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def run(
            *words: str, kill_after: float | None = None, kill_at: list[Path] | None = None
        ) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            asked = {"words": words, "kill_after": kill_after, "kill_at": kill_at}
            process.stdin.write(json.dumps(asked, default=str) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close() if process.stdin else None


def difference(one: Any, other: Any, where: str = "") -> str | None:
    """Where two nested values first differ, by a bit; None where they are the same."""
    if isinstance(one, torch.Tensor):
        if torch.equal(one, other):
            return None
        return f"{where}: {int((one != other).sum())} of {one.numel()} numbers"
    if isinstance(one, dict | list | tuple):
        keys = list(one) if isinstance(one, dict) else range(len(one))
        if list(keys) != (list(other) if isinstance(one, dict) else list(range(len(other)))):
            return f"{where}: {list(one)} and {list(other)}"
        found = (difference(one[key], other[key], f"{where}/{key}") for key in keys)
        return next((one for one in found if one), None)
    return None if one == other else f"{where}: {one!r} and {other!r}"


def results(directory: Path) -> dict[str, Any]:
    """All that must not depend on an interruption: not the seconds."""
    kept = torch.load(directory / LAST, weights_only=True)
    stages = [{k: s[k] for k in ("task", "accuracy", "steps", "curves")} for s in kept["stages"]]
    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    curves = {
        # Sorted: the files of two stages that began within one second are read by name, and in a
        # process that wrote many ".10" comes before ".9".
        tag: sorted((event.step, event.value) for event in events.Scalars(tag))
        for tag in sorted(events.Tags()["scalars"])
    }
    return {"state": [kept["network"], kept["method"]], "stages": stages, "curves": curves}


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        pytest.param(
            ["method=ewc", "method.labels=sampled"], 12, id="sampled", marks=pytest.mark.slow
        ),
        pytest.param(["method=kronecker_ewc"], 12, id="kronecker", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(
    forked: Run, tmp_path: Path, method: list[str], wanted: int
) -> None:
    words = ["benchmark=embedded_digits", "max_epochs=10", "model.hidden=[64,32]", *method]
    words += ["stages=off", "resume=true"]
    forked("--help")  # the first call waits for the imports
    begin = time.monotonic()
    done = forked(*words, "hydra.run.dir=whole")
    whole = time.monotonic() - begin
    assert done["code"] == 0, done["err"]
    expected = results(tmp_path / "whole")
    chance, kills, number = random.Random(0), 0, 0
    said = []
    # Few kills may all fall between two stages: go on until one fell within.
    while number < 40 and (kills < wanted or not any("going on within" in x for x in said)):
        number += 1
        for _ in range(3):
            done = forked(
                *words,
                f"hydra.run.dir=killed-{number}",
                "checkpoint_every=0.02",
                kill_after=chance.uniform(0.2, 1.0) * whole,
            )
            if done["code"] is not None:
                break
            kills += 1
        if done["code"] is None:
            done = forked(*words, f"hydra.run.dir=killed-{number}")
        assert done["code"] == 0, done["err"]
        said.append(done["err"])
        found = results(tmp_path / f"killed-{number}")
        assert difference(found, expected) is None, number
    assert any("going on within" in line for line in said)
    assert kills >= wanted


def stage(directory: Path, index: int) -> Path:
    (found,) = directory.glob(f"checkpoints/stage-{index}-*.ckpt")
    return found


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def replace_by_text(path: Path) -> None:
    path.write_text("no checkpoint")


@pytest.mark.parametrize("damage", [cut, flip, replace_by_text])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    command: Command, tmp_path: Path, shared: str, damage: Callable[[Path], None]
) -> None:
    words = [*SMALL, "hydra.run.dir=run"]
    assert command("train", *words, shared).code == 0
    expected = results(tmp_path / "run")
    damage(stage(tmp_path / "run", 1))
    done = command("train", *words, "stages=off", "resume=true")
    assert done.code == 0, done.err
    assert "stage-1-digits_as_usps.ckpt is damaged" in done.err
    assert "going back to the checkpoint before it" in done.err
    assert f"going on after {FIRST}" in done.err
    assert difference(results(tmp_path / "run"), expected) is None


@pytest.mark.slow
def test_a_damaged_checkpoint_within_a_stage_falls_back_to_the_one_before(
    forked: Run, tmp_path: Path
) -> None:
    words = ["benchmark=embedded_digits", "max_epochs=40", "stages=off", "checkpoint_every=0.02"]
    words += ["resume=true", "model.hidden=[32]"]
    before, newest = (tmp_path / "run/checkpoints" / f"progress{w}.ckpt" for w in ("-before", ""))
    both = [before, newest]
    for _ in range(10):  # the newest is away for a moment whenever the next is written
        assert forked(*words, "hydra.run.dir=run", kill_at=both)["code"] is None
        if newest.exists():
            break
    cut(newest)
    done = forked(*words, "hydra.run.dir=run")
    assert done["code"] == 0, done["err"]
    assert "progress.ckpt is damaged" in done["err"]
    assert "from progress-before.ckpt" in done["err"]
    assert forked(*words, "hydra.run.dir=whole")["code"] == 0
    assert difference(results(tmp_path / "run"), results(tmp_path / "whole")) is None
    assert not newest.exists()


def test_another_run_is_refused_with_what_differs(
    command: Command, tmp_path: Path, shared: str
) -> None:
    assert command("train", *SMALL, shared, "hydra.run.dir=run").code == 0
    (tmp_path / "run/summary.json").unlink()
    kept = stage(tmp_path / "run", 1).read_bytes()
    for other, part in {
        "seed=3": "seed=0 there, 3 here",
        "model.hidden=[16]": "model.hidden=[32] there, [16] here",
        "method.ewc_lambda=7": "method.ewc_lambda=10000.0 there, 7.0 here",
        "method=finetune": "method.name=ewc there, finetune here",
    }.items():
        done = command("train", *SMALL, other, "hydra.run.dir=run", "resume=true")
        assert done.code == 1, other
        assert part in done.errors[-1]
        assert "resume=true" in done.errors[-1]
        assert stage(tmp_path / "run", 1).read_bytes() == kept


def test_a_checkpoint_of_other_images_is_refused(
    command: Command, tmp_path: Path, shared: str
) -> None:
    from lifelong.run.resume.checkpoint import load_checkpoint, save_checkpoint

    assert command("train", *SMALL, shared, "hydra.run.dir=run").code == 0
    path = stage(tmp_path / "run", 1)
    content = load_checkpoint(path, "stage")
    content["about"]["data"][SECOND] = "0" * 64
    content = {key: value for key, value in content.items() if key not in ("kind", "format")}
    save_checkpoint(path, "stage", content)
    done = command("train", *SMALL, "hydra.run.dir=run", "resume=true")
    assert done.code == 1
    assert f"the images of {SECOND} (00000000… there" in done.errors[-1]


def test_a_finished_run_is_left_as_it_is(command: Command, tmp_path: Path, shared: str) -> None:
    assert command("train", *SMALL, shared, "hydra.run.dir=run").code == 0
    files = [tmp_path / "run/summary.json", *tmp_path.glob("run/*/*.ckpt")]
    files += list(tmp_path.glob("run/tensorboard/*"))
    before = {path: path.read_bytes() for path in files}
    assert len(before) >= 4
    # Without any other word the command continues what was begun there.
    done = command("train", "resume=true", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert "holds a finished run; it is left as it is" in done.err
    assert f"after {SECOND}" in done.out
    assert {path: path.read_bytes() for path in files} == before


def test_with_nothing_to_resume_the_run_begins_and_says_so(
    command: Command, tmp_path: Path, shared: str
) -> None:
    done = command("train", *SMALL, shared, "hydra.run.dir=run", "resume=true")
    assert done.code == 0, done.err
    assert "nothing to resume in" in done.err
    assert (tmp_path / "run/summary.json").exists()


def test_a_new_run_in_an_old_folder_leaves_nothing_of_the_old_one(
    command: Command, tmp_path: Path, shared: str
) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    for name in ("stage-5-gone.ckpt", ".stage-0-x.ckpt.1.tmp", "progress.ckpt"):
        (tmp_path / "run/checkpoints" / name).write_text("old")
    assert command("train", *SMALL, shared, "hydra.run.dir=run").code == 0
    found = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert found == {f"stage-0-{FIRST}.ckpt", f"stage-1-{SECOND}.ckpt"}


def test_ctrl_c_says_how_to_go_on_and_going_on_gives_the_same_bits(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lifelong.train", "benchmark=embedded_digits", "max_epochs=200"]
    words += ["stages=off", "checkpoint_every=0.05", "model.hidden=[32]", "hydra.run.dir=run"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as run:
        progress = tmp_path / "run/checkpoints/progress.ckpt"
        deadline = time.monotonic() + 120
        while not progress.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=60)[1]
    assert run.returncode == 130, said
    assert said.splitlines()[-1] == (
        "lifelong: interrupted; to go on type: lifelong-train resume=true "
        f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_space(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lifelong.train", *SMALL, "stages=off", "hydra.run.dir=run"]
    words += ["logger=none"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}

    def small_files() -> None:
        # For the process the limit of a file's size is what a full disk is: a write that fails.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        words, cwd=tmp_path, env=env, capture_output=True, text=True, preexec_fn=small_files
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "could not be written" in last
    assert "resume=true" in last
    assert not list(tmp_path.glob("run/checkpoints/*"))
    again = subprocess.run(
        [*words, "resume=true"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / LAST).exists()
