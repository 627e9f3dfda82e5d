"""When a task counts as learnt, and which checkpoints are written again once it is consolidated."""

import functools
from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng

from lifelong.errors import LifelongError


class Replaced:
    """An attribute that an object has in place of its own, until it is put back.

    Args:
        owner: the object.
        name: of the attribute.
        value: what it is for now.
    """

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self._name, self._value = owner, name, value
        self._before = vars(owner).get(name)
        setattr(owner, name, value)

    def put_back(self) -> None:
        """Give the object its own attribute back; a second call does nothing."""
        if vars(self._owner).get(self._name) is not self._value:
            return
        if self._before is None:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._before)


class EndOfFit:
    """Has a task consolidated when nothing else will change the weights any more.

    Callbacks that average weights put them in place in ``on_train_end``, perhaps after ours, and
    checkpoint callbacks have saved by then. So it is the module's own ``on_train_end``, the last
    hook of a fit while its data, devices and processes are there, that is followed up. What was
    saved at the last optimizer step is then saved again, with what was consolidated in it.

    A fit that is stopped early or by its time limit is finished. One that an exception or Ctrl-C
    ends is not, nor is ``fast_dev_run``, nor a fit that took no optimizer step (a finished one that
    was resumed), nor the trial of a learning rate or batch size finder: nothing is consolidated.

    Args:
        trainer: about to train.
        module: the module that is to learn.
        owner: the callback that keeps something.
        consolidate: what to do at the end; numpy's, Python's and torch's random states are put back
            after it.

    Attributes:
        first_step: the Trainer's step where the training began; None before that.

    Raises:
        LifelongError: when the fit's processes end with it, and what is kept in them.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        owner: Callback,
        consolidate: Callable[[], None],
    ) -> None:
        _refuse_processes_that_end(trainer, owner)
        self._trainer, self._owner, self._consolidate = trainer, owner, consolidate
        self.first_step: int | None = None
        # path → the step, and whether with weights only
        self._written: dict[str, tuple[int, bool, Any]] = {}
        own, self._save = module.on_train_end, trainer.save_checkpoint

        @functools.wraps(own)
        def on_train_end() -> None:
            own()
            self._finish()

        @functools.wraps(self._save)
        def save_checkpoint(
            filepath: Any, weights_only: bool | None = None, storage_options: Any = None
        ) -> None:
            self._save(filepath, weights_only, storage_options)
            about = int(trainer.global_step), bool(weights_only), storage_options
            self._written[str(filepath)] = about

        self._replaced = [
            Replaced(module, "on_train_end", on_train_end),
            Replaced(trainer, "save_checkpoint", save_checkpoint),
        ]

    def begin(self) -> None:
        """Note where the training begins, what a checkpoint brings being in place."""
        self.first_step = int(self._trainer.global_step)

    @property
    def took_a_step(self) -> bool:
        """Whether the weights were trained in this fit."""
        return self.first_step is not None and self._trainer.global_step > self.first_step

    def detach(self) -> None:
        """Leave module and trainer as they were; a second call does nothing."""
        for replaced in self._replaced:
            replaced.put_back()

    def _finish(self) -> None:
        trainer = self._trainer
        # A finder trains in a loop of its own, with callbacks of its own, in the middle of a fit.
        if self._owner not in trainer.callbacks or not self.took_a_step:  # type: ignore[attr-defined]
            return
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info("fast_dev_run: nothing is consolidated")
            return
        with isolate_rng():
            self._consolidate()
        self._save_again()

    def _save_again(self) -> None:
        trainer = self._trainer
        last = {p: a for p, a in self._written.items() if a[0] == trainer.global_step}
        for path, (_, weights_only, options) in last.items():
            if weights_only:
                name = type(self._owner).__name__
                rank_zero_warn(
                    f"{path} holds weights only: what {name} keeps is not in it; "
                    f"keep it with {name}.save(FILE), or save whole checkpoints"
                )
            elif trainer.strategy.broadcast(get_filesystem(path).exists(path)):
                self._save(path, weights_only, options)


def _refuse_processes_that_end(trainer: Trainer, owner: Callback) -> None:
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _MultiProcessingLauncher):
        return
    name, method = launcher._start_method, type(owner).__name__
    raise LifelongError(
        f"the strategy starts its processes with {name!r} (ddp_{name}, ddp_notebook): they end "
        f"with the fit, and what {method} consolidates with them; take strategy='ddp' in a "
        f"script, devices=1 in a notebook, or {method}(consolidates=False)"
    )
