"""A training step that is run for what it computes, and leaves nothing behind."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

# what nn.Module itself keeps in a module's attributes
_OWN = frozenset(vars(nn.Module()))
_LONG = 10_000  # a longer list holds data, and is not copied


class QuietStep:
    """The training step of a module, without its logs, optimizers and memories.

    ``self.log`` and its kin do nothing, loggers and optimizers are idle ones, a backward pass is
    noted and its graph kept, and what the step writes into its modules' attributes (metrics,
    lists of losses, counters) is put back after every call. Parameters, buffers, training modes
    and random states are ``traceless``' affair: calls belong into its ``with`` block.

    Args:
        module: the one that learns; its step is called as the Trainer calls it.

    Attributes:
        backwards: the losses that the last call would have gone backward from by itself.
    """

    def __init__(self, module: LightningModule) -> None:
        self.module = module
        self.backwards: list[Tensor] = []
        self._step = task_step(module)
        self._takes_index = is_param_in_hook_signature(self._step, "batch_idx", min_args=2)

    def __call__(self, batch: Any) -> Tensor | None:
        """Run the step.

        Args:
            batch: as the step sees it.

        Returns:
            The loss that it returned, None where it returned none.
        """
        self.backwards = []
        with self._idle(), _put_back(self.module):
            found = self._step(batch, 0) if self._takes_index else self._step(batch)
        loss = found.get("loss") if isinstance(found, Mapping) else found
        return loss if isinstance(loss, Tensor) else None

    def _backward(self, loss: Tensor, *_: Any, **__: Any) -> None:
        # gradients for whoever looks at them next, without the hooks of DDP
        params = [p for p in self.module.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        for parameter, gradient in zip(params, found, strict=True):
            before = parameter.grad if self.backwards else None
            if gradient is not None and before is not None:
                gradient = gradient + before
            parameter.grad = gradient if gradient is not None else before
        self.backwards.append(loss)

    @contextmanager
    def _idle(self) -> Iterator[None]:
        module, trainer = self.module, self.module._trainer
        nothing = _Idle()
        stubs: dict[str, Any] = dict.fromkeys(
            ("log", "log_dict", "print", "toggle_optimizer", "untoggle_optimizer"), nothing
        )
        stubs |= {"clip_gradients": nothing, "toggled_optimizer": nothing, "lr_schedulers": nothing}
        stubs["manual_backward"] = self._backward
        several = trainer is not None and len(trainer.optimizers) > 1
        count = len(trainer.optimizers) if trainer is not None and several else 1
        optimizers = [_Idle() for _ in range(count)]
        stubs["optimizers"] = lambda *_, **__: optimizers if several else optimizers[0]
        with ExitStack() as stack:
            if trainer is not None and trainer.loggers:
                stack.callback(setattr, trainer, "loggers", trainer.loggers)
                trainer.loggers = [DummyLogger()]
            if trainer is not None and _is_true_precision(trainer):
                # mixed ones would only cast down what is to be known in full
                stack.enter_context(trainer.precision_plugin.forward_context())
            attributes = vars(module)
            before = {name: attributes[name] for name in stubs if name in attributes}
            attributes.update(stubs)
            try:
                yield
            finally:
                for name in stubs:
                    del attributes[name]
                attributes.update(before)


def task_step(module: LightningModule) -> Callable[..., Any]:
    """The module's own training step, beneath what methods put over it.

    Args:
        module: the one that learns.

    Returns:
        The bound step.
    """
    step: Any = module.training_step
    while hasattr(step, "task_step"):
        step = step.task_step
    return step


def has_step(module: nn.Module) -> bool:
    """Whether a module says by itself how it learns.

    Args:
        module: any.

    Returns:
        True for a LightningModule with a training step.
    """
    return isinstance(module, LightningModule) and is_overridden("training_step", module)


@contextmanager
def kept_tensors(module: nn.Module) -> Iterator[None]:
    """Put the numbers of tensors that are plain attributes (metrics' states) back at the end.

    Args:
        module: whose modules' attributes are kept.

    Yields:
        Nothing.
    """
    kept = [(t, t._version, t.detach().clone()) for t in _tensors(module)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, version, value in kept:
                if tensor._version != version:
                    tensor.copy_(value)


@contextmanager
def _put_back(module: nn.Module) -> Iterator[None]:
    before = [(m, dict(vars(m)), dict(m._buffers), _contents(m)) for m in _strangers(module)]
    try:
        yield
    finally:
        for one, attributes, buffers, contents in before:
            now = vars(one)
            for name in [name for name in now if name not in attributes]:
                del now[name]
            now.update(attributes)
            one._buffers.update(buffers)
            for container, content in contents:
                if isinstance(container, list):
                    container[:] = content
                else:
                    container.clear()
                    container.update(content)


def _strangers(module: nn.Module) -> list[nn.Module]:
    # torch's own modules keep nothing but parameters and buffers
    return [m for m in module.modules() if not type(m).__module__.startswith("torch.nn")]


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    return [
        (value, value.copy())
        for name, value in vars(module).items()
        if name not in _OWN and type(value) in (list, dict, set) and len(value) <= _LONG
    ]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for one in _strangers(module):
        for name, value in vars(one).items():
            if name in _OWN:
                continue
            if isinstance(value, Tensor):
                yield value
            elif type(value) is list and len(value) <= _LONG:
                yield from (t for t in value if isinstance(t, Tensor))


def _is_true_precision(trainer: Any) -> bool:
    return str(trainer.precision).endswith("-true") and trainer.precision != "32-true"


class _Idle:
    """Takes every call and answers with itself: what a step may do to an optimizer."""

    def __getattr__(self, name: str) -> "_Idle":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> "_Idle":
        return self

    def __getitem__(self, _: Any) -> "_Idle":
        return self

    def __setitem__(self, _: Any, __: Any) -> None:
        return

    def __enter__(self) -> "_Idle":
        return self

    def __exit__(self, *_: object) -> None:
        return
