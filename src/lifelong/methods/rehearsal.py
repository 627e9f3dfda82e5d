"""What methods share that keep some real examples of the tasks before."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from lightning import LightningModule, Trainer
from torch import Tensor, nn

from lifelong.errors import LifelongError
from lifelong.learning import ContinualLearner
from lifelong.learning.fit_batches import (
    as_step_sees,
    batches_of_task,
    gives_its_own,
    refuse_endless,
    refuse_used_up,
)
from lifelong.learning.objective import step_of, write_figures
from lifelong.methods.base import Method
from lifelong.methods.buffer import Buffer, Fill
from lifelong.methods.refusals import refuse_parts_of_networks


class RehearsalMethod(Method):
    """Keeps some examples of every task as its fit ends, for the fits that follow.

    They are real examples, in ``state_dict()`` and so in every checkpoint: think of whose they are.
    A LightningModule's are kept as its training step sees them, augmented once where it augments.

    Under DDP every process has the same buffer; what is drawn for a step is shared among them, so
    that together they see what one process would.

    Args:
        buffer_size: how many examples are kept at most, of all tasks together; 0 is fine-tuning,
            bit for bit.
        minibatch_size: how many of them are drawn for each batch, by all processes together.
        fill: ``reservoir`` or ``balanced``; see ``Buffer``.
        seed: of what is kept and drawn.
        batches: what to keep examples of; by default the training data of the fit that ends.
        consolidates: whether examples are kept as a fit ends.

    Raises:
        ValueError: when an argument is out of its range.
    """

    keeps_state: ClassVar[bool] = True

    def __init__(
        self,
        buffer_size: int = 500,
        *,
        minibatch_size: int = 64,
        fill: Fill = "reservoir",
        seed: int = 0,
        batches: Iterable[Any] | None = None,
        consolidates: bool = True,
    ) -> None:
        if isinstance(minibatch_size, bool) or minibatch_size < 1:
            raise ValueError(
                f"minibatch_size is {minibatch_size}; it must be a whole number of at least 1"
            )
        super().__init__()
        self.buffer = Buffer(buffer_size, fill, seed)
        self.minibatch_size = minibatch_size
        self.batches = batches
        self.consolidates = consolidates

    def consolidate(
        self, module: nn.Module, batches: Iterable[Any], held_out: Iterable[Any] | None = None
    ) -> None:
        """Keep some examples of these batches.

        Args:
            module: as learning left it.
            batches: of the data that it shall still know.
            held_out: not looked at: what is kept is what was learnt.
        """
        stranger = isinstance(module, LightningModule) and not isinstance(module, ContinualLearner)
        self.keep(module, as_step_sees(module, batches) if stranger else batches)  # type: ignore[arg-type]
        self._tell_buffer()

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep some examples of the task that was just learnt.

        Args:
            trainer: its data are the examples, unless ``batches`` was set.
            pl_module: with the weights that the fit leaves.
        """
        rank, world_size = trainer.global_rank, trainer.world_size
        batches = batches_of_task(trainer, self.batches)
        if not isinstance(pl_module, ContinualLearner):
            batches = as_step_sees(pl_module, batches)
        self.keep(pl_module, batches, rank=rank, world_size=world_size, trainer=trainer)
        self._tell_buffer()
        write_figures(trainer.loggers, self.figures, step_of(pl_module))

    def keep(self, module: nn.Module, batches: Iterable[Any], **share: Any) -> None:
        """Keep some examples of these batches.

        Args:
            module: as learning left it.
            batches: as its step sees them.
            **share: see ``Buffer.add``.
        """
        self.buffer.add(batches, **share)

    def drawn(self, trainer: Trainer, batch_idx: int, which: int = 0) -> Tensor:
        """Which examples this process is to go through beside a batch.

        Always the same for the same batch of a fit, so that nothing has to be remembered of what
        was drawn.

        Args:
            trainer: knows the step and the processes.
            batch_idx: the batch's place in the epoch.
            which: tells several draws for one batch apart.

        Returns:
            Places in the buffer, as many in each process.
        """
        world_size = trainer.world_size
        number = min(self.minibatch_size, len(self.buffer)) // world_size * world_size
        places = self.buffer.draw(number, int(trainer.global_step), batch_idx, which)
        return places[trainer.global_rank :: world_size]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse processes that have parts of the network only.

        Args:
            trainer: about to train.
            pl_module: the module that is to learn.
        """
        refuse_parts_of_networks(trainer, type(self).__name__)
        super().on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse data that never end, or that cannot be gone through once more.

        Args:
            trainer: has the data.
            pl_module: the module that is to learn.

        Raises:
            LifelongError: before the first step.
        """
        super().on_train_start(trainer, pl_module)
        needs = self.consolidates and self.buffer.size and self.batches is None
        if needs and not gives_its_own(trainer):
            refuse_used_up(trainer)
            try:
                refuse_endless(trainer)
            except LifelongError as error:
                raise LifelongError(
                    "the training data have no length and the fit no number of steps, so that "
                    "choosing what is kept might never end; wanted an end: type "
                    "Trainer(max_steps=...), or pass batches=[...] to choose from"
                ) from error

    def state_dict(self) -> dict[str, Any]:
        """What it keeps from task to task.

        Returns:
            The examples.
        """
        return {"buffer": self.buffer.state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned.

        Args:
            state_dict: the examples.
        """
        self.buffer.load(state_dict["buffer"])

    def _tell_buffer(self) -> None:
        held = {"examples": len(self.buffer), "bytes": self.buffer.bytes}
        self.figures = {f"buffer/{name}": float(figure) for name, figure in held.items()}
