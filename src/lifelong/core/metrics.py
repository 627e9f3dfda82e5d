"""The figures that an accuracy matrix of a sequence of tasks is summed up in.

Row i of the matrix holds the accuracies after task i, column j those on task j.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def average_accuracy(accuracy: Float[Tensor, "tasks tasks"]) -> float:
    """The mean accuracy over all tasks after the last one.

    A = (1/T) Σ_j R_{T,j}.

    Args:
        accuracy: fractions in [0, 1]; [tasks, tasks], row i after task i, column j on task j.

    Returns:
        A fraction in [0, 1].

    Source:
        Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory", eq. 2 (ACC).

    Example:
        >>> average_accuracy(torch.tensor([[0.9, 0.5], [0.7, 0.9]]))
        0.8
    """
    return _rounded(accuracy[-1].double().mean())


def backward_transfer(accuracy: Float[Tensor, "tasks tasks"]) -> float:
    """How much learning later tasks changed the earlier ones: negative where they were forgotten.

    BWT = (1/(T−1)) Σ_{j<T} (R_{T,j} − R_{j,j}); the last task takes no part, so two tasks give
    one difference. Not a number for a single task.

    Args:
        accuracy: fractions in [0, 1]; [tasks, tasks].

    Returns:
        A difference of fractions in [−1, 1].

    Source:
        Lopez-Paz and Ranzato 2017, eq. 3.

    Example:
        >>> backward_transfer(torch.tensor([[0.9, 0.5], [0.7, 0.9]]))
        -0.2
    """
    return _rounded((accuracy[-1] - accuracy.diagonal())[:-1].double().mean())


def forward_transfer(
    accuracy: Float[Tensor, "tasks tasks"], untrained: Float[Tensor, " tasks"]
) -> float:
    """What the tasks before gave to a task that was not learnt yet, over an untrained network.

    FWT = (1/(T−1)) Σ_{j>1} (R_{j−1,j} − b_j). Not a number for a single task.

    Args:
        accuracy: fractions in [0, 1]; [tasks, tasks].
        untrained: b, the accuracies of the network before the first task; [tasks].

    Returns:
        A difference of fractions in [−1, 1].

    Source:
        Lopez-Paz and Ranzato 2017, eq. 4.

    Example:
        >>> forward_transfer(torch.tensor([[0.9, 0.5], [0.7, 0.9]]), torch.tensor([0.1, 0.1]))
        0.4
    """
    before = accuracy.diagonal(offset=1)
    return _rounded((before - untrained[1:]).double().mean())


def forgetting(accuracy: Float[Tensor, "tasks tasks"]) -> float:
    """How far each earlier task fell from the best it ever was.

    (1/(T−1)) Σ_{j<T} (max_{i<T} R_{i,j} − R_{T,j}). Not a number for a single task.

    Args:
        accuracy: fractions in [0, 1]; [tasks, tasks].

    Returns:
        A difference of fractions in [−1, 1]; positive where something was forgotten.

    Source:
        Chaudhry et al. 2018, "Riemannian Walk", eq. 3.

    Example:
        >>> forgetting(torch.tensor([[0.9, 0.5], [0.7, 0.9]]))
        0.2
    """
    if len(accuracy) == 1:
        return float("nan")
    best = accuracy[:-1].max(dim=0).values
    return _rounded((best - accuracy[-1])[:-1].double().mean())


def _rounded(figure: Tensor) -> float:
    # An accuracy counts at most some 10⁵ images: beyond seven places stands rounding alone.
    return round(float(figure), 7) if torch.isfinite(figure) else float("nan")
