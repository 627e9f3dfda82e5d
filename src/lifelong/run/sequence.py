"""Learning a sequence of tasks: a Trainer a task, the accuracy matrix, the stage checkpoints."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning import seed_everything
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lifelong.data.benchmark import StageData
from lifelong.errors import LifelongError
from lifelong.run.job import Job
from lifelong.run.learnt import stage_checkpoint
from lifelong.run.resume.checkpoint import save_checkpoint
from lifelong.run.resume.journal import Journal, write
from lifelong.run.resume.keeping import KeepProgress, WholeCheckpoints, previous
from lifelong.run.resume.position import (
    Position,
    clear,
    find_position,
    progress_checkpoint,
)
from lifelong.run.stage import Fit, fit, known, recall, test_accuracies
from lifelong.run.stage_key import fit_key, state_key
from lifelong.run.summary import StageResult, Summary, hyperparameter_metrics, summarize


def stage_seed(seed: int, index: int) -> int:
    """The seed of one stage: a stage does not depend on how many draws those before it made.

    Args:
        seed: the run's.
        index: the stage's place, −1 for the network's first weights.

    Returns:
        A seed in the range that numpy takes.
    """
    return (seed * 1_009 + index + 1) % 2**32


def learn_sequence(job: Job) -> Summary:
    """Learn the tasks of a benchmark one after another.

    Args:
        job: what, with what, and where to.

    Returns:
        The summary, which also lies in ``summary.json`` in the job's directory.

    Raises:
        LifelongError: when it is to resume a run that was begun otherwise.
    """  # noqa: DOC502
    position = _begin(job)
    if isinstance(position, Summary):
        return position
    run = _Run(job, position)
    while len(run.stages) < len(job.benchmark.tasks):
        run.learn_next()
    return run.finish()


def learn_trial(job: Job) -> list[StageResult]:
    """Learn a sequence for its validation curves; the test sets are not read.

    Args:
        job: what, with what, and where the middle of a stage is kept.

    Returns:
        One result per task, without test accuracies.
    """
    run = _Run(replace(job, trial=True), Position())
    while len(run.stages) < len(job.benchmark.tasks):
        run.learn_next()
    return run.stages


def _begin(job: Job) -> Position | Summary:
    tell = rank_zero_only(job.tell)
    if not job.resume:
        rank_zero_only(clear)(job.directory)
        return Position()
    finished = job.directory / "summary.json"
    position = find_position(job.directory, job.benchmark.task_names, job.about, tell)
    if finished.exists() and len(position.stages) == len(job.benchmark.tasks):
        try:
            summary = Summary.read(finished)
        except LifelongError as error:
            tell(str(error))
        else:
            tell(f"{job.directory} holds a finished run; it is left as it is")
            return summary
    if position.progress is not None:
        name = job.benchmark.task_names[len(position.stages)]
        tell(f"going on within {name}, from {position.progress.name}")
    elif position.stages:
        tell(f"going on after {position.stages[-1].task}")
    else:
        tell(f"nothing to resume in {job.directory} yet; beginning")
    return position


class _Run:
    """A sequence while it is learnt: the learner, its loggers and what the stages gave."""

    def __init__(self, job: Job, position: Position) -> None:
        self.job = job
        seed_everything(stage_seed(job.seed, -1), verbose=False)
        self.method = job.make_method()
        self.learner = job.make_learner(self.method)
        self.loggers = list(job.make_loggers())
        self.journal = Journal(position.journal)
        if job.resume:
            # A killed run's log files end anywhere; they are written anew from the journal.
            rank_zero_only(_clear_logs)(self.loggers, job.directory)
            write(position.journal, self.loggers)
        self.make_trainer = partial(job.make_trainer, logger=[*self.loggers, self.journal])
        self.stages = position.stages
        self.untrained = position.untrained
        self.progress = position.progress
        self.before_progress = position.before_progress
        if position.network is not None:
            self.learner.network.load_state_dict(position.network)
            self.method.load_state_dict(position.method)
            self.learner.steps_before = sum(stage.steps for stage in self.stages)
        self.tasks = [(task.name, task.fingerprint) for task in job.benchmark.tasks]
        self.fingerprints = [fingerprint for _, fingerprint in self.tasks]

    def learn_next(self) -> None:
        """Learn the next task, or recall it from the store; consolidate, test, save."""
        index, job, learner = len(self.stages), self.job, self.learner
        data = job.benchmark.stage(index, joint=self.method.uses_old_data)
        learner.current_task = name = data.current.name
        # A trial's last task is not followed by another.
        last = index + 1 == len(job.benchmark.tasks)
        self.method.consolidates = self.method.keeps_state and not (job.trial and last)
        plain = index == 0 and self.method.first_task_is_plain
        key = fit_key(job.config, self.tasks, index, plain=plain)
        with job.store.exclusive(key, name):
            kept = job.store.recall("fit", key)
            state = None if kept is None else self._kept_state(key)
            if kept is None or (state is None and not self._can_consolidate_again):
                result = self._learn(index, data, key)
            else:
                kept = {one.name: kept[one.name] for one in fields(Fit)}
                result = self._recall(data, key, Fit(**kept), state)
        learner.steps_before += result.steps
        self.stages.append(result)
        if job.trial:
            return
        tested = zip(learner.tasks, result.accuracy, strict=True)
        figures = {f"test/{task}/accuracy": accuracy for task, accuracy in tested}
        for logger in (*self.loggers, self.journal):
            logger.log_metrics(figures, step=learner.steps_before)
        self._save(index)

    def finish(self) -> Summary:
        """Sum up, and close the loggers.

        Returns:
            The summary, written.
        """
        job = self.job
        summary = summarize(
            self.stages,
            self.untrained or [],
            benchmark=job.benchmark.name,
            scenario=job.benchmark.scenario,
            method=job.method,
            **self.method.facts(),
            seed=job.seed,
            max_epochs=job.max_epochs,
            data_source={task.name: task.source for task in job.benchmark.tasks},
            parameters=sum(p.numel() for p in self.learner.network.parameters()),
            choice=None if job.choice is None else dict(job.choice),
        )
        if job.observe is not None:
            rank_zero_only(job.observe)(job, summary, self.loggers)
        _finish_loggers(self.loggers, job, summary)
        summary.write(job.directory / "summary.json")
        return summary

    def _learn(self, index: int, data: StageData, key: str) -> StageResult:
        job, learner = self.job, self.learner
        if self.untrained is None:
            self.untrained, _ = self._tested(data)
        seed_everything(stage_seed(job.seed, index), verbose=False)
        if self.progress is None:
            self._log_start()
        learnt, consolidated = fit(
            self.make_trainer,
            learner,
            self.method,
            data,
            KeepProgress(progress_checkpoint(job.directory), job.checkpoint_every, self.journal),
            WholeCheckpoints(index, job.about),
            self.progress,
            job.tell_epoch,
        )
        self.progress = None
        accuracy, tested = self._tested(data)
        learnt = replace(
            learnt,
            accuracy=self._by_fingerprint(accuracy),
            untrained={} if index else self._by_fingerprint(self.untrained),
        )
        job.store.keep("fit", key, _fields(learnt))
        if self.method.consolidates:
            self._keep_state(key, consolidated)
        seconds = {"fit": learnt.seconds, "consolidate": consolidated, "test": tested}
        name = data.current.name
        self._warn(learnt)
        return StageResult(
            name, accuracy, seconds, learnt.steps, learnt.curves, warnings=learnt.warnings
        )

    def _warn(self, learnt: Fit) -> None:
        for line in learnt.warnings:
            self.job.tell(f"warning: {line}")

    def _recall(
        self, data: StageData, key: str, learnt: Fit, state: dict[str, Any] | None
    ) -> StageResult:
        job, learner, name = self.job, self.learner, data.current.name
        if self.untrained is None:
            kept_too = known(self.fingerprints, learnt.untrained)
            self.untrained = self._tested(data)[0] if kept_too is None else kept_too
        if self.progress is None:
            self._log_start()
        else:
            # The store has what the interrupted run was about to learn.
            self.journal.entries = self.before_progress
            _clear_logs(self.loggers, job.directory)
            write(self.journal.entries, self.loggers)
            self.progress = None
            self._log_start()
        consolidated = recall(learnt, self.make_trainer, learner, self.method, data, state)
        reused = {"fit": learnt.seconds}
        if state is not None:
            reused["consolidate"] = state["seconds"]
        elif self.method.consolidates:
            self._keep_state(key, consolidated)
        job.tell(
            f"{name}: taken from the stage store, where {sum(reused.values()):.0f} s of learning "
            "are kept (stages=off learns it again)"
        )
        accuracy, tested = known(self.fingerprints, learnt.accuracy), 0.0
        if accuracy is None or job.trial:
            accuracy, tested = self._tested(data)
        seconds = {"fit": 0.0, "consolidate": consolidated, "test": tested}
        self._warn(learnt)
        return StageResult(
            name, accuracy, seconds, learnt.steps, learnt.curves, reused, learnt.warnings
        )

    @property
    def _can_consolidate_again(self) -> bool:
        return not self.method.consolidates or self.method.state_follows_from_network

    def _kept_state(self, key: str) -> dict[str, Any] | None:
        if not self.method.consolidates:
            return None
        return self.job.store.recall("state", state_key(key, self.job.config))

    def _keep_state(self, key: str, seconds: float) -> None:
        content = {"method": self.method.state_dict(), "figures": self.method.figures}
        key = state_key(key, self.job.config)
        self.job.store.keep("state", key, content | {"seconds": seconds})

    def _tested(self, data: StageData) -> tuple[list[float], float]:
        if self.job.trial:
            return [], 0.0
        begin = time.monotonic()
        accuracy = test_accuracies(self.make_trainer(), self.learner, data)
        return accuracy, time.monotonic() - begin

    def _by_fingerprint(self, accuracy: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.fingerprints, accuracy, strict=True)) if accuracy else {}

    def _log_start(self) -> None:
        """The left end of the retention curves: what was known as the stage began."""
        if self.stages:
            known_before = {
                f"retained/{name.split('/')[1]}": figures[-1]
                for name, figures in self.stages[-1].curves.items()
                if figures
            }
            for logger in (*self.loggers, self.journal):
                logger.log_metrics(known_before, step=self.learner.steps_before)

    @rank_zero_only
    def _save(self, index: int) -> None:
        job = self.job
        content = {
            "network": self.learner.network.state_dict(),
            "method": self.method.state_dict(),
            "stages": [asdict(stage) for stage in self.stages],
            "untrained": self.untrained,
            "journal": self.journal.entries,
            "about": job.about,
        }
        path = stage_checkpoint(job.directory, index, self.stages[-1].task)
        save_checkpoint(path, "stage", content)
        progress = progress_checkpoint(job.directory)
        for path in (progress, previous(progress)):
            path.unlink(missing_ok=True)


def _fields(learnt: Fit) -> dict[str, Any]:
    # Not asdict, which would copy every tensor.
    return {one.name: getattr(learnt, one.name) for one in fields(learnt)}


def _clear_logs(loggers: Sequence[Logger], directory: Path) -> None:
    for logger in loggers:
        folder = getattr(logger, "log_dir", None)
        # Never the run's own folder, nor what other runs share.
        if folder is not None and directory.resolve() in Path(folder).resolve().parents:
            shutil.rmtree(folder, ignore_errors=True)


def _finish_loggers(loggers: Sequence[Logger], job: Job, summary: Summary) -> None:
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(job.hyperparameters), dict(hyperparameter_metrics(summary)))
        else:
            logger.log_hyperparams(dict(job.hyperparameters))
            logger.log_metrics(dict(hyperparameter_metrics(summary)))
        logger.finalize("success")
        # Weights & Biases would write the next run of a sweep into this one.
        end = getattr(getattr(logger, "experiment", None), "finish", None)
        if callable(end):
            end()
