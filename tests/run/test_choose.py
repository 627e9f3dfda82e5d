"""λ chosen on validation images: the rule, the branching, no peeking, the same bits."""

import json
from pathlib import Path

import pytest
import torch

from lifelong.data import image_task as module
from lifelong.data.batches import TensorBatches

from .conftest import SMALL, Command
from .test_resume import difference, results

QUIET = (*SMALL, "max_epochs=4", "choice.low=10", "choice.high=1e5")
AUTO = (*QUIET, "method.ewc_lambda=auto")
LAST = "checkpoints/stage-1-digits_as_usps.ckpt"


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    "rule",
    [
        ["choice.rule=best_average"],
        pytest.param(["choice.rule=most_new", "choice.at_most_lost=4"], marks=pytest.mark.slow),
    ],
)
def test_the_choice_is_that_of_whole_runs_by_the_rule(
    command: Command, tmp_path: Path, shared: str, rule: list[str]
) -> None:
    done = command("train", *AUTO, *rule, "stages=st", "hydra.run.dir=run")
    assert done.code == 0, done.err
    found = summary(tmp_path / "run")
    choice = found["choice"]
    tried = [one["ewc_lambda"] for one in choice["candidates"]]
    assert set(tried) > {10.0, 100.0, 1e3, 1e4, 1e5}
    assert 6 <= len(tried) <= 7
    assert choice["seconds"] > 0
    assert found["ewc_lambda"] == choice["chosen"]
    assert choice == json.loads((tmp_path / "run/choice.json").read_text())
    assert not (tmp_path / "run/.choice").exists()
    assert done.out.count("← best") == 1
    # by hand, from runs with each λ that share nothing with those of the choice
    judged = {}
    for one in choice["candidates"]:
        words = [f"method.ewc_lambda={one['ewc_lambda']}", "logger=none", shared]
        name = f"hydra.run.dir={one['ewc_lambda']}"
        assert command("train", *QUIET, *words, name).code == 0
        whole = summary(tmp_path / str(one["ewc_lambda"]))
        first, last = whole["curves"]
        assert one["before"] == first["val/digits_as_mnist/accuracy"][-1]
        assert one["old"] == last["retained/digits_as_mnist"][-1]
        assert one["new"] == last["val/digits_as_usps/accuracy"][-1]
        judged[one["ewc_lambda"]] = one
    if "most_new" in rule[0]:
        within = [o for o in judged.values() if 100 * (o["before"] - o["old"]) <= 4 + 1e-9]
        assert 0 < len(within) < len(judged)
        assert judged[choice["chosen"]]["new"] == max(o["new"] for o in within)
    else:
        best = max(o["old"] + o["new"] for o in judged.values())
        chosen = judged[choice["chosen"]]
        assert chosen["old"] + chosen["new"] == best
    assert whole["choice"] is None


@pytest.mark.slow
def test_the_run_ends_with_the_bits_of_one_with_that_lambda(
    command: Command, tmp_path: Path
) -> None:
    sampled = "method.labels=sampled"
    done = command("train", *AUTO, sampled, "stages=off", "hydra.run.dir=auto")
    assert done.code == 0, done.err
    chosen = summary(tmp_path / "auto")["ewc_lambda"]
    words = [f"method.ewc_lambda={chosen}", sampled, "stages=off", "hydra.run.dir=typed"]
    assert command("train", *QUIET, *words).code == 0
    assert difference(results(tmp_path / "auto"), results(tmp_path / "typed")) is None


def test_the_test_sets_are_not_read_before_lambda_is_chosen(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen_before: list[bool] = []
    honest = module.ImageTask.test_dataloader

    def noted(self: module.ImageTask) -> TensorBatches:
        chosen_before.append((tmp_path / "run/choice.json").exists())
        return honest(self)

    monkeypatch.setattr(module.ImageTask, "test_dataloader", noted)
    words = ("stages=off", "choice.refine=0", "logger=none", "hydra.run.dir=run")
    done = command("train", *AUTO, *words)
    assert done.code == 0, done.err
    # before the first task, and after each of the two, on two test sets; at the end the forgotten
    assert chosen_before == [True] * 7
    # the checkpoint is that of any run with the λ that was chosen
    kept = torch.load(tmp_path / "run" / LAST, weights_only=True)
    found = kept["about"]["config"]["method"]["ewc_lambda"]
    assert found == summary(tmp_path / "run")["ewc_lambda"]


@pytest.mark.slow
def test_spoilt_test_sets_change_no_choice(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*AUTO, "stages=off", "logger=none")
    assert command("train", *words, "hydra.run.dir=honest").code == 0
    honest = module.ImageTask.test_dataloader

    def spoilt(self: module.ImageTask) -> TensorBatches:
        batches = honest(self)
        batches.labels = (batches.labels + 1) % 10
        return batches

    monkeypatch.setattr(module.ImageTask, "test_dataloader", spoilt)
    assert command("train", *words, "hydra.run.dir=spoilt").code == 0
    one, other = summary(tmp_path / "honest"), summary(tmp_path / "spoilt")
    assert one["choice"]["candidates"] == other["choice"]["candidates"]
    assert one["choice"]["chosen"] == other["choice"]["chosen"]
    assert one["accuracy"][1][0] > other["accuracy"][1][0] + 0.3


@pytest.mark.slow
def test_an_interrupted_choice_goes_on_where_it_was(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lifelong.search import decades as choose

    four = ("choice.high=1e4", "choice.refine=0")
    words = (*AUTO, *four, "stages=off", "logger=none", "hydra.run.dir=run")
    tried: list[float] = []
    honest = choose._try

    def interrupted(config, ewc_lambda):
        if len(tried) == 3:
            raise KeyboardInterrupt
        tried.append(ewc_lambda)
        return honest(config, ewc_lambda)

    monkeypatch.setattr(choose, "_try", interrupted)
    done = command("train", *words)
    assert done.code == 130
    assert "to go on type: lifelong-train resume=true" in done.err
    monkeypatch.setattr(choose, "_try", honest)
    done = command("train", "resume=true", "hydra.run.dir=run")
    assert done.code == 0, done.err
    # the first task was in the candidates' own store: it was not learnt again
    assert "digits_as_mnist: taken from the stage store" in done.err
    first = summary(tmp_path / "run")["choice"]
    alone = command("train", *words[:-1], "hydra.run.dir=whole")
    assert alone.code == 0
    whole = summary(tmp_path / "whole")["choice"]
    assert {**first, "seconds": 0} == {**whole, "seconds": 0}
    again = command("train", "resume=true", "hydra.run.dir=run")
    assert again.code == 0
    assert "holds a finished run" in again.err
    assert "λ = 10:" not in again.err


@pytest.mark.slow
def test_a_sweep_chooses_for_each_seed(command: Command, tmp_path: Path) -> None:
    small = ("choice.low=100", "choice.high=1e4", "choice.refine=0", "logger=none")
    done = command("train", "-m", *AUTO, *small, "seed=0,1", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    for seed in (0, 1):
        found = summary(tmp_path / f"sweep/seed={seed}")
        assert len(found["choice"]["candidates"]) == 3
        assert found["seed"] == seed


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (
            ["method=finetune", "method.ewc_lambda=auto"],
            "this method has no penalty, so no method.ewc_lambda",
        ),
        (["method.ewc_lambda=auto", "trainer=ddp"], "several processes"),
        (["method.ewc_lambda=auto", "method.at_most=0.02"], "method.at_most, which moves λ"),
        (["method.ewc_lambda=auto", "trainer.max_time=00:00:01:00"], "trainer.max_time"),
        (["method.ewc_lambda=auto", "~benchmark.tasks.digits_as_usps"], "a single task"),
        (["method.ewc_lambda=best"], "method.ewc_lambda is best; it must be a finite number"),
        (["method.ewc_lambda=auto", "choice.low=0"], "choice.low is 0"),
        (["method.ewc_lambda=auto", "choice.high=0.1"], "a number of at least 1.0"),
    ],
)
def test_where_there_is_nothing_to_choose_it_says_so(
    command: Command, words: list[str], part: str
) -> None:
    done = command("train", *SMALL, *words, "hydra.run.dir=run")
    assert done.code == 1
    (line,) = done.errors
    assert part in line
