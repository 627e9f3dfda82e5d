"""Cutting a data set in two so that every class keeps its share."""

import torch
from torch import Tensor


# Not sklearn's train_test_split(stratify=…): it sets the same numbers of each class aside, but
# other images, and every published figure chose its weights and its λ by these.
def stratified_split(
    labels: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the places of the examples to keep and of `count` examples to set aside.

    Of class c with n_c of the N examples, `count · n_c / N` are set aside, rounded so that the sum
    is `count` exactly (largest remainders first). Which ones is drawn from `generator`.

    Args:
        labels: The class of each example [N], integers.
        count: How many examples to set aside, 0 to N.
        generator: The source of the draw.

    Returns:
        The places kept [N - count] and the places set aside [count], each in rising order.

    Example:
        >>> import torch
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> kept, aside = stratified_split(labels, 3, torch.Generator().manual_seed(0))
        >>> labels[kept].tolist(), labels[aside].tolist()
        ([0, 0, 1], [0, 0, 1])
    """
    classes, sizes = labels.unique(return_counts=True)
    # whole numbers only: a float share could round differently on another machine
    shares = sizes * count // len(labels)
    remainders = sizes * count % len(labels)
    largest = remainders.argsort(descending=True, stable=True)
    shares[largest[: count - int(shares.sum())]] += 1

    aside = torch.zeros(len(labels), dtype=torch.bool)
    for label, share in zip(classes.tolist(), shares.tolist(), strict=True):
        members = (labels == label).nonzero().squeeze(1)
        chosen = torch.randperm(len(members), generator=generator)[:share]
        aside[members[chosen]] = True
    return (~aside).nonzero().squeeze(1), aside.nonzero().squeeze(1)
