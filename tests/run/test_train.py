"""The command line from end to end on the embedded digits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from .conftest import SMALL, Command

TASKS = ["digits_as_mnist", "digits_as_usps"]
FIELDS = {
    *("benchmark", "method", "ewc_lambda", "seed", "tasks", "data_source", "accuracy"),
    *("average_accuracy", "backward_transfer", "forward_transfer", "forgetting", "retained"),
    *("seconds", "parameters", "versions"),
}


def only(tmp_path: Path, pattern: str) -> Path:
    (found,) = tmp_path.glob(pattern)
    return found


def test_a_run_leaves_what_the_readme_promises(command: Command, tmp_path: Path) -> None:
    done = command("train", *SMALL, "method.ewc_lambda=100", "hydra.run.dir=run")
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert set(summary) >= FIELDS
    assert summary["tasks"] == TASKS
    assert summary["ewc_lambda"] == 100.0
    assert summary["parameters"] == 784 * 32 + 32 + 32 * 10 + 10
    assert all("embedded digits" in source for source in summary["data_source"].values())
    (a, b), (c, d) = summary["accuracy"]
    assert a > 0.6
    assert d > 0.6
    assert summary["average_accuracy"] == pytest.approx((c + d) / 2, abs=1e-9)
    assert summary["backward_transfer"] == pytest.approx(c - a, abs=1e-9)
    assert summary["forward_transfer"] == pytest.approx(b - summary["untrained_accuracy"][1])
    assert summary["retained"] == {TASKS[0]: c, TASKS[1]: d}
    assert set(summary["seconds"][TASKS[0]]) == {"fit", "consolidate", "test"}
    assert summary["seconds"][TASKS[0]]["consolidate"] > 0
    assert "NOT the MNIST and USPS archives" in done.out
    assert f"{100 * c:.2f}" in done.out
    assert (tmp_path / "run/.hydra/config.yaml").is_file()

    checkpoint = torch.load(tmp_path / "run/checkpoints/stage-0-digits_as_mnist.ckpt")
    importance = checkpoint["method"]["penalty"]["importance.layers.0.weight"]
    assert importance.shape == (32, 784)
    assert importance.sum() > 0

    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    wanted = {"train/task_loss", "train/penalty", "train/penalty_weighted", "fisher/trace"}
    wanted |= {f"{kind}/{task}/accuracy" for kind in ("val", "test") for task in TASKS}
    assert wanted | {f"retained/{TASKS[0]}"} <= tags
    retained = [event.value for event in events.Scalars(f"retained/{TASKS[0]}")]
    curves = summary["curves"]
    start = curves[0][f"val/{TASKS[0]}/accuracy"][-1]
    assert retained == pytest.approx([start, *curves[1][f"retained/{TASKS[0]}"]], abs=1e-6)
    steps = [event.step for event in events.Scalars("train/task_loss")]
    assert steps == sorted(set(steps))
    omegas = {event.step: event.value for event in events.Scalars("train/penalty")}
    weighted = {event.step: event.value for event in events.Scalars("train/penalty_weighted")}
    assert weighted == pytest.approx({step: 100 * omega for step, omega in omegas.items()})
    assert max(omegas.values()) > 0
    assert [e.value for e in events.Scalars("average_accuracy")] == pytest.approx(
        [summary["average_accuracy"]]
    )


@pytest.mark.slow
def test_lambda_zero_is_fine_tuning_bit_for_bit(command: Command, tmp_path: Path) -> None:
    for name, words in {
        "zero": ["method=ewc", "method.ewc_lambda=0"],
        "finetune": ["method=finetune"],
        "held": ["method=ewc", "method.ewc_lambda=1e4"],
    }.items():
        assert command("train", *SMALL, *words, "stages=off", f"hydra.run.dir={name}").code == 0
    states = {
        name: torch.load(tmp_path / name / "checkpoints/stage-1-digits_as_usps.ckpt")["network"]
        for name in ("zero", "finetune", "held")
    }
    network = list(states["finetune"])
    assert len(network) == 4
    for name in network:
        assert torch.equal(states["zero"][name], states["finetune"][name])
        assert not torch.equal(states["held"][name], states["finetune"][name])


@pytest.mark.parametrize(
    "words",
    [
        ["method=ewc", "method.step=proximal", "method.ewc_lambda=1e12"],
        pytest.param(["method=kronecker_ewc"], marks=pytest.mark.slow),
        pytest.param(["method=online_ewc", "method.damping=0.1"], marks=pytest.mark.slow),
        pytest.param(
            ["method=ewc", "method.step=proximal", "optimizer=sgd", "scheduler=constant"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda words: " ".join(words),
)
def test_every_method_holds_more_than_fine_tuning(
    command: Command, tmp_path: Path, words: list[str]
) -> None:
    common = ["logger=none", "max_epochs=6", *(w for w in words if not w.startswith("method"))]
    for name, own in {"held": words, "free": ["method=finetune"]}.items():
        done = command("train", *SMALL, *common, *own, f"hydra.run.dir={name}")
        assert done.code == 0, done.err
    kept, lost = (
        json.loads((tmp_path / name / "summary.json").read_text())["accuracy"]
        for name in ("held", "free")
    )
    assert kept[0] == lost[0]
    assert kept[1][0] > lost[1][0] + 0.02


def test_a_sweep_runs_every_lambda_in_a_folder_named_after_it(
    command: Command, tmp_path: Path
) -> None:
    done = command(
        "train", "-m", *SMALL, "method.ewc_lambda=0,1e2", "logger=none", "hydra.sweep.dir=sweep"
    )
    assert done.code == 0, done.err
    found = {
        json.loads(path.read_text())["ewc_lambda"]: path.parent.name
        for path in tmp_path.glob("sweep/*/summary.json")
    }
    assert set(found) == {0.0, 100.0}
    assert all(
        f"method.ewc_lambda={1e2 if lam else 0:g}" in name.replace("1e2", "100")
        for lam, name in found.items()
    )


def test_the_quickstart_falls_back_and_says_so_everywhere(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lifelong.data.files import download

    monkeypatch.setattr(download, "_answers", lambda addresses: False)
    done = command("quickstart", *SMALL[1:])
    assert done.code == 0, done.err
    assert "falling back to the embedded digits" in done.err
    assert "NOT the MNIST and USPS archives" in done.out
    for row in (f"after {TASKS[0]} ", f"after {TASKS[1]} (EWC", f"after {TASKS[1]} (fine-tuning)"):
        assert row in done.out
    summaries = {
        path.parent.name: json.loads(path.read_text())
        for path in tmp_path.glob("outputs/quickstart/*/*/summary.json")
    }
    assert set(summaries) == {"ewc", "finetune"}
    assert summaries["ewc"]["accuracy"][0] == summaries["finetune"]["accuracy"][0]
    assert "embedded digits" in summaries["ewc"]["data_source"][TASKS[0]]
    picture = only(tmp_path, "outputs/quickstart/*/retained.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"{TASKS[0]}: taken from the stage store" in done.err


def test_help_and_errors_do_not_wait_for_torch(tmp_path: Path) -> None:
    for word, code in (("--help", 0), ("method.ewc_lambda=-1", 1), ("method=nothing", 1)):
        script = (
            "import sys\n"
            f"sys.argv = ['lifelong-train', {word!r}]\n"
            "from lifelong.cli.train import main\n"
            "try:\n    main()\nexcept SystemExit as e:\n    code = e.code or 0\n"
            "else:\n    code = 0\n"
            "print('heavy:', {'torch', 'lightning', 'torchvision'} & set(sys.modules), code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"heavy: set() {code}", done.stdout


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["method.ewc_lambda=-1"], ["method.ewc_lambda is -1", "at least 0"]),
        (["method.ewc_lambda=nan"], ["method.ewc_lambda is nan", "finite"]),
        (["method.ewc_lambda=inf"], ["method.ewc_lambda is inf", "finite"]),
        (["method.ewc_lambda=much"], ["method.ewc_lambda is much", "number"]),
        (["method=none"], ["method=none is not known", "ewc, finetune, joint, kronecker_ewc"]),
        (["benchmark=cifar"], ["benchmark=cifar is not known", "mnist_usps"]),
        (["method.lambda=1"], ["method.lambda is no key", "--cfg job"]),
        (["max_epochs=0"], ["max_epochs is 0", "at least 1"]),
        (["batch_size=2.5"], ["batch_size is 2.5", "whole number"]),
        (["val_fraction=1"], ["val_fraction is 1", "between 0 and 1"]),
        (["trainer=gpu"], ["no GPU", "trainer=cpu"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_bad_input_gets_one_line_with_the_cure_and_leaves_nothing(
    command: Command, tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    if "trainer=gpu" in words and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = command("train", *SMALL, *words, "hydra.run.dir=run")
    assert done.code == 1
    assert len(done.errors) == 1, done.err
    for part in parts:
        assert part in done.errors[0]
    assert not (tmp_path / "run").exists()


def test_missing_archives_without_a_network_are_an_error_that_names_the_way_out(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lifelong.data.files import download

    monkeypatch.setattr(download, "_answers", lambda addresses: False)
    done = command("train", "benchmark=mnist_usps", "data_dir=nowhere", "hydra.run.dir=run")
    assert done.code == 1
    last = done.err.splitlines()[-1]
    for part in ("nowhere", "train-images-idx3-ubyte", "benchmark=embedded_digits"):
        assert part in last
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_cannot_be_written_is_an_error_that_names_it(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = command("train", *SMALL, "hydra.run.dir=file/run")
    assert done.code == 1
    assert len(done.errors) == 1, done.err
    assert "hydra.run.dir=DIR" in done.errors[0]


def test_a_diverging_run_stops_names_the_stage_and_leaves_no_summary(
    command: Command, tmp_path: Path
) -> None:
    done = command("train", *SMALL, "optimizer.lr=1e30", "logger=none", "hydra.run.dir=run")
    assert done.code == 1
    assert "while learning digits_as_mnist" in done.errors[-1]
    assert "optimizer.lr" in done.errors[-1]
    assert not (tmp_path / "run/summary.json").exists()


@pytest.mark.data
def test_the_main_job_on_real_images_keeps_mnist(
    command: Command, tmp_path: Path, real_data: Path
) -> None:
    done = command("quickstart", f"data_dir={real_data}", "max_epochs=1")
    assert done.code == 0, done.err
    summaries = {
        path.parent.name: json.loads(path.read_text())
        for path in tmp_path.glob("outputs/quickstart/*/*/summary.json")
    }
    assert all("archives in" in source for source in summaries["ewc"]["data_source"].values())
    (first, unseen), (kept, new) = summaries["ewc"]["accuracy"]
    assert first > 0.94
    assert 0.3 < unseen < 0.7
    assert new > 0.85
    assert kept - summaries["finetune"]["accuracy"][1][0] > 0.05
