"""Watching whether λ does what it is for."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from lifelong.core.penalty.sharded import entire, is_sharded
from lifelong.core.protocols import Penalty
from lifelong.learning.objective import step_of, write_figures
from lifelong.learning.progress import is_logging_step

INERT = 0.01  # of the loss's gradient: below it the penalty changes no step that one could see
PULLING = 0.5  # of the loss's gradient: below it another cause keeps the loss where it is
FROZEN = 0.9  # of the first loss: a task whose loss stays above it was not learnt
PROTECTED = 0.9  # of the trace of F: the parameters that hold it are the protected ones
SAMPLE = 100_000  # parameters among which the bound between protected and free is looked for


class Held(Protocol):
    """What is watched: a penalty with its strength."""

    penalty: Penalty
    ewc_lambda: float
    step: Any

    def called(self, name: str) -> str:
        """What a setting is called where it is typed.

        Args:
            name: of the argument.

        Returns:
            In the words of whoever reads it.
        """
        ...


class Diagnose:
    r"""Measures the penalty beside the loss, and warns of a λ that does nothing or too much.

    On the steps that log: ``diagnostics/gradient_ratio`` = ‖λ ∂Ω/∂θ‖ / ‖∂L/∂θ‖, L the task's loss.
    At the end of each epoch, for penalties with an importance of each parameter:
    ``diagnostics/drift_protected`` and ``diagnostics/drift_free``, the root mean square of θ − θ̄
    over the parameters that hold 90 % of the trace of F, and over the others.

    Warnings, as training ends:

    - inert: the ratio never reached 1 %.
    - zero: Ω's gradient was exactly zero on every step that was looked at, although something was
      consolidated and the parameters moved.
    - frozen: the mean loss of the last epoch is still above 90 % of the first step's.

    It looks at copies: no bit of the training changes. For Kronecker factors there is no protected
    set of single parameters, and so no drift. It keeps its state over an interruption.

    Args:
        method: what is watched.
    """

    def __init__(self, method: Held) -> None:
        self._method = method
        self.begin()

    def begin(self) -> None:
        """Begin to watch a fit."""
        self._largest = 0.0  # ratio
        self._looks = 0
        self._first: float | None = None
        self._total: Tensor | None = None
        self._count = 0
        self._bound: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training has to know.

        Returns:
            Plain numbers.
        """
        return {"largest": self._largest, "looks": self._looks, "first": self._first}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Args:
            state_dict: plain numbers.
        """
        self.begin()
        self._largest = float(state_dict["largest"])
        self._looks = int(state_dict["looks"])
        first = state_dict["first"]
        self._first = None if first is None else float(first)

    def begin_epoch(self) -> None:
        """Begin the mean loss of an epoch."""
        self._total, self._count = None, 0

    def take(self, loss: Tensor) -> None:
        """Take a step's loss into the mean of the epoch.

        Args:
            loss: the task's own, λΩ left out.
        """
        if self._first is None:
            self._first = float(loss.detach())
            return
        kept = loss.detach()
        self._total = kept if self._total is None else self._total + kept
        self._count += 1

    def compare(
        self,
        trainer: Trainer,
        module: LightningModule,
        params: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Compare the two gradients, on the steps that log.

        Args:
            trainer: knows the step.
            module: the one that learns.
            params: θ by name, their gradients complete.
            optimizer: about to step.
        """
        if not is_logging_step(trainer):
            return
        scale = gradient_scale(trainer, optimizer)
        pull, push = _norms(self._method, params, scale)
        ratio = pull / push if push > 0 else 0.0
        self._looks += 1
        self._largest = max(self._largest, ratio)
        _log(trainer, module, {"diagnostics/gradient_ratio": ratio})

    def end_epoch(self, module: LightningModule, params: Mapping[str, nn.Parameter]) -> None:
        """Log how far protected and free parameters have moved.

        Not where parameters are spread over processes, none of which has all to compare.

        Args:
            module: the one that learns.
            params: θ by name.
        """
        trainer, penalty = module.trainer, self._method.penalty
        if not penalty.single_importances() or any(map(is_sharded, params.values())):
            return
        if self._bound is None:
            self._bound = protecting_bound(penalty)
        protected, free = drift(penalty, params, self._bound)
        figures = {"diagnostics/drift_protected": protected, "diagnostics/drift_free": free}
        _log(trainer, module, figures)

    def warnings_of(self, module: LightningModule) -> list[str]:
        """What is odd about λ, as a fit ends.

        Args:
            module: the one that learnt.

        Returns:
            A line each.
        """
        task = getattr(module, "current_task", "the new task")
        name = self._method.called("ewc_lambda")
        found = []
        # At the first look the parameters have not moved yet.
        if self._looks > 1 and self._largest == 0.0:
            found.append(
                f"the penalty is exactly zero while {task} is learnt, although something was "
                "consolidated; look at its importances (fisher/share in the log)"
            )
        elif self._looks > 1 and self._largest < INERT:
            found.append(
                f"λ is inert while {task} is learnt: the penalty's gradient reached "
                f"{100 * self._largest:.2g} % of the loss's; a larger {name} keeps more"
            )
        last = float(self._total) / self._count if self._total is not None else None
        stuck = self._first is not None and last is not None and last > FROZEN * self._first
        if stuck and self._largest > PULLING:
            found.append(
                f"λ freezes the network: the loss on {task} went from {self._first:.3g} to "
                f"{last:.3g} nats; a smaller {name} lets it learn"
            )
        return found


def protecting_bound(penalty: Penalty) -> float:
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
    importances, seen, asked = penalty.single_importances(), 0, []
    stride = max(1, -(-sum(a.numel() for a in penalty.single_anchors().values()) // SAMPLE))
    for f in importances.values():
        asked.append(f.flatten()[-seen % stride :: stride])
        seen += f.numel()
    some = torch.cat(asked).double().sort(descending=True).values
    total = some.cumsum(0)
    place = int((total < PROTECTED * total[-1]).sum())
    return float(some[min(place, len(some) - 1)])


@torch.no_grad()
def drift(penalty: Penalty, params: Mapping[str, Tensor], bound: float) -> tuple[float, float]:
    """The root mean square of θ − θ̄ over the protected parameters, and over the others.

    Args:
        penalty: has F and θ̄.
        params: θ by name.
        bound: the smallest importance among the protected.

    Returns:
        Both, in the parameters' own unit; 0 for a set that is empty.
    """
    anchors = penalty.single_anchors()
    sums, counts = [0.0, 0.0], [0, 0]
    for name, f in penalty.single_importances().items():
        theta = params[name]
        gap = (theta - anchors[name].to(theta.device)).square_()
        mask = f.to(theta.device) >= bound
        inside, whole = float(torch.where(mask, gap, 0.0).sum()), float(gap.sum())
        held = int(mask.sum())
        for i, (part, count) in enumerate(((inside, held), (whole - inside, f.numel() - held))):
            sums[i] += max(part, 0.0)
            counts[i] += count
    protected, free = (
        (part / count) ** 0.5 if count else 0.0 for part, count in zip(sums, counts, strict=True)
    )
    return protected, free


def _norms(method: Held, params: Mapping[str, nn.Parameter], scale: float) -> tuple[float, float]:
    # of the penalty's gradient, and of the rest of the gradients
    penalty, explicit = method.penalty, method.step == "explicit"
    pull_of = penalty.pull_of(params, method.ewc_lambda)
    if pull_of is None:
        pulls = penalty.value_and_gradient(params, method.ewc_lambda)[1]
        pull_of, held = pulls.pop, set(pulls)
    else:
        held = {name for name in penalty.held(params) if params[name].requires_grad}
    pulled, pushed = [], []
    for name, p in params.items():
        own = pull_of(name) if name in held else None
        if own is not None:
            pulled.append(own.norm())
        if p.grad is None:
            continue
        grad = p.grad.detach()
        grad = grad if scale == 1.0 else grad / scale
        # The pull has been looked at; its memory takes the rest of the gradient. An explicit
        # penalty is a part of that, a proximal one is not.
        if explicit and own is not None:
            grad = torch.sub(grad, own, out=own)
        pushed.append(grad.norm())
    return _norm(pulled), _norm(pushed)


def _norm(norms: list[Tensor]) -> float:
    whole = [entire(x) for x in norms]
    return float(torch.stack(whole).norm()) if whole else 0.0


def gradient_scale(trainer: Trainer, optimizer: torch.optim.Optimizer) -> float:
    """What the gradients that an optimizer is about to take are too large by.

    Args:
        trainer: has the scaler.
        optimizer: about to step.

    Returns:
        1 but for a fused optimizer under ``16-mixed``.
    """
    # In 16-mixed a fused optimizer unscales in its own step, after gradients are looked at.
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())


def _log(trainer: Trainer, module: LightningModule, figures: dict[str, float]) -> None:
    if trainer.is_global_zero:
        write_figures(trainer.loggers, figures, step_of(module))
