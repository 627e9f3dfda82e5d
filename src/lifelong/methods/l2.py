"""L2: every parameter matters alike."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from lifelong.core import QuadraticPenalty, parameters_by_name
from lifelong.core.importance import DiagonalImportance
from lifelong.core.penalty.stored import Anchors
from lifelong.methods.passless import PasslessMethod
from lifelong.methods.penalty_method import Step
from lifelong.methods.selection import Patterns


class L2(PasslessMethod):
    r"""Holds every parameter alike to what it was: L(θ) + λ ½ Σ_i (θ_i − θ*_i)².

    What EWC is to be compared with: the same penalty without a Fisher information.

    Scale: the importance of each entry is 1 for every task, so that T tasks pull T times as hard.
    λ is in nats over squared units of the parameters: it compares with no λ of EWC.

    Args:
        ewc_lambda: λ ≥ 0; 0 is fine-tuning, bit for bit.
        step: ``explicit``: λΩ is in the loss; ``proximal``: it acts after the optimizer's step.
        decay: γ in [0, 1], what earlier tasks keep of their weight at each consolidation.
        anchors: ``last``: all importance holds to the newest θ*; ``each``: every task to its own.
        consolidates: whether a task is consolidated as its fit ends.
        diagnostics: whether λ is watched: figures in the log, warnings at the end of a fit.
        anchor: a file that ``save`` wrote, read before the first step of a fit.
        modules: which parameters are protected; by default all.
        ignore: which are not.
        include_frozen: whether parameters that are frozen while a task is consolidated are
            protected, too.
        freeze_norm: whether batch norms keep the running statistics of what was consolidated.

    Source:
        Kirkpatrick et al. 2017, figure 2 ("L2"): the constraint applied equally to all parameters.

    Example:
        >>> method = L2(ewc_lambda=1.0)
        >>> network = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(network.weight)
        >>> method.consolidate(network, [])
        >>> float(method.penalty.value({"weight": network.weight + 2.0}))  # ½ · 1 · 2²
        2.0
    """

    title: ClassVar[str] = "L2"

    def __init__(
        self,
        ewc_lambda: float,
        *,
        step: Step = "explicit",
        decay: float = 1.0,
        anchors: Anchors = "last",
        consolidates: bool = True,
        diagnostics: bool = True,
        anchor: str | Path | None = None,
        modules: Patterns = None,
        ignore: Patterns = None,
        include_frozen: bool = False,
        freeze_norm: bool | None = None,
    ) -> None:
        super().__init__(
            QuadraticPenalty(anchors=anchors),
            ewc_lambda,
            step=step,
            decay=decay,
            consolidates=consolidates,
            diagnostics=diagnostics,
            anchor=anchor,
            modules=modules,
            ignore=ignore,
            include_frozen=include_frozen,
            freeze_norm=freeze_norm,
        )
        self.anchors = anchors

    def importance_of(self, network: nn.Module) -> DiagonalImportance:
        """One for every entry.

        Args:
            network: whose parameters they are.

        Returns:
            Parameter name → ones.
        """
        return DiagonalImportance(
            {
                name: torch.ones_like(p, requires_grad=False)
                for name, p in parameters_by_name(network).items()
                if p.requires_grad or self.include_frozen
            }
        )
