"""What methods share that estimate a Fisher information: of what, checked when, at what cost."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, ClassVar, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from lifelong.core.fisher.capture import Capture
from lifelong.core.fisher.evaluation import TARGETS, AnyLikelihood, Evaluation, Forward
from lifelong.core.fisher.examples import count, map_tensors, take
from lifelong.core.fisher.likelihoods.base import Likelihood, check_labels
from lifelong.core.fisher.probe import Layout
from lifelong.core.fisher.traceless import device_of, traceless
from lifelong.core.protocols import Importance, Penalty
from lifelong.errors import LifelongError
from lifelong.learning import ContinualLearner
from lifelong.learning.fit_batches import (
    FitBatches,
    as_step_sees,
    batches_of_task,
    refuse_endless,
    refuse_used_up,
)
from lifelong.learning.forecast import Forecast
from lifelong.learning.progress import Progress
from lifelong.learning.quiet import QuietStep, has_step, kept_tensors
from lifelong.learning.sample import moved
from lifelong.learning.seen import Seen, see, watched
from lifelong.methods.penalty_method import PenaltyMethod, given

Labels = Literal["exact", "sampled", "empirical"]
# More backward passes an example than this are not made unasked, except for few examples.
MOST_DIRECTIONS, FEW = 50, 512


class EstimatingMethod(PenaltyMethod):
    r"""A penalty whose importance is a Fisher information, of what the training step really does.

    A LightningModule's own ``training_step`` says it: the loss function of ``torch.nn.functional``
    that it calls, with what it gives to it (``cross_entropy``, ``nll_loss``: a softmax;
    ``mse_loss``: a Gaussian of σ = 1; ``gaussian_nll_loss``, ``poisson_nll_loss``: their names;
    ``binary_cross_entropy`` and its ``_with_logits``: Bernoulli;
    a sum of such: all of them). This is checked on the first batch of a fit, before its first step:
    what does not fit is one error that says what to pass.

    Args:
        penalty: Ω; empty until a task is consolidated.
        ewc_lambda: λ ≥ 0.
        labels: over which labels the score is averaged; None: ``exact``, or ``sampled`` where that
            takes more than 50 backward passes an example, and more in all than 512 such examples
            take, which is announced.
        samples: the number of examples that F is the mean over, the first ones; by default all.
        threshold: the share of the trace that exact labels may leave out.
        likelihood: what the output says about the labels, instead of what the step shows.
        forward: of (module, batch): output and target, instead of what the step shows.
        **settings: what ``PenaltyMethod`` takes.

    Raises:
        ValueError: when an argument does not fit.
    """

    estimator: ClassVar[Callable[..., Importance]]

    def __init__(
        self,
        penalty: Penalty,
        ewc_lambda: float | None,
        *,
        labels: Labels | None = None,
        samples: int | None = None,
        threshold: float | None = None,
        likelihood: AnyLikelihood | None = None,
        forward: Forward | None = None,
        **settings: Any,
    ) -> None:
        if labels is not None:
            check_labels(labels)
        super().__init__(penalty, ewc_lambda, **settings)
        self.labels = labels
        self.samples = samples
        self.threshold = threshold
        self.likelihood = likelihood
        self.forward = forward
        self.likelihood_name = "categorical"  # of the last estimate
        self._is_checked = False
        self._gone_through: Iterable[Any] | None = None  # by the last consolidation
        self._known: tuple[nn.Module, Seen] | None = None  # what the check of this fit found
        self._said: set[str] = set()
        self._examples: int | None = None  # how many an estimate will take

    def estimate(
        self, network: nn.Module, batches: Iterable[Any], *, progress: Progress | None = None
    ) -> Importance:
        """The Fisher information of what a module's training step does with these batches.

        Args:
            network: as learning the task left it; a LightningModule is evaluated by its own step,
                on batches that have gone through its hooks, any other module is called.
            batches: of the task's training data.
            progress: shown how far the pass is.

        Returns:
            A mean over examples.
        """
        batches = self.draw_from(network, batches, self.samples)
        stranger = isinstance(network, LightningModule)
        if self.labels is not None and not stranger:
            return self._pass(network, batches, Seen(self.forward, self.likelihood), progress)
        self._examples = _examples_in(batches)
        with traceless(network):
            rest = as_step_sees(network, batches) if stranger else iter(batches)  # type: ignore[arg-type]
            first = next(rest, None)
            if first is None:
                return self._pass(network, [], Seen(self.forward, self.likelihood), progress)
            seen = self._seen(network, first)
            forecast = Forecast(self.title, self.samples, progress, self._examples)
            with kept_tensors(network):
                return self._pass(network, chain([first], rest), seen, forecast)

    def _pass(
        self, network: nn.Module, batches: Iterable[Any], seen: Seen, progress: Progress | None
    ) -> Importance:
        settings = given(
            samples=self.samples,
            threshold=self.threshold,
            include_frozen=self.include_frozen,
            likelihood=seen.likelihood,
            forward=seen.forward,
        )
        labels = self._labels_for(seen)
        if seen.likelihood is not None:
            self.likelihood_name = type(seen.likelihood).__name__.lower()
        try:
            return type(self).estimator(
                network, batches, labels=labels, progress=progress, **settings
            )
        except ValueError as error:
            if not isinstance(network, LightningModule):
                raise
            raise LifelongError(f"{type(network).__name__}: {error}") from error

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a fit whose first batch is to be checked.

        Args:
            trainer: about to train.
            pl_module: the module that is to learn.
        """
        super().on_fit_start(trainer, pl_module)
        self._is_checked = isinstance(pl_module, ContinualLearner)
        self._said = set()
        self._known = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse data that never end, or that cannot be gone through once more.

        Args:
            trainer: has the data.
            pl_module: the module that is to learn.
        """
        super().on_train_start(trainer, pl_module)
        own = getattr(trainer.datamodule, "consolidation_batches", None)  # type: ignore[attr-defined]
        if self.consolidates and self.batches is not None and self.batches is self._gone_through:
            name = type(self).__name__
            rank_zero_warn(
                f"{name}: the last task was consolidated on these very batches, and this one will "
                f"be, too; set {name.lower()}.batches to the new task's before its fit"
            )
        if self.consolidates and self.batches is None and not callable(own):
            refuse_used_up(trainer)
            if self.samples is None:
                refuse_endless(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Check, before the first step, that what matters can be told from what the step does.

        Args:
            trainer: unused.
            pl_module: the module that is to learn.
            batch: as the step will see it.
            batch_idx: its place in the epoch.
        """
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._is_checked:
            return
        self._is_checked = True
        if not pl_module.automatic_optimization:
            self._check_manual(pl_module, batch)
        if self.consolidates:
            self._examples = _examples_in(batches_of_task(trainer, self.batches))
            self._known = pl_module, self._seen_before(pl_module, batch)
            if self.budget is not None:
                _refuse_incomparable(self._known[1].likelihood)

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Consolidate the task that was just learnt.

        Args:
            trainer: its data give the examples, unless ``batches`` was set.
            pl_module: with the weights that the fit leaves.
        """
        super().finish(trainer, pl_module)
        self._gone_through = self.batches

    def detach(self) -> None:
        """Take away what was attached to the module; a second call does nothing."""
        super().detach()
        self._known = None

    def _check_manual(self, module: LightningModule, batch: Any) -> None:
        # one loss: the pull goes with it; several: their owner has to say with which
        if not has_step(module) or not (self.consolidates or self.is_held):
            return
        with traceless(module), kept_tensors(module):
            step = QuietStep(module)
            watched(step, batch)
        if len(step.backwards) == 1 and self._attached is not None:
            self._attached.go_through_backward()
        elif not step.backwards or (self.forward is None and self.likelihood is None):
            raise LifelongError(
                f"training_step calls manual_backward {len(step.backwards)} times for one batch; "
                "wanted one loss that holds the network: type loss = loss + ewc.term(self) where "
                "it is made, and pass likelihood= and forward=lambda module, batch: (output, "
                "target) of that loss"
            )

    def _seen_before(self, module: LightningModule, batch: Any) -> Seen:
        # what the importance will be estimated on decides, not what is learnt
        if self.batches is None or isinstance(self.batches, Iterator):
            return self._seen(module, batch)
        with isolate_rng():
            batch = next(as_step_sees(module, self.batches), batch)
        try:
            return self._seen(module, batch)
        except LifelongError:
            raise
        except Exception as error:
            raise LifelongError(
                f"training_step fails on what came as batches= ({type(error).__name__}: "
                f"{str(error).strip().splitlines()[-1]}); wanted batches in the form of the "
                "training batches, or forward=lambda module, batch: (output, target) of them"
            ) from error

    def _seen(self, network: nn.Module, batch: Any) -> Seen:
        seen = self._looked(network, batch)
        for remark in seen.remarks:
            self._say(remark, rank_zero_warn)
        if self._labels_for(seen) == "sampled" and self.labels is None:
            self._say(
                f"{self.title}: labels='sampled' was chosen, for exact ones take "
                f"{seen.directions} backward passes an example; pass labels='exact' to have them",
                rank_zero_info,
            )
        return seen

    def _looked(self, network: nn.Module, batch: Any) -> Seen:
        labels = self._wanted
        # what was right before the first step is not refused after the last one
        if self._known is not None and self._known[0] is network:
            return self._known[1]
        if has_step(network):
            return see(
                network,  # type: ignore[arg-type]
                batch,
                labels=labels,
                likelihood=self.likelihood,
                forward=self.forward,
                include_frozen=self.include_frozen,
            )
        seen = Seen(self.forward, self.likelihood)
        with traceless(network):
            evaluation = Evaluation(network, self.forward, self.likelihood)
            x, y = evaluation.pair(batch)
            device = device_of(network)
            some = map_tensors(lambda t: t.to(device), take(x, slice(0, 3)))
            few = None if y is None else y[:3].to(device)
            with Capture(evaluation, lambda _: False) as capture:
                seen.directions = Layout(capture, some, few, labels).directions
        return seen

    def way_to_outputs(self, network: nn.Module, batch: Any) -> Evaluation:
        """How the outputs of what is watched are had, and what they mean.

        Args:
            network: the bare one.
            batch: of what is watched; as the training step takes it, or inputs alone.

        Returns:
            The evaluation.

        Raises:
            LifelongError: when inputs alone do not show what the output means.
        """
        seen = Seen(self.forward, self.likelihood)
        if has_step(network):
            if self.forward is not None or not _is_inputs_alone(batch):
                seen = self._looked(network, moved(batch, device_of(network)))
            elif self.likelihood is None and self.likelihood_name != "categorical":
                raise LifelongError(
                    f"what is watched has no labels, and what was learnt is {self.likelihood_name};"
                    " wanted what the output means: pass likelihood=, or watch=batches as the "
                    "training step takes them"
                )
        return Evaluation(network, seen.forward, seen.likelihood)

    @property
    def _wanted(self) -> str:
        if self.labels is not None:
            return self.labels
        # a function knows the batch's own labels only
        own = self.likelihood is None or hasattr(self.likelihood, "empirical")
        return "exact" if own else "empirical"

    def _labels_for(self, seen: Seen) -> str:
        n = self._examples if self.samples is None else self.samples
        most = MOST_DIRECTIONS if n is None else MOST_DIRECTIONS * max(1.0, FEW / max(1, n))
        too_dear = self.labels is None and seen.directions > most
        return "sampled" if too_dear else self._wanted

    def _say(self, line: str, how: Callable[[str], None]) -> None:
        if line not in self._said:
            self._said.add(line)
            how(line)


def _refuse_incomparable(likelihood: AnyLikelihood | None) -> None:
    # before the first step, not when the task is learnt and its inputs are to be kept
    own = getattr(type(likelihood), "divergence", None)
    if likelihood is not None and own in (None, Likelihood.divergence):
        name = getattr(likelihood, "__name__", type(likelihood).__name__)
        raise LifelongError(
            f"a budget came along with {name} as likelihood, which cannot compare two predictions; "
            "wanted one that can: pass Categorical(), Gaussian() or Bernoulli(), or write "
            "divergence(before, after, target) -> [N]; or take ewc_lambda instead of at_most"
        )


def _is_inputs_alone(batch: Any) -> bool:
    if isinstance(batch, Mapping):
        return not any(name in batch for name in TARGETS)
    return isinstance(batch, tuple | list) and len(batch) == 1


def _examples_in(batches: Iterable[Any]) -> int | None:
    if isinstance(batches, FitBatches):
        return batches.examples()
    if isinstance(batches, list | tuple):
        try:
            return sum(count(batch) for batch in batches)
        except ValueError:
            return None
    held = getattr(batches, "dataset", None)
    return len(held) if hasattr(held, "__len__") else None  # type: ignore[arg-type]
