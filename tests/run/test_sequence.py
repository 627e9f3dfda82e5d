"""What the stages of a sequence pass on to each other and to the store, on runs of a second."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from lifelong.methods import EWC
from lifelong.run import Job, StageStore, learn_sequence, sequence
from lifelong.run.resume.journal import Journal
from lifelong.run.sequence import learn_trial, stage_seed
from tests.methods.jobs import TASKS, InterruptAt, job, left


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path / "store", 1e9, print)


def told(made: Job) -> tuple[Job, list[str], Journal]:
    """The job with all that it says, and all that its loggers are told."""
    lines: list[str] = []
    journal = Journal()
    return replace(made, tell=lines.append, make_loggers=lambda: [journal]), lines, journal


def test_each_stage_has_a_seed_of_its_own(monkeypatch: Any, tmp_path: Path) -> None:
    assert [stage_seed(0, index) for index in (-1, 0, 1, 2)] == [0, 1, 2, 3]
    assert [stage_seed(seed, 1) for seed in (0, 1, 2)] == [2, 1011, 2020]
    assert stage_seed(2**32 - 1, 0) == 2**32 - 1_008
    seeds: list[int] = []
    honest = sequence.seed_everything
    monkeypatch.setattr(
        sequence, "seed_everything", lambda seed, **also: seeds.append(seed) or honest(seed, **also)
    )
    learn_sequence(replace(job("Finetune", tmp_path), seed=4))
    assert seeds == [4036, 4037, 4038, 4039]


def test_a_recalled_run_tells_and_logs_what_the_learnt_one_did(
    store: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"ewc_lambda": 1e-9, "threshold": 0.0}
    first, said, logged = told(job("EWC", tmp_path / "first", settings, store=store))
    learnt = learn_sequence(first)
    again, said_again, logged_again = told(job("EWC", tmp_path / "again", settings, store=store))
    # all accuracies are known: nothing is tested once more
    monkeypatch.setattr(sequence, "test_accuracies", None)
    recalled = learn_sequence(again)
    assert set(recalled.reused) == set(TASKS)
    assert logged_again.entries == logged.entries
    steps = [step for step, row in logged.entries if "fisher/trace" in row]
    assert steps == [8, 16, 24]
    warnings = [f"warning: {line}" for line in learnt.warnings]
    assert len(warnings) == 2
    assert all(line.startswith("warning: λ is inert while ") for line in warnings)
    assert [line for line in said if line.startswith("warning")] == warnings
    assert [line for line in said_again if line.startswith("warning")] == warnings
    assert recalled.warnings == learnt.warnings
    assert recalled.untrained_accuracy == learnt.untrained_accuracy
    assert recalled.accuracy == learnt.accuracy


def test_a_plain_first_stage_is_shared_by_methods_and_no_later_one(
    store: StageStore, tmp_path: Path
) -> None:
    settings = {"ewc_lambda": 50.0, "threshold": 0.0}
    runs = {
        "Finetune": {},
        "EWC": settings,
        "KroneckerEWC": settings,
        "EWC again": settings | {"ewc_lambda": 7.0},
    }
    reused = {}
    for name, own in runs.items():
        made = job(name.split()[0], tmp_path / name, own, store=store)
        found = learn_sequence(made).reused
        reused[name] = {task: set(parts) for task, parts in found.items()}
    # What EWC keeps of a task is not what the factors are; λ has no part in it.
    assert reused == {
        "Finetune": {},
        "EWC": {"a": {"fit"}},
        "KroneckerEWC": {"a": {"fit"}},
        "EWC again": {"a": {"fit", "consolidate"}},
    }


def test_a_trial_consolidates_every_task_but_the_last_and_tests_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds: list[str] = []
    honest = EWC.fold

    def noted(self: EWC, *words: Any) -> None:
        folds.append("fold")
        honest(self, *words)

    monkeypatch.setattr(EWC, "fold", noted)
    stages = learn_trial(job("EWC", tmp_path / "trial"))
    assert len(folds) == 2
    assert [stage.accuracy for stage in stages] == [[], [], []]
    assert not list(tmp_path.glob("trial/checkpoints/*"))
    summary = learn_sequence(job("EWC", tmp_path / "run"))
    assert len(folds) == 2 + 3
    assert [stage.curves for stage in stages] == summary.curves


def test_joint_training_sees_the_data_of_all_tasks_so_far(tmp_path: Path) -> None:
    # 48 points a task in batches of 12, two epochs
    learn_sequence(job("Joint", tmp_path / "joint"))
    assert [stage["steps"] for stage in left(tmp_path / "joint")["stages"]] == [8, 16, 24]
    learn_sequence(job("Finetune", tmp_path / "alone"))
    assert [stage["steps"] for stage in left(tmp_path / "alone")["stages"]] == [8, 8, 8]


def test_a_stage_that_is_done_leaves_no_middle_of_it(tmp_path: Path) -> None:
    class Never(InterruptAt):
        seen = 0

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            self.seen += (tmp_path / "checkpoints/progress.ckpt").is_file()

    never = Never("none", 0)
    learn_sequence(job("Finetune", tmp_path, interrupt=never))
    assert never.seen > 3
    found = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert found == {f"stage-{index}-{task}.ckpt" for index, task in enumerate(TASKS)}
