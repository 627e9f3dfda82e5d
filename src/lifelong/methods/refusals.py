"""What a method cannot work with, refused before the first step."""

from collections.abc import Iterable, Mapping

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from lifelong.errors import LifelongError


def refuse_manual(module: LightningModule, name: str) -> None:
    """Refuse a module that goes backward by itself.

    Args:
        module: the one that is to learn.
        name: of the method.

    Raises:
        LifelongError: when it optimizes by itself.
    """
    if not module.automatic_optimization:
        raise LifelongError(
            f"{type(module).__name__} optimizes by itself (automatic_optimization = False), and "
            f"{name} adds to the loss that training_step returns; return the loss, or take EWC"
        )


def refuse_parts_of_networks(trainer: Trainer, name: str) -> None:
    """Refuse several processes that do not have the whole network each.

    Args:
        trainer: about to train.
        name: of the method.

    Raises:
        LifelongError: when the strategy is no DDP.
    """
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        raise LifelongError(
            f"the strategy is {type(trainer.strategy).__name__}; over several processes {name} "
            "needs the whole network in each of them: type trainer=ddp, or Trainer(strategy='ddp')"
        )


def refuse_sparse_only(
    optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor], held: Iterable[str]
) -> None:
    """Refuse, before a step, a SparseAdam for what is held: λΩ pulls every row.

    Args:
        optimizer: that is to step.
        params: parameter name → θ.
        held: the names of what is held.

    Raises:
        LifelongError: when the optimizer has one of them.
    """
    if not isinstance(optimizer, torch.optim.SparseAdam):
        return
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name in held:
        if name in params and id(params[name]) in own:
            raise LifelongError(
                f"{name!r} is held and has a SparseAdam, which takes sparse gradients alone, and "
                "λΩ pulls every row; take SGD (with sparse=True) or Adam for it, or let go of it "
                f"with ignore={name!r}"
            )
