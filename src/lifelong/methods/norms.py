"""Running statistics of normalisation layers: no parameters, so that no penalty can hold them."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


class FrozenNorms:
    """Normalisation layers that use the statistics of what was learnt before, and leave them.

    Their weights go on being trained (and held); only the mean and the variance that they
    normalise with are those of the consolidated network, in training as in evaluation.

    Args:
        network: whose layers with running statistics are meant.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers = [
            layer
            for layer in network.modules()
            if isinstance(layer, _NormBase) and layer.running_mean is not None
        ]
        self._frozen: list[nn.Module] = []

    def freeze(self) -> None:
        """Put the layers that are in training mode into evaluation mode."""
        for layer in self.layers:
            if layer.training:
                layer.training = False
                if layer not in self._frozen:
                    self._frozen.append(layer)

    def restore(self) -> None:
        """Put those layers back into training mode; a second call does nothing."""
        for layer in self._frozen:
            layer.training = True
        self._frozen = []
