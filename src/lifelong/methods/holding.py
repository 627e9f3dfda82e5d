"""Carrying a penalty: in files and checkpoints, to other loops, with a network that changes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lifelong.core import parameters_by_name
from lifelong.core.penalty.term import PenaltyTerm
from lifelong.core.protocols import Penalty
from lifelong.errors import LifelongError
from lifelong.learning import ContinualLearner
from lifelong.methods.anchor import (
    Anchor,
    Precision,
    read_anchor,
    settings_of,
    taken_by,
    write_anchor,
)
from lifelong.methods.base import device_of, network_of
from lifelong.methods.budget import EVERY
from lifelong.methods.budgeted import Budgeted
from lifelong.methods.fingerprint import data_fingerprint
from lifelong.methods.norms import FrozenNorms
from lifelong.methods.parts import (
    hold_parts,
    parameters_of,
    refuse_estimate,
    refuse_other_parts,
)
from lifelong.methods.pretrained import told_of_learnt
from lifelong.methods.remembered import Remembered
from lifelong.methods.selection import Patterns, Selection

MARK = "_consolidated_by"  # an attribute of a stranger's module whose weights are held
# λΩ at the first step, above what it was when the weights were consolidated, that is worth a word.
MOVED = 0.1  # nats


class Holding(Budgeted):
    """A method that has a penalty, and carries it wherever the network goes.

    Args:
        penalty: Ω; empty until a task is consolidated.
        ewc_lambda: λ ≥ 0.
        anchor: a file that ``save`` wrote, read before the first step.
        reference: the public file that ``anchor`` refers to for θ*.
        modules: which parameters are protected; see ``Selection``. By default all.
        ignore: which are not.
        include_frozen: whether parameters that are frozen while a task is consolidated are
            protected, too, for the day when they are trained.
        freeze_norm: whether the running statistics of batch norms stay as they were consolidated;
            by default they do. They are no parameters: no λ holds them.
        **budget: what ``Budgeted`` takes: ``at_most``, ``watch``, ``unit``, ``seed``.

    Raises:
        ValueError: when λ is negative or not finite, or an argument of the budget does not fit.
    """

    keeps_state: ClassVar[bool] = True

    def __init__(
        self,
        penalty: Penalty,
        ewc_lambda: float | None,
        *,
        anchor: str | Path | None = None,
        reference: str | Path | None = None,
        modules: Patterns = None,
        ignore: Patterns = None,
        include_frozen: bool = False,
        freeze_norm: bool | None = None,
        **budget: Any,
    ) -> None:
        super().__init__(ewc_lambda, **budget)
        self.penalty = penalty
        self.anchor, self.reference = anchor, reference
        self.modules, self.ignore = modules, ignore
        self.include_frozen = include_frozen
        self.freeze_norm = True if freeze_norm is None else freeze_norm
        self.chosen = Selection(modules, ignore)
        self.remembered = Remembered()
        self._norms: FrozenNorms | None = None
        self._calls = 0  # of term

    @property
    def is_held(self) -> bool:
        """Whether λΩ pulls: λ > 0 and something was consolidated."""
        return self.ewc_lambda > 0 and not self.penalty.is_empty

    def hold(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """Bring the penalty to a network: read ``anchor``, move to its device, follow its shapes.

        Args:
            network: the bare one.

        Returns:
            Its parameters by name.

        Raises:
            LifelongError: when the file or the network does not fit; see ``Remembered.follow``.
        """  # noqa: DOC502
        if self.anchor is not None and self.penalty.is_empty:
            self._take(read_anchor(Path(self.anchor), self.reference), str(self.anchor))
        params = parameters_of(network)
        self.penalty.to(device_of(network))
        self.remembered.follow(self.penalty, params, self.chosen)
        hold_parts(self.penalty, params)
        if self.budget is not None and not self.penalty.is_empty and not self.budget.memories:
            self.remember_inputs(network)
        return params

    def term(self, module: nn.Module) -> Tensor:
        """λΩ, to be added to a loss in any loop: ``loss = loss + ewc.term(module)``.

        Args:
            module: the one that learns, as it was consolidated; compiled, or wrapped for several
                processes, too.

        Returns:
            A scalar with a gradient, in nats; 0 before anything was consolidated, and 0 within the
            ``training_step`` of a module to whose loss the callback adds λΩ itself.
        """
        network = network_of(module)
        if self._attached is not None and self._attached.takes_over(type(self).__name__):
            return torch.zeros((), device=device_of(network))
        params = self.hold(network)
        self._calls += 1
        if self._calls % EVERY == 0:
            self.follow_budget(network)
        nothing = torch.zeros((), device=device_of(network))
        return PenaltyTerm(self.penalty, params)(nothing, self.ewc_lambda)

    def save(
        self,
        file: str | Path,
        *,
        precision: Precision = "float32",
        reference: str | Path | None = None,
    ) -> None:
        """Write what is held to a safetensors file: θ*, F, and whose they are.

        Args:
            file: where to; written whole or not at all.
            precision: of F: ``float32`` (as it is), ``bfloat16`` (off by at most 0.4 %), or
                ``log8`` (one byte; off by at most 6.8 %; not for Kronecker factors).
            reference: the safetensors file (or the folder of such) that the consolidated weights
                came from: those that it holds bit for bit are left out, and ``load`` needs it. It
                checks their digests: another file is refused.

        Raises:
            LifelongError: when nothing was consolidated.
        """
        if self.penalty.is_empty:
            raise LifelongError(
                f"{type(self).__name__} holds nothing yet, so there is nothing to save; learn a "
                "task with it, or call consolidate(module, batches)"
            )
        content = Anchor(
            penalty=type(self.penalty).__name__,
            state=self.penalty.state_dict(),
            method=type(self).__name__,
            ewc_lambda=self.ewc_lambda,
            settings=settings_of(self),
            remembered=self.remembered.state(),
            likelihood=str(getattr(self, "likelihood_name", "categorical")),
        )
        public = None if reference is None else Path(reference)
        write_anchor(Path(file), content, precision, public)

    @classmethod
    def load(
        cls,
        file: str | Path,
        ewc_lambda: float | None = None,
        *,
        reference: str | Path | None = None,
        **settings: Any,
    ) -> Self:
        """A method that holds what ``save`` wrote. No code runs from the file.

        Args:
            file: where it lies.
            ewc_lambda: λ; by default that of the file.
            reference: the public file that it was saved with, where it was.
            **settings: what the class takes, instead of what the file says.

        Returns:
            The method.

        Raises:
            LifelongError: when the file is damaged or of another method.
        """  # noqa: DOC502
        content = read_anchor(Path(file), reference)
        weight = content.ewc_lambda if ewc_lambda is None else ewc_lambda
        method = cls(weight, **{**taken_by(cls, content.settings), **settings})  # type: ignore[arg-type]
        method._take(content, str(file))
        return method

    def state_dict(self) -> dict[str, Any]:
        """What it keeps from task to task.

        Returns:
            The penalty's buffers, and what is known of the network.
        """
        state = {"penalty": self.penalty.state_dict(), "remembered": self.remembered.state()}
        if self.budget is not None:
            state["budget"] = {**self.budget.state(), "ewc_lambda": self.ewc_lambda}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned.

        Args:
            state_dict: tensors and plain values.
        """
        self.penalty.load_state_dict(state_dict["penalty"])
        self.remembered = Remembered.of_state(state_dict.get("remembered", {}))
        kept = state_dict.get("budget")
        if self.budget is not None and kept is not None:
            self.budget.load(kept)
            self.ewc_lambda = kept["ewc_lambda"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the penalty to the network, and say where it does not hold what one may think.

        Args:
            trainer: about to train.
            pl_module: the module that is to learn.
        """
        refuse_other_parts(trainer)
        super().on_fit_start(trainer, pl_module)
        network = network_of(pl_module)
        params = self.hold(network)
        if self.consolidates:
            refuse_estimate(params, type(self).__name__)
        if self.is_held and self.freeze_norm:
            self._norms = FrozenNorms(network)
        if self.ewc_lambda > 0 and not isinstance(pl_module, ContinualLearner):
            self._say_what_is_odd(trainer, pl_module, params)

    def counts_twice(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether folding this fit in would count a task a second time.

        A Trainer, or a checkpoint, that goes on from the step of the last consolidation with the
        same data learns the same task on. If that is all that is held, it is let go, so that the
        new importance takes its place.

        Args:
            trainer: at the end of its fit.
            pl_module: the module that learnt.

        Returns:
            True where nothing must be folded.
        """
        last, data = self.remembered, data_fingerprint(trainer)
        if data is None or data != last.data or self._end is None:
            return False
        name = type(self).__name__
        if last.step != self._end.first_step:
            rank_zero_warn(
                f"{name}: the training data look like those that were consolidated last; if the "
                "task is the same, its importance now counts twice: learn it in one fit, go on "
                f"with the same Trainer, or take a new {name}"
            )
            return False
        if len(last.examples) > 1:
            rank_zero_warn(
                f"{name}: the fit went on with the data that were consolidated last; the penalty "
                "is left as it was, since the task would count twice"
            )
            return True
        self.penalty.let_go(self.penalty.held(parameters_by_name(network_of(pl_module))))
        self.remembered = Remembered()
        if self.budget is not None:
            self.budget.memories.clear()
        return False

    def note_fit(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take down which fit was consolidated, and mark the module as one that is held.

        Args:
            trainer: at the end of its fit.
            pl_module: the module that learnt.
        """
        self.remembered.step = int(trainer.global_step)
        self.remembered.data = data_fingerprint(trainer)
        setattr(pl_module, MARK, type(self).__name__)

    def detach(self) -> None:
        """Take away what was attached to the module; a second call does nothing."""
        super().detach()
        if self._norms is not None:
            self._norms.restore()
            self._norms = None

    def _take(self, content: Anchor, file: str) -> None:
        kind = type(self.penalty).__name__
        if content.penalty != kind:
            raise LifelongError(
                f"{file} was saved by {content.method} and is a {content.penalty}; "
                f"{type(self).__name__} has a {kind}: take {content.method}"
            )
        state = {"penalty": content.state, "remembered": content.remembered}
        try:
            self.load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            line = " ".join(str(error).split())
            raise LifelongError(f"{file} does not fit its own kind: {line}") from None

    def _say_what_is_odd(
        self, trainer: Trainer, module: LightningModule, params: dict[str, nn.Parameter]
    ) -> None:
        name = type(self).__name__
        if self.penalty.is_empty:
            before = getattr(module, MARK, None)
            if before is None and trainer.ckpt_path is None and told_of_learnt(name, module):
                return
            if before is None:
                rank_zero_info(
                    f"{name} holds nothing yet: this fit is plain, and is consolidated as it ends. "
                    f"What was consolidated elsewhere is taken up by {name}(anchor=FILE)"
                )
            else:
                rank_zero_warn(
                    f"an {before} has consolidated this module, and this {name} holds nothing of "
                    f"it: what it knows is not protected; give the Trainer the same callback "
                    f"again, or {name}(anchor=FILE) with what {before}.save(FILE) wrote"
                )
            return
        free = self.remembered.unprotected(self.penalty, params, self.chosen)
        if free is not None:
            rank_zero_warn(f"{name}: {free}")
        # The middle of a fit is not where it was consolidated.
        if trainer.ckpt_path is None and self.remembered.shapes:
            omega = float(self.penalty.value(params))
            moved = self.ewc_lambda * (omega - self.remembered.omega)
            if moved > MOVED:
                rank_zero_warn(
                    f"{name}: these are not the weights that were consolidated; λΩ is "
                    f"{self.ewc_lambda * omega:.3g} nats before the first step, and pulls them "
                    f"back. For another network take a new {name}; for other weights of this one "
                    "call consolidate(module, batches) of a new one first"
                )
