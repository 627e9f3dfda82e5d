"""The loss functions of ``torch.nn.functional``: watched, and read as likelihoods."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lifelong.core import Bernoulli, Categorical, Gaussian, Heteroscedastic, Likelihood, Poisson
from lifelong.errors import LifelongError

CATEGORICAL = ("cross_entropy", "nll_loss")
BERNOULLI = ("binary_cross_entropy_with_logits", "binary_cross_entropy")
NUMBERS = ("mse_loss", "gaussian_nll_loss", "poisson_nll_loss")
# These are no likelihood of a kind that is known here.
OTHER = (
    *("l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "ctc_loss", "soft_margin_loss"),
    *("hinge_embedding_loss", "margin_ranking_loss", "multi_margin_loss"),
    *("multilabel_margin_loss", "multilabel_soft_margin_loss"),
    *("cosine_embedding_loss", "triplet_margin_loss", "triplet_margin_with_distance_loss"),
)
# how the rows that a loss function is given belong to the examples; see ``grouped``
Order = Literal["examples", "times", "second"]
_WATCHED: dict[Any, str] = {
    getattr(functional, name): name for name in (*CATEGORICAL, *NUMBERS, *BERNOULLI, *OTHER)
}


@dataclass
class LossCall:
    """One call of a loss function.

    Attributes:
        name: of the function.
        output: what the network said, the argument that carries a gradient (else the first one).
        target: what it was compared with.
        options: every other argument, by name.
        both: whether the target carries a gradient, too.
        value: what the function returned, None where it was stopped before.
        edge: the place of the output in the graph, None where it has none.
        result: the place of what the function returned in the graph.
    """

    name: str
    output: Tensor
    target: Tensor
    options: dict[str, Any]
    both: bool
    value: Tensor | None = None
    edge: GradientEdge | None = None
    result: GradientEdge | None = None

    @property
    def takes_soft_labels(self) -> bool:
        """Whether its labels are no classes: probabilities, or smoothed ones."""
        smooth = self.options.get("label_smoothing", 0.0) != 0.0
        return self.name in CATEGORICAL and (self.target.is_floating_point() or smooth)


# Not an Exception: what a step catches must not catch it.
class Stop(BaseException):
    """The loss function that a step was run for has been reached."""


class Watch(TorchFunctionMode):
    """Notes the calls of loss functions inside its ``with`` block, in the order in which they came.

    Args:
        last: raise ``Stop`` instead of making the call of this number (from 0).

    Attributes:
        calls: the calls, the last one included.
        backwards: what ``.backward()`` was called on; no gradient is made.
    """

    def __init__(self, last: int | None = None) -> None:
        super().__init__()
        self.calls: list[LossCall] = []
        self.backwards: list[Tensor] = []
        self._last = last

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch's, and note it if it is a loss function.

        Args:
            func: the function.
            types: unused.
            args: its arguments.
            kwargs: its arguments by name.

        Returns:
            What it returns.

        Raises:
            Stop: instead of the last call.
        """
        kwargs = kwargs or {}
        name = _WATCHED.get(func)
        if name is None:
            if func is torch.Tensor.backward:
                self.backwards.append(args[0])
                return None
            return func(*args, **kwargs)
        call = _call_of(name, func, args, kwargs)
        self.calls.append(call)
        if self._last is not None and len(self.calls) > self._last:
            raise Stop
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            # at once: the step may go on in place
            call.value = result.detach().clone()
            call.edge = get_gradient_edge(call.output) if call.output.requires_grad else None
            call.result = get_gradient_edge(result) if result.requires_grad else None
        return result


@cache
def _signature(func: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(func)


def _call_of(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LossCall:
    bound = _signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    options = dict(bound.arguments)
    first, second = (options.pop(key) for key in list(options)[:2])
    both = first.requires_grad and isinstance(second, Tensor) and second.requires_grad
    if not first.requires_grad and isinstance(second, Tensor) and second.requires_grad:
        first, second = second, first  # mse_loss(y, network(x))
    return LossCall(name, first, second, options, both)


def likelihood_of(call: LossCall) -> Likelihood:
    """The likelihood whose negative logarithm a loss function is.

    Args:
        call: of one of those that are known.

    Returns:
        The likelihood of what ``arranged`` makes of the call.
    """
    if call.name in CATEGORICAL:
        return Categorical(class_dim=-1, ignore_index=call.options["ignore_index"])
    if call.name in BERNOULLI:
        return Bernoulli()
    if call.name == "poisson_nll_loss":
        return Poisson()
    return Heteroscedastic() if _says_its_noise(call) else Gaussian()


def _says_its_noise(call: LossCall) -> bool:
    variance = call.options.get("var")
    return isinstance(variance, Tensor) and variance.requires_grad


def arranged(
    call: LossCall, count: int, order: Order = "examples", mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The output and the labels of a call, as the likelihood takes them.

    Classes come last, and rows that were laid out flat (``logits.view(-1, C)``) go back to their
    examples: ``[N · k, C]`` becomes ``[N, k, C]``. What probabilities, rates or a given variance
    mean is brought to what the likelihood takes: logits, log-rates, numbers of deviation 1.

    Args:
        call: of one of the known functions.
        count: N, the number of examples of the batch.
        order: how the rows belong to the examples.
        mask: which labels count, in the shape of what the function returned; None for all.

    Returns:
        The output ``[N, ...]`` and the labels ``[N, ...]``, None where they are no classes.
    """
    output, target = call.output, call.target
    labels: Tensor | None = target
    if call.name in CATEGORICAL:
        if output.ndim == 1:
            output, target = output.unsqueeze(0), target.unsqueeze(0)
        output = output.movedim(1, -1)
        labels = None if call.takes_soft_labels and target.is_floating_point() else target
    elif call.name == "binary_cross_entropy":
        output = torch.logit(output, torch.finfo(output.dtype).eps)
    elif call.name == "poisson_nll_loss" and not call.options["log_input"]:
        output = (output + call.options["eps"]).log()
    elif call.name == "gaussian_nll_loss":
        output, labels = _with_noise(call)
    if mask is not None:
        output, labels = without(call, output, labels, mask)
    if labels is not None:
        labels = grouped(labels, count, order)
    return grouped(output, count, order), labels


def _with_noise(call: LossCall) -> tuple[Tensor, Tensor]:
    output, target, variance = call.output, call.target, call.options["var"]
    if not isinstance(variance, Tensor):
        variance = torch.full_like(target, variance)
    if variance.ndim and variance.ndim == output.ndim - 1:
        variance = variance.unsqueeze(-1)
    variance = variance.clamp_min(call.options["eps"]).expand_as(output)
    if _says_its_noise(call):
        return torch.stack([output, variance.log()], dim=-1), target
    return output / variance.sqrt(), target / variance.sqrt()


def without(
    call: LossCall, output: Tensor, labels: Tensor | None, mask: Tensor, *, classes: int = -1
) -> tuple[Tensor, Tensor | None]:
    """Output and labels of a call, of which some do not count: no gradient leads to these.

    Args:
        call: of a loss function.
        output: what it was given, in its own order or in that of ``arranged``.
        labels: its targets; None for none.
        mask: which labels count, in the shape of what the function returned.
        classes: the dimension of classes in the output, where there is one.

    Returns:
        The same numbers; labels that do not count are those that the function ignores, or 0.
    """
    categorical = call.name in CATEGORICAL
    more = output.ndim - mask.ndim
    whole = mask.unsqueeze(classes) if categorical and more == 1 else mask
    whole = whole.reshape(*whole.shape, *(1,) * (output.ndim - whole.ndim))
    if labels is not None and labels.shape == mask.shape:
        labels = labels.where(mask, call.options["ignore_index"] if categorical else 0)
    return output.where(whole, output.detach()), labels


def grouped(rows: Tensor, count: int, order: Order = "examples") -> Tensor:
    """Rows by the examples that they belong to, each example's rows one after another.

    Args:
        rows: ``[N, ...]`` or ``[N · k, ...]``; ordered by ``times`` ``[k · N, ...]``, and with the
            examples in the ``second`` dimension ``[k, N, ...]``.
        count: N.
        order: which of these.

    Returns:
        ``[N, ...]`` as it is, or ``[N, k, ...]``.

    Raises:
        LifelongError: when they are no multiple of the examples.
    """
    if order == "second" and rows.ndim > 1 and rows.shape[1] == count:
        return rows.movedim(1, 0)
    if rows.ndim and len(rows) == count:
        return rows
    if order == "second" or not rows.ndim or not len(rows) or len(rows) % count:
        raise LifelongError(
            f"the loss function was given shape {tuple(rows.shape)} for a batch of {count} "
            "examples; wanted one row, or the same number of rows, for each example along the "
            "first dimension: pass forward=lambda module, batch: (output, target)"
        )
    if order == "times":
        return rows.reshape(len(rows) // count, count, *rows.shape[1:]).movedim(1, 0)
    return rows.reshape(count, len(rows) // count, *rows.shape[1:])
