"""Where the curves go: every logger has the figures that summary.json has."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import SMALL, Command

OLD, NEW = "digits_as_mnist", "digits_as_usps"


def wanted(folder: Path) -> dict[str, Any]:
    """The curves and final figures, from summary.json."""
    found = json.loads((folder / "summary.json").read_text())
    first, last = found["curves"]
    return {
        f"val/{OLD}/accuracy": first[f"val/{OLD}/accuracy"],
        f"val/{NEW}/accuracy": last[f"val/{NEW}/accuracy"],
        f"retained/{OLD}": [first[f"val/{OLD}/accuracy"][-1], *last[f"retained/{OLD}"]],
        f"test/{OLD}/accuracy": [row[0] for row in found["accuracy"]],
        "average_accuracy": [found["average_accuracy"]],
    }


def check(found: dict[str, list[float]], folder: Path) -> None:
    for name, values in wanted(folder).items():
        assert found[name] == pytest.approx(values, abs=1e-6), name


def test_csv_has_the_figures_once_also_after_a_second_start(
    command: Command, tmp_path: Path
) -> None:
    def read() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        with (tmp_path / "run/csv/metrics.csv").open() as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name != "step":
                        found.setdefault(name, []).append(float(value))
        return found

    words = [*SMALL, "logger=csv", "stages=off", "hydra.run.dir=run"]
    done = command("train", *words)
    assert done.code == 0, done.err
    assert "tensorboard --logdir" not in done.out
    first = read()
    check(first, tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    (tmp_path / f"run/checkpoints/stage-1-{NEW}.ckpt").unlink()
    done = command("train", *words, "resume=true")
    assert done.code == 0, done.err
    assert f"going on after {OLD}" in done.err
    assert read() == first


def test_mlflow_has_the_figures_in_its_file_store(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs pip install 'lifelong-lightning[loggers]'")
    words = [*SMALL, "logger=mlflow", "stages=off", "hydra.run.dir=run", "seed=3"]
    done = command("train", *words)
    assert done.code == 0, done.err
    (folder,) = {path.parent for path in tmp_path.glob("outputs/mlruns/*/*/metrics")}
    found = {}
    for name in wanted(tmp_path / "run"):
        lines = (folder / "metrics" / name).read_text().splitlines()
        rows = sorted((int(line.split()[2]), float(line.split()[1])) for line in lines)
        found[name] = [value for _, value in rows]
    check(found, tmp_path / "run")
    assert (folder / "params/seed").read_text() == "3"
    assert (folder / "params/ewc_lambda").read_text() == "10000.0"


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of an offline run: LevelDB's log format after a header of seven bytes."""
    place, parts = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:  # what no record's head fits into is padding
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        data = content[place + 7 : place + 7 + length]
        place += 7 + length
        parts = data if kind in (1, 2) else parts + data  # 1 whole, 2 first, 3 middle, 4 last
        if kind in (1, 4):
            yield parts


@pytest.mark.slow
def test_wandb_keeps_the_runs_of_a_sweep_apart_offline(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="needs pip install 'lifelong-lightning[loggers]'")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    words = [*SMALL, "logger=wandb", "stages=off", "method.ewc_lambda=1,2"]
    done = command("train", "-m", *words, "hydra.sweep.dir=sweep")
    wandb.teardown()  # its process would stay with the tests
    assert done.code == 0, done.err
    for name in ("method.ewc_lambda=1", "method.ewc_lambda=2"):
        folder = tmp_path / "sweep" / name
        (path,) = folder.glob("wandb/offline-run-*/*.wandb")
        found: dict[str, list[float]] = {}
        for data in wandb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                found.setdefault(key, []).append(json.loads(item.value_json))
        check(found, folder)


@pytest.mark.parametrize("logger", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named_with_its_cure(
    command: Command, monkeypatch: pytest.MonkeyPatch, logger: str
) -> None:
    from lifelong.config import build as jobs

    honest = jobs.importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == logger else honest(name, *rest)

    monkeypatch.setattr(jobs.importlib.util, "find_spec", without)
    done = command("train", *SMALL, f"logger={logger}", "hydra.run.dir=run")
    assert done.code == 1
    assert f"logger={logger} needs {logger}" in done.errors[-1]
    assert "pip install 'lifelong-lightning[loggers]'" in done.errors[-1]
