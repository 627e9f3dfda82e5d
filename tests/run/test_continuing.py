"""Resuming a run whose folder came from elsewhere: what its note says is data."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lifelong.config.compose import compose_run
from lifelong.config.continuing import how_to_continue
from lifelong.search.branches import learn_branches

from .conftest import SMALL, Command
from .foreign import NAMES, payloads

FIRST, SECOND = "digits_as_mnist", "digits_as_usps"
LAST = f"checkpoints/stage-1-{SECOND}.ckpt"
PLACES = (
    ("model",),
    ("optimizer",),
    ("scheduler",),
    ("logger", "tensorboard"),
    ("logger", "another"),
    ("callbacks",),
    ("callbacks", "another"),
    ("trainer",),
    ("trainer", "strategy"),
    ("trainer", "plugins"),
    ("benchmark",),
    ("benchmark", "announce"),
    ("method", "penalty"),
    ("method", "consolidation", "estimator"),
    ("search",),
    ("search", "sampler"),
    ("another",),
)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its first task."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    words = [*SMALL, "stages=off", "logger=csv", f"output_dir={folder}"]
    assert list(learn_branches([compose_run(words)]))
    stop(folder)
    return folder


def stop(folder: Path) -> None:
    (folder / "summary.json").unlink()
    (folder / LAST).unlink()


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """The same, moved to where this command works."""
    shutil.copytree(begun, tmp_path / "run")
    return tmp_path / "run"


def change(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / ".hydra/run.json"
    note = json.loads(path.read_text())
    change(note)
    path.write_text(json.dumps(note))


def put(place: tuple[str, ...], value: Any) -> Callable[[dict[str, Any]], object]:
    def into(note: dict[str, Any]) -> None:
        node = note["config"]
        for key in place[:-1]:
            if not isinstance(node.get(key), dict):
                node[key] = {}
            node = node[key]
        node[place[-1]] = value

    return into


CASES = [(name, PLACES[n % len(PLACES)]) for n, name in enumerate(NAMES)]
CASES += [("open", place) for place in PLACES]


@pytest.mark.parametrize(("name", "place"), CASES)
def test_resuming_runs_nothing_that_a_note_names(
    command: Command, run: Path, tmp_path: Path, name: str, place: tuple[str, ...]
) -> None:
    change(run, put(place, payloads(tmp_path)[name]))
    before = {path: path.read_bytes() for path in run.rglob("*.ckpt")}
    done = command("train", "resume=true", "hydra.run.dir=run")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert "run/.hydra/run.json names " in line
    assert f"{place[0]}: _" in line
    assert "beside resume=true" in line
    assert not (tmp_path / "canary").exists()
    assert {path: path.read_bytes() for path in run.rglob("*.ckpt")} == before


@pytest.mark.parametrize(
    ("place", "value", "part"),
    [
        (("method", "name"), "${oc.env:HOME}", "no configuration"),
        (("output_dir",), "${oc.env:HOME}", "no configuration"),
        (("model", "hidden"), [[[]]] * 3, ""),
        (("trainer",), 5, "damaged (trainer)"),
        (("optimizer",), [1], "damaged (optimizer)"),
        (("seed",), {"x": 1}, "damaged (seed)"),
        (("method", "penalty"), {"_target_": "torch.optim.Adam"}, "names method: _target_"),
        (("model",), {"_target_": "lightning.Trainer"}, "names model: _target_"),
        (("logger", "csv", "save_dir"), "/tmp/elsewhere", "a logger (csv)"),
        (("logger", "csv", "name"), "../../x", "a logger (csv)"),
        (("trainer", "accelerator"), "quantum", "quantum"),
        (("optimizer", "lr"), "much", "optimizer.lr is much"),
    ],
)
def test_a_note_that_does_not_fit_is_one_line(
    command: Command, run: Path, place: tuple[str, ...], value: Any, part: str
) -> None:
    change(run, put(place, value))
    done = command("train", "resume=true", "hydra.run.dir=run")
    assert done.code == 1
    assert "Traceback" not in done.err
    assert part in done.errors[-1]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '{"config": 5}', '{"config": {}, "overrides": 3}', "[" * 100_000]
)
def test_a_note_that_is_none_is_one_line(command: Command, run: Path, text: str) -> None:
    (run / ".hydra/run.json").write_text(text)
    done = command("train", "resume=true", "hydra.run.dir=run")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert "run.json is damaged; type what the run was begun with" in line


def test_a_run_of_ones_own_goes_on_with_nothing_typed_and_logs_where_it_lies_now(
    command: Command, run: Path, begun: Path
) -> None:
    before = sorted(path for path in begun.rglob("*") if ".hydra" not in path.parts)
    done = command("train", "resume=true", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert f"going on after {FIRST}" in done.err
    assert (run / "csv/metrics.csv").exists()
    assert sorted(path for path in begun.rglob("*") if ".hydra" not in path.parts) == before
    # and once more, finished: nothing of the note is needed
    change(run, put(("model",), {"_target_": "os.system", "command": "touch canary"}))
    done = command("train", "resume=true", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert done.err.splitlines() == [f"lifelong: {run} holds a finished run; it is left as it is"]
    assert f"after {SECOND}" in done.out
    assert not (run.parent / "canary").exists()


def test_where_a_note_would_write_is_not_for_it_to_say(
    command: Command, run: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious.fit").write_text("of somebody else")
    for key, value in (
        ("stages", str(victim)),
        ("stages_limit", 0),
        ("data_dir", str(tmp_path / "made")),
        ("output_dir", str(tmp_path / "elsewhere")),
    ):
        change(run, put((key,), value))
    change(run, put(("logger",), {}))
    done = command("train", "resume=true", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert [path.name for path in victim.iterdir()] == ["precious.fit"]
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_with_names_of_its_own_goes_on_when_they_are_typed_again(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/model/mine.yaml").write_text(
        "_target_: my_network.make\nin_features: 784\nhidden: [8]\nnum_classes: 10\n"
    )
    (tmp_path / "my_network.py").write_text(
        "from lifelong.models import Perceptron\nclass make(Perceptron):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    small = [word for word in SMALL if not word.startswith("model")]
    words = [*small, "stages=off", "model=mine", "hydra.run.dir=run", "+optimizer.eps=1e-7"]
    assert command("train", "--config-dir", "own", *words).code == 0
    stop(tmp_path / "run")
    said = how_to_continue(str(tmp_path / "run"))
    assert said == (
        f"lifelong-train resume=true hydra.run.dir={tmp_path}/run --config-dir={tmp_path}/own"
    )
    refused = command("train", "resume=true", "hydra.run.dir=run")
    assert refused.code == 1
    assert "names model: _target_=my_network.make" in refused.errors[-1]
    assert "--config-dir" in refused.errors[-1]
    done = command("train", *said.split()[1:])
    assert done.code == 0, done.err
    assert f"going on after {FIRST}" in done.err
    # what was named by a word alone is to be typed, and is said
    words = [*small, "stages=off", "model._target_=my_network.make", "model.hidden=[8]"]
    assert command("train", *words, "hydra.run.dir=word").code == 0
    stop(tmp_path / "word")
    said = how_to_continue(str(tmp_path / "word"))
    assert "model._target_=my_network.make" in said
    assert command("train", "resume=true", "hydra.run.dir=word").code == 1
    done = command("train", *said.replace("'", "").split()[1:])
    assert done.code == 0, done.err
    assert f"going on after {FIRST}" in done.err
    sys.modules.pop("my_network", None)
