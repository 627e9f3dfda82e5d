"""Averaged Gradient Episodic Memory (Chaudhry et al. 2019)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, distributed, nn

from lifelong.core.fisher.traceless import traceless
from lifelong.learning.outputs import StepOutputs
from lifelong.methods.refusals import refuse_manual
from lifelong.methods.rehearsal import RehearsalMethod


class AGEM(RehearsalMethod):
    r"""Takes no step along which the loss on kept examples would rise.

        g ← g − (gᵀr / rᵀr) r   where gᵀr < 0,   r the gradient of the loss on kept examples

    g is the whole gradient that the optimizer is about to take, of all micro-batches and processes;
    r is that of ``minibatch_size`` examples drawn for this step, in eval mode and full precision.
    Where gᵀr ≥ 0 nothing is touched. To first order no step makes that loss larger.

    Args:
        buffer_size: how many examples are kept at most; 0 is fine-tuning, bit for bit.
        minibatch_size: how many of them r is of, by all processes together.
        fill: ``reservoir`` or ``balanced`` (as in the paper: as many of each class of each task).
        seed: of what is kept and drawn.
        batches: what to keep examples of; by default the training data of the fit that ends.
        consolidates: whether examples are kept as a fit ends.

    Source:
        Chaudhry et al. 2019, "Efficient lifelong learning with A-GEM", eqs. 10 and 11.

    Example:
        >>> AGEM(minibatch_size=256).minibatch_size
        256
    """

    title: ClassVar[str] = "A-GEM"

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._outputs: StepOutputs | None = None
        self._batch: Any = None  # what a batch of this fit looks like

    def objective(
        self, loss: Tensor, module: LightningModule, batch: Any, batch_idx: int
    ) -> Tensor:
        """The loss itself.

        Args:
            loss: the task's own, with a graph.
            module: the one that learns.
            batch: what the loss is of.
            batch_idx: its place in the epoch.

        Returns:
            The very same tensor.
        """
        self._batch = batch
        return super().objective(loss, module, batch, batch_idx)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a module that goes backward by itself.

        Args:
            trainer: about to train.
            pl_module: the module that is to learn.
        """
        name = type(self).__name__
        refuse_manual(pl_module, name)
        super().on_fit_start(trainer, pl_module)
        self._outputs = StepOutputs(pl_module, name, watches=False)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Project the gradient, where it would make the loss on kept examples rise.

        Args:
            trainer: knows the step and the processes.
            pl_module: the module whose gradients are complete, and not clipped yet.
            optimizer: the one that is about to step.
        """
        places = self.drawn(trainer, 0)
        if self._outputs is None or not len(places):
            return
        every = [p for group in optimizer.param_groups for p in group["params"]]
        params = [p for p in every if p.grad is not None]
        with traceless(pl_module):
            loss = self._outputs.loss_of(self.buffer.like(self._batch, places))
            reference = _gradient(loss, params)
        if trainer.world_size > 1:
            # none of DDP's own: no backward pass has gone through its hooks
            distributed.all_reduce(reference)
            reference /= trainer.world_size
        project_(params, reference)

    def detach(self) -> None:
        """Take away what was attached to the module; a second call does nothing."""
        super().detach()
        self._outputs, self._batch = None, None


@torch.no_grad()
def project_(params: Sequence[nn.Parameter], reference: Tensor) -> bool:
    """Make the gradients of parameters have no negative inner product with another gradient.

    A common factor of the gradients (the scale of 16-bit precision) comes out as it went in.

    Args:
        params: with their ``.grad`` g.
        reference: r, laid out flat in their order.

    Returns:
        Whether gᵀr was negative; else nothing was changed.

    Source:
        Chaudhry et al. 2019, eq. 11.

    Example:
        >>> theta = nn.Parameter(torch.zeros(2))
        >>> theta.grad = torch.tensor([1.0, -1.0])
        >>> project_([theta], torch.tensor([0.0, 2.0])), theta.grad
        (True, tensor([1., 0.]))
    """
    gradient = _flat([p.grad for p in params if p.grad is not None])
    inner = torch.dot(gradient, reference)
    if not bool(inner < 0):
        return False
    gradient -= inner / torch.dot(reference, reference) * reference
    for p, part in zip(params, gradient.split([p.numel() for p in params]), strict=True):
        assert p.grad is not None
        if p.grad.is_sparse:
            p.grad = part.reshape(p.shape).to(p.grad.dtype)
        else:
            p.grad.copy_(part.view_as(p.grad))  # in place: DDP's is a view of its buckets
    return True


def _gradient(loss: Tensor, params: Sequence[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(loss, list(params), allow_unused=True, materialize_grads=True)
    return _flat(found)


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    dense = [g.to_dense() if g.is_sparse else g for g in gradients]
    return torch.cat([g.detach().reshape(-1).to(_wide(g)) for g in dense])


def _wide(gradient: Tensor) -> torch.dtype:
    return torch.promote_types(gradient.dtype, torch.float32)
