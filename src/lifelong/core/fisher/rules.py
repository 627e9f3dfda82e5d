"""Per-example gradients of a module's parameters, from its input and the gradient at its output.

A rule turns the input into features once, then any number of output gradients `delta` into the
gradient of one parameter for every example, without a loop over examples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Features = Callable[[nn.Module, Tensor], Tensor]
# (module, features [n, ...], delta [n, ...], name of the parameter) -> gradient [n, *shape]
Gradient = Callable[[nn.Module, Tensor, Tensor, str], Tensor]


@dataclass(frozen=True)
class Rule:
    """How one kind of module turns output gradients into gradients of its parameters.

    Attributes:
        features: What the gradients need of the input, with the examples in front.
        gradient: The gradient of one parameter, for each example.
        any_leading_dimension: Whether the examples may be counted by another dimension than the
            first (`nn.Linear` acts on the last one only, `nn.LayerNorm` on the last ones).
    """

    features: Features
    gradient: Gradient
    any_leading_dimension: bool = False


def rule_for(module: nn.Module) -> Rule | None:
    """Return the rule of a module, None where none is known to be right.

    A subclass with a forward of its own has no rule, nor has a module whose parameters forward
    changes (an embedding with `max_norm`).

    Args:
        module: The module.

    Returns:
        Its rule.
    """
    for kind, rule in RULES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            if "forward" in vars(module) or getattr(module, "max_norm", None) is not None:
                return None
            return rule
    return None


def _identity(_module: nn.Module, a: Tensor) -> Tensor:
    return a


def _positions(t: Tensor) -> Tensor:
    return t.flatten(1, -2) if t.ndim > 2 else t.unsqueeze(1)


def _linear_features(_module: nn.Module, a: Tensor) -> Tensor:
    return _positions(a)


def _linear_gradient(_module: nn.Module, features: Tensor, delta: Tensor, name: str) -> Tensor:
    delta = _positions(delta)
    return delta.sum(dim=1) if name == "bias" else torch.bmm(delta.mT, features)


def _convolution_features(module: nn.Module, a: Tensor) -> Tensor:
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    padding = list(module._reversed_padding_repeated_twice)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    a = nn.functional.pad(a, padding, mode=mode)
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if a.ndim == 3:
        a = a.unsqueeze(2)
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
    patches = nn.functional.unfold(a, kernel, dilation=dilation, stride=stride)
    return patches.unflatten(1, (module.groups, -1))


def _convolution_gradient(module: nn.Module, features: Tensor, delta: Tensor, name: str) -> Tensor:
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    delta = delta.flatten(2)
    if name == "bias":
        return delta.sum(dim=2)
    delta = delta.unflatten(1, (module.groups, -1))
    gradient = torch.matmul(delta, features.mT)
    return gradient.reshape(len(delta), *module.weight.shape)


def _embedding_gradient(module: nn.Module, features: Tensor, delta: Tensor, _name: str) -> Tensor:
    assert isinstance(module, nn.Embedding)
    n, width = len(features), module.embedding_dim
    tokens = features.reshape(n, -1, 1)
    delta = delta.reshape(n, -1, width)
    if module.padding_idx is not None:
        delta = delta.masked_fill(tokens == module.padding_idx, 0)
    gradient = delta.new_zeros(n, module.num_embeddings, width)
    return gradient.scatter_add_(1, tokens.expand_as(delta), delta)


def _layer_norm_features(module: nn.Module, a: Tensor) -> Tensor:
    assert isinstance(module, nn.LayerNorm)
    return nn.functional.layer_norm(a, module.normalized_shape, eps=module.eps)


def _layer_norm_gradient(module: nn.Module, features: Tensor, delta: Tensor, name: str) -> Tensor:
    assert isinstance(module, nn.LayerNorm)
    gradient = delta if name == "bias" else delta * features
    between = tuple(range(1, delta.ndim - len(module.normalized_shape)))
    return gradient.sum(dim=between) if between else gradient


def _group_norm_features(module: nn.Module, a: Tensor) -> Tensor:
    assert isinstance(module, nn.GroupNorm)
    return nn.functional.group_norm(a, module.num_groups, eps=module.eps)


def _batch_norm_features(module: nn.Module, a: Tensor) -> Tensor:
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    return nn.functional.batch_norm(a, module.running_mean, module.running_var, eps=module.eps)


def _channel_gradient(_module: nn.Module, features: Tensor, delta: Tensor, name: str) -> Tensor:
    gradient = delta if name == "bias" else delta * features
    return gradient.flatten(2).sum(dim=2) if delta.ndim > 2 else gradient


_CONVOLUTION = Rule(_convolution_features, _convolution_gradient)
_BATCH_NORM = Rule(_batch_norm_features, _channel_gradient)

LINEAR = Rule(_linear_features, _linear_gradient, any_leading_dimension=True)
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: LINEAR,
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Embedding: Rule(_identity, _embedding_gradient, any_leading_dimension=True),
    nn.LayerNorm: Rule(_layer_norm_features, _layer_norm_gradient, any_leading_dimension=True),
    nn.GroupNorm: Rule(_group_norm_features, _channel_gradient),
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.BatchNorm3d: _BATCH_NORM,
}
