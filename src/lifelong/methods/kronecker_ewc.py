"""Kronecker-factored EWC (Ritter, Botev and Barber 2018): correlations within a layer count too."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from lifelong.core import KroneckerPenalty, kronecker_factors
from lifelong.core.fisher.evaluation import AnyLikelihood, Forward
from lifelong.methods.budget import Unit
from lifelong.methods.estimating import EstimatingMethod, Labels
from lifelong.methods.penalty_method import Step
from lifelong.methods.selection import Patterns


class KroneckerEWC(EstimatingMethod):
    r"""EWC with Ω(θ) = Σ ½ tr(Δᵀ G Δ A), layer by layer; a diagonal for the other parameters.

    Args:
        ewc_lambda: λ ≥ 0; 0 is fine-tuning, bit for bit.
        step: ``explicit``: λΩ is in the loss; ``proximal``: it acts after the optimizer's step.
        labels: ``exact``, ``sampled`` or ``empirical``; by default exact, or sampled where that
            takes more than 50 backward passes an example.
        samples: the number of examples that the factors are means over; by default all.
        threshold: the share of the trace of G that exact labels may leave out.
        damping: d in A ⊗ G + d · mean(diagonal).
        merge: ``sum``: every task's factors, exact; ``nearest``: one pair for all tasks.
        precision: of the products in the gradient; ``bfloat16`` takes half the time.
        decay: γ in [0, 1], what earlier tasks keep of their weight at each consolidation.
        batches: what to estimate on; by default the training loader of the fit that ends.
        likelihood: what the output says about the labels; by default the training step says it.
        forward: of (module, batch): output and target; by default what the step gives to its loss.
        consolidates: whether a task is consolidated as its fit ends.
        diagnostics: whether λ is watched.
        anchor: a file that ``save`` wrote, read before the first step of a fit.
        reference: the public file that ``anchor`` was saved with, where it was.
        storage: ``float32``: factors are kept as they are; the keyword of ``EWC`` for less.
        device: None: factors are where the network is; the keyword of ``EWC`` for elsewhere.
        modules: which parameters are protected: names with ``*``, of parameters or of modules; by
            default all.
        ignore: which are not: a head that was replaced.
        include_frozen: whether parameters that are frozen while a task is consolidated are
            protected, too, for the day when they are trained.
        freeze_norm: whether batch norms keep, once something is consolidated, the running
            statistics that they have then; by default they do. No λ holds what is no parameter.
        at_most: a budget instead of λ: by how many nats the predictions on old inputs may change
            in the mean; λ, from wherever it begins, follows it. See ``Budget``.
        watch: these old inputs: how many to keep of each task as it is consolidated (200), or the
            inputs themselves, without labels: a tensor, or batches as the training step takes them.
        unit: of the budget: ``nats``, or ``points`` of the true label's probability, for which what
            is watched needs labels.
        seed: of which inputs are drawn.

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
    first_lambda: ClassVar[float] = 1e2
    estimator = staticmethod(kronecker_factors)

    def __init__(
        self,
        ewc_lambda: float | None = None,
        *,
        step: Step = "explicit",
        labels: Labels | None = None,
        samples: int | None = None,
        threshold: float | None = None,
        damping: float = 0.0,
        merge: Literal["sum", "nearest"] = "sum",
        precision: Literal["float32", "bfloat16"] = "bfloat16",
        decay: float = 1.0,
        batches: Iterable[Any] | None = None,
        likelihood: AnyLikelihood | None = None,
        forward: Forward | None = None,
        consolidates: bool = True,
        diagnostics: bool = True,
        anchor: str | Path | None = None,
        reference: str | Path | None = None,
        storage: Literal["float32"] = "float32",
        device: None = None,
        modules: Patterns = None,
        ignore: Patterns = None,
        include_frozen: bool = False,
        freeze_norm: bool | None = None,
        at_most: float | None = None,
        watch: Any = None,
        unit: Unit = "nats",
        seed: int = 0,
    ) -> None:
        for name, came, wanted in (("storage", storage, "float32"), ("device", device, None)):
            if came != wanted:
                raise ValueError(
                    f"{name} is {came!r}, which is for diagonals; Kronecker factors take {wanted!r}"
                    ": leave it out, or take EWC"
                )
        super().__init__(
            KroneckerPenalty(damping, merge, precision),
            ewc_lambda,
            labels=labels,
            samples=samples,
            threshold=threshold,
            likelihood=likelihood,
            forward=forward,
            step=step,
            decay=decay,
            batches=batches,
            consolidates=consolidates,
            diagnostics=diagnostics,
            anchor=anchor,
            reference=reference,
            modules=modules,
            ignore=ignore,
            include_frozen=include_frozen,
            freeze_norm=freeze_norm,
            at_most=at_most,
            watch=watch,
            unit=unit,
            seed=seed,
        )
