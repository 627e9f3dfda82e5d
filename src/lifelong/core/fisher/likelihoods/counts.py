"""Counts at a rate that the network says."""

import torch
from torch import Tensor

from lifelong.core.fisher.likelihoods.base import at_least_float32, place
from lifelong.core.fisher.likelihoods.per_output import PerOutput, like


class Poisson(PerOutput):
    r"""Counts, one for each output, which is the logarithm of their rate.

        log p(y | z) = Σ_d (y_d z_d − exp z_d − log y_d!),   information exp z, the rate

    Scale: an example's D counts add up; `nn.functional.poisson_nll_loss` is their mean, without
    log y!.

    >>> Poisson().empirical(torch.tensor([[0.0]]), torch.tensor([[3]]))  # y − e⁰
    tensor([[2.]])
    """

    def information(self, output: Tensor) -> Tensor:
        """Return the rate of each output.

        Args:
            output: The network's output `[N, ...]`.

        Returns:
            The information, in the shape of the output.
        """
        return output.exp()

    def log_prob(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return `log p(target | output)`, summed over an example's counts.

        Args:
            output: The network's output `[N, ...]`.
            target: Numbers ≥ 0 of the same shape.

        Returns:
            For each example its log-probability `[N]`.

        Raises:
            ValueError: If a target is below 0.
        """
        y = like(target, output, "Poisson")
        if not bool((y >= 0).all()):
            raise ValueError(
                f"targets from {float(y.min())} came for Poisson(); wanted counts of at least 0: "
                "correct the batches or pass another likelihood"
            )
        each = y * output - output.exp() - torch.lgamma(y + 1)
        return each.reshape(len(output), -1).sum(dim=1)

    def divergence(self, before: Tensor, after: Tensor, target: Tensor | None) -> Tensor:
        """Return `e^a (a − b) − e^a + e^b`, the mean over an example's counts.

        Args:
            before: The output `[N, ...]` of the network as it was.
            after: That of the network as it is.
            target: Not looked at.

        Returns:
            For each example its divergence in nats `[N]`.
        """
        del target
        a, b = at_least_float32(before), at_least_float32(after)
        each = a.exp() * (a - b) - a.exp() + b.exp()
        return each.reshape(len(each), -1).mean(dim=1)

    def sample(self, output: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return counts drawn at the network's own rates.

        Args:
            output: The network's output `[N, ...]`.
            generator: The randomness.

        Returns:
            Counts in the shape of the output.
        """
        rate = at_least_float32(output).exp()
        return torch.poisson(rate.to(place(generator)), generator=generator).to(rate.device)
