"""The search for λ: on validation images alone, the same again, what stays behind given up."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from lifelong.data import image_task as module
from lifelong.data.sets.images import LabelledImages

from .conftest import SMALL, Command

SEARCH = (*SMALL, "max_epochs=3", "logger=none", "experiment=lambda_search", "search.trials=6")


def found(folder: Path) -> dict:
    return json.loads((folder / "search.json").read_text())


def without_paths(content: dict) -> dict:
    trials = [{k: v for k, v in trial.items() if k != "directory"} for trial in content["trials"]]
    return content | {"trials": trials}


def test_a_search_finds_prunes_and_writes_down(command: Command, tmp_path: Path) -> None:
    done = command("train", *SEARCH, "hydra.run.dir=one")
    assert done.code == 0, done.err
    content = found(tmp_path / "one")
    trials = content["trials"]
    assert [trial["number"] for trial in trials] == list(range(6))
    for trial in trials:
        ewc_lambda, judged = trial["ewc_lambda"], trial["found"]
        assert 1.0 <= ewc_lambda <= 1e6
        folder = Path(trial["directory"])
        assert folder.parent == tmp_path / "one"
        assert folder.name.endswith(f",trial={trial['number']}")
        assert judged["ewc_lambda"] == ewc_lambda
        if trial["state"] == "finished":
            summary = json.loads((folder / "summary.json").read_text())
            assert summary["ewc_lambda"] == ewc_lambda
            first, last = summary["curves"]
            old, new = "digits_as_mnist", "digits_as_usps"
            assert judged["before"] == first[f"val/{old}/accuracy"][-1]
            assert judged["old"] == last[f"retained/{old}"][-1]
            assert judged["new"] == last[f"val/{new}/accuracy"][-1]
            assert trial["score"] == pytest.approx((judged["old"] + judged["new"]) / 2)
            assert trial["epochs"] == 3
        else:
            assert trial["state"] == "given up"
            assert trial["score"] is None
            assert 1 <= trial["epochs"] <= 3
            assert not (folder / "summary.json").exists()
    assert {trial["state"] for trial in trials} == {"finished", "given up"}
    scores = {t["ewc_lambda"]: t["score"] for t in trials if t["score"] is not None}
    assert content["best"]["score"] == max(scores.values())
    assert scores[content["best"]["ewc_lambda"]] == content["best"]["score"]
    assert done.out.count("← best") == 1
    assert "given up" in done.out
    assert "best λ = " in done.out
    assert "test images  digits_as_mnist" in done.out

    # The sampler's seed is fixed: the same values, and the same end.
    again = command("train", *SEARCH, "hydra.run.dir=two")
    assert again.code == 0, again.err
    assert without_paths(found(tmp_path / "two")) == without_paths(content)


@pytest.mark.slow
def test_the_test_sets_play_no_part(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("train", *SEARCH, "stages=off", "hydra.run.dir=honest").code == 0
    honest = module.ImageTask.test_images.fget
    assert honest is not None

    def spoilt(self: module.ImageTask) -> LabelledImages:
        images = honest(self)
        return LabelledImages(torch.zeros_like(images.images), (images.labels + 1) % 10)

    monkeypatch.setattr(module.ImageTask, "test_images", property(spoilt))
    assert command("train", *SEARCH, "stages=off", "hydra.run.dir=spoilt").code == 0
    with_test, without = found(tmp_path / "honest"), found(tmp_path / "spoilt")
    assert without_paths(with_test) == without_paths(without)
    finished = [t for t in without["trials"] if t["state"] == "finished"]
    figures = [
        [json.loads((Path(t["directory"]) / "summary.json").read_text())["average_accuracy"]]
        for content in (with_test, without)
        for t in content["trials"]
        if t["state"] == "finished"
    ]
    # …although the test figures did change.
    assert figures[: len(finished)] != figures[len(finished) :]


@pytest.mark.slow
def test_most_new_finds_a_lambda_that_keeps_its_bound(command: Command, tmp_path: Path) -> None:
    words = ("choice.rule=most_new", "choice.at_most_lost=5", "hydra.run.dir=run")
    done = command("train", *SEARCH, *words, "search.pruner._target_=optuna.pruners.NopPruner",
                   "~search.pruner.n_startup_trials", "~search.pruner.n_warmup_steps")  # fmt: skip
    assert done.code == 0, done.err
    content = found(tmp_path / "run")
    assert content["rule"] == {"name": "most_new", "at_most_lost": 5}
    assert all(trial["state"] == "finished" for trial in content["trials"])
    judged = [trial["found"] for trial in content["trials"]]
    within = [c for c in judged if 100 * (c["before"] - c["old"]) <= 5 + 1e-9]
    assert 0 < len(within) < len(judged)
    assert content["best"]["new"] == max(c["new"] for c in within)
    for trial in content["trials"]:
        lost = 100 * (trial["found"]["before"] - trial["found"]["old"])
        assert trial["score"] == pytest.approx(trial["found"]["new"] if lost <= 5 else 5 - lost)


@pytest.mark.slow
def test_a_trial_that_diverges_is_noted_and_the_search_goes_on(
    command: Command, tmp_path: Path
) -> None:
    # An explicit step with lr·λ·F_max beyond 2 leaves the numbers.
    words = ("optimizer=sgd", "optimizer.lr=0.1", "search.low=1e-6", "search.high=1e8")
    done = command("train", *SEARCH, *words, "optimizer.momentum=0", "hydra.run.dir=run")
    assert done.code == 0, done.err
    trials = found(tmp_path / "run")["trials"]
    failed = [trial for trial in trials if trial["state"] == "failed"]
    assert failed
    assert len(failed) < len(trials)
    for trial in failed:
        assert "method.step=proximal" in trial["message"]
        assert f"trial={trial['number']} failed: the loss became NaN" in done.err


def test_a_search_without_a_finished_trial_says_so(command: Command, tmp_path: Path) -> None:
    words = ("optimizer=sgd", "optimizer.lr=0.1", "search.low=1e20", "search.high=1e30")
    done = command("train", *SEARCH, *words, "search.trials=2", "hydra.run.dir=run")
    assert done.code == 1
    assert "no run was finished" in done.errors[-1]
    assert found(tmp_path / "run")["best"] is None


def test_a_search_that_cannot_begin_ends_at_once(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lifelong.data.files import download

    monkeypatch.setattr(download, "_answers", lambda addresses: False)
    done = command(
        *("train", "benchmark=mnist_usps", "experiment=lambda_search"),
        *("data_dir=nowhere", "hydra.run.dir=run"),
    )
    assert done.code == 1
    assert "benchmark=embedded_digits" in done.err.splitlines()[-1]
    assert not (tmp_path / "run/search.json").exists()


@pytest.mark.slow
def test_with_m_there_is_a_search_for_each_value(command: Command, tmp_path: Path) -> None:
    words = ("search.trials=2", "method=ewc,online_ewc", "hydra.sweep.dir=sweep")
    done = command("train", "-m", *SEARCH[:-1], *words)
    assert done.code == 0, done.err
    assert {path.parent.name for path in tmp_path.glob("sweep/*/search.json")} == {
        *("method=ewc", "method=online_ewc")
    }
    assert done.out.count("best λ = ") == 2


def test_a_method_without_lambda_has_nothing_to_search(command: Command) -> None:
    done = command("train", *SEARCH, "method=finetune")
    assert done.code == 1
    assert "method=finetune has no λ to search; type method=ewc" in done.errors[-1]


def test_without_optuna_the_error_says_what_to_install(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = command("train", *SEARCH, "hydra.run.dir=run")
    assert done.code == 1
    (error,) = done.errors
    assert "pip install 'lifelong-lightning[search]'" in error


def test_lambda_is_drawn_on_a_logarithmic_scale(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    from lifelong.config.compose import CONF
    from lifelong.search.optuna import _study

    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["experiment=lambda_search"])
    search = config.search
    study = _study(search)
    drawn = []
    for _ in range(search.sampler.n_startup_trials * 40):
        trial = study.ask()
        drawn.append(math.log10(trial.suggest_float("x", search.low, search.high, log=True)))
    assert min(drawn) >= 0.0
    assert max(drawn) <= 6.0
    # of 200 uniform draws from 0 to 6 the mean is 3 ± 6/√12/√200 = 3 ± 0.12
    assert abs(sum(drawn) / len(drawn) - 3) < 4 * 0.12
