"""A method whose λ may follow a budget: which inputs are watched, and what is said of it."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lifelong.core.fisher.evaluation import Evaluation
from lifelong.core.fisher.traceless import traceless
from lifelong.errors import LifelongError
from lifelong.learning import ContinualLearner
from lifelong.learning.fit_batches import as_step_sees
from lifelong.learning.objective import step_of, write_figures
from lifelong.learning.sample import Sample, drawn_together, plain
from lifelong.methods.base import Method, checked_lambda, network_of
from lifelong.methods.budget import EVERY, INPUTS, Budget, Unit, given_inputs

SLACK = 0.1  # of the budget: what the bound may exceed it by without a warning


class Budgeted(Method):
    """A method with a strength λ, or with a budget that λ follows.

    Args:
        ewc_lambda: λ ≥ 0; with a budget where it begins, None for ``first_lambda``.
        at_most: the budget, None for a λ that stays; see ``Budget``.
        watch: the old inputs that it is kept on: how many to keep of each task, or the inputs
            themselves.
        unit: of the budget: ``nats`` or ``points``.
        seed: of which inputs are drawn.

    Raises:
        ValueError: when λ is negative or not finite, or another argument does not fit.
    """

    has_lambda: ClassVar[bool] = True
    first_lambda: ClassVar[float] = 1e4

    def __init__(
        self,
        ewc_lambda: float | None,
        at_most: float | None = None,
        watch: Any = None,
        unit: Unit = "nats",
        seed: int = 0,
    ) -> None:
        name = type(self).__name__
        if ewc_lambda is None and at_most is None:
            raise ValueError(
                f"neither ewc_lambda nor at_most came; wanted how firmly to hold: type "
                f"{name}(ewc_lambda={self.first_lambda:g}), or {name}(at_most=0.02, watch=200)"
            )
        super().__init__()
        self.ewc_lambda = checked_lambda(self.first_lambda if ewc_lambda is None else ewc_lambda)
        self.budget = None if at_most is None else Budget(at_most, unit)
        self.watch = INPUTS if watch is None else watch
        self.seed = seed
        self._refuse_strange_budget()
        # where λ stands depends on the way there
        self.state_follows_from_network = self.budget is None and self.state_follows_from_network
        self._sample: Sample | None = None  # of the task that is consolidated now
        self._draws = False  # from what the importance is estimated on
        self._last_look = 0
        self._most_lambda: float | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to follow the budget anew; what is resumed goes on with it.

        Args:
            trainer: about to train.
            pl_module: the module that is to learn.
        """
        super().on_fit_start(trainer, pl_module)
        if self.budget is not None and trainer.ckpt_path is None:
            self.budget.begin()
        self._last_look, self._most_lambda = 0, None

    def bound_lambda(self, most: float | None) -> None:
        """Keep a λ that follows a budget below what an optimizer's step can bear, from now on.

        Args:
            most: the largest λ; None where it bears all.
        """
        self._most_lambda = most
        if self.budget is not None and most is not None:
            self.ewc_lambda = min(self.ewc_lambda, most)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let λ follow its budget.

        Args:
            trainer: knows the step.
            pl_module: the module that learns.
            batch: unused.
            batch_idx: unused.
        """
        # At the start of a step, so that one that is resumed after the last finds the same.
        step = int(trainer.global_step)
        if self.budget is not None and step % EVERY == 0 and step != self._last_look:
            self._last_look = step
            self.follow_budget(network_of(pl_module))

    def way_to_outputs(self, network: nn.Module, batch: Any) -> Evaluation:
        """How the outputs of what is watched are had, and what they mean.

        Args:
            network: the bare one.
            batch: of what is watched.

        Returns:
            The evaluation.
        """
        del batch
        return Evaluation(network)

    def draw_inputs(self, network: nn.Module, held_out: Iterable[Any] | None) -> None:
        """Begin to draw the inputs that a budget keeps of a task.

        Inputs that were not learnt are the honest ones: on what a network has learnt by heart its
        predictions change least.

        Args:
            network: the bare one, as learning left it.
            held_out: this process's share of what to draw from; None for what ``draw_from`` is
                given.
        """
        self._sample = None
        if self.budget is None or not isinstance(self.watch, int):
            return
        self._sample = Sample(self.watch, self.seed)
        self._draws = held_out is None
        for batch in held_out or ():
            self._sample.add(batch, self.budget.weights(network, batch, self.way_to_outputs))

    def draw_from(
        self, network: nn.Module, batches: Iterable[Any], most: int | None = None
    ) -> Iterable[Any]:
        """Draw from the batches that a task is consolidated on, where nothing was held out.

        Args:
            network: the bare one, as learning left it.
            batches: of the task.
            most: look at so many examples; None for all.

        Returns:
            The same batches, to be gone through once more.
        """
        if self._sample is None or self.budget is None or not self._draws:
            return batches
        if isinstance(batches, Iterator):
            batches = list(batches)
        stranger = isinstance(network, LightningModule)
        with traceless(network):
            for batch in as_step_sees(network, batches) if stranger else batches:  # type: ignore[arg-type]
                weights = self.budget.weights(network, batch, self.way_to_outputs)
                self._sample.add(batch, weights)
                if most is not None and self._sample.population >= most:
                    break
        return batches

    def remember_inputs(self, network: nn.Module) -> None:
        """Watch, from now on, what the network says to some inputs of what it was held to.

        Args:
            network: the bare one, as it was consolidated.

        Raises:
            LifelongError: when there are no such inputs.
        """
        if self.budget is None:
            return
        if self._sample is not None:
            pieces, numbers = drawn_together(self._sample).drawn()
            self.budget.remember(network, pieces, self.way_to_outputs, numbers)
            self._sample = None
        elif isinstance(self.watch, int):
            raise LifelongError(
                f"a file holds no inputs to keep {self.setting('at_most', self.budget.at_most)} "
                "on; pass watch=old_inputs, some that the network was good at, without labels"
            )
        elif not self.budget.memories:
            given = given_inputs(self.watch)
            if isinstance(network, LightningModule) and not isinstance(self.watch, Tensor):
                given = as_step_sees(network, given)
            self.budget.remember(network, [plain(one) for one in given], self.way_to_outputs)

    def follow_budget(self, network: nn.Module) -> None:
        """Look at what is watched, and move λ.

        Args:
            network: the bare one.
        """
        if self.budget is None or not self.budget.memories:
            return
        self.budget.look(network, self.way_to_outputs)
        self.ewc_lambda = self.budget.next_lambda(self.ewc_lambda, self._most_lambda)

    def facts(self) -> dict[str, Any]:
        """What a run's summary says of the method; of a budget, how it was kept.

        Returns:
            Fields of ``Summary``.
        """
        if self.budget is None:
            return super().facts()
        return {
            "method_title": f"{self.title}, at most {self.budget.at_most:g} {self.budget.unit}",
            "has_lambda": False,  # none that was chosen
            "ewc_lambda": 0.0,
            "budget": {
                "at_most": self.budget.at_most,
                "unit": self.budget.unit,
                "inputs": self.budget.inputs,
                "bytes": self.budget.bytes,
                **{name.partition("/")[2]: value for name, value in self.budget.kept.items()},
            },
        }

    def budget_figures(self) -> dict[str, float]:
        """What the loggers are told of the budget.

        Returns:
            Figure → value.
        """
        assert self.budget is not None
        return {
            "forgetting/watched": self.budget.mean,
            "forgetting/watched_upper": self.budget.upper,
            "forgetting/ewc_lambda": self.ewc_lambda,
        }

    def close_budget(self, network: nn.Module, module: LightningModule) -> None:
        """Look at all that is watched once more, as a fit ends, and say how the budget was kept.

        Args:
            network: the bare one.
            module: the module that learnt.
        """
        budget = self.budget
        assert budget is not None
        budget.look(network, self.way_to_outputs, everywhere=True)
        budget.kept = self.budget_figures()
        write_figures(module.trainer.loggers, budget.kept, step_of(module))
        rank_zero_info(
            f"{self.title}: {budget.inputs} old inputs were watched ({budget.bytes / 1e6:.3g} MB, "
            f"{budget.seconds:.1f} s of this fit): they changed by {budget.mean:.3g} "
            f"{budget.unit}, {budget.upper:.3g} at most (90 %), λ ended at {self.ewc_lambda:.3g}"
        )
        if budget.upper > budget.at_most * (1 + SLACK):
            line = (
                f"the budget was not kept: {budget.inputs} old inputs changed by {budget.mean:.3g} "
                f"{budget.unit}, {budget.upper:.3g} at most, where {budget.at_most:g} was wanted; "
                f"{self.advice('more steps, or a smaller learning rate at the end')}"
            )
            self.warnings.append(line)
            if not isinstance(module, ContinualLearner):
                rank_zero_warn(line)

    def _refuse_strange_budget(self) -> None:
        if isinstance(self.watch, int):
            if isinstance(self.watch, bool) or self.watch < 2:
                raise ValueError(f"watch is {self.watch}; it must be two inputs or more: 200, say")
        else:
            if self.budget is None:
                raise ValueError(
                    "old inputs came as watch, and no budget to keep on them; pass at_most=0.02 "
                    "along with them"
                )
            given_inputs(self.watch)  # what they cannot be is refused now
        if self.budget is not None and self.ewc_lambda == 0.0:
            raise ValueError(
                "ewc_lambda is 0, from where a budget cannot move it; leave it out, or pass a "
                "number above 0 to begin at"
            )
