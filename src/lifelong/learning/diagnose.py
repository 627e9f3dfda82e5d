"""The callback that watches whether λ does what it is for."""

from typing import Any, TypeGuard

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lifelong.core import QuadraticPenalty
from lifelong.learning.learner import ContinualLearner
from lifelong.learning.progress import is_logging_step
from lifelong.learning.scaling import gradient_scale

INERT = 0.01  # of the loss's gradient: below it the penalty changes no step that one could see
FROZEN = 0.9  # of the first loss: a task whose loss stays above it was not learnt
PROTECTED = 0.9  # of the trace of F: the parameters that hold it are the protected ones
SAMPLE = 100_000  # parameters among which the bound between protected and free is looked for


class Diagnose(Callback):
    r"""Measures the penalty beside the loss, and warns of a λ that does nothing or too much.

    On the steps that log: ``diagnostics/gradient_ratio`` = ‖λ ∂Ω/∂θ‖ / ‖∂L/∂θ‖, L the task's loss.
    At the end of each epoch, for the diagonal penalty: ``diagnostics/drift_protected`` and
    ``diagnostics/drift_free``, the root mean square of θ − θ̄ over the parameters that hold 90 % of
    the trace of F, and over the others.

    Warnings, as training ends:

    - inert: the ratio never reached 1 %.
    - zero: Ω's gradient was exactly zero on every step that was looked at, although something was
      consolidated and the parameters moved.
    - frozen: the mean loss of the last epoch is still above 90 % of the first step's.

    It looks at copies: no bit of the training changes. For Kronecker factors there is no protected
    set of single parameters, and so no drift. It keeps its state over an interruption.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._largest = 0.0  # ratio
        self._looks = 0
        self._first: float | None = None
        self._total: Tensor | None = None
        self._count = 0
        self._logs = False
        self._bound: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training has to know.

        Returns:
            Plain numbers.
        """
        return {"largest": self._largest, "looks": self._looks, "first": self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Args:
            state_dict: plain numbers.
        """
        self._largest = float(state_dict["largest"])
        self._looks = int(state_dict["looks"])
        first = state_dict["first"]
        self._first = None if first is None else float(first)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the mean loss of an epoch.

        Args:
            trainer: unused.
            pl_module: unused.
        """
        self._total, self._count = None, 0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Note whether this step logs; afterwards the step's number is another.

        Args:
            trainer: knows the step.
            *_: unused.
        """
        self._logs = is_logging_step(trainer)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Compare the two gradients; that of the penalty is not added yet.

        Args:
            trainer: knows the step.
            pl_module: the learner.
            optimizer: about to step.
        """
        if not self._logs or not _is_held(pl_module):
            return
        grads = [p.grad for p in pl_module.network.parameters() if p.grad is not None]
        pull = _pull(pl_module)
        push = float(nn.utils.get_total_norm(grads)) / gradient_scale(trainer, optimizer)
        ratio = pull / push if push > 0 else 0.0
        self._looks += 1
        self._largest = max(self._largest, ratio)
        _log(trainer, pl_module, {"diagnostics/gradient_ratio": ratio})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Take the step's loss into the mean of the epoch.

        Args:
            trainer: unused.
            pl_module: the learner.
            outputs: holds the loss; on steps that log it has λΩ, which is left out.
            *_: unused.
        """
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is None or not _is_held(pl_module):
            return
        if self._first is None:
            self._first = float(loss)  # Ω is still zero
        elif not self._logs:
            kept = loss.detach()
            self._total = kept if self._total is None else self._total + kept
            self._count += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how far protected and free parameters have moved.

        Args:
            trainer: has the loggers.
            pl_module: the learner.
        """
        if not _is_held(pl_module) or not isinstance(pl_module.penalty, QuadraticPenalty):
            return
        if self._bound is None:
            self._bound = protecting_bound(pl_module.penalty)
        protected, free = drift(pl_module.penalty, pl_module.network, self._bound)
        figures = {"diagnostics/drift_protected": protected, "diagnostics/drift_free": free}
        _log(trainer, pl_module, figures)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of a λ that does nothing, or too much.

        Args:
            trainer: unused.
            pl_module: the learner.
        """
        if not _is_held(pl_module):
            return
        task = pl_module.current_task
        # At the first look the parameters have not moved yet.
        if self._looks > 1 and self._largest == 0.0 and pl_module.sequence_step:
            self.warnings.append(
                f"the penalty is exactly zero while {task} is learnt, although something was "
                "consolidated; look at its importances (fisher/share in the log)"
            )
        elif self._looks > 1 and self._largest < INERT:
            self.warnings.append(
                f"λ is inert while {task} is learnt: the penalty's gradient reached "
                f"{100 * self._largest:.2g} % of the loss's; a larger method.ewc_lambda keeps more"
            )
        last = float(self._total) / self._count if self._total is not None else None
        if self._first is not None and last is not None and last > FROZEN * self._first:
            self.warnings.append(
                f"λ freezes the network: the loss on {task} went from {self._first:.3g} to "
                f"{last:.3g} nats; a smaller method.ewc_lambda lets it learn"
            )


def protecting_bound(penalty: QuadraticPenalty) -> float:
    """The importance above which parameters are protected: they hold 90 % of the trace of F.

    Args:
        penalty: with something consolidated. Of more than 100,000 parameters every k-th is asked.

    Returns:
        The smallest importance among the protected.

    Example:
        >>> from lifelong.core import QuadraticPenalty
        >>> penalty = QuadraticPenalty()
        >>> penalty.fold({"w": torch.zeros(4)}, {"w": torch.tensor([8.0, 1.5, 0.3, 0.2])})
        >>> protecting_bound(penalty)
        1.5
    """
    every = torch.cat([f.flatten() for f in penalty.importances().values()])
    some = every[:: max(1, -(-every.numel() // SAMPLE))].double().sort(descending=True).values
    total = some.cumsum(0)
    place = int((total < PROTECTED * total[-1]).sum())
    return float(some[min(place, len(some) - 1)])


@torch.no_grad()
def drift(penalty: QuadraticPenalty, network: nn.Module, bound: float) -> tuple[float, float]:
    """The root mean square of θ − θ̄ over the protected parameters, and over the others.

    Args:
        penalty: has F and θ̄.
        network: has θ.
        bound: the smallest importance among the protected.

    Returns:
        Both, in the parameters' own unit; 0 for a set that is empty.
    """
    params, anchors = dict(network.named_parameters()), penalty.anchors()
    sums, counts = [0.0, 0.0], [0, 0]
    for name, f in penalty.importances().items():
        gap = (params[name] - anchors[name]).square_()
        mask = f >= bound
        inside, whole = float(torch.where(mask, gap, 0.0).sum()), float(gap.sum())
        held = int(mask.sum())
        for i, (part, count) in enumerate(((inside, held), (whole - inside, f.numel() - held))):
            sums[i] += max(part, 0.0)
            counts[i] += count
    protected, free = (
        (part / count) ** 0.5 if count else 0.0 for part, count in zip(sums, counts, strict=True)
    )
    return protected, free


def _is_held(module: LightningModule) -> TypeGuard[ContinualLearner]:
    return (
        isinstance(module, ContinualLearner)
        and module.ewc_lambda > 0
        and not module.penalty.is_empty
    )


def _pull(learner: ContinualLearner) -> float:
    # Copies in name alone: they share the memory, and have a gradient of their own.
    named = learner.network.named_parameters()
    ghosts = {name: nn.Parameter(p.detach(), p.requires_grad) for name, p in named}
    learner.penalty.add_gradient_(ghosts, learner.ewc_lambda)
    return float(nn.utils.get_total_norm([g.grad for g in ghosts.values() if g.grad is not None]))


def _log(trainer: Trainer, learner: ContinualLearner, figures: dict[str, float]) -> None:
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=learner.sequence_step)
