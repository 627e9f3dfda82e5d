"""Outputs that are independent of each other: numbers with noise, yes-or-no labels."""

import math

import torch
from torch import Tensor, nn

from lifelong.core.fisher.likelihoods.base import Likelihood, at_least_float32, place, uniform
from lifelong.core.fisher.likelihoods.directions import Axes, Directions, widest


class PerOutput(Likelihood):
    """Outputs that are independent of each other, each with a label of its own.

    One's own needs `information`, and `log_prob` and `sample` for the other kinds of labels.

    >>> class Exponential(PerOutput):  # waiting times at the rate exp(output)
    ...     def information(self, output):
    ...         return torch.ones_like(output)
    >>> Exponential().exact(torch.tensor([[0.0]]), None).weights
    tensor([[1.]], dtype=torch.float64)
    """

    def information(self, output: Tensor) -> Tensor:
        """Return the Fisher information of each single output, the variance of its score.

        Args:
            output: The network's output `[N, ...]`.

        Raises:
            NotImplementedError: In this base.
        """
        raise NotImplementedError

    def exact(self, output: Tensor, target: Tensor | None) -> Directions:
        """Return one axis for each output, as long as the square root of its information.

        Args:
            output: The network's output `[N, ...]`.
            target: Not looked at.

        Returns:
            The directions.
        """
        del target
        return Axes(self.information(widest(output.detach())), output.dtype)

    def uncertainty(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return the mean information of an example's outputs.

        Args:
            output: The network's output `[N, ...]`.
            target: Not looked at.

        Returns:
            For each example a number of at least 0 `[N]`.
        """
        del target
        return self.information(at_least_float32(output)).reshape(len(output), -1).mean(dim=1)


class Gaussian(PerOutput):
    r"""Numbers with independent Gaussian noise of one standard deviation σ.

        log p(y | f) = −Σ_d (y_d − f_d)² / (2 σ²) − D log(σ √(2π)),   F = (1/N) Σ_n JᵀJ / σ²

    Scale: an example's D outputs add up. A loss `½ Σ_d (y_d − f_d)²` has σ = 1;
    `nn.functional.mse_loss`, a mean over the outputs without the ½, has `σ = √(D / 2)`.

    Args:
        sigma: σ, in the unit of the output.

    Raises:
        ValueError: If σ is not finite and above 0.

    >>> Gaussian(sigma=2.0).empirical(torch.tensor([[1.0]]), torch.tensor([[3.0]]))  # (y − f) / σ²
    tensor([[0.5000]])
    """

    def __init__(self, sigma: float = 1.0) -> None:
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma={sigma} came; wanted a number above 0: type sigma=1.0")
        self.sigma = float(sigma)

    def information(self, output: Tensor) -> Tensor:
        """Return 1/σ² for each output.

        Args:
            output: The network's output `[N, ...]`.

        Returns:
            The information, in the shape of the output.
        """
        return torch.full_like(output, self.sigma**-2)

    def log_prob(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return `log p(target | output)`, summed over an example's outputs.

        Args:
            output: The network's output `[N, ...]`.
            target: Numbers of the same shape.

        Returns:
            For each example its log-density `[N]`.
        """
        y = like(target, output, "Gaussian")
        each = -0.5 * ((y - output) / self.sigma) ** 2 - math.log(self.sigma * math.sqrt(math.tau))
        return each.reshape(len(output), -1).sum(dim=1)

    def divergence(self, before: Tensor, after: Tensor, target: Tensor | None) -> Tensor:
        """Return `(before − after)² / (2 σ²)`, the mean over an example's outputs.

        Args:
            before: The output `[N, ...]` of the network as it was.
            after: That of the network as it is.
            target: Not looked at.

        Returns:
            For each example its divergence in nats `[N]`.
        """
        del target
        each = 0.5 * ((after - before) / self.sigma) ** 2
        return each.reshape(len(each), -1).mean(dim=1)

    def sample(self, output: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the output with noise.

        Args:
            output: The network's output `[N, ...]`.
            generator: The randomness.

        Returns:
            Numbers in the shape of the output.
        """
        noise = torch.randn(output.shape, generator=generator, device=place(generator))
        wide = at_least_float32(output)
        return wide + self.sigma * noise.to(wide.device, wide.dtype)


class Bernoulli(PerOutput):
    r"""Yes-or-no labels, one for each output, which is its logit.

        log p(y | z) = Σ_d (y_d z_d − log(1 + exp z_d)),   information p(1 − p) with p = 1/(1 + e⁻ᶻ)

    Scale: an example's D labels add up; `binary_cross_entropy_with_logits` is their mean.

    >>> Bernoulli().empirical(torch.tensor([0.0]), torch.tensor([1]))  # y − p
    tensor([0.5000])
    """

    def information(self, output: Tensor) -> Tensor:
        """Return p(1 − p) for each output.

        Args:
            output: The network's output `[N, ...]`.

        Returns:
            The information, in the shape of the output.
        """
        return output.sigmoid() * (-output).sigmoid()

    def log_prob(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return `log p(target | output)`, summed over an example's labels.

        Args:
            output: The network's output `[N, ...]`.
            target: Numbers from 0 to 1 (or booleans) of the same shape.

        Returns:
            For each example its log-probability `[N]`.

        Raises:
            ValueError: If a target lies outside 0 to 1.
        """
        y = like(target, output, "Bernoulli")
        if not bool(((y >= 0) & (y <= 1)).all()):
            raise ValueError(
                f"targets from {float(y.min())} to {float(y.max())} came for Bernoulli(); wanted 0 "
                "to 1: correct the batches or pass another likelihood"
            )
        each = nn.functional.binary_cross_entropy_with_logits(output, y, reduction="none")
        return -each.reshape(len(output), -1).sum(dim=1)

    def divergence(self, before: Tensor, after: Tensor, target: Tensor | None) -> Tensor:
        """Return that of two coins, the mean over an example's labels.

        Args:
            before: The logits `[N, ...]` of the network as it was.
            after: Those of the network as it is.
            target: Not looked at.

        Returns:
            For each example its divergence in nats `[N]`.
        """
        del target
        return kl_of_coins(before, after).reshape(len(before), -1).mean(dim=1)

    def sample(self, output: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return labels drawn from the network's own probabilities.

        Args:
            output: The network's output `[N, ...]`.
            generator: The randomness.

        Returns:
            Zeros and ones in the shape of the output.
        """
        p = at_least_float32(output).sigmoid()
        return (uniform(p.shape, generator).to(p.device, p.dtype) < p).to(p.dtype)


def kl_of_coins(before: Tensor, after: Tensor) -> Tensor:
    """Return `p (log p − log q) + (1 − p)(log (1 − p) − log (1 − q))` in nats.

    Args:
        before: The logits of p.
        after: Those of q.

    Returns:
        The divergence of each output, differentiable in both.

    >>> kl_of_coins(torch.tensor(0.0), torch.tensor(0.0))
    tensor(0.)
    """
    a, b = at_least_float32(before), at_least_float32(after)
    return a.sigmoid() * (a - b) + nn.functional.softplus(b) - nn.functional.softplus(a)


def like(target: Tensor | None, output: Tensor, name: str) -> Tensor:
    """Return targets in the shape of their outputs.

    `[N]` and `[N, 1]` are the same labels, and only they: nothing is spread out over the outputs.

    Args:
        target: The labels.
        output: The network's output `[N, ...]`.
        name: Of the likelihood, for the error.

    Returns:
        The labels, in the shape, place and precision of the output.

    Raises:
        ValueError: If they are of another shape.
    """
    if target is None or target.squeeze().shape != output.squeeze().shape:
        came = "no tensor" if target is None else f"shape {tuple(target.shape)}"
        raise ValueError(
            f"{came} came as targets of {name}(); wanted numbers of the output's shape "
            f"{tuple(output.shape)}: correct the batches, or pass forward="
        )
    return target.reshape(output.shape).to(output.device, output.dtype)
