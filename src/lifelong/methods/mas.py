"""Memory Aware Synapses (Aljundi et al. 2018)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from lifelong.core import QuadraticPenalty
from lifelong.core.fisher.evaluation import Forward
from lifelong.core.fisher.sensitivity import output_sensitivity
from lifelong.core.penalty.stored import Anchors
from lifelong.core.protocols import Importance
from lifelong.errors import LifelongError
from lifelong.learning.progress import Progress
from lifelong.learning.quiet import has_step
from lifelong.learning.seen import Seen, see
from lifelong.methods.estimating import EstimatingMethod
from lifelong.methods.penalty_method import Step, given
from lifelong.methods.selection import Patterns


class MAS(EstimatingMethod):
    r"""Holds the parameters that move the network's output most: L(θ) + λ Ω(θ).

        Ω(θ) = ½ Σ_i S_i (θ_i − θ*_i)²,    S_i = (1/N) Σ_n |∂ ‖f(x_n; θ*)‖² / ∂θ_i|

    No labels are asked, so that any batches of the old kind do. S is a mean over examples of
    magnitudes, not of squares: it has the unit of the squared output over θ, and λ compares with no
    λ of EWC. The paper's penalty has no ½: its λ is half of ours.

    Of a LightningModule f is what its ``training_step`` gives to its loss function, else what
    calling it returns.

    Args:
        ewc_lambda: λ ≥ 0; 0 is fine-tuning, bit for bit.
        step: ``explicit``: λΩ is in the loss; ``proximal``: it acts after the optimizer's step.
        samples: the number of examples that S is the mean over, the first ones; by default all.
        damping: d in S + d · mean(S): a price for the directions that S leaves free; none in the
            paper.
        decay: γ in [0, 1], what earlier tasks keep of their weight at each consolidation.
        anchors: ``last``: the sum of all S holds to the newest θ*, as in the paper; ``each``: every
            task to its own.
        batches: what to estimate on, in the form of the training batches; by default those of the
            fit that ends. They need no labels that are true.
        forward: a function of (module, batch) that returns the output f, [N, ...].
        consolidates: whether a task is consolidated as its fit ends.
        diagnostics: whether λ is watched: figures in the log, warnings at the end of a fit.
        anchor: a file that ``save`` wrote, read before the first step of a fit.
        modules: which parameters are protected; by default all.
        ignore: which are not.
        include_frozen: whether parameters that are frozen while a task is consolidated are
            protected, too.
        freeze_norm: whether batch norms keep the running statistics of what was consolidated.

    Source:
        Aljundi et al. 2018, "Memory aware synapses", eqs. 3 and 4, with the squared l2 norm of the
        output (section 4.1).

    Example:
        >>> MAS(ewc_lambda=1.0).penalty.is_empty
        True
    """

    title: ClassVar[str] = "MAS"

    def __init__(
        self,
        ewc_lambda: float,
        *,
        step: Step = "explicit",
        samples: int | None = None,
        damping: float = 0.0,
        decay: float = 1.0,
        anchors: Anchors = "last",
        batches: Iterable[Any] | None = None,
        forward: Forward | None = None,
        consolidates: bool = True,
        diagnostics: bool = True,
        anchor: str | Path | None = None,
        modules: Patterns = None,
        ignore: Patterns = None,
        include_frozen: bool = False,
        freeze_norm: bool | None = None,
    ) -> None:
        super().__init__(
            QuadraticPenalty(damping, anchors),
            ewc_lambda,
            labels="empirical",  # one backward pass an example, and nothing to announce
            samples=samples,
            forward=forward,
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
        self.anchors = anchors
        self.likelihood_name = "none"

    def _pass(
        self, network: nn.Module, batches: Iterable[Any], seen: Seen, progress: Progress | None
    ) -> Importance:
        settings = given(samples=self.samples, forward=seen.forward)
        try:
            return output_sensitivity(
                network,
                batches,
                progress=progress,
                include_frozen=self.include_frozen,
                **settings,
            )
        except ValueError as error:
            raise LifelongError(f"{type(network).__name__}: {error}") from error

    def _looked(self, network: nn.Module, batch: Any) -> Seen:
        if self._known is not None and self._known[0] is network:
            return self._known[1]
        if self.forward is not None or not has_step(network):
            return Seen(self.forward, None)
        try:
            return see(network, batch, labels="empirical", include_frozen=self.include_frozen)  # type: ignore[arg-type]
        except LifelongError as error:
            # no loss function tells the output: then it is what calling the module returns
            self._try(network, batch, error)
            return Seen(None, None)

    def _try(self, network: nn.Module, batch: Any, error: LifelongError) -> None:
        try:
            output_sensitivity(network, [batch], include_frozen=self.include_frozen)
        except Exception:
            came = str(error).split("; ")[0]
            raise LifelongError(
                f"{came}; pass forward=lambda module, batch: output, the examples along its first "
                "dimension"
            ) from error
