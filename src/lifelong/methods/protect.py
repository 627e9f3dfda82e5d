"""Protecting what a network knows in any loop: plain, Fabric, Accelerate, Hugging Face."""

from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from lifelong.core import step_sizes
from lifelong.core.penalty.term import PenaltyTerm
from lifelong.errors import LifelongError
from lifelong.learning.guard import left_its_step_out
from lifelong.methods.anchor import read_anchor
from lifelong.methods.base import checked_lambda, device_of, network_of
from lifelong.methods.budget import EVERY
from lifelong.methods.ewc import EWC
from lifelong.methods.holding import Holding
from lifelong.methods.kronecker_ewc import KroneckerEWC
from lifelong.methods.l2 import L2
from lifelong.methods.mas import MAS
from lifelong.methods.norms import FrozenNorms
from lifelong.methods.online_ewc import OnlineEWC
from lifelong.methods.refusals import refuse_sparse_only
from lifelong.methods.si import SI
from lifelong.methods.stiffness import stiffest

KINDS: dict[str, type[Holding]] = {
    kind.__name__: kind for kind in (EWC, OnlineEWC, KroneckerEWC, L2, MAS, SI)
}


def protect(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    anchor: str | Path | Holding,
    ewc_lambda: float | None = None,
    *,
    step: Literal["explicit", "proximal"] = "explicit",
    **settings: Any,
) -> "Guard":
    """Hold a network to what it knows, in a loop of one's own.

        guard = lifelong.protect(network, optimizer, "old.safetensors", ewc_lambda=1e3)
        for x, y in batches:
            loss = cross_entropy(network(x), y) + guard.term()
            loss.backward()
            optimizer.step()

    With ``step="proximal"`` λΩ acts after each of the optimizer's steps by itself, stable for every
    λ, and the loss stays as it is.

    Args:
        network: the one that learns, wrapped or bare, with the weights that were consolidated.
        optimizer: steps its parameters.
        anchor: a file that ``EWC.save`` wrote, or an ``EWC`` that has consolidated.
        ewc_lambda: λ ≥ 0; by default that of the anchor. With a budget (``at_most=`` and
            ``watch=old_inputs`` among the settings) where λ begins.
        step: how λΩ reaches the parameters.
        **settings: of a file's method, ``ignore="head.*"`` for one; ``reference=FILE`` where the
            file refers to a public one.

    Returns:
        The guard; ``remove()`` lets the network go.

    Raises:
        LifelongError: when the file or the network does not fit, or nothing was consolidated.
        ValueError: when ``step`` is none of these.
    """
    if isinstance(anchor, Holding):
        if settings:
            raise ValueError(
                f"{', '.join(settings)} came along with an {type(anchor).__name__}, which has "
                "settings of its own; give them to it"
            )
        method = anchor
    else:
        name = read_anchor(Path(anchor), settings.get("reference")).method
        if name not in KINDS:
            raise LifelongError(
                f"{anchor} was saved by {name}, which is not of this package; load it with "
                f"{name}.load(FILE) and pass that"
            )
        method = KINDS[name].load(anchor, ewc_lambda, **settings)
    return Guard(network, optimizer, method, ewc_lambda, step=step)


class Guard:
    """What holds a network in a loop of one's own; see ``protect``.

    Args:
        network: wrapped or bare.
        optimizer: steps its parameters.
        method: holds what was consolidated.
        ewc_lambda: λ; by default the method's.
        step: ``explicit`` or ``proximal``.

    Raises:
        LifelongError: when the network does not fit, or nothing was consolidated.
        ValueError: when ``step`` is none of these.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: Holding,
        ewc_lambda: float | None = None,
        *,
        step: Literal["explicit", "proximal"] = "explicit",
    ) -> None:
        if step not in {"explicit", "proximal"}:
            raise ValueError(f"step is {step!r}; it must be explicit or proximal")
        self.ewc_lambda = checked_lambda(method.ewc_lambda if ewc_lambda is None else ewc_lambda)
        bare = network_of(network)
        self.step, self.penalty = step, method.penalty
        self._device = device_of(bare)
        self._params = method.hold(bare)
        if method.penalty.is_empty:
            raise LifelongError(
                f"the {type(method).__name__} holds nothing, so nothing would be protected; call "
                "its consolidate(network, batches) while the old data are there"
            )
        self._term = PenaltyTerm(method.penalty, self._params)
        # Wrappers step the optimizer that they have inside.
        inner = getattr(optimizer, "optimizer", optimizer)
        if self.ewc_lambda > 0:
            refuse_sparse_only(inner, self._params, method.penalty.held(self._params))
        self._hooks: list[Any] = []
        self._norms = None
        if self.ewc_lambda > 0 and method.freeze_norm:
            self._norms = FrozenNorms(bare)
        self._method, self._bare, self._steps = method, bare, 0
        if method.budget is not None:
            self._begin_budget(inner)
        if step == "proximal":
            self._hooks.append(inner.register_step_post_hook(self._proximal_step))

    def term(self, loss: Tensor | None = None) -> Tensor:
        """λΩ at the network's present weights; with the proximal step nothing.

        Args:
            loss: the task's own, to be added to; None for λΩ alone.

        Returns:
            L + λΩ, or λΩ, a scalar with a gradient.
        """
        loss = torch.zeros((), device=self._device) if loss is None else loss
        return loss if self.step == "proximal" else self._term(loss, self.ewc_lambda)

    @property
    def omega(self) -> float:
        """Ω at the present weights, in nats, without λ."""
        return float(self.penalty.value(self._params))

    def remove(self) -> None:
        """Let the network go; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._norms is not None:
            self._norms.restore()
            self._norms = None
        self.step, self.ewc_lambda = "explicit", 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _begin_budget(self, optimizer: torch.optim.Optimizer) -> None:
        self._method.ewc_lambda = self.ewc_lambda
        explicit = self.step == "explicit" and isinstance(optimizer, torch.optim.SGD)
        self._method.bound_lambda(stiffest(self.penalty, optimizer) if explicit else None)
        self.ewc_lambda = self._method.ewc_lambda
        # before the proximal step of the same optimizer step
        self._hooks.append(optimizer.register_step_post_hook(self._follow_budget))

    def _follow_budget(self, *_: Any) -> None:
        self._steps += 1
        if self._steps % EVERY == 0:
            self._method.follow_budget(self._bare)
            self.ewc_lambda = self._method.ewc_lambda

    def _proximal_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self.ewc_lambda > 0 and not left_its_step_out(optimizer):
            self.penalty.proximal_step_(self._params, step_sizes(optimizer), self.ewc_lambda)
