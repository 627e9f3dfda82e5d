"""A method that holds the parameters by a penalty: L(θ) + λ Ω(θ)."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lifelong.core import step_sizes
from lifelong.core.penalty.term import PenaltyTerm
from lifelong.core.protocols import Importance, Penalty
from lifelong.learning import ContinualLearner
from lifelong.learning.diagnose import Diagnose
from lifelong.learning.distributed import Counted, estimate_over_processes
from lifelong.learning.fit_batches import batches_of_task
from lifelong.learning.guard import left_its_step_out
from lifelong.learning.objective import (
    begins_logging_step,
    log_objective,
    step_of,
    write_figures,
)
from lifelong.learning.progress import Progress, pass_progress
from lifelong.methods.base import network_of
from lifelong.methods.holding import Holding
from lifelong.methods.parts import parameters_of, refuse_estimate
from lifelong.methods.refusals import refuse_sparse_only
from lifelong.methods.stiffness import stiffest, stiffness

Step = Literal["explicit", "proximal"]
WATCHED = "lifelong: how λ was watched"  # a key of the Trainer's checkpoints


class PenaltyMethod(Holding):
    r"""Holds a network to what it learnt: L(θ) + λ Ω(θ), Ω folded from every task's importance.

    With ``step="explicit"`` the loss that a training step returns *is* L + λΩ, in value and in
    gradient. With ``step="proximal"`` it is L alone, and λΩ acts after the optimizer's step by its
    proximal step in the optimizer's own metric: the same fixed point, stable for every λ.

    λ = 0 leaves every bit of the training as it is.

    Args:
        penalty: Ω; empty until a task is consolidated.
        ewc_lambda: λ ≥ 0.
        step: how λΩ reaches the parameters.
        decay: γ in [0, 1], what earlier tasks keep of their weight at each consolidation.
        batches: what to estimate the importance on; by default the training data of the fit that
            ends. They are gone through at the end of *every* fit.
        consolidates: whether a task is consolidated as its fit ends.
        diagnostics: whether λ is watched: figures in the log, warnings at the end of a fit.
        **holding: what ``Holding`` takes: ``anchor``, ``reference``, ``modules``, ``ignore``,
            ``include_frozen``, ``freeze_norm``, ``at_most``, ``watch``, ``unit``, ``seed``.

    Raises:
        ValueError: when λ is negative or not finite, or another argument does not fit.
    """

    def __init__(
        self,
        penalty: Penalty,
        ewc_lambda: float | None,
        *,
        step: Step = "explicit",
        decay: float = 1.0,
        batches: Iterable[Any] | None = None,
        consolidates: bool = True,
        diagnostics: bool = True,
        **holding: Any,
    ) -> None:
        if step not in get_args(Step):
            raise ValueError(f"step is {step!r}; it must be one of {', '.join(get_args(Step))}")
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay is {decay}; it must lie in [0, 1]")
        super().__init__(penalty, ewc_lambda, **holding)
        self.step: Step = step
        self.decay = decay
        self.batches = batches
        self.consolidates = consolidates
        self._diagnose = Diagnose(self) if diagnostics else None
        self._term: PenaltyTerm | None = None
        self._hooks: list[RemovableHandle] = []
        self._params: dict[str, nn.Parameter] = {}

    def estimate(
        self, network: nn.Module, batches: Iterable[Any], *, progress: Progress | None = None
    ) -> Importance:
        """How much each parameter matters for what the batches show.

        Args:
            network: as learning the task left it.
            batches: of the task's training data.
            progress: shown how far the pass is.

        Returns:
            What ``penalty`` folds, a mean over examples.
        """
        raise NotImplementedError

    def objective(
        self, loss: Tensor, module: LightningModule, batch: Any, batch_idx: int
    ) -> Tensor:
        """L + λΩ of one batch; with the proximal step L alone.

        Args:
            loss: L, the task's own, with a graph.
            module: the one that learns.
            batch: what the loss is of.
            batch_idx: its place in the epoch.

        Returns:
            The objective, whose ``backward()`` leaves its whole gradient.
        """
        logs = begins_logging_step(module.trainer, batch_idx)
        whole, omega = loss, None
        if self._term is not None and self.is_held:
            whole = self._term(loss, self.ewc_lambda)
            omega = self._term.omega
        if self._diagnose is not None and self.is_held:
            self._diagnose.take(loss)
        if logs:
            if omega is None:
                with torch.autocast(loss.device.type, enabled=False):
                    omega = self.penalty.value(self._params)
            log_objective(module, loss, float(omega), self.ewc_lambda)
            if self.budget is not None and self.is_held:
                write_figures(module.trainer.loggers, self.budget_figures(), step_of(module))
        return whole

    def consolidate(
        self, module: nn.Module, batches: Iterable[Any], held_out: Iterable[Any] | None = None
    ) -> None:
        """Hold the network, from now on, to what it knows of these batches.

        At any time and in any loop: after a task, or on pretrained weights before any training.

        Args:
            module: as learning left it.
            batches: of the data that it shall still know.
            held_out: of such data that were not learnt, for a budget; by default ``batches``.
        """
        network = network_of(module)
        refuse_estimate(parameters_of(network), type(self).__name__)
        self.draw_inputs(network, held_out)
        counted = Counted(self.estimate)
        with pass_progress(f"{self.title}: what matters for {_task(module)}") as shown:
            importance = counted(network, batches, progress=shown)
        self.fold(network, importance, counted.examples)
        self.remember_inputs(network)

    def fold(self, network: nn.Module, importance: Importance, examples: int = 0) -> None:
        """Take an importance and the parameters up into the penalty.

        ``figures`` then holds the trace of the importance, and each parameter's share of it.

        Args:
            network: as learning left it.
            importance: what ``estimate`` returned.
            examples: how many it is the mean over; 0 where that is not known.
        """
        params = self.hold(network)
        importance = importance.restricted(self.chosen)
        self.penalty.fold(params, importance, self.decay)
        self.remembered.note(params, examples, float(self.penalty.value(params)))
        traces = importance.traces()
        trace = math.fsum(traces.values())
        self.figures = {"fisher/trace": trace}
        if trace > 0:
            self.figures |= {f"fisher/share/{name}": part / trace for name, part in traces.items()}

    def single_importances(self) -> Mapping[str, Tensor]:
        """How much each single parameter matters; Kronecker factors have no such numbers.

        Returns:
            Parameter name → F̄, in the parameter's shape.
        """
        return self.penalty.single_importances()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the penalty to the module's device, and its gradient to the parameters.

        Args:
            trainer: about to train.
            pl_module: the module that is to learn.
        """
        super().on_fit_start(trainer, pl_module)
        self._params = parameters_of(network_of(pl_module))
        if self.step == "explicit":
            self._term = PenaltyTerm(self.penalty, self._params)
        # What is resumed has loaded what was seen before.
        if self._diagnose is not None and trainer.ckpt_path is None:
            self._diagnose.begin()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the proximal step follow the optimizers' own; say where an explicit one diverges.

        Args:
            trainer: has the optimizers.
            pl_module: the module that is to learn.
        """
        super().on_train_start(trainer, pl_module)
        for optimizer in trainer.optimizers:
            if self.is_held:
                refuse_sparse_only(optimizer, self._params, self.penalty.held(self._params))
            if self.step == "proximal":
                self._hooks.append(optimizer.register_step_post_hook(self._proximal_step))
            elif self.is_held and isinstance(optimizer, torch.optim.SGD):
                self.bound_lambda(stiffest(self.penalty, optimizer))
                self._warn_if_stiff(optimizer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the mean loss of an epoch.

        Args:
            trainer: unused.
            pl_module: unused.
        """
        if self._diagnose is not None:
            self._diagnose.begin_epoch()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Watch λ.

        Args:
            trainer: knows the step.
            pl_module: the module whose gradients are complete.
            optimizer: the one that is about to step.
        """
        if self._diagnose is not None and self.is_held:
            self._diagnose.compare(trainer, pl_module, self._params, optimizer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how far the protected parameters have moved.

        Args:
            trainer: has the loggers.
            pl_module: the module that learns.
        """
        super().on_train_epoch_end(trainer, pl_module)
        if self._diagnose is not None and self.is_held:
            self._diagnose.end_epoch(pl_module, self._params)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was odd about λ.

        Args:
            trainer: unused.
            pl_module: the module that learnt.
        """
        if self._diagnose is not None and self.is_held:
            self.warnings = self._diagnose.warnings_of(pl_module)
            if not isinstance(pl_module, ContinualLearner):  # a run says them by itself
                for line in self.warnings:
                    rank_zero_warn(line)
        if self.budget is not None and self.is_held:
            self.close_budget(network_of(pl_module), pl_module)

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Consolidate the task that was just learnt.

        Args:
            trainer: its data give the examples, unless ``batches`` was set.
            pl_module: with the weights that the fit leaves.
        """
        own = isinstance(pl_module, ContinualLearner)
        if not own and self.counts_twice(trainer, pl_module):
            return
        network = network_of(pl_module)
        held_out = getattr(trainer.datamodule, "held_out_batches", None)  # type: ignore[attr-defined]
        self.draw_inputs(network, held_out() if callable(held_out) else None)
        importance, examples = self.learnt(trainer, pl_module)
        self.fold(network, importance, examples)
        self.remember_inputs(network)
        if not own:
            self.note_fit(trainer, pl_module)
        write_figures(trainer.loggers, self.figures, step_of(pl_module))

    def learnt(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Importance, int]:
        """How much each parameter matters to the task whose fit ends.

        Args:
            trainer: its data give the examples, unless ``batches`` was set.
            pl_module: with the weights that the fit leaves.

        Returns:
            The importance, and how many examples of all processes it is the mean over.
        """
        network, counted = network_of(pl_module), Counted(self.estimate)
        with pass_progress(f"{self.title}: what matters for {_task(pl_module)}") as shown:
            importance = estimate_over_processes(
                trainer, counted, network, batches_of_task(trainer, self.batches), shown
            )
        return importance, counted.over_processes(trainer)

    def answers_for(self, module: LightningModule) -> bool:
        """Whether a loss that is not finite may be the penalty's doing.

        Args:
            module: the module that learns.

        Returns:
            True for our own learner, and for any module that is held.
        """
        return super().answers_for(module) or self.is_held

    def likely_cause(self, trainer: Trainer) -> str:
        """Why a loss is probably not finite, and what to do about it.

        Args:
            trainer: while it trains.

        Returns:
            The end of a sentence; it names λ where the penalty pulls explicitly.
        """
        if not self.is_held or self.step == "proximal":
            return super().likely_cause(trainer)
        found = stiffness(self.penalty, trainer.optimizers[0], self.ewc_lambda)
        cure = self.advice(
            f"{self.setting('step', 'proximal')} or a smaller {self.called('ewc_lambda')}"
        )
        return (
            f"a penalty too stiff for the step: lr·λ·F_max is {found:.2g} at "
            f"λ = {self.ewc_lambda:g} and an explicit step needs it below 2; {cure}"
        )

    def detach(self) -> None:
        """Take away what was attached to the module; a second call does nothing."""
        super().detach()
        self._term = None
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._params = {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep, with the middle of a fit, how λ was watched in it; other tasks have no use for it.

        Args:
            trainer: unused.
            pl_module: unused.
            checkpoint: the Trainer's.
        """
        if self._diagnose is not None:
            checkpoint[WATCHED] = self._diagnose.state_dict()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on watching λ.

        Args:
            trainer: unused.
            pl_module: unused.
            checkpoint: the Trainer's.
        """
        if self._diagnose is not None and WATCHED in checkpoint:
            self._diagnose.load_state_dict(checkpoint[WATCHED])

    def _proximal_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self.is_held and not left_its_step_out(optimizer):
            self.penalty.proximal_step_(self._params, step_sizes(optimizer), self.ewc_lambda)

    def _warn_if_stiff(self, optimizer: torch.optim.Optimizer) -> None:
        found = stiffness(self.penalty, optimizer, self.ewc_lambda)
        if found > 2:
            cure = self.advice(f"{self.setting('step', 'proximal')}, a smaller learning rate or λ")
            rank_zero_warn(
                f"lr·λ·F_max is {found:.2g} at λ = {self.ewc_lambda:g}: an explicit step "
                f"diverges above 2; {cure}"
            )


def _task(module: nn.Module) -> str:
    return str(getattr(module, "current_task", "what was learnt"))


def given(**settings: Any) -> dict[str, Any]:
    """The settings that were given: those that are None keep their own default.

    Args:
        **settings: by name.

    Returns:
        Those that are not None.
    """
    return {name: value for name, value in settings.items() if value is not None}
