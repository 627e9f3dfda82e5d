"""What enters and leaves each module of a network, and the gradients at what leaves it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from lifelong.core.fisher.evaluation import Evaluation
from lifelong.core.fisher.examples import Rows
from lifelong.core.fisher.opened import opened
from lifelong.core.fisher.rules import LINEAR, Rule, rule_for

_ROLES = ("weight", "bias")


@dataclass
class Call:
    """One call of a module.

    Attributes:
        module: The module.
        input: What entered it, detached.
        edge: The place of its output in the autograd graph; unlike the tensor it stays right when a
            later module changes the output in place (`nn.ReLU(inplace=True)`).
        output_shape: The shape of what left it.
        version: The input's version when it entered.
        rule: How the gradients of its parameters follow from input and output gradient.
        parts: The parameters that met the input: as what the rule knows them, and how often the
            graph of the output uses them here.
    """

    module: nn.Module
    input: Tensor
    edge: GradientEdge
    output_shape: torch.Size
    version: int
    rule: Rule | None
    parts: dict[nn.Parameter, tuple[str, int]]

    @property
    def input_is_intact(self) -> bool:
        """Whether the input still holds what entered the module."""
        return self.input._version == self.version


class Capture:
    """Records the calls of the modules that `wanted` accepts, while inside a `with` block.

    >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    >>> linear = lambda module: isinstance(module, nn.Linear)
    >>> with Capture(Evaluation(network), linear) as capture:
    ...     output, _ = capture.run(torch.ones(5, 2))
    ...     deltas = capture.gradients(output, torch.ones(5, 2), capture.calls)
    >>> [tuple(delta.shape) for delta in deltas]
    [(5, 3), (5, 2)]

    Args:
        evaluation: The network, and how it is evaluated.
        wanted: Which modules to record.
    """

    def __init__(self, evaluation: Evaluation, wanted: Callable[[nn.Module], bool]) -> None:
        self.evaluation = evaluation
        self.network = evaluation.network
        self.calls: list[Call] = []
        self._wanted = wanted
        self._recording = False
        self._handles: list[RemovableHandle] = []
        self._opened: list[nn.Module] = []
        self._rules: dict[nn.Module, Rule | None] = {}

    def __enter__(self) -> "Capture":
        for module in self.network.modules():
            if self._wanted(module):
                handle = module.register_forward_hook(
                    # first of all hooks: a later one may replace the output
                    self._record,
                    prepend=True,
                    with_kwargs=True,
                )
                self._handles.append(handle)
                # asked for now: a replay sets a forward of its own meanwhile
                self._rules[module] = rule_for(module)
            forward = opened(module, self._record_linear)
            if forward is not None:
                module.forward = forward
                self._opened.append(module)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for module in self._opened:
            del module.forward
        self._handles.clear()
        self._opened.clear()
        self.calls.clear()

    def run(self, x: Rows, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Evaluate the network and record the calls in `calls`.

        Args:
            x: The examples.
            y: Their targets.

        Returns:
            The network's output with its graph `[N, ...]`, and the targets.
        """
        self.calls.clear()
        # off outside run: checkpointed segments call their modules again during the backward pass
        self._recording = True
        try:
            return self.evaluation(x, y)
        finally:
            self._recording = False

    @staticmethod
    def gradients(
        output: Tensor, direction: Tensor, calls: Sequence[Call]
    ) -> Sequence[Tensor | None]:
        """Pull one direction in the network's output back to the outputs of the calls.

        Only these places are asked for, so no gradient of a weight is computed, nor any below the
        first call.

        Args:
            output: The network's output `[N, ..., C]`.
            direction: The weights of its elements `[N, ..., C]`.
            calls: The calls.

        Returns:
            For each call the gradient with the shape of its output, None where it has no influence.
        """
        edges = [one.edge for one in calls]
        return torch.autograd.grad(output, edges, direction, retain_graph=True, allow_unused=True)

    def _record(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if not self._recording or not isinstance(output, Tensor) or not output.requires_grad:
            return
        entered = [*args, *kwargs.values()]
        if entered and isinstance(entered[0], Tensor):
            own = module.named_parameters(recurse=False)
            parts = {p: (name, 1) for name, p in own if name in ("weight", "bias")}
            self._add(module, entered[0], output, self._rules[module], parts)

    def _record_linear(
        self, module: nn.Module, a: Tensor, output: Tensor, names: tuple[str, str], uses: int = 1
    ) -> None:
        if self._recording and output.requires_grad:
            found = [
                (getattr(module, name, None), role)
                for name, role in zip(names, _ROLES, strict=True)
            ]
            parts = {p: (role, uses) for p, role in found if p is not None}
            self._add(module, a, output, LINEAR, parts)

    def _add(
        self,
        module: nn.Module,
        a: Tensor,
        output: Tensor,
        rule: Rule | None,
        parts: dict[nn.Parameter, tuple[str, int]],
    ) -> None:
        edge = get_gradient_edge(output)
        self.calls.append(Call(module, a.detach(), edge, output.shape, a._version, rule, parts))


def uses_of_parameters(output: Tensor) -> tuple[dict[nn.Parameter, int], set[Node]]:
    """Count how often each parameter enters the graph of the network's output.

    Args:
        output: The network's output.

    Returns:
        The number of uses of each parameter that is used at all, and every node of the graph.

    Raises:
        ValueError: If a part of the graph cannot be looked into.
    """
    if output.grad_fn is None:
        return {}, set()
    uses: dict[nn.Parameter, int] = {}
    nodes = {output.grad_fn}
    pending = [output.grad_fn]
    while pending:
        node = pending.pop()
        if node.name() == "CheckpointFunctionBackward":
            raise ValueError(
                "the network uses reentrant checkpointing, which hides its parameters; wanted a "
                "graph that can be followed: type checkpoint(..., use_reentrant=False)"
            )
        for following, _ in node.next_functions:
            if following is None:
                continue
            leaf = getattr(following, "variable", None)
            if leaf is not None:
                uses[leaf] = uses.get(leaf, 0) + 1
                nodes.add(following)
            elif following not in nodes:
                nodes.add(following)
                pending.append(following)
    return uses, nodes
