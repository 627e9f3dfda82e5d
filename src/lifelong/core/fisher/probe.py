"""What two tiny batches tell about a network: where examples are counted, and what one takes."""

import torch
from torch import Tensor, nn

from lifelong.core.fisher.capture import Capture
from lifelong.core.fisher.evaluation import wants_gradient
from lifelong.core.fisher.examples import Rows, count, take, tensors_of
from lifelong.core.fisher.likelihoods.base import Labels, Likelihood

# what the graph of a chunk may take, and its most examples: more gain nothing
_GRAPH_BYTES, _CHUNK_ROWS = 2**25, 512


def checked(output: Tensor, n: int, likelihood: Likelihood) -> Tensor:
    """Return the network's output if it can be that of n examples.

    Args:
        output: What the network returned.
        n: The number of examples it was given.
        likelihood: What the output says about the labels.

    Returns:
        The output.

    Raises:
        ValueError: If its shape does not fit.
    """
    if len(output) != n:
        raise ValueError(
            f"the network's output has shape {tuple(output.shape)} for {n} examples; wanted "
            f"[{n}, ...], the examples along the first dimension: pass forward= that puts them "
            "there"
        )
    likelihood.check(output)
    return output


class Layout:
    """What evaluations of two and of three examples tell.

    Two and three tell the examples apart from every other dimension, whatever the sizes of the
    chunks to come: a `[T, N, d]` input with T = N must not be taken for examples first.

    Args:
        capture: The network, and what to record of it.
        x: Up to three examples.
        y: Their targets.
        labels: Over which labels the score is averaged.

    Attributes:
        chunk_rows: How many examples one graph may hold.
        directions: How many directions one example has.
        example_dim: For each recorded module, the dimension of its output that counts examples.
        replayed: Linear layers that are called once, with the examples in front.
        replay_bytes: What they put out for one example.

    Raises:
        ValueError: If the output for an example depends on the others of its batch, or has no
            gradient.
    """

    def __init__(
        self, capture: Capture, x: Rows, y: Tensor | None = None, labels: Labels = "exact"
    ) -> None:
        state = [*capture.network.parameters(), *capture.network.buffers()]
        self._own = {t.untyped_storage().data_ptr() for t in state}
        two, targets, small, size = self._run(capture, x, y, 2)
        three, _, large, more = self._run(capture, x, y, 3)
        repeatable = _same(two, three[:2])
        if not repeatable and _same(two, self._run(capture, x, y, 2)[0]):
            raise ValueError(
                "the output for an example depends on the other examples of its batch; wanted "
                "examples that are independent in eval mode: type track_running_stats=True where "
                "a BatchNorm has none"
            )
        # the contrasts of the labels hold five numbers of eight bytes for each logit
        each = max(1, more - size) + (40 if labels == "exact" else 16) * two[0].numel()
        self.chunk_rows = max(1, min(_CHUNK_ROWS, _GRAPH_BYTES // each))
        self.directions = 1
        if labels == "exact":
            self.directions = capture.evaluation.likelihood.exact(two, targets).weights.shape[1]
        self.example_dim = _example_dims(small, large)
        called = [module for module, _ in small]
        self.replayed = [
            module
            for module in called
            if type(module) is nn.Linear
            and repeatable
            and called.count(module) == 1
            and self.example_dim.get(module) == 0
        ]
        outputs = {module: shape for module, shape in small if module in self.replayed}
        self.replay_bytes = sum(two.element_size() * s[1:].numel() for s in outputs.values())

    def _run(
        self, capture: Capture, x: Rows, y: Tensor | None, n: int
    ) -> tuple[Tensor, Tensor | None, list[tuple[nn.Module, torch.Size]], int]:
        index = torch.arange(n, device=tensors_of(x)[0].device) % count(x)
        some = None if y is None else y[index]
        held: dict[int, int] = {}

        def weigh(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._own:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
            output, targets = capture.run(take(x, index), some)
        checked(output, n, capture.evaluation.likelihood)
        if any(p.requires_grad for p in capture.network.parameters()):
            wants_gradient(output)
        shapes = [(one.module, one.output_shape) for one in capture.calls]
        capture.calls.clear()
        return output.detach(), targets, shapes, sum(held.values())


def _same(a: Tensor, b: Tensor) -> bool:
    tolerance = torch.finfo(a.dtype).eps ** 0.5 * (1 + float(a.abs().max()))
    return float((a - b).abs().max()) <= tolerance


def _example_dims(
    two: list[tuple[nn.Module, torch.Size]], three: list[tuple[nn.Module, torch.Size]]
) -> dict[nn.Module, int]:
    if [module for module, _ in two] != [module for module, _ in three]:
        return {}
    found: dict[nn.Module, set[int]] = {}
    for (module, small), (_, large) in zip(two, three, strict=True):
        changed = [d for d, (a, b) in enumerate(zip(small, large, strict=False)) if a != b]
        # -1: more or less than one dimension changes, or not as the number of examples does
        alone = len(changed) == 1 and len(small) == len(large)
        counts = alone and (small[changed[0]], large[changed[0]]) == (2, 3)
        found.setdefault(module, set()).add(changed[0] if counts else -1)
    return {
        module: next(iter(dims))
        for module, dims in found.items()
        if len(dims) == 1 and -1 not in dims
    }
