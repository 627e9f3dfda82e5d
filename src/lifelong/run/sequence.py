"""Learning a sequence of tasks: a Trainer a task, the accuracy matrix, the stage checkpoints."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning import seed_everything
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lifelong.data.benchmark import Benchmark, StageData
from lifelong.errors import LifelongError
from lifelong.learning import ContinualLearner, Diagnose
from lifelong.methods import Consolidate
from lifelong.run.resume.checkpoint import save_checkpoint
from lifelong.run.resume.journal import Journal, write
from lifelong.run.resume.keeping import KeepProgress, WholeCheckpoints, previous
from lifelong.run.resume.position import (
    Position,
    clear,
    find_position,
    progress_checkpoint,
    stage_checkpoint,
)
from lifelong.run.stage import (
    Fit,
    MakeTrainer,
    fit,
    from_plain,
    known,
    plain,
    recall,
    test_accuracies,
)
from lifelong.run.stage_key import fit_key, state_key
from lifelong.run.store import NoStore, StageStore
from lifelong.run.summary import StageResult, Summary, hyperparameter_metrics, summarize


@dataclass(frozen=True)
class Job:
    """One run: what is learnt, with what, and where the results go.

    Args:
        benchmark: the tasks.
        make_learner: the learner, made after the seed is set.
        make_trainer: a Trainer for ``callbacks``, ``logger`` and ``plugins``.
        method: the method's name.
        ewc_lambda: λ.
        seed: of everything that is random.
        max_epochs: epochs per task.
        directory: where the results go.
        config: the whole resolved configuration, in plain values.
        consolidation: makes the callback that updates the penalty, or nothing.
        make_loggers: makes those to whom the curves go.
        hyperparameters: the configuration, flat, for the loggers.
        joint: whether each task is learnt along with the images of all before it.
        store: what was learnt before.
        resume: whether to go on with the run in ``directory``.
        checkpoint_every: seconds between two checkpoints within a stage.
        tell: told, a line each time, what a user would want to know.
        trial: whether validation images alone are asked: nothing is tested, and neither the last
            task's importance nor checkpoints of stages are kept.
        choice: how λ was chosen, for the summary.
        diagnostics: whether λ is watched while a task is learnt.
        observe: called with the finished run before its loggers are closed.
    """

    benchmark: Benchmark
    make_learner: Callable[[], ContinualLearner]
    make_trainer: MakeTrainer
    method: str
    ewc_lambda: float
    seed: int
    max_epochs: int
    directory: Path
    config: Mapping[str, Any]
    consolidation: Callable[[], Consolidate] | None = None
    make_loggers: Callable[[], Sequence[Logger]] = tuple
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    joint: bool = False
    store: StageStore = field(default_factory=NoStore)
    resume: bool = False
    checkpoint_every: float = 30.0
    tell: Callable[[str], None] = print
    trial: bool = False
    choice: Mapping[str, Any] | None = None
    diagnostics: bool = True
    observe: "Callable[[Job, Summary, Sequence[Logger]], None] | None" = None

    @property
    def about(self) -> dict[str, Any]:
        """What makes the checkpoints, in plain values."""
        data = {task.name: task.fingerprint for task in self.benchmark.tasks}
        return {"config": dict(self.config), "data": data}


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
        self.learner = job.make_learner()
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
        if position.state is not None:
            self.learner.load_state_dict(position.state)
            self.learner.steps_before = sum(stage.steps for stage in self.stages)
        self.tasks = [(task.name, task.fingerprint) for task in job.benchmark.tasks]
        self.fingerprints = [fingerprint for _, fingerprint in self.tasks]

    def learn_next(self) -> None:
        """Learn the next task, or recall it from the store; consolidate, test, save."""
        index, job, learner = len(self.stages), self.job, self.learner
        data = job.benchmark.stage(index, joint=job.joint)
        learner.current_task = name = data.current.name
        key = fit_key(job.config, self.tasks, index, plain=self._is_plain(index))
        with job.store.exclusive(key, name):
            kept = job.store.recall("fit", key)
            if kept is None:
                result = self._learn(index, data, key)
            else:
                kept = {one.name: kept[one.name] for one in fields(Fit)}
                result = self._recall(data, key, Fit(**kept))
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
            ewc_lambda=job.ewc_lambda,
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
        consolidation = self._consolidation()
        learnt, consolidated = fit(
            self.make_trainer,
            learner,
            data,
            consolidation,
            KeepProgress(progress_checkpoint(job.directory), job.checkpoint_every, self.journal),
            WholeCheckpoints(index, job.about),
            self.progress,
            Diagnose() if job.diagnostics else None,
        )
        self.progress = None
        accuracy, tested = self._tested(data)
        learnt = replace(
            learnt,
            accuracy=self._by_fingerprint(accuracy),
            untrained={} if index else self._by_fingerprint(self.untrained),
        )
        job.store.keep("fit", key, _fields(learnt))
        if consolidation is not None:
            self._keep_importance(key, consolidation, consolidated)
        seconds = {"fit": learnt.seconds, "consolidate": consolidated, "test": tested}
        name = data.current.name
        self._warn(learnt)
        return StageResult(
            name, accuracy, seconds, learnt.steps, learnt.curves, warnings=learnt.warnings
        )

    def _warn(self, learnt: Fit) -> None:
        for line in learnt.warnings:
            self.job.tell(f"warning: {line}")

    def _recall(self, data: StageData, key: str, learnt: Fit) -> StageResult:
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
        consolidation = self._consolidation()
        kept = None
        if consolidation is not None:
            kept = job.store.recall("importance", state_key(key, job.config))
        importance = None if kept is None else from_plain(kept["importance"])
        consolidated = recall(learnt, self.make_trainer, learner, data, consolidation, importance)
        reused = {"fit": learnt.seconds}
        if kept is not None:
            reused["consolidate"] = kept["seconds"]
        elif consolidation is not None:
            self._keep_importance(key, consolidation, consolidated)
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

    def _is_plain(self, index: int) -> bool:
        # With λ = 0 and a consolidation Ω is still in the curves.
        job = self.job
        method = job.joint or job.ewc_lambda > 0 or job.consolidation is not None
        return index == 0 or not method

    def _keep_importance(self, key: str, consolidation: Consolidate, seconds: float) -> None:
        content = {"importance": plain(consolidation.importance), "seconds": seconds}
        self.job.store.keep("importance", state_key(key, self.job.config), content)

    def _consolidation(self) -> Consolidate | None:
        last = len(self.stages) + 1 == len(self.job.benchmark.tasks)
        if self.job.consolidation is None or (self.job.trial and last):
            return None
        return self.job.consolidation()

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
            "state_dict": self.learner.state_dict(),
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
