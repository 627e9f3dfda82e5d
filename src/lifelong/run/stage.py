"""One stage: learning, consolidating and testing one task, or recalling that it was learnt."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from lifelong.data.benchmark import StageData
from lifelong.learning import ContinualLearner
from lifelong.learning.epochs import RecordCurves, TellEpoch, as_fraction
from lifelong.learning.objective import write_figures
from lifelong.methods import Method
from lifelong.run.resume.journal import Entry, write
from lifelong.run.resume.keeping import KeepProgress, WholeCheckpoints
from lifelong.run.resume.random_state import random_state, restore_random_state

MakeTrainer = Callable[..., Trainer]


@dataclass(frozen=True)
class Fit:
    """What learning a task gave, before it was consolidated.

    Args:
        network: the network's state.
        steps: optimizer steps that were taken.
        curves: the accuracies on validation images, one figure per epoch.
        journal: what was logged.
        random: the state of the random numbers; a sampled importance goes on from there.
        seconds: what it took.
        accuracy: fingerprint of a task's data → fraction right on its test set.
        untrained: the same before the first task; empty for later ones.
        warnings: what was odd about λ.
    """

    network: dict[str, Any]
    steps: int
    curves: dict[str, list[float]]
    journal: list[Entry]
    random: dict[str, Any]
    seconds: float
    accuracy: dict[str, float] = field(default_factory=dict)
    untrained: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


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


def fit(
    make_trainer: MakeTrainer,
    learner: ContinualLearner,
    method: Method,
    data: StageData,
    keep: KeepProgress,
    checkpoints: WholeCheckpoints,
    resume: Path | None = None,
    tell_epoch: TellEpoch | None = None,
) -> tuple[Fit, float]:
    """Learn one task, and consolidate it.

    Args:
        make_trainer: a Trainer for these ``callbacks`` and ``plugins``.
        learner: as the stage before left it.
        method: the learner's.
        data: the loaders of this stage.
        keep: saves the middle of the training.
        checkpoints: how that is written and read.
        resume: a checkpoint of the middle of this stage.
        tell_epoch: told of each epoch.

    Returns:
        What was learnt, and the seconds of the consolidation.

    Raises:
        KeyboardInterrupt: on Ctrl-C, for which Lightning would leave the interpreter.
        SystemExit: when something else asks to leave it.
    """
    record, end = RecordCurves(tell_epoch), _EndOfFit(keep)
    trainer = make_trainer(callbacks=[record, end, method, keep], plugins=[checkpoints])
    handler = signal.getsignal(signal.SIGINT)
    try:
        # Our own files: they hold nothing that has to be trusted.
        trainer.fit(learner, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit as error:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error
    learnt = Fit(
        network={name: t.detach().clone() for name, t in learner.network.state_dict().items()},
        steps=int(trainer.global_step),
        curves=record.curves,
        journal=keep.journal.entries[keep.first : end.mark],
        random=random_state(),
        seconds=end.seconds,
        warnings=list(method.warnings),
    )
    return learnt, keep.seconds - end.seconds


def recall(
    learnt: Fit,
    make_trainer: MakeTrainer,
    learner: ContinualLearner,
    method: Method,
    data: StageData,
    state: Mapping[str, Any] | None,
) -> float:
    """Bring a learner and its method to where a fit that was kept had left them.

    Args:
        learnt: what was kept of the fit.
        make_trainer: a Trainer; it knows the device and the loggers.
        learner: as the stage before left it.
        method: as the stage before left it.
        data: the loaders of this stage.
        state: what was kept of the method; None to consolidate the task now, if it is to be.

    Returns:
        The seconds of a consolidation.
    """
    trainer = make_trainer()
    learner.network.load_state_dict(learnt.network)
    write(learnt.journal, trainer.loggers)
    restore_random_state(learnt.random)
    begin = time.monotonic()
    if state is not None:
        method.load_state_dict(state["method"])
        method.figures = dict(state["figures"])
    elif method.consolidates:
        learner.to(trainer.strategy.root_device)
        method.consolidate(learner, data.consolidation_batches(), data.held_out_batches())
        learner.cpu()
    if method.consolidates:
        step = learner.steps_before + learnt.steps
        write_figures(trainer.loggers, method.figures, step)
    return time.monotonic() - begin


def known(tasks: Sequence[str], accuracy: dict[str, float]) -> list[float] | None:
    """The accuracies of all tasks, if all are known.

    Args:
        tasks: the fingerprints of their data.
        accuracy: by fingerprint.

    Returns:
        One fraction per task, or None.
    """
    if set(tasks) <= set(accuracy):
        return [accuracy[task] for task in tasks]
    return None


class _EndOfFit(Callback):
    """Notes what the training took and logged, before the task is consolidated."""

    seconds = 0.0
    mark = 0

    def __init__(self, keep: KeepProgress) -> None:
        self.keep = keep

    def on_train_end(self, *_: Any) -> None:
        self.seconds = self.keep.seconds
        self.mark = len(self.keep.journal.entries)
