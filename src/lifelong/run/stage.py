"""One stage: learning, consolidating and testing one task, and the checkpoint that keeps it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only

from lifelong.data.benchmark import StageData
from lifelong.errors import LifelongError
from lifelong.learning import ContinualLearner, StopOnNonFiniteLoss
from lifelong.learning.curves import RecordCurves, as_fraction
from lifelong.run.files import whole_file
from lifelong.run.summary import StageResult

MakeTrainer = Callable[..., Trainer]


def test_accuracies(trainer: Trainer, learner: ContinualLearner, data: StageData) -> list[float]:
    """The fractions right on the official test set of every task.

    Args:
        trainer: runs the test loop.
        learner: the network to test.
        data: holds the test sets.

    Returns:
        One fraction per task, in order.
    """
    trainer.test(learner, datamodule=data, verbose=False)
    figures = trainer.callback_metrics
    return [as_fraction(figures[f"test/{task}/accuracy"]) for task in learner.tasks]


def learn_stage(
    make_trainer: MakeTrainer,
    learner: ContinualLearner,
    data: StageData,
    consolidation: Callback | None,
) -> StageResult:
    """Learn one task, consolidate it, test on all.

    Args:
        make_trainer: a Trainer for these ``callbacks``.
        learner: as the stage before left it.
        data: the loaders of this stage.
        consolidation: what updates the penalty as training ends, or nothing.

    Returns:
        The stage's result.
    """
    name = data.current.name
    learner.current_task = name
    record = RecordCurves()
    timer = _Timer()
    callbacks: list[Callback] = [StopOnNonFiniteLoss(name, learner.ewc_lambda), record, timer]
    # The second timer reads the clock on the other side of the consolidation.
    end = _Timer()
    callbacks += [consolidation] if consolidation is not None else []
    trainer = make_trainer(callbacks=[*callbacks, end])
    begin = time.perf_counter()
    trainer.fit(learner, datamodule=data)
    steps = int(trainer.global_step)
    tested = time.perf_counter()
    accuracy = test_accuracies(trainer, learner, data)
    learner.steps_before += steps
    return StageResult(
        task=name,
        accuracy=accuracy,
        seconds={
            "fit": timer.train_end - begin,
            "consolidate": end.train_end - timer.train_end,
            "test": time.perf_counter() - tested,
        },
        steps=steps,
        curves=record.curves,
    )


@rank_zero_only
def save_stage(
    path: Path, learner: ContinualLearner, stages: Sequence[StageResult], untrained: list[float]
) -> None:
    """Keep the learner after consolidation, with the results so far; process 0 alone does.

    Args:
        path: the checkpoint, written whole or not at all.
        learner: network and penalty.
        stages: the results up to this stage.
        untrained: the accuracies before the first task.
    """
    content = {
        "format": 1,
        "state_dict": learner.state_dict(),
        "stages": [asdict(stage) for stage in stages],
        "untrained": untrained,
    }
    with whole_file(path) as temporary:
        torch.save(content, temporary)


def load_stage(path: Path, learner: ContinualLearner) -> tuple[list[StageResult], list[float]]:
    """Bring a learner to where a stage checkpoint left it.

    Args:
        path: a file that ``save_stage`` wrote.
        learner: of the same network.

    Returns:
        The results up to that stage, and the accuracies before the first task.

    Raises:
        LifelongError: when the file is damaged or belongs to another network.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location=learner.device, weights_only=True)
        learner.load_state_dict(content["state_dict"])
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise LifelongError(
            f"{path} cannot continue this run ({reason}); "
            "learn the first task again by leaving the checkpoint out"
        ) from error
    stages = [StageResult(**stage) for stage in content["stages"]]
    learner.steps_before = sum(stage.steps for stage in stages)
    return stages, content["untrained"]


class _Timer(Callback):
    train_end = 0.0

    def on_train_end(self, *_: Any) -> None:
        self.train_end = time.perf_counter()
