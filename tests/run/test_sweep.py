"""Sweeps and searches of λ from end to end on the embedded digits, and the launchers."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from lifelong.config.compose import CONF

from .conftest import SMALL, Command

QUIET = (*SMALL, "logger=none")


def summaries(folder: Path) -> dict[str, dict]:
    return {
        str(path.parent.relative_to(folder)): json.loads(path.read_text())
        for path in folder.rglob("summary.json")
    }


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_the_sweep_experiment_goes_over_decades_and_seeds() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["experiment=lambda_sweep"]
        config = compose("train", overrides=words, return_hydra_config=True)
    params = config.hydra.sweeper.params
    assert [float(x) for x in params["method.ewc_lambda"].split(",")] == [
        *(0, 10, 1e2, 1e3, 1e4, 1e5, 1e6)
    ]
    assert params.seed == "0,1,2"
    assert config.benchmark.name == "mnist_usps"


def test_a_sweep_is_named_after_what_is_swept_and_ends_with_a_table(
    command: Command, tmp_path: Path
) -> None:
    # without -m: the experiment is a sweep by itself
    words = ("experiment=lambda_sweep", "method.ewc_lambda=0,1e4", "seed=0,1")
    done = command("train", *QUIET, *words, "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    found = summaries(tmp_path / "sweep")
    assert set(found) == {f"method.ewc_lambda={x},seed={s}" for x in ("0", "1e4") for s in (0, 1)}
    for name, summary in found.items():
        assert f"method.ewc_lambda={'1e4' if summary['ewc_lambda'] else 0}" in name
        assert name.endswith(f"seed={summary['seed']}")
    said = [line for line in done.errors if ": kept " in line]
    assert len(said) == 4
    run = found["method.ewc_lambda=0,seed=1"]["curves"][1]
    kept, new = run["retained/digits_as_mnist"][-1], run["val/digits_as_usps/accuracy"][-1]
    line = f"method.ewc_lambda=0,seed=1: kept {100 * kept:.2f} %, new {100 * new:.2f} %"
    assert any(one.endswith(line) for one in said)
    olds = [
        100 * found[f"method.ewc_lambda=1e4,seed={s}"]["curves"][1]["retained/digits_as_mnist"][-1]
        for s in (0, 1)
    ]
    cell = f"{sum(olds) / 2:.2f} ± {abs(olds[0] - olds[1]) / 2:.2f}"
    (row,) = [row for row in done.out.splitlines() if "│ 1e4 │" in row.replace("  ", " ")]
    assert cell in row
    assert len(lines(done.out, "best λ = ")) == 1
    assert "NOT the MNIST and USPS archives" in done.out
    assert not (tmp_path / "sweep/.progress").exists()
    # where the images come from is said by the first run alone
    assert len([x for x in done.err.splitlines() if "embedded digits (scikit" in x]) == 2


@pytest.mark.slow
def test_any_other_key_is_swept_along_and_shows_in_the_name(
    command: Command, tmp_path: Path
) -> None:
    words = ("method=ewc,online_ewc", "method.ewc_lambda=0,100", "optimizer.lr=0.01")
    done = command("train", "-m", *QUIET[:3], "logger=none", *words, "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    methods = ("ewc", "online_ewc")
    assert set(summaries(tmp_path / "sweep")) == {
        f"method.ewc_lambda={x},method={m}" for m in methods for x in ("0", "100")
    }
    assert len(lines(done.out, "method=ewc: best λ = ")) == 1
    assert len(lines(done.out, "method=online_ewc: best λ = ")) == 1


def test_a_run_that_fails_ends_neither_the_sweep_nor_goes_unnoticed(
    command: Command, tmp_path: Path
) -> None:
    done = command(
        "train", "-m", *QUIET, "method.ewc_lambda=-1,100", "hydra.sweep.dir=sweep", "seed=0"
    )
    assert done.code == 1
    assert set(summaries(tmp_path / "sweep")) == {"method.ewc_lambda=100"}
    assert not (tmp_path / "sweep/method.ewc_lambda=-1").exists()
    first, second, last = done.errors
    assert "[1/2] method.ewc_lambda=-1 failed: method.ewc_lambda is -1; it must be" in first
    assert "[2/2] method.ewc_lambda=100: kept" in second
    assert "1 of 2 runs failed (method.ewc_lambda=-1)" in last
    assert "│ 100 │" in done.out


def test_a_defect_in_one_run_shows_its_trace_and_the_others_go_on(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lifelong import run

    learn = run.learn_sequence

    def broken(job: run.Job) -> run.Summary:
        if job.seed == 0:
            raise IndexError("a defect")
        return learn(job)

    monkeypatch.setattr(run, "learn_sequence", broken)
    done = command("train", "-m", *QUIET, "seed=0,1", "hydra.sweep.dir=sweep")
    assert done.code == 1
    assert 'raise IndexError("a defect")' in done.err
    assert "[1/2] seed=0 failed: IndexError: a defect" in done.err
    assert "1 of 2 runs failed (seed=0)" in done.errors[-1]
    assert list(summaries(tmp_path / "sweep")) == ["seed=1"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["parallel", "slurm_local"])
def test_a_launcher_gives_the_same_runs_and_loses_no_failure(
    tmp_path: Path, command: Command, launcher: str
) -> None:
    words = ("method.ewc_lambda=-1,0,1e3", f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep")
    env = {"OMP_NUM_THREADS": "1"}  # as in this process: the same bits
    done = subprocess.run(
        [sys.executable, "-m", "lifelong.train", "-m", *QUIET, *words],
        cwd=tmp_path,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = summaries(tmp_path / "sweep")
    assert set(found) == {"method.ewc_lambda=0", "method.ewc_lambda=1e3"}
    assert "method.ewc_lambda=-1 failed: method.ewc_lambda is -1" in done.stderr
    assert "1 of 3 runs failed" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert "← best" in done.stdout
    alone = command("train", *QUIET, "method.ewc_lambda=1e3", "hydra.run.dir=alone")
    assert alone.code == 0, alone.err
    (same,) = summaries(tmp_path / "alone").values()
    for key in ("accuracy", "curves"):
        assert found["method.ewc_lambda=1e3"][key] == same[key]


THREADS = f"""
import os, sys
import hydra
from pathlib import Path

@hydra.main(version_base="1.3", config_path={str(CONF)!r}, config_name="train")
def count(config):
    import torch
    Path(config.output_dir, "threads").write_text(str(torch.get_num_threads()))

if __name__ == "__main__":
    count()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["hydra/launcher=parallel", "hydra.launcher.n_jobs=2"], ["hydra/launcher=slurm_local"]],
)
def test_jobs_side_by_side_share_the_cores(tmp_path: Path, words: list[str]) -> None:
    import joblib

    script = tmp_path / "count.py"
    script.write_text(THREADS)
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, str(script), "-m", "seed=0,1", *words, "hydra.sweep.dir=sweep"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = [int(path.read_text()) for path in tmp_path.glob("sweep/*/threads")]
    share = max(joblib.cpu_count() // 2, 1) if "parallel" in words[0] else 1
    assert counts == [share, share]


def test_the_slurm_preset_becomes_an_array_with_what_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitit = pytest.importorskip("submitit")
    from hydra.utils import instantiate
    from submitit.slurm.slurm import _make_sbatch_string

    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.sweep.dir=sweep"]
        config = compose("train", overrides=words, return_hydra_config=True)
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    hydra = config.hydra
    hydra.job.name = "lifelong-train"
    assert hydra.job.env_set.OMP_NUM_THREADS == str(hydra.launcher.cpus_per_task) == "4"
    launcher = instantiate(hydra.launcher)
    taken: dict = {}

    class Executor(submitit.AutoExecutor):
        def map_array(self, *_: object) -> list:
            taken.update(self._executor.parameters)
            return []

    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    launcher.config = config
    launcher.launch([["seed=0"], ["seed=1"]], 0)
    text = _make_sbatch_string("run", tmp_path, map_count=2, **taken)
    for wanted in ("cpus-per-task=4", "mem=8GB", "time=240", "partition=gpu", "array=0-1%2"):
        assert f"#SBATCH --{wanted}" in text, text
    assert "lifelong-train" in text


def test_a_launcher_that_is_not_installed_is_named_with_its_cure(command: Command) -> None:
    target = "hydra.launcher._target_=hydra_plugins.hydra_absent_launcher.core.Launcher"
    done = command("train", "-m", *QUIET, "seed=0,1", "hydra/launcher=slurm", target)
    assert done.code == 1
    (error,) = done.errors
    assert "hydra_absent_launcher" in error
    assert "pip install 'lifelong-lightning[launchers]'" in error


@pytest.mark.slow
def test_an_interrupted_sweep_shows_what_is_finished(tmp_path: Path) -> None:
    words = ["method.ewc_lambda=0,1e2,1e4", "max_epochs=30", "hydra.sweep.dir=sweep"]
    others = [word for word in QUIET if "max_epochs" not in word]
    running = subprocess.Popen(
        [sys.executable, "-m", "lifelong.train", "-m", *others, *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("sweep/*/summary.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "│ 0 │" in " ".join(out.split()), err
    assert "│ 1e4 │" not in " ".join(out.split())
    begin = "lifelong: interrupted; to go on type: "
    (said,) = [line for line in err.splitlines() if line.startswith(begin)]
    typed = shlex.split(said.removeprefix(begin))
    assert typed[:2] == ["lifelong-train", "-m"]
    assert typed[-2:] == ["resume=true", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    first = tmp_path / "sweep/method.ewc_lambda=0/summary.json"
    before = first.read_bytes()
    again = subprocess.run(
        [sys.executable, "-m", "lifelong.train", *typed[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert first.read_bytes() == before
    assert set(summaries(tmp_path / "sweep")) == {
        f"method.ewc_lambda={x}" for x in ("0", "100", "1e4")
    }
    for row in ("│ 0 │", "│ 100 │", "│ 1e4 │"):
        assert row in " ".join(again.stdout.split())
    assert "holds a finished run" in again.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["-m", "choice.rule=luck"], ["choice.rule is luck", "choice.rule=best_average"]),
        (["choice.at_most_lost=-1"], ["choice.at_most_lost is -1", "points from 0 to 100"]),
        (["experiment=lambda_search", "search.low=0"], ["search.low is 0", "above 0"]),
        (["experiment=lambda_search", "search.high=1"], ["search.high is 1", "search.low=1.0"]),
        (["experiment=lambda_search", "search.trials=0"], ["search.trials is 0", "at least 1"]),
        (["experiment=lambda_luck"], ["experiment=lambda_luck is not known", "lambda_sweep"]),
    ],
    ids=lambda value: value[-1] if "=" in value[-1] else "",
)
def test_bad_keys_of_sweep_and_search_get_one_line(
    command: Command, tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    done = command("train", *words, *QUIET, "hydra.run.dir=run", "hydra.sweep.dir=sweep")
    assert done.code == 1
    assert len(done.errors) == 1, done.err
    for part in parts:
        assert part in done.errors[0]


def test_multirun_yaml_keeps_what_was_swept(command: Command, tmp_path: Path) -> None:
    assert command("train", "-m", *QUIET, "seed=3", "hydra.sweep.dir=sweep").code == 0
    kept = yaml.safe_load((tmp_path / "sweep/multirun.yaml").read_text())
    assert "seed=3" in kept["hydra"]["overrides"]["task"]
    # nothing is swept: the run is named after all that was said
    (name,) = summaries(tmp_path / "sweep")
    assert "seed=3" in name
    assert "benchmark=embedded_digits" in name
