"""Elastic Weight Consolidation (Kirkpatrick et al. 2017)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from lifelong.core import QuadraticPenalty, fisher_diagonal
from lifelong.core.fisher.evaluation import AnyLikelihood, Forward
from lifelong.core.penalty.storage import Storage
from lifelong.methods.budget import Unit
from lifelong.methods.estimating import EstimatingMethod, Labels
from lifelong.methods.penalty_method import Step
from lifelong.methods.selection import Patterns


class EWC(EstimatingMethod):
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
        ewc_lambda: λ ≥ 0; 0 is fine-tuning, bit for bit. With ``at_most`` where λ begins.
        step: ``explicit``: λΩ is in the loss; ``proximal``: it acts after the optimizer's step
            (SGD, Adam, AdamW), stable for every λ.
        labels: ``exact`` (expectation over the network's own labels), ``sampled`` (one draw from
            them) or ``empirical`` (the batches' own). By default ``exact``, or ``sampled`` where
            that takes more than 50 backward passes an example (classes × positions), which is
            announced.
        samples: the number of examples that F is the mean over, the first ones; by default all.
        threshold: the share of the trace that exact labels may leave out; the estimator's default.
        damping: d in F + d · mean(F): a price for the directions that F leaves free.
        decay: γ in [0, 1], what earlier tasks keep of their weight at each consolidation.
        batches: what to estimate the Fisher information on, in the form of the training batches; by
            default those of the fit that ends, as they are: give unshuffled, unaugmented ones if
            yours augment. ``limit_train_batches``, ``overfit_batches`` and ``max_steps`` count.
        likelihood: what the output says about the labels: ``Categorical()``, ``Gaussian(sigma)``,
            ``Bernoulli()`` of ``lifelong.core``, one's own, or a function of (module, batch) that
            returns log-likelihoods [N]. By default the loss function that ``training_step`` calls
            says it (see ``EstimatingMethod``).
        forward: a function of (module, batch) that returns the output, or (output, target). By
            default what the step gives to its loss function.
        consolidates: whether a task is consolidated as its fit ends.
        diagnostics: whether λ is watched: figures in the log, warnings at the end of a fit.
        anchor: a file that ``save`` wrote, read before the first step of a fit.
        reference: the public file that ``anchor`` was saved with, where it was.
        storage: how F̄ is kept in memory, of its entry's 4 bytes: ``float32`` (as it is),
            ``bfloat16`` (2; off by at most 0.4 %) or ``log8`` (1; off by at most 6.8 %). What
            several tasks add to that: see ``QuadraticPenalty``.
        device: ``"cpu"``: F̄ and θ̄ stay in the CPU's memory while the network is on an accelerator,
            which then needs room for one parameter's more, not for three networks; each step
            sends them there twice. With ``diagnostics`` too. Not measured on an accelerator. By
            default they are where the network is.
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
        ValueError: when λ is negative or not finite, or another argument does not fit.

    Source:
        Kirkpatrick et al. 2017, eq. 3.

    Example:
        >>> EWC(ewc_lambda=1e3).penalty.is_empty
        True
    """

    title: ClassVar[str] = "EWC"
    estimator = staticmethod(fisher_diagonal)

    def __init__(
        self,
        ewc_lambda: float | None = None,
        *,
        step: Step = "explicit",
        labels: Labels | None = None,
        samples: int | None = None,
        threshold: float | None = None,
        damping: float = 0.01,
        decay: float = 1.0,
        batches: Iterable[Any] | None = None,
        likelihood: AnyLikelihood | None = None,
        forward: Forward | None = None,
        consolidates: bool = True,
        diagnostics: bool = True,
        anchor: str | Path | None = None,
        reference: str | Path | None = None,
        storage: Storage = "float32",
        device: str | None = None,
        modules: Patterns = None,
        ignore: Patterns = None,
        include_frozen: bool = False,
        freeze_norm: bool | None = None,
        at_most: float | None = None,
        watch: Any = None,
        unit: Unit = "nats",
        seed: int = 0,
    ) -> None:
        super().__init__(
            QuadraticPenalty(damping, storage=storage, device=device),
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
