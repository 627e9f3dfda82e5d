"""One stage: learning, consolidating and testing one task, or recalling that it was learnt."""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from lifelong.core import KroneckerFactors
from lifelong.data.benchmark import StageData
from lifelong.learning import ContinualLearner, Diagnose, StopOnNonFiniteLoss
from lifelong.learning.epochs import RecordCurves, as_fraction
from lifelong.methods import Consolidate
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
    data: StageData,
    consolidation: Consolidate | None,
    keep: KeepProgress,
    checkpoints: WholeCheckpoints,
    resume: Path | None = None,
    diagnose: Diagnose | None = None,
) -> tuple[Fit, float]:
    """Learn one task, and consolidate it.

    Args:
        make_trainer: a Trainer for these ``callbacks`` and ``plugins``.
        learner: as the stage before left it.
        data: the loaders of this stage.
        consolidation: what updates the penalty as training ends, or nothing.
        keep: saves the middle of the training.
        checkpoints: how that is written and read.
        resume: a checkpoint of the middle of this stage.
        diagnose: watches λ.

    Returns:
        What was learnt, and the seconds of the consolidation.

    Raises:
        KeyboardInterrupt: on Ctrl-C, for which Lightning would leave the interpreter.
        SystemExit: when something else asks to leave it.
    """
    record, end = RecordCurves(), _EndOfFit(keep)
    guard = StopOnNonFiniteLoss(data.current.name, learner.ewc_lambda)
    callbacks: list[Callback] = [guard, record, end]
    callbacks += [diagnose] if diagnose is not None else []
    callbacks += [consolidation] if consolidation is not None else []
    trainer = make_trainer(callbacks=[*callbacks, keep], plugins=[checkpoints])
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
        warnings=diagnose.warnings if diagnose is not None else [],
    )
    return learnt, keep.seconds - end.seconds


def recall(
    learnt: Fit,
    make_trainer: MakeTrainer,
    learner: ContinualLearner,
    data: StageData,
    consolidation: Consolidate | None,
    importance: Any,
) -> float:
    """Bring a learner to where a fit that was kept had left it.

    Args:
        learnt: what was kept.
        make_trainer: a Trainer; it knows the device and the loggers.
        learner: as the stage before left it.
        data: the loaders of this stage.
        consolidation: what updates the penalty, or nothing.
        importance: what it takes up, as it was kept; None to estimate it now.

    Returns:
        The seconds of an estimation.
    """
    trainer = make_trainer()
    learner.network.load_state_dict(learnt.network)
    write(learnt.journal, trainer.loggers)
    restore_random_state(learnt.random)
    begin = time.monotonic()
    if consolidation is not None:
        if importance is None:
            device = trainer.strategy.root_device
            importance = consolidation.estimate(
                learner.to(device), data.current.consolidation_batches()
            )
        step = learner.steps_before + learnt.steps
        consolidation.fold(learner, importance, trainer.loggers, step)
        learner.cpu()
    return time.monotonic() - begin


def plain(importance: Any) -> dict[str, Any]:
    """An importance as dictionaries of tensors, for a checkpoint.

    Args:
        importance: a diagonal, or Kronecker factors.

    Returns:
        What ``from_plain`` reads.
    """
    if isinstance(importance, KroneckerFactors):
        pairs = {name: [a, g] for name, (a, g) in importance.items()}
        return {"pairs": pairs, "diagonal": dict(importance.diagonal)}
    return {"diagonal": dict(importance)}


def from_plain(content: dict[str, Any]) -> Any:
    """The importance that ``plain`` took apart.

    Args:
        content: dictionaries of tensors.

    Returns:
        A diagonal, or Kronecker factors.
    """
    if "pairs" in content:
        pairs = {name: (a, g) for name, (a, g) in content["pairs"].items()}
        return KroneckerFactors(pairs, content["diagonal"])
    return content["diagonal"]


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
