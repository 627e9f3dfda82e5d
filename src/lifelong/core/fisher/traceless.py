"""A stretch of code in which a network is only read."""

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


def device_of(network: nn.Module) -> torch.device:
    """Return the device of the network's first parameter, the CPU if it has none."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


@contextmanager
def traceless(network: nn.Module) -> Iterator[None]:
    """Evaluate the network inside, in eval mode and full precision, and leave it as it was.

    Restored at the end, after an exception too: the training mode of every submodule, buffers, the
    `.grad` of every parameter, the state of the global random number generators of torch, Python
    and numpy. Inside, gradients are enabled, autocast and inference mode are off, attention takes
    no fused shortcut (its rounding differs from the path that has a gradient), and what
    `torch.compile` made runs as it was written (compiled code calls no hooks and keeps the
    parameters that it was compiled with).

    Args:
        network: The network that is evaluated.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(b, b._version, b.clone()) for b in network.buffers()]
    gradients = [(p, p.grad) for p in network.parameters() if p.is_leaf]
    device = device_of(network)
    with ExitStack() as stack:
        devices = [device] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        _keep_random_states(stack)
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu", device.type} - {"meta"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.callback(torch.backends.mha.set_fastpath_enabled, _fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            # not network.eval(): a network may override train() with lasting effects
            for module, _ in modes:
                module.training = False
            # a network that calls backward() by itself would add to what is there
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for buffer, version, value in buffers:
                    if buffer._version != version:
                        buffer.copy_(value)
                for parameter, gradient in gradients:
                    parameter.grad = gradient


@contextmanager
def thawed(network: nn.Module, wanted: bool) -> Iterator[None]:
    """Let every parameter require a gradient inside.

    Args:
        network: The network.
        wanted: Whether to do so at all.

    Yields:
        Nothing.
    """
    params = network.parameters() if wanted else ()
    frozen = [p for p in params if not p.requires_grad and p.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _keep_random_states(stack: ExitStack) -> None:
    # data sets augment with them while the batches are made
    stack.callback(random.setstate, random.getstate())
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        stack.callback(numpy.random.set_state, numpy.random.get_state())


def _fastpath_enabled() -> bool:
    return bool(torch.backends.mha.get_fastpath_enabled())
