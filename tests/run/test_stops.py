"""What ends a task early, and what a whole run does with precision and accumulation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import SMALL, Command

TASKS = ["digits_as_mnist", "digits_as_usps"]


def summary(command: Command, *words: str) -> dict[str, Any]:
    done = command("train", *SMALL, "logger=none", *words, "hydra.run.dir=run")
    assert done.code == 0, done.err
    return json.loads(Path("run/summary.json").read_text())


def epochs(found: dict[str, Any]) -> list[int]:
    pairs = zip(found["curves"], TASKS, strict=True)
    return [len(curves[f"val/{task}/accuracy"]) for curves, task in pairs]


def test_early_stopping_begins_afresh_with_each_task(command: Command, tmp_path: Path) -> None:
    # no epoch is better by 1 than the first, so that patience ends each task after 1 + 2 epochs
    words = ["callbacks=early_stopping", "callbacks.early_stopping.min_delta=1", "max_epochs=50"]
    found = summary(command, *words, "callbacks.early_stopping.patience=2")
    assert epochs(found) == [3, 3]
    assert len(found["curves"][1][f"retained/{TASKS[0]}"]) == 3
    state = torch.load("run/checkpoints/stage-1-digits_as_usps.ckpt")["method"]["penalty"]
    assert state["importance.layers.0.weight"].sum() > 0


def test_early_stopping_watches_the_task_that_is_learnt(command: Command, tmp_path: Path) -> None:
    words = ["callbacks=early_stopping", "callbacks.early_stopping.patience=2"]
    found = summary(command, *words, "max_epochs=200", "scheduler=constant", "method=finetune")
    for curves, task, count in zip(found["curves"], TASKS, epochs(found), strict=True):
        accuracy = curves[f"val/{task}/accuracy"]
        assert count < 200
        best = accuracy.index(max(accuracy))
        # the first of the best, and two that were no better
        assert count == best + 3


@pytest.mark.slow
def test_a_task_ends_when_its_time_is_over(command: Command, tmp_path: Path) -> None:
    found = summary(command, "trainer.max_time=00:00:00:01", "max_epochs=1000000")
    for task in TASKS:
        # not the first task alone, and with its consolidation and its tests after it
        assert 1.0 <= found["seconds"][task]["fit"] < 10.0
        assert found["seconds"][task]["consolidate"] > 0
    assert all(count > 1 for count in epochs(found))
    state = torch.load("run/checkpoints/stage-1-digits_as_usps.ckpt")["method"]["penalty"]
    assert state["importance.layers.0.weight"].sum() > 0


def test_accumulated_halves_learn_what_whole_batches_learn(
    command: Command, tmp_path: Path
) -> None:
    # 604 images: the last 28 make one batch of 32 only, which Lightning weighs as half a step
    words = ["method.ewc_lambda=100", "+trainer.limit_train_batches"]
    whole = summary(command, words[0], f"{words[1]}=8", "batch_size=64")
    halves = summary(
        command, words[0], f"{words[1]}=16", "batch_size=32", "trainer.accumulate_grad_batches=2"
    )
    for one, other in zip(whole["accuracy"], halves["accuracy"], strict=True):
        # in float32: an image on the border may fall to the other side, 1 of 199
        assert other == pytest.approx(one, abs=1 / 198 + 1e-6)


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.precision=bf16-mixed"],
        ["trainer.gradient_clip_val=0.5", "trainer.accumulate_grad_batches=2"],
        ["trainer.precision=bf16-mixed", "method=kronecker_ewc"],
    ],
    ids=lambda words: " ".join(words),
)
def test_each_keeps_more_than_fine_tuning(
    command: Command, tmp_path: Path, words: list[str]
) -> None:
    method = [w for w in words if w.startswith("method")] or ["method.ewc_lambda=1e3"]
    others = [*(w for w in words if not w.startswith("method")), "max_epochs=6"]
    held = summary(command, *method, *others)["accuracy"]
    free = summary(command, "method=finetune", *others)["accuracy"]
    assert held[0] == free[0]
    assert held[1][0] > free[1][0] + 0.02


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["trainer.precision=half"], ["trainer.precision is half", "bf16-mixed"]),
        (["trainer.max_time=10"], ["trainer.max_time is 10", "00:00:10:00"]),
        (["trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val is -1", "above 0"]),
        (["trainer.accumulate_grad_batches=0"], ["accumulate_grad_batches is 0", "at least 1"]),
        (
            ["trainer=gpu", "trainer.precision=16-mixed", "trainer.gradient_clip_val=1"],
            ["unscales", "optimizer.fused=false"],
        ),
    ],
    ids=lambda value: value[-1] if "=" in value[0] else "",
)
def test_what_the_trainer_cannot_do_is_one_line_with_the_cure(
    command: Command, tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    done = command("train", *SMALL, *words, "hydra.run.dir=run")
    assert done.code == 1
    assert len(done.errors) == 1, done.err
    assert all(part in done.errors[0] for part in parts), done.err
    assert not (tmp_path / "run").exists()
