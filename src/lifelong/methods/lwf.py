"""Learning without Forgetting (Li and Hoiem 2016)."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from lifelong.core.fisher.evaluation import plain_name
from lifelong.core.fisher.examples import count
from lifelong.core.fisher.likelihoods.categorical import kl_of_classes
from lifelong.core.fisher.likelihoods.per_output import kl_of_coins
from lifelong.errors import LifelongError
from lifelong.learning.distributed import follow_first_process
from lifelong.learning.losses import BERNOULLI, CATEGORICAL, LossCall, arranged
from lifelong.learning.objective import begins_logging_step, log_objective
from lifelong.learning.outputs import StepOutputs
from lifelong.methods.base import Method, checked_lambda, device_of, network_of
from lifelong.methods.refusals import refuse_manual, refuse_parts_of_networks


class LwF(Method):
    r"""Keeps the answers that the old network gives to the new images: L(θ) + λ D(θ).

        D(θ) = (1/N) Σ_n Σ_c p_c(x_n; θ*) log (p_c(x_n; θ*) / p_c(x_n; θ)),   p = softmax(f / T)

    over the batches of the new task: no old data, one copy of the network, one more forward pass in
    each step. Where θ = θ* there is no gradient: what is kept is how the answers change.

    The paper's term is the cross-entropy −Σ p* log p, which differs from D by what does not depend
    on θ. A higher T gives the small probabilities more weight; the gradient falls with about 1/T².
    Scale: D is in nats of the softened answers, a mean over examples (and positions), as L is.

    Of a LightningModule f is what its ``training_step`` gives to ``cross_entropy``, ``nll_loss`` or
    ``binary_cross_entropy`` (there T divides each logit by itself). An output layer that has grown
    is held in the classes that the old network knew. The paper first trains a new head alone; here
    all is trained at once.

    Args:
        ewc_lambda: λ ≥ 0, the paper's λ_o; 0 is fine-tuning, bit for bit.
        temperature: T > 0.
        consolidates: whether the network is remembered as a fit ends.

    Raises:
        ValueError: when an argument is out of its range.

    Source:
        Li and Hoiem 2016, "Learning without forgetting", eqs. 1 to 4.

    Example:
        >>> LwF().ewc_lambda, LwF().temperature
        (1.0, 2.0)
    """

    title: ClassVar[str] = "LwF"
    has_lambda: ClassVar[bool] = True
    keeps_state: ClassVar[bool] = True

    def __init__(
        self, ewc_lambda: float = 1.0, *, temperature: float = 2.0, consolidates: bool = True
    ) -> None:
        if not 0.0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}; it must be a finite number above 0")
        super().__init__()
        self.ewc_lambda, self.temperature = checked_lambda(ewc_lambda), float(temperature)
        self.consolidates = consolidates
        self._old: dict[str, Tensor] = {}
        self._outputs: StepOutputs | None = None

    @property
    def is_held(self) -> bool:
        """Whether D pulls: λ > 0 and there is an old network."""
        return self.ewc_lambda > 0 and bool(self._old)

    def objective(
        self, loss: Tensor, module: LightningModule, batch: Any, batch_idx: int
    ) -> Tensor:
        """L + λD of one batch.

        Args:
            loss: L, the task's own, with a graph.
            module: the one that learns.
            batch: what the loss is of.
            batch_idx: its place in the epoch.

        Returns:
            The objective.
        """
        whole, divergence = loss, 0.0
        if self._outputs is not None:
            new = self._outputs.latest(batch)
            _refuse_others(new)
            if self.is_held:
                old = self._outputs.with_weights(self._old, batch)
                n = count(batch)
                parts = [
                    distillation(a, b, self.temperature, n) for a, b in zip(new, old, strict=True)
                ]
                total = torch.stack(parts).sum()
                whole = loss + self.ewc_lambda * total.to(loss.device, loss.dtype)
                divergence = float(total.detach()) if _logs(module, batch_idx) else 0.0
        if _logs(module, batch_idx):
            log_objective(module, loss, divergence, self.ewc_lambda)
        return whole

    def consolidate(
        self,
        module: nn.Module,
        batches: Iterable[Any] = (),
        held_out: Iterable[Any] | None = None,
    ) -> None:
        """Remember the network as it is.

        Args:
            module: as learning left it.
            batches: not looked at.
            held_out: not looked at.
        """
        network = network_of(module)
        follow_first_process(network)
        places = chain(network.named_parameters(), network.named_buffers())
        self._old = {plain_name(name): t.detach().clone() for name, t in places}

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the network with which a fit ends.

        Args:
            trainer: unused.
            pl_module: with the weights that the fit leaves.
        """
        self.consolidate(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the old network to the module's device, and watch the module's outputs.

        Args:
            trainer: about to train.
            pl_module: the module that is to learn.
        """
        name = type(self).__name__
        refuse_parts_of_networks(trainer, name)
        refuse_manual(pl_module, name)
        if self.ewc_lambda > 0:
            self._outputs = StepOutputs(pl_module, name)
        super().on_fit_start(trainer, pl_module)
        device = device_of(pl_module)
        self._old = {name: tensor.to(device) for name, tensor in self._old.items()}

    def detach(self) -> None:
        """Take away what was attached to the module; a second call does nothing."""
        super().detach()
        if self._outputs is not None:
            self._outputs.detach()
            self._outputs = None

    def state_dict(self) -> dict[str, Any]:
        """What it keeps from task to task.

        Returns:
            The old network's parameters and buffers, by name.
        """
        return {"network": dict(self._old)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned.

        Args:
            state_dict: the old network.
        """
        self._old = {name: tensor.clone() for name, tensor in state_dict["network"].items()}


def distillation(new: LossCall, old: LossCall, temperature: float, examples: int) -> Tensor:
    """D, what the softened answers of a network diverge from those of an old one.

    Args:
        new: what a loss function was given, with a graph.
        old: the same of the old network.
        temperature: T.
        examples: how many the batch holds.

    Returns:
        A scalar in nats, the mean over examples, and positions that count.
    """
    f, labels = arranged(new, examples)
    g, _ = arranged(old, examples)
    if new.name in BERNOULLI:
        each = kl_of_coins(g / temperature, f / temperature)
    else:
        f = f[..., : g.shape[-1]]  # a grown layer's new classes are free
        each = kl_of_classes(g / temperature, f / temperature)
    if new.name in BERNOULLI or labels is None or labels.shape != each.shape:
        return each.mean()
    counts = labels != new.options["ignore_index"]
    return (each * counts).sum() / counts.sum().clamp(min=1)


def _refuse_others(calls: list[LossCall]) -> None:
    wrong = [call.name for call in calls if call.name not in (*CATEGORICAL, *BERNOULLI)]
    if wrong:
        raise LifelongError(
            f"training_step calls {wrong[0]}, and LwF softens class probabilities; wanted "
            "cross_entropy, nll_loss or binary_cross_entropy: take EWC for outputs of another kind"
        )


def _logs(module: LightningModule, batch_idx: int) -> bool:
    return begins_logging_step(module.trainer, batch_idx)
