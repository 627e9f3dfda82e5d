"""Numbers whose noise the network says, too."""

import math

import torch
from torch import Tensor

from lifelong.core.fisher.likelihoods.base import at_least_float32, place
from lifelong.core.fisher.likelihoods.per_output import PerOutput


class Heteroscedastic(PerOutput):
    r"""Numbers with Gaussian noise, mean and logarithm of the variance being outputs.

    The last dimension of the output is the pair (f, s) with s = log σ².

        log p(y | f, s) = −½ Σ_d ((y_d − f_d)² exp(−s_d) + s_d + log 2π)

    The information of f is exp(−s), that of s is ½, and none lies between the two.

    Scale: an example's D numbers add up; `nn.functional.gaussian_nll_loss` is their mean.

    >>> Heteroscedastic().exact(torch.tensor([[[3.0, 0.0]]]), None).weights
    tensor([[1.0000, 0.5000]], dtype=torch.float64)
    """

    def information(self, output: Tensor) -> Tensor:
        """Return exp(−s) for every mean and ½ for every s.

        Args:
            output: The network's output `[N, ..., 2]`.

        Returns:
            The information, in the shape of the output.
        """
        s = output[..., 1]
        return torch.stack([(-s).exp(), torch.full_like(s, 0.5)], dim=-1)

    def log_prob(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return `log p(target | output)`, summed over an example's numbers.

        Args:
            output: The network's output `[N, ..., 2]`.
            target: Numbers `[N, ...]`.

        Returns:
            For each example its log-density `[N]`.

        Raises:
            ValueError: If output and target do not fit each other.
        """
        if output.ndim < 2 or output.shape[-1] != 2 or target is None:
            raise ValueError(_unlike(output, target))
        f, s = output.unbind(dim=-1)
        if target.squeeze().shape != f.squeeze().shape:
            raise ValueError(_unlike(output, target))
        y = target.reshape(f.shape).to(f.device, f.dtype)
        each = -0.5 * ((y - f) ** 2 * (-s).exp() + s + math.log(math.tau))
        return each.reshape(len(output), -1).sum(dim=1)

    def divergence(self, before: Tensor, after: Tensor, target: Tensor | None) -> Tensor:
        """Return that of two Gaussians, the mean over an example's numbers.

        Args:
            before: The output `[N, ..., 2]` of the network as it was.
            after: That of the network as it is.
            target: Not looked at.

        Returns:
            For each example its divergence in nats `[N]`.
        """
        del target
        (f, s), (g, t) = (at_least_float32(x).unbind(dim=-1) for x in (before, after))
        each = 0.5 * (t - s + (s - t).exp() + (f - g) ** 2 * (-t).exp() - 1)
        return each.reshape(len(each), -1).mean(dim=1)

    def sample(self, output: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the means with noise of the network's own variance.

        Args:
            output: The network's output `[N, ..., 2]`.
            generator: The randomness.

        Returns:
            Numbers `[N, ...]`.
        """
        f, s = at_least_float32(output).unbind(dim=-1)
        noise = torch.randn(f.shape, generator=generator, device=place(generator))
        return f + (s / 2).exp() * noise.to(f.device, f.dtype)


def _unlike(output: Tensor, target: Tensor | None) -> str:
    came = "no tensor" if target is None else f"shape {tuple(target.shape)}"
    return (
        f"{came} came as targets of Heteroscedastic() and an output of shape "
        f"{tuple(output.shape)}; wanted [N, ...] and [N, ..., 2], mean and log-variance last: "
        "correct the batches, or pass forward="
    )
