"""Kronecker-factored EWC (Ritter, Botev and Barber 2018): correlations within a layer count too."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from lifelong.core import KroneckerPenalty, kronecker_factors
from lifelong.core.protocols import Importance
from lifelong.learning.progress import Progress
from lifelong.methods.ewc import Labels
from lifelong.methods.penalty_method import PenaltyMethod, Step, given
from lifelong.methods.selection import Patterns


class KroneckerEWC(PenaltyMethod):
    r"""EWC with Ω(θ) = Σ ½ tr(Δᵀ G Δ A), layer by layer; a diagonal for the other parameters.

    Args:
        ewc_lambda: λ ≥ 0; 0 is fine-tuning, bit for bit.
        step: ``explicit``: λΩ is in the loss; ``proximal``: it acts after the optimizer's step.
        labels: ``exact``, ``sampled`` or ``empirical``.
        samples: the number of examples that the factors are means over; by default all.
        threshold: the share of the trace of G that exact labels may leave out.
        damping: d in A ⊗ G + d · mean(diagonal).
        merge: ``sum``: every task's factors, exact; ``nearest``: one pair for all tasks.
        precision: of the products in the gradient; ``bfloat16`` takes half the time.
        decay: γ in [0, 1], what earlier tasks keep of their weight at each consolidation.
        batches: what to estimate on; by default the training loader of the fit that ends.
        consolidates: whether a task is consolidated as its fit ends.
        diagnostics: whether λ is watched.
        anchor: a file that ``save`` wrote, read before the first step of a fit.
        modules: which parameters are protected: names with ``*``, of parameters or of modules; by
            default all.
        ignore: which are not: a head that was replaced.
        include_frozen: whether parameters that are frozen while a task is consolidated are
            protected, too, for the day when they are trained.
        freeze_norm: whether batch norms keep, once something is consolidated, the running
            statistics that they have then; by default they do. No λ holds what is no parameter.

    Raises:
        ValueError: when an argument does not fit.

    Source:
        Ritter, Botev and Barber 2018, "Online structured Laplace approximations for overcoming
        catastrophic forgetting".

    Example:
        >>> KroneckerEWC(ewc_lambda=100).penalty.is_empty
        True
    """

    title: ClassVar[str] = "Kronecker EWC"

    def __init__(
        self,
        ewc_lambda: float,
        *,
        step: Step = "explicit",
        labels: Labels = "exact",
        samples: int | None = None,
        threshold: float | None = None,
        damping: float = 0.0,
        merge: Literal["sum", "nearest"] = "sum",
        precision: Literal["float32", "bfloat16"] = "bfloat16",
        decay: float = 1.0,
        batches: Iterable[Any] | None = None,
        consolidates: bool = True,
        diagnostics: bool = True,
        anchor: str | Path | None = None,
        modules: Patterns = None,
        ignore: Patterns = None,
        include_frozen: bool = False,
        freeze_norm: bool | None = None,
    ) -> None:
        super().__init__(
            KroneckerPenalty(damping, merge, precision),
            ewc_lambda,
            step=step,
            decay=decay,
            batches=batches,
            consolidates=consolidates,
            diagnostics=diagnostics,
            anchor=anchor,
            modules=modules,
            ignore=ignore,
            include_frozen=include_frozen,
            freeze_norm=freeze_norm,
        )
        self.labels: Labels = labels
        self.samples = samples
        self.threshold = threshold

    def estimate(
        self, network: nn.Module, batches: Iterable[Any], *, progress: Progress | None = None
    ) -> Importance:
        """The Kronecker factors of the Fisher information.

        Args:
            network: as learning the task left it.
            batches: of the task's training data.
            progress: shown how far the pass is.

        Returns:
            A and G of each layer, means over examples.
        """
        settings = given(
            samples=self.samples, threshold=self.threshold, include_frozen=self.include_frozen
        )
        return kronecker_factors(
            network, batches, labels=self.labels, progress=progress, **settings
        )
