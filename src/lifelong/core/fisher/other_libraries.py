"""What other libraries call the Fisher information, to compare with and to bring a λ along.

None of these converges to the Fisher information with more data; use `fisher_diagonal`.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.core.fisher.capture import Capture
from lifelong.core.fisher.diagonal import Diagonal, fisher_diagonal
from lifelong.core.fisher.evaluation import Evaluation
from lifelong.core.fisher.examples import count, map_tensors, regroup
from lifelong.core.fisher.passes import Plan, chunks
from lifelong.core.fisher.probe import checked
from lifelong.core.fisher.rules import rule_for
from lifelong.core.fisher.traceless import device_of, traceless


def batched_diagonal(
    network: nn.Module, batches: Iterable[Any], *, batch_size: int
) -> dict[str, Tensor]:
    """Return the squared gradient of the mean loss of a batch, averaged over the batches.

        F_i = (1/B) Σ_b [(1/n_b) Σ_{n∈b} ∂ log p(y_n | x_n) / ∂θ_i]²

    Scale: about the empirical Fisher divided by the batch size, plus the square of the mean
    gradient, so that a λ tuned with it holds for that batch size only; no constant repairs it.

    Args:
        network: A classifier with a softmax over its output's last dimension.
        batches: Pairs `(x, y)` with the examples along the first dimension `[N, ...]`.
        batch_size: The number of examples whose gradient is averaged before it is squared; the
            last batch may be smaller and counts like the others.

    Returns:
        For the name of every parameter that requires a gradient a tensor of its shape.

    Raises:
        ValueError: If there is no example.

    Source: the EWC plugin of Avalanche 0.6 (Lomonaco et al. 2021), whose penalty has no ½.

    >>> network = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.zeros_(network.weight)  # the scores are ±½ x
    >>> batches = [(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))]
    >>> batched_diagonal(network, batches, batch_size=2)["weight"]  # (½ (½ · 1 − ½ · 3))²
    tensor([[0.2500],
            [0.2500]])
    """
    params = {name: p for name, p in network.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    device, number = device_of(network), 0
    evaluation = Evaluation(network)
    with traceless(network):
        for x, y in regroup(evaluation.pairs(batches), lambda *_: batch_size, None):
            number += 1
            output, _ = evaluation(map_tensors(lambda t: t.to(device), x))
            checked(output, count(x), evaluation.likelihood)
            if y is None:
                raise ValueError("a batch has no labels; wanted (x, y) with y a tensor of classes")
            loss = nn.functional.cross_entropy(output.movedim(-1, 1), y.to(device))
            gradients = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
            for name, gradient in zip(params, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient.square()
    if not number:
        raise ValueError("the batches hold no example; wanted at least one: pass a list")
    return {name: squares / number for name, squares in total.items()}


def p_weighted_diagonal(network: nn.Module, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Return the squared scores of the given labels, weighted by the labels' probabilities.

        F_i = (1/N) Σ_n p(y_n | x_n) [∂ log p(y_n | x_n) / ∂θ_i]²

    Scale: a mean over examples; one term of the expectation that `fisher_diagonal` takes over all
    classes, so never more than the true one. An example that the network gets wrong counts little.

    Args:
        network: A classifier with one softmax an example, output `[N, C]`.
        batches: Pairs `(x, y)` with the examples along the first dimension `[N, ...]`.

    Returns:
        For the name of every parameter that requires a gradient a tensor of its shape.

    Source: the online EWC of Mammoth (Boschini et al. 2022), whose penalty has no ½.

    >>> network = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.zeros_(network.weight)  # so p = (½, ½) for every x
    >>> batches = [(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))]
    >>> p_weighted_diagonal(network, batches)["weight"]  # mean of ½ (½ x)²
    tensor([[0.6250],
            [0.6250]])
    """
    plan, evaluation = Plan("empirical"), Evaluation(network)
    with traceless(network), Capture(evaluation, lambda m: rule_for(m) is not None) as capture:
        diagonal = Diagonal(evaluation)
        for chunk in chunks(capture, evaluation.pairs(batches), plan):
            chunk.directions = _weighted(chunk.output.detach().softmax(-1), chunk.directions)
            diagonal.add(chunk)
        return diagonal.mean(plan.done)


def _weighted(p: Tensor, directions: Iterator[Tensor]) -> Iterator[Tensor]:
    if p.ndim != 2:
        raise ValueError(
            f"the network's output has shape {tuple(p.shape)}; wanted one label an example [N, C] "
            "for the p-weighted estimator: use fisher_diagonal"
        )
    for direction in directions:  # e_y − p, largest where the label is
        label = (direction + p).argmax(dim=-1, keepdim=True)
        yield direction * p.gather(-1, label).sqrt()


def equivalent_lambda(
    ewc_lambda: int | float,
    network: nn.Module,
    batches: Iterable[Any],
    *,
    estimator: str,
    batch_size: int = 128,
    half: bool = False,
) -> float:
    """Return the λ of our scale whose penalty is, over all parameters, as stiff as theirs.

        λ_ours · ½ tr F_ours = λ_theirs · tr F_theirs   (½ tr F_theirs if their penalty has the ½)

    Scale: the traces agree, so that a random step in the parameters costs the same; single
    parameters weigh differently, which is the point of the change.

    Args:
        ewc_lambda: The λ of the other library.
        network: The network as the earlier task left it.
        batches: Pairs `(x, y)` of that task, which can be gone through twice.
        estimator: "batched" (Avalanche and others) or "p-weighted" (Mammoth).
        batch_size: The batch size of their estimate, which "batched" depends on.
        half: Whether their penalty has the ½; Avalanche's and Mammoth's have not.

    Returns:
        λ for a penalty `λ ½ Σ F (θ − θ*)²` with F from `fisher_diagonal`.

    Raises:
        ValueError: If the estimator is unknown, or the network has no Fisher information.

    >>> network = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.zeros_(network.weight)
    >>> batches = [(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))]
    >>> ours = equivalent_lambda(10.0, network, batches, estimator="p-weighted")
    >>> round(ours, 4)  # 10 · 2 · 0.625 / 1.25
    10.0
    """
    if estimator == "batched":
        theirs = batched_diagonal(network, batches, batch_size=batch_size)
    elif estimator == "p-weighted":
        theirs = p_weighted_diagonal(network, batches)
    else:
        raise ValueError(
            f"estimator={estimator!r} came; wanted 'batched' or 'p-weighted': type one of them"
        )
    ours = _trace(fisher_diagonal(network, batches))
    if ours == 0:
        raise ValueError(
            "the Fisher information is zero; wanted a network whose parameters matter: pass one "
            "with trainable parameters that is not certain of every example"
        )
    return ewc_lambda * (1.0 if half else 2.0) * _trace(theirs) / ours


def _trace(diagonal: dict[str, Tensor]) -> float:
    return sum(float(entries.sum(dtype=torch.float64)) for entries in diagonal.values())
