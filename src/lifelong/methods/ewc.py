"""Elastic Weight Consolidation (Kirkpatrick et al. 2017)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from lifelong.core import QuadraticPenalty, fisher_diagonal
from lifelong.core.protocols import Importance
from lifelong.learning.progress import Progress
from lifelong.methods.penalty_method import PenaltyMethod, Step, given
from lifelong.methods.selection import Patterns

Labels = Literal["exact", "sampled", "empirical"]


class EWC(PenaltyMethod):
    r"""Holds any LightningModule to what it learnt in the fits before: L(θ) + λ Ω(θ).

    Give the same callback to the Trainer of every task. As each fit ends the Fisher information of
    its training data is folded into Ω(θ) = ½ Σ F̄ (θ − θ̄)²; during the next fits the module's
    ``training_step`` returns L + λΩ, in value and in gradient, so that accumulation, clipping,
    mixed precision and several processes follow from autograd. Nothing else of the module is
    changed: its data and its optimizers stay its own. F is a mean over examples, so λ does not
    depend on the batch size or on how many examples there are.

    The penalty is part of the Trainer's checkpoints. Without the old data, consolidate once where
    it still is, keep ``state_dict()`` or the checkpoint, and load it where the new data are.

    Under DDP F is the mean over the examples of all processes, the same bits on each. Of a torch
    DataLoader (sequential, shuffled without replacement, or sharded by ``DistributedSampler``, as
    Lightning does) every example of its data set counts once, whatever the sampler pads or drops;
    see ``share_of_loader``. Any other loader is gone through as it is in each process: all examples
    in each give the same mean, at W times the work, but padding of your own would count.

    Args:
        ewc_lambda: λ ≥ 0; 0 is fine-tuning, bit for bit.
        step: ``explicit``: λΩ is in the loss; ``proximal``: it acts after the optimizer's step
            (SGD, Adam, AdamW), stable for every λ.
        labels: ``exact`` (expectation over the module's own class probabilities), ``sampled`` or
            ``empirical``.
        samples: the number of examples that F is the mean over, the first ones; by default all.
        threshold: the share of the trace that exact labels may leave out; the estimator's default.
        damping: d in F + d · mean(F): a price for the directions that F leaves free.
        decay: γ in [0, 1], what earlier tasks keep of their weight at each consolidation.
        batches: (x, y) pairs to estimate the Fisher information on; by default the training
            loader of the fit that ends, as it is: give unshuffled, unaugmented ones if yours
            augments. ``module(x)`` must return logits over the last dimension.
        consolidates: whether a task is consolidated as its fit ends.
        diagnostics: whether λ is watched: figures in the log, warnings at the end of a fit.
        anchor: a file that ``save`` wrote, read before the first step of a fit.
        modules: which parameters are protected: names with ``*``, of parameters or of modules; by
            default all.
        ignore: which are not: a head that was replaced.
        include_frozen: whether parameters that are frozen while a task is consolidated are
            protected, too, for the day when they are trained.
        freeze_norm: whether batch norms keep, once something is consolidated, the running
            statistics that they have then; by default they do. No λ holds what is no parameter.

    Raises:
        ValueError: when λ is negative or not finite, or another argument does not fit.

    Source:
        Kirkpatrick et al. 2017, eq. 3.

    Example:
        >>> EWC(ewc_lambda=1e3).penalty.is_empty
        True
    """

    title: ClassVar[str] = "EWC"

    def __init__(
        self,
        ewc_lambda: float,
        *,
        step: Step = "explicit",
        labels: Labels = "exact",
        samples: int | None = None,
        threshold: float | None = None,
        damping: float = 0.01,
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
            QuadraticPenalty(damping),
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
        """The diagonal of the Fisher information.

        Args:
            network: as learning the task left it.
            batches: of the task's training data.
            progress: shown how far the pass is.

        Returns:
            F, a mean over examples.
        """
        settings = given(
            samples=self.samples, threshold=self.threshold, include_frozen=self.include_frozen
        )
        return fisher_diagonal(network, batches, labels=self.labels, progress=progress, **settings)
