"""Running statistics of normalisation layers: no parameters, so that no penalty can hold them."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


class FrozenNorms:
    """Normalisation layers that use the statistics of what was learnt before, and leave them.

    Their weights go on being trained (and held); only the mean and the variance that they
    normalise with are those of the consolidated network, in training as in evaluation. Whatever
    puts them into training mode meanwhile, each is taken out of it before it is used.

    Args:
        network: whose layers with running statistics are meant.
    """

    def __init__(self, network: nn.Module) -> None:
        self._frozen: set[nn.Module] = set()
        self._hooks = []
        for layer in network.modules():
            if isinstance(layer, _NormBase) and layer.running_mean is not None:
                self._freeze(layer)
                self._hooks.append(layer.register_forward_pre_hook(self._freeze))

    def restore(self) -> None:
        """Put those layers back into training mode; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._frozen:
            layer.training = True
        self._hooks, self._frozen = [], set()

    def _freeze(self, layer: nn.Module, _: Any = None) -> None:
        if layer.training:
            layer.training = False
            self._frozen.add(layer)
