"""From a batch to a network's output and the targets: whatever batches and outputs look like."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from lifelong.core.fisher.examples import Rows, count, map_tensors, tensors_of
from lifelong.core.fisher.likelihoods.base import Given, Likelihood
from lifelong.core.fisher.likelihoods.categorical import Assumed

# of (network, batch) or of batch: the output, or the output and the targets
Forward = Callable[..., Any]
# an object, or of (network, batch): the log-likelihood of every example
AnyLikelihood = Likelihood | Callable[[nn.Module, Any], Tensor]

TARGETS = ("labels", "label", "targets", "target")
_COMPILED = "_orig_mod."


class Evaluation(nn.Module):
    """A network with its way from batches to outputs and targets, and what the outputs mean.

    Without `forward` a batch is a tuple or list `(x, y, ...)`, of which the first two count (y is a
    tensor of targets or is not looked at), or a mapping, whose "labels", "label", "targets" or
    "target" are the targets and whose other entries are keyword arguments of the network: the
    targets are not handed to it. A tuple or list x becomes the network's arguments, a mapping x its
    keyword arguments. The output is a tensor, an object with `.logits`, a mapping with "logits", or
    the first entry of a tuple. Where the whole batch is a mapping and the output is one of Hugging
    Face's `CausalLM...`, position t is scored against the label at t + 1, as their loss does.

    Args:
        network: The network; one that `torch.compile` or DDP wrapped is unwrapped.
        forward: A function of `(network, batch)` or of the batch alone that returns the output, or
            `(output, target)`; it gets the batch as it came, cut to some examples.
        likelihood: What the output says about the labels; a softmax if None. Instead of an object
            a function of `(network, batch)` that returns the log-likelihood of each example `[N]`.
    """

    def __init__(
        self,
        network: nn.Module,
        forward: Forward | None = None,
        likelihood: AnyLikelihood | None = None,
    ) -> None:
        super().__init__()
        self.network = unwrapped(network)
        self.own = forward
        if likelihood is None:
            self.likelihood: Likelihood = Assumed()
        elif hasattr(likelihood, "empirical"):
            self.likelihood = cast(Likelihood, likelihood)
        else:
            self.likelihood, self.own = Given(), likelihood
        self._takes_network = self.own is not None and _takes_two(self.own)
        self._casts = self._is_labelled_mapping = False

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """Return the parameters that require a gradient, by their plain names."""
        return {n: p for n, p in parameters_by_name(self.network).items() if p.requires_grad}

    def pairs(self, batches: Iterable[Any]) -> Iterator[tuple[Rows, Tensor | None]]:
        """Return what `forward` takes of each batch, see `pair`.

        Args:
            batches: The batches.

        Returns:
            Inputs and targets, batch after batch.
        """
        return map(self.pair, batches)

    def pair(self, batch: Any) -> tuple[Rows, Tensor | None]:
        """Split a batch.

        Args:
            batch: The batch.

        Returns:
            Its inputs, and its targets; with a `forward` of one's own all of it, and None.

        Raises:
            ValueError: If the batch is neither a tuple, a list nor a mapping.
        """
        if self.own is not None:
            return batch, None
        if isinstance(batch, tuple | list) and batch:
            y = batch[1] if len(batch) > 1 else None
            return batch[0], y if isinstance(y, Tensor) else None
        if isinstance(batch, Mapping):
            named = next((key for key in TARGETS if key in batch), None)
            y = None if named is None else batch[named]
            self._is_labelled_mapping = named == "labels"
            rest = self._arguments({k: v for k, v in batch.items() if k != named})
            return rest, y if isinstance(y, Tensor) else None
        raise ValueError(
            f"a batch is a {type(batch).__name__}; wanted a pair (x, y), a longer tuple that "
            "begins so, or a dict with 'labels': pass forward=lambda network, batch: (output, "
            "target)"
        )

    def forward(self, x: Rows, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the network's output and the targets.

        Args:
            x: The inputs, as `pair` gave them.
            y: The targets, as `pair` gave them.

        Returns:
            The output `[N, ...]`, and the targets, None where there are none.
        """
        if self.own is not None:
            found = self.own(self.network, x) if self._takes_network else self.own(x)
            if isinstance(found, tuple | list) and len(found) == 2 and not hasattr(found, "logits"):
                found, y = found
            return _output_of(found), y if isinstance(y, Tensor) else None
        result = self._call(x)
        output = _output_of(result)
        if self._is_labelled_mapping and type(result).__name__.startswith("CausalLM"):
            return output[:, :-1], None if y is None else y[:, 1:]
        return output, y

    def _call(self, x: Rows) -> Any:
        if self._casts:
            return _called(self.network, self._cast(x))
        try:
            return _called(self.network, x)
        except RuntimeError:
            same = self._cast(x)
            if all(a is b for a, b in zip(tensors_of(x), tensors_of(same), strict=True)):
                raise
            result = _called(self.network, same)
            self._casts = True
            return result

    def _cast(self, x: Rows) -> Rows:
        # to the precision of the parameters, as a Trainer with a "-true" precision does
        kinds = {p.dtype for p in self.network.parameters() if p.is_floating_point()}
        if len(kinds) != 1:
            return x
        dtype = kinds.pop()
        return map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, x)

    def _arguments(self, named: dict[str, Any]) -> Rows:
        try:
            parameters = inspect.signature(self.network.forward).parameters.values()
        except (TypeError, ValueError):
            return named
        takes = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY)}
        if any(p.kind is p.VAR_KEYWORD for p in parameters) or named.keys() <= takes:
            return named
        if len(named) == 1:
            return next(iter(named.values()))
        raise ValueError(
            f"a batch has the entries {sorted(named)} besides its targets, and the network's "
            f"forward takes {sorted(takes)}: pass forward=lambda network, batch: (output, target)"
        )


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside `torch.compile`, DistributedDataParallel and DataParallel."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.parallel.DataParallel)
    while hasattr(network, "_orig_mod") or isinstance(network, wrappers):
        inner: Any = network.module if isinstance(network, wrappers) else network._orig_mod
        network = inner
    return network


def plain_name(name: str) -> str:
    """Return a parameter's or module's name without what `torch.compile` put into it."""
    return f"{name}.".replace(_COMPILED, "").removesuffix(".")


def parameters_by_name(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters by the names that they have in the network that is not compiled.

    >>> list(parameters_by_name(nn.Sequential(nn.Linear(2, 2, bias=False))))
    ['0.weight']
    """
    return {plain_name(name): p for name, p in unwrapped(network).named_parameters()}


def total(evaluation: Evaluation, batches: Iterable[Any], samples: int | None) -> int | None:
    """Return how many examples a pass will cover, None where nothing says so."""
    if isinstance(batches, list | tuple):
        held = sum(count(evaluation.pair(batch)[0]) for batch in batches)
        return held if samples is None else min(held, samples)
    return samples


def _takes_two(function: Forward) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return True
    needed = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    return len(needed) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


def _called(network: nn.Module, x: Rows) -> Any:
    if isinstance(x, Mapping):
        return network(**x)
    return network(*x) if isinstance(x, tuple | list) else network(x)


def _output_of(result: Any) -> Tensor:
    found = getattr(result, "logits", None)
    if found is None and isinstance(result, Mapping):
        found = result.get("logits")
    if found is None and isinstance(result, tuple | list) and result:
        found = result[0]
    if found is None:
        found = result
    if isinstance(found, Tensor) and found.is_floating_point() and found.ndim:
        return found
    came = type(found).__name__
    if isinstance(found, Tensor):
        came = f"{found.dtype} of shape {tuple(found.shape)}"
    elif isinstance(found, Mapping):
        came = f"a {came} of {sorted(map(str, found))}"
    raise ValueError(
        f"the network returned {came}; wanted one tensor of class scores [N, ..., C], an object "
        "with .logits or a tuple that begins with it: pass forward=lambda network, batch: (output, "
        "target)"
    )


def wants_gradient(output: Tensor) -> None:
    """Refuse an output that has no graph.

    Args:
        output: The network's output.

    Raises:
        ValueError: If no gradient can flow from it.
    """
    if not output.requires_grad:
        raise ValueError(
            "the network's output carries no gradient, so that the Fisher information would be "
            "zero; wanted a forward without torch.no_grad(), detach() or inference mode: pass "
            "forward= that goes another way through the network"
        )
