"""What a network's output says about the labels, as directions in the output's space.

The score of a label y is the gradient of `log p(y | output)`; pulled back through the network it is
the score of the parameters. Whatever the likelihood and the kind of labels, one example's share of
the Fisher information is `Σ_r (Jᵀ u_r)(Jᵀ u_r)ᵀ` with directions `u_r` in the space of outputs and
the outputs' Jacobian J: one backward pass for each direction.
"""

from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from lifelong.core.fisher.likelihoods.directions import Directions

KINDS = ("exact", "sampled", "empirical")
# one of KINDS: checked with a message that names them, as it is what users type
Labels: TypeAlias = str


def check_labels(labels: Labels) -> None:
    """Refuse an unknown kind of labels.

    Args:
        labels: What came.

    Raises:
        ValueError: If it is not one of the three.
    """
    if labels not in KINDS:
        wanted = ", ".join(repr(kind) for kind in KINDS)
        raise ValueError(f"labels={labels!r} came; wanted one of {wanted}: type labels='exact'")


class Likelihood:
    """How probable labels are, given a network's output: the base of one's own.

    `log_prob` alone is enough for empirical labels, `sample` adds sampled ones, `exact` (or
    `PerOutput`, where the outputs are independent of each other) exact ones.

    Scale: an example's labels are independent given its output; their log-probabilities add up.

    >>> class Exponential(Likelihood):  # waiting times at the rate exp(output)
    ...     def log_prob(self, output, target):
    ...         return (output - output.exp() * target).flatten(1).sum(dim=1)
    >>> Exponential().empirical(torch.tensor([[0.0]]), torch.tensor([[3.0]]))  # 1 − e⁰ · 3
    tensor([[-2.]])
    """

    def check(self, output: Tensor) -> None:
        """Refuse an output that cannot be what this likelihood takes.

        Args:
            output: The network's output `[N, ...]`.
        """
        check_finite(output)

    def log_prob(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return `log p(target | output)` of every example, in nats, differentiable in the output.

        Args:
            output: The network's output `[N, ...]`.
            target: The labels, examples along the first dimension.

        Raises:
            ValueError: If the likelihood cannot say.
        """
        del output, target
        raise ValueError(
            f"{type(self).__name__} has no log_prob; wanted one for labels='empirical' and "
            "labels='sampled': write log_prob(output, target) -> [N]"
        )

    def sample(self, output: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return labels drawn from the network's own probabilities.

        Args:
            output: The network's output `[N, ...]`.
            generator: Where the randomness comes from; the global generator of the CPU if None.

        Raises:
            ValueError: If the likelihood cannot.
        """
        del output, generator
        raise ValueError(
            f"{type(self).__name__} cannot draw labels; wanted labels='empirical': type it, or "
            "write sample(output, generator)"
        )

    def exact(self, output: Tensor, target: Tensor | None) -> Directions:
        """Return the directions of the expectation over the network's own labels.

        Args:
            output: The network's output `[N, ...]`.
            target: The labels of the batch, None where there are none; they say at most which
                positions count.

        Raises:
            ValueError: If the likelihood has no closed form.
        """
        del output, target
        raise ValueError(
            f"{type(self).__name__} has no exact expectation; wanted labels='sampled' or "
            "'empirical': type one of them, or write exact(output, target)"
        )

    def divergence(self, before: Tensor, after: Tensor, target: Tensor | None) -> Tensor:
        """Return `KL(p(· | before) ‖ p(· | after))` of every example, in nats for each label.

        Scale: the mean over an example's labels (positions, outputs), so that it means the same for
        one label as for many.

        Args:
            before: The output `[N, ...]` of the network as it was.
            after: That of the network as it is, in the same shape.
            target: The labels, which say at most what is ignored; None where there are none.

        Raises:
            ValueError: If the likelihood cannot say.
        """
        del before, after, target
        raise ValueError(
            f"{type(self).__name__} cannot compare two predictions; wanted a likelihood that can: "
            "pass Categorical(), Gaussian() or Bernoulli(), or write divergence(before, after, "
            "target) -> [N]"
        )

    def uncertainty(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return how much a change of the output could change the predictions, for each example.

        Scale: the trace of the Fisher information in the output's space, the mean over an example's
        labels; ones where a likelihood does not say.

        Args:
            output: The output `[N, ...]`.
            target: The labels, which say at most what is ignored; None where there are none.
        """
        del target
        return torch.ones(len(output), device=output.device)

    def sampled(
        self, output: Tensor, target: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """Return the score of labels that are drawn from the network's own probabilities.

        Args:
            output: The network's output `[N, ...]`.
            target: The labels of the batch; they say at most which positions count.
            generator: The randomness.

        Returns:
            The directions, in the shape of the output.
        """
        del target
        return self.empirical(output, self.sample(output.detach(), generator))

    def empirical(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return the score of the given labels, the gradient of `log_prob` at the output.

        Args:
            output: The network's output `[N, ...]`.
            target: The labels.

        Returns:
            The directions, in the shape of the output.
        """
        with torch.enable_grad():
            leaf = at_least_float32(output.detach()).clone().requires_grad_()
            (score,) = torch.autograd.grad(self.log_prob(leaf, target).sum(), leaf)
        return score.to(output.dtype)


class Given(Likelihood):
    """The output is itself the log-likelihood of every example `[N]`: empirical labels alone."""

    def check(self, output: Tensor) -> None:
        """Refuse what is not one number an example.

        Args:
            output: The log-likelihoods.

        Raises:
            ValueError: If it is not.
        """
        if output.ndim != 1:
            raise ValueError(
                f"the likelihood returned shape {tuple(output.shape)}; wanted one log-likelihood "
                "an example [N]: sum over everything else"
            )
        check_finite(output)

    def exact(self, output: Tensor, target: Tensor | None) -> Directions:
        """Refuse: a function cannot be asked for other labels than the batch's.

        Args:
            output: The log-likelihoods.
            target: Not looked at.

        Raises:
            ValueError: Always.
        """
        del output, target
        raise ValueError(
            "a function came as likelihood, which knows the batch's own labels only; wanted "
            "labels='empirical': type it, or pass an object such as Categorical()"
        )

    def sampled(
        self, output: Tensor, target: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """Refuse, as `exact` does.

        Args:
            output: The log-likelihoods.
            target: Not looked at.
            generator: Not looked at.

        Returns:
            Nothing.
        """
        del generator
        self.exact(output, target)
        return output

    def empirical(self, output: Tensor, target: Tensor | None) -> Tensor:
        """Return ones: the score is the gradient of the output itself.

        Args:
            output: The log-likelihoods `[N]`.
            target: Not looked at.

        Returns:
            The directions `[N]`.
        """
        del target
        return torch.ones_like(output)


def directions(
    likelihood: Likelihood,
    output: Tensor,
    labels: Labels,
    target: Tensor | None,
    generator: torch.Generator | None,
    needed: int | None = None,
) -> Iterator[Tensor]:
    """Yield the directions whose squared pullbacks make up the Fisher information.

    Args:
        likelihood: What the output says about the labels.
        output: The network's output `[N, ...]`.
        labels: Over which labels the score is averaged.
        target: The labels of the batch, for `empirical`, and for what they say is ignored.
        generator: The randomness, for `sampled`.
        needed: How many of the heaviest directions of `exact` to yield; all that weigh if None.

    Yields:
        Directions, in the shape of the output.
    """
    output = output.detach()  # a direction holds no graph
    if labels == "sampled":
        yield likelihood.sampled(output, target, generator)
    elif labels == "empirical":
        yield likelihood.empirical(output, target)
    else:
        found = likelihood.exact(output, target)
        if needed is None:
            needed = int((found.weights > 0).sum(dim=1).max())
        for index in range(needed):
            yield found.direction(index)


def check_finite(output: Tensor) -> None:
    """Refuse outputs that are not finite.

    Args:
        output: The network's output `[N, ...]`.

    Raises:
        ValueError: If a number in it is not finite.
    """
    finite = output.detach().isfinite()
    if not finite.all():
        bad = (~finite).reshape(len(output), -1).any(dim=1)
        first = output.detach()[~finite][0].item()
        raise ValueError(
            f"the network's output is {first} for {int(bad.sum())} of {len(output)} examples; "
            "wanted finite logits: look for a diverged network or bad inputs"
        )


def at_least_float32(t: Tensor) -> Tensor:
    """Return half precision as float32, anything else as it is."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def place(generator: torch.Generator | None) -> torch.device:
    """Return the device on which a generator draws."""
    return torch.device("cpu") if generator is None else generator.device


def uniform(shape: torch.Size, generator: torch.Generator | None) -> Tensor:
    """Return numbers from 0 up to 1 in float64, drawn where the generator is."""
    return torch.rand(shape, generator=generator, device=place(generator), dtype=torch.float64)
