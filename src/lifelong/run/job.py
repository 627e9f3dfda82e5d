"""One run: what is learnt, with what, and where the results go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger

from lifelong.data.benchmark import Benchmark
from lifelong.learning import ContinualLearner
from lifelong.learning.epochs import TellEpoch
from lifelong.methods import Method
from lifelong.run.stage import MakeTrainer
from lifelong.run.store import NoStore, StageStore

if TYPE_CHECKING:
    from lifelong.run.summary import Summary


@dataclass(frozen=True)
class Job:
    """One run: what is learnt, with what, and where the results go.

    Args:
        benchmark: the tasks.
        make_method: the method, fresh.
        make_learner: the learner for a method, made after the seed is set.
        make_trainer: a Trainer for ``callbacks``, ``logger`` and ``plugins``.
        method: the method's name on the command line.
        seed: of everything that is random.
        max_epochs: epochs per task.
        directory: where the results go.
        config: the whole resolved configuration, in plain values.
        make_loggers: makes those to whom the curves go.
        hyperparameters: the configuration, flat, for the loggers.
        store: what was learnt before.
        resume: whether to go on with the run in ``directory``.
        checkpoint_every: seconds between two checkpoints within a stage.
        tell: told, a line each time, what a user would want to know.
        tell_epoch: told, after each epoch, how far a task is and what is kept.
        trial: whether validation images alone are asked: nothing is tested, and neither the last
            task's importance nor checkpoints of stages are kept.
        choice: how λ was chosen, for the summary.
        observe: called with the finished run before its loggers are closed.
    """

    benchmark: Benchmark
    make_method: Callable[[], Method]
    make_learner: Callable[[Method], ContinualLearner]
    make_trainer: MakeTrainer
    method: str
    seed: int
    max_epochs: int
    directory: Path
    config: Mapping[str, Any]
    make_loggers: Callable[[], Sequence[Logger]] = tuple
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    store: StageStore = field(default_factory=NoStore)
    resume: bool = False
    checkpoint_every: float = 30.0
    tell: Callable[[str], None] = print
    tell_epoch: TellEpoch | None = None
    trial: bool = False
    choice: Mapping[str, Any] | None = None
    observe: "Callable[[Job, Summary, Sequence[Logger]], None] | None" = None

    @property
    def about(self) -> dict[str, Any]:
        """What makes the checkpoints, in plain values."""
        data = {task.name: task.fingerprint for task in self.benchmark.tasks}
        return {"config": dict(self.config), "data": data}
