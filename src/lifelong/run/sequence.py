"""Learning a sequence of tasks: a Trainer a task, the accuracy matrix, the stage checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Callback, seed_everything
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from lifelong.data.benchmark import Benchmark
from lifelong.learning import ContinualLearner
from lifelong.run.stage import MakeTrainer, learn_stage, load_stage, save_stage, test_accuracies
from lifelong.run.summary import StageResult, Summary, hyperparameter_metrics, summarize


@dataclass(frozen=True)
class Job:
    """One run: what is learnt, with what, and where the results go.

    Args:
        benchmark: the tasks.
        make_learner: the learner, made after the seed is set.
        make_trainer: a Trainer for ``callbacks`` and ``logger``.
        method: the method's name.
        ewc_lambda: λ.
        seed: of everything that is random.
        max_epochs: epochs per task.
        directory: where the results go.
        consolidation: makes the callback that updates the penalty, or nothing.
        loggers: where the curves go.
        hyperparameters: the configuration, flat, for the loggers.
    """

    benchmark: Benchmark
    make_learner: Callable[[], ContinualLearner]
    make_trainer: MakeTrainer
    method: str
    ewc_lambda: float
    seed: int
    max_epochs: int
    directory: Path
    consolidation: Callable[[], Callback] | None = None
    loggers: Sequence[Logger] = ()
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


def stage_checkpoint(directory: Path, index: int, task: str) -> Path:
    """Where a run keeps the state after one of its stages.

    Args:
        directory: the run's.
        index: the stage's place.
        task: its name.

    Returns:
        The path of the checkpoint.
    """
    return directory / "checkpoints" / f"stage-{index}-{task}.ckpt"


def stage_seed(seed: int, index: int) -> int:
    """The seed of one stage: a stage does not depend on how many draws those before it made.

    Args:
        seed: the run's.
        index: the stage's place, −1 for the network's first weights.

    Returns:
        A seed in the range that numpy takes.
    """
    return (seed * 1_009 + index + 1) % 2**32


def learn_sequence(job: Job, *, start: Path | None = None) -> Summary:
    """Learn the tasks of a benchmark one after another.

    Args:
        job: what, with what, and where to.
        start: a stage checkpoint to branch from, so that the tasks before it are not learnt again.

    Returns:
        The summary, which also lies in ``summary.json`` in the job's directory.
    """
    seed_everything(stage_seed(job.seed, -1), verbose=False)
    learner = job.make_learner()
    make_trainer = partial(job.make_trainer, logger=list(job.loggers))
    stages: list[StageResult] = []
    if start is not None:
        stages, untrained = load_stage(start, learner)
    else:
        untrained = test_accuracies(make_trainer(), learner, job.benchmark.stage(0))
    for index in range(len(stages), len(job.benchmark.tasks)):
        seed_everything(stage_seed(job.seed, index), verbose=False)
        _log_start(job.loggers, learner, stages)
        consolidation = job.consolidation() if job.consolidation else None
        result = learn_stage(make_trainer, learner, job.benchmark.stage(index), consolidation)
        stages.append(result)
        for logger in job.loggers:
            tested = zip(learner.tasks, result.accuracy, strict=True)
            figures = {f"test/{task}/accuracy": accuracy for task, accuracy in tested}
            logger.log_metrics(figures, step=learner.steps_before)
        path = stage_checkpoint(job.directory, index, result.task)
        save_stage(path, learner, stages, untrained)
    summary = summarize(
        stages,
        untrained,
        benchmark=job.benchmark.name,
        scenario=job.benchmark.scenario,
        method=job.method,
        ewc_lambda=job.ewc_lambda,
        seed=job.seed,
        max_epochs=job.max_epochs,
        data_source={task.name: task.source for task in job.benchmark.tasks},
        parameters=sum(p.numel() for p in learner.network.parameters()),
    )
    _finish_loggers(job, summary)
    summary.write(job.directory / "summary.json")
    return summary


def _log_start(
    loggers: Sequence[Logger], learner: ContinualLearner, stages: Sequence[StageResult]
) -> None:
    """The left end of the retention curves: what was known as the stage began."""
    if stages:
        known = {
            f"retained/{name.split('/')[1]}": figures[-1]
            for name, figures in stages[-1].curves.items()
            if figures
        }
        for logger in loggers:
            logger.log_metrics(known, step=learner.steps_before)


def _finish_loggers(job: Job, summary: Summary) -> None:
    for logger in job.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(job.hyperparameters), dict(hyperparameter_metrics(summary)))
        else:
            logger.log_hyperparams(dict(job.hyperparameters))
            logger.log_metrics(dict(hyperparameter_metrics(summary)))
        logger.finalize("success")
