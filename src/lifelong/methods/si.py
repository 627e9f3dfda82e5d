"""Synaptic Intelligence (Zenke, Poole and Ganguli 2017)."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from lifelong.core import QuadraticPenalty, parameters_by_name
from lifelong.core.importance import DiagonalImportance
from lifelong.core.path_integral import PathIntegral
from lifelong.core.penalty.stored import Anchors
from lifelong.errors import LifelongError
from lifelong.learning.diagnose import gradient_scale
from lifelong.learning.guard import left_its_step_out
from lifelong.methods.base import device_of
from lifelong.methods.passless import PasslessMethod
from lifelong.methods.penalty_method import Step
from lifelong.methods.selection import Patterns

PATH = "lifelong: the path of this task"  # a key of the Trainer's checkpoints


class SI(PasslessMethod):
    r"""Holds the parameters whose moves made the loss fall: L(θ) + λ Ω(θ).

        Ω(θ) = ½ Σ_i F_i (θ_i − θ*_i)²,    F_i = 2 max(ω_i, 0) / (Δ_i² + ξ),    ω_i = −∫ g_i dθ_i

    with g the gradient of the task's loss alone, summed over every optimizer step of the task, and
    Δ_i how far the parameter came. No pass over the data: it costs a subtraction and two copies of
    the network's size in each step. What it knows of a task follows from the way it was learnt, not
    from the network: weights that somebody else has trained cannot be consolidated.

    Scale: with ξ = 0, on a quadratic that was gone down to its minimum, F is its curvature, so that
    λ = 1 is the task itself: the paper's c.

    Args:
        ewc_lambda: λ ≥ 0, the paper's c; 0 is fine-tuning, bit for bit.
        xi: ξ > 0, what Δ² is damped by, in squared units of the parameters.
        step: ``explicit``: λΩ is in the loss; ``proximal``: it acts after the optimizer's step.
        damping: d in F + d · mean(F): a price for the directions that F leaves free; none in the
            paper.
        decay: γ in [0, 1], what earlier tasks keep of their weight at each consolidation.
        anchors: ``last``: the sum of all F holds to the newest θ*, as in the paper; ``each``: every
            task to its own.
        consolidates: whether a task is consolidated as its fit ends.
        diagnostics: whether λ is watched: figures in the log, warnings at the end of a fit.
        anchor: a file that ``save`` wrote, read before the first step of a fit.
        modules: which parameters are protected; by default all.
        ignore: which are not.
        freeze_norm: whether batch norms keep the running statistics of what was consolidated.

    Raises:
        ValueError: when ξ is not above 0, or another argument does not fit.

    Source:
        Zenke, Poole and Ganguli 2017, "Continual learning through synaptic intelligence", eqs. 3
        to 5.

    Example:
        >>> SI(ewc_lambda=0.1).xi
        0.1
    """

    title: ClassVar[str] = "SI"
    state_follows_from_network = False

    def __init__(
        self,
        ewc_lambda: float,
        *,
        xi: float = 0.1,
        step: Step = "explicit",
        damping: float = 0.0,
        decay: float = 1.0,
        anchors: Anchors = "last",
        consolidates: bool = True,
        diagnostics: bool = True,
        anchor: str | Path | None = None,
        modules: Patterns = None,
        ignore: Patterns = None,
        freeze_norm: bool | None = None,
    ) -> None:
        if not 0.0 < xi < float("inf"):
            raise ValueError(f"xi is {xi}; it must be a finite number above 0")
        super().__init__(
            QuadraticPenalty(damping, anchors),
            ewc_lambda,
            step=step,
            decay=decay,
            consolidates=consolidates,
            diagnostics=diagnostics,
            anchor=anchor,
            modules=modules,
            ignore=ignore,
            freeze_norm=freeze_norm,
        )
        self.xi, self.anchors = float(xi), anchors
        self._path: PathIntegral | None = None
        self._parts = 0  # micro-batches whose gradients wait for the optimizer's step

    def importance_of(self, network: nn.Module) -> DiagonalImportance:
        """What the path of the fit that ends tells.

        Args:
            network: as learning the task left it.

        Returns:
            F by parameter name.

        Raises:
            LifelongError: outside a fit.
        """
        if self._path is None:
            raise LifelongError(
                "SI weighs parameters by the way they took while a task was learnt, which batches "
                "cannot tell; learn the task with SI among the Trainer's callbacks, or take MAS or "
                "EWC for a network that is trained already"
            )
        return self._path.importance(parameters_by_name(network), self.xi)

    def learnt(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Any, int]:
        """How much each parameter matters to the task whose fit ends; its path is over.

        Args:
            trainer: unused.
            pl_module: with the weights that the fit leaves.

        Returns:
            The importance, and 0 examples.
        """
        found = super().learnt(trainer, pl_module)
        self._path = None
        return found

    def objective(
        self, loss: Tensor, module: LightningModule, batch: Any, batch_idx: int
    ) -> Tensor:
        """L + λΩ of one batch.

        Args:
            loss: L, the task's own, with a graph.
            module: the one that learns.
            batch: what the loss is of.
            batch_idx: its place in the epoch.

        Returns:
            The objective.
        """
        self._parts += 1
        return super().objective(loss, module, batch, batch_idx)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the path, and count each optimizer's steps.

        Args:
            trainer: has the optimizers.
            pl_module: the module that is to learn.
        """
        super().on_train_start(trainer, pl_module)
        if not self.consolidates:
            return
        self._parts = 0
        if self._path is None:
            moving = {name: p for name, p in self._params.items() if p.requires_grad}
            self._path = PathIntegral(moving)
        self._path.to(device_of(pl_module))
        for optimizer in trainer.optimizers:
            # after the proximal step, whose move counts, too
            self._hooks.append(optimizer.register_step_post_hook(self._arrive))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note where a step begins, and the gradient of the task's loss there.

        Args:
            trainer: knows the scale of the gradients.
            pl_module: the module whose gradients are complete, and not clipped yet.
            optimizer: the one that is about to step.
        """
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self._path is None:
            return
        share = self._parts / trainer.accumulate_grad_batches
        self._parts = 0
        pulls: dict[str, Tensor] = {}
        if self.is_held and self.step == "explicit" and share > 0:
            # an epoch's last step may have fewer micro-batches, and less of the penalty
            _, pulls = self.penalty.value_and_gradient(self._params, self.ewc_lambda * share)
        scale = gradient_scale(trainer, optimizer)
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        gradients = {}
        for name, p in self._params.items():
            if p.grad is None or id(p) not in stepped:
                continue
            gradient = p.grad.detach()
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            gradient = gradient if scale == 1.0 else gradient / scale
            gradients[name] = gradient - pulls[name] if name in pulls else gradient
        self._path.leave(self._params, gradients)

    def detach(self) -> None:
        """Take away what was attached to the module; a second call does nothing."""
        super().detach()
        self._path = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep, with the middle of a fit, the path so far.

        Args:
            trainer: unused.
            pl_module: unused.
            checkpoint: the Trainer's.
        """
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._path is not None:
            checkpoint[PATH] = self._path.state()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with the path.

        Args:
            trainer: unused.
            pl_module: unused.
            checkpoint: the Trainer's.
        """
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if PATH in checkpoint:
            self._path = PathIntegral.of_state(checkpoint[PATH])

    def _arrive(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._path is None:
            return
        if left_its_step_out(optimizer):
            self._path.forget()
            return
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        names = [name for name, p in self._params.items() if id(p) in stepped]
        self._path.arrive(self._params, names)
