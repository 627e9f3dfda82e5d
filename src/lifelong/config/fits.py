"""Whether a network reads what the tasks give, asked before anything is learnt."""

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor, nn

from lifelong.data.task import Task
from lifelong.errors import LifelongError

CHANNELS = 3  # dimensions of an image that has them


def check_fits(network: nn.Module, tasks: Iterable[Task]) -> None:
    """Refuse a network that cannot read a task's images or has too few classes for its labels.

    One validation batch of each task is looked at, and the task's number of classes where it is
    known.

    Args:
        network: The one that is to learn, on the CPU; it is left in eval mode.
        tasks: The tasks, set up.

    Raises:
        LifelongError: One line that names the task, its shape and the key to type.
    """
    network.eval()
    for task in tasks:
        images, labels = next(iter(task.val_dataloader()))
        images, labels = images[:2].cpu(), labels.cpu()
        with torch.inference_mode():
            try:
                logits = network(images)
            except Exception as error:
                raise LifelongError(_unreadable(network, task, images, error)) from error
        _check_labels(task, labels, logits, images)


def _unreadable(network: nn.Module, task: Task, images: Tensor, error: Exception) -> str:
    shape = list(images.shape[1:])
    values, channels = prod(shape), shape[0] if len(shape) == CHANNELS else None
    wide, deep = getattr(network, "in_features", None), getattr(network, "channels_in", None)
    if wide is not None and wide != values:
        other = "" if channels is None else f" or model=cnn model.channels_in={channels}"
        return (
            f"images of {task.name} are {shape} = {values} values and model.in_features is {wide}; "
            f"type model.in_features={values}{other}"
        )
    if deep is not None and channels is None:
        return (
            f"images of {task.name} are {shape} and a convolutional network reads "
            f"[channels, height, width]; type model=perceptron model.in_features={values}"
        )
    if deep is not None and deep != channels:
        return (
            f"images of {task.name} are {shape} and model.channels_in is {deep}; "
            f"type model.channels_in={channels}"
        )
    first = str(error).strip().partition("\n")[0]
    return (
        f"images of {task.name} are {shape} and {type(network).__name__} does not read them "
        f"({first}); give the model or the task another shape"
    )


def _check_labels(task: Task, labels: Tensor, logits: Tensor, images: Tensor) -> None:
    if logits.ndim != 2 or len(logits) != len(images):
        raise LifelongError(
            f"for {len(images)} images of {task.name} the model gives {list(logits.shape)}; "
            "wanted logits [images, classes]"
        )
    if int(labels.min()) < 0:
        raise LifelongError(
            f"labels of {task.name} begin at {int(labels.min())}; number the classes from 0"
        )
    highest = max(int(labels.max()), (task.num_classes or 0) - 1)
    if highest >= logits.shape[1]:
        raise LifelongError(
            f"labels of {task.name} reach {highest} and model.num_classes is {logits.shape[1]}; "
            f"type model.num_classes={highest + 1}"
        )
