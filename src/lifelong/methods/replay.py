"""Experience replay: some old examples in every step."""

import functools
from typing import Any, ClassVar

from lightning import LightningModule, Trainer

from lifelong.learning.quiet import task_step
from lifelong.methods.end_of_fit import Replaced
from lifelong.methods.rehearsal import RehearsalMethod


class Replay(RehearsalMethod):
    r"""Mixes kept examples of the tasks before into every batch: the loss of B_new ∪ B_old.

    The step of the module sees one batch, the old examples behind the new, so that whatever its
    loss is, its batch norms and its metrics are of both. With a loss that is a mean over examples
    an old one counts as much as a new one: ``minibatch_size`` beside the batch size is the weight
    of what was before.

    The examples are kept as a task ends, so that a task does not replay itself; under the paper's
    single pass over each task the two differ by the examples of the current task alone.

    Args:
        buffer_size: how many examples are kept at most; 0 is fine-tuning, bit for bit.
        minibatch_size: how many of them are mixed into each batch, by all processes together.
        fill: ``reservoir`` or ``balanced``; see ``Buffer``.
        seed: of what is kept and drawn.
        batches: what to keep examples of; by default the training data of the fit that ends.
        consolidates: whether examples are kept as a fit ends.

    Source:
        Chaudhry et al. 2019, "On tiny episodic memories in continual learning", algorithm 1, with
        reservoir sampling (its section 4) or a balanced memory.

    Example:
        >>> Replay(buffer_size=200).buffer.size
        200
    """

    title: ClassVar[str] = "replay"

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._mixing: Replaced | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module's step the old examples beside the new.

        Args:
            trainer: about to train.
            pl_module: the module that is to learn.
        """
        super().on_fit_start(trainer, pl_module)
        own, beneath = pl_module.training_step, task_step(pl_module)

        @functools.wraps(own)
        def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            index = kwargs.get("batch_idx", args[0] if args else 0)
            return own(self._mixed(trainer, batch, index), *args, **kwargs)

        training_step.task_step = own  # type: ignore[attr-defined]
        # Lightning looks once beneath a wrapper for what a step takes.
        training_step.__wrapped__ = beneath
        self._mixing = Replaced(pl_module, "training_step", training_step)

    def detach(self) -> None:
        """Take away what was attached to the module; a second call does nothing."""
        if self._mixing is not None:
            self._mixing.put_back()
            self._mixing = None
        super().detach()

    def _mixed(self, trainer: Trainer, batch: Any, batch_idx: int) -> Any:
        places = self.drawn(trainer, batch_idx)
        return self.buffer.mixed_into(batch, places) if len(places) else batch
