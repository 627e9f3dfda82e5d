"""Giving the loss of anybody's ``training_step`` to a method, for the length of a fit."""

import functools
from collections.abc import Mapping
from typing import Any

from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lifelong.learning import ContinualLearner
from lifelong.learning.objective import Objective
from lifelong.learning.quiet import task_step


class AttachedStep:
    """A module whose ``training_step`` returns a method's objective instead of the task's loss.

    What the step returns may be a loss, a mapping with ``"loss"``, or nothing, which leaves the
    batch out. A ``ContinualLearner`` calls its method by itself and is left as it is.

    Args:
        module: the one that learns.
        method: makes the objective.

    Raises:
        ValueError: when the module is a ``ContinualLearner`` with another method.
    """

    def __init__(self, module: LightningModule, method: Objective) -> None:
        self._module: LightningModule | None = None
        self._method = method
        self._is_in_step = self._goes_backward = self._is_told = False
        if isinstance(module, ContinualLearner):
            if module.method is not method:
                raise ValueError(
                    f"the learner's method is {type(module.method).__name__}; give the Trainer "
                    f"that one instead of another {type(method).__name__}"
                )
            return
        own, beneath = module.training_step, task_step(module)
        # A compiled module has its step as an attribute of its own already.
        self._module, self._before = module, module.__dict__.get("training_step")

        @functools.wraps(own)
        def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            self._is_in_step = True
            try:
                outputs = own(batch, *args, **kwargs)
            finally:
                self._is_in_step = False
            index = kwargs.get("batch_idx", args[0] if args else 0)
            return _with_objective(
                outputs, lambda loss: method.objective(loss, module, batch, index)
            )

        training_step.task_step = own  # type: ignore[attr-defined]  # the task's, beneath this one
        # Lightning looks once beneath a wrapper for what a step takes.
        training_step.__wrapped__ = beneath
        module.training_step = training_step  # type: ignore[method-assign]

    def takes_over(self, name: str) -> bool:
        """Whether a step is running to whose loss the method's term is added by itself.

        A step that adds it, too, is told so once.

        Args:
            name: of the method.

        Returns:
            True where the term would count twice.
        """
        module = self._module
        if module is None or not self._is_in_step:
            return False
        if not (module.automatic_optimization or self._goes_backward):
            return False
        if not self._is_told:
            self._is_told = True
            rank_zero_warn(
                f"training_step adds the term of {name}, which as a callback of the Trainer adds "
                "λΩ to that loss, too: it counts once; take one of the two out"
            )
        return True

    def go_through_backward(self) -> None:
        """Let the module's own ``manual_backward`` go backward from the objective.

        For a module that optimizes by itself and goes backward once for each batch.
        """
        module = self._module
        if module is None:
            return
        own, method = module.manual_backward, self._method
        self._goes_backward = True

        @functools.wraps(own)
        def manual_backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            own(method.objective(loss, module, None, 0), *args, **kwargs)

        module.manual_backward = manual_backward  # type: ignore[method-assign]

    def detach(self) -> None:
        """Give the module its own step back; a second call does nothing."""
        if self._module is None:
            return
        if self._before is None:
            del self._module.__dict__["training_step"]
        else:
            self._module.training_step = self._before  # type: ignore[method-assign]
        self._module.__dict__.pop("manual_backward", None)
        self._module = None


def _with_objective(outputs: Any, objective: Any) -> Any:
    if isinstance(outputs, Tensor):
        return objective(outputs)
    if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), Tensor):
        return {**outputs, "loss": objective(outputs["loss"])}
    return outputs
