"""What a stage left behind: the one reader of stage checkpoints, and what is made of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lifelong.data.definition import dataset_of
from lifelong.data.sets.images import normalised
from lifelong.errors import LifelongError
from lifelong.run.resume.checkpoint import CheckpointError, load_checkpoint
from lifelong.run.safe_build import PACKAGES, UntrustedError, build_network

if TYPE_CHECKING:
    from lifelong.learning import ContinualLearner
    from lifelong.methods import Method
    from lifelong.run.job import Job

SIDE = 28  # pixels


@dataclass(frozen=True, eq=False)
class Stage:
    """What a stage's checkpoint holds, each part of the kind that it must be.

    Args:
        path: the checkpoint.
        network: the network's parameters and buffers.
        method: what the method remembers.
        stages: the results of the stages so far, in plain values; each has a ``task``.
        config: the run's whole configuration, in plain values.
        data: task → the fingerprint of its images.
        untrained: the accuracies before the first task.
        journal: the (step, figures) that were logged.
    """

    path: Path
    network: dict[str, Tensor]
    method: dict[str, Any]
    stages: list[dict[str, Any]]
    config: dict[str, Any]
    data: dict[str, str]
    untrained: list[float]
    journal: list[tuple[int, dict[str, float]]]

    @property
    def tasks(self) -> list[str]:
        """What had been learnt, in order."""
        return [stage["task"] for stage in self.stages]


class ReadsPixels(nn.Module):
    """A network with what stands before and after it: pixels in, probabilities out.

    Every task's images are normalised by MNIST's statistics, so that there is nothing to choose.

    Args:
        network: normalised images to logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """The probability of each digit.

        Args:
            pixels: 0 the paper and 1 full ink; [batch, 1, 28, 28], float32.

        Returns:
            Probabilities; [batch, classes].
        """
        return self.network(normalised(pixels, full=1.0)).softmax(dim=-1)


@dataclass(frozen=True, eq=False)
class LearntNetwork:
    """A network as a stage left it.

    Args:
        reader: pixels to probabilities, in eval mode, on the CPU.
        path: the checkpoint.
        method: as on the command line.
        ewc_lambda: λ.
        tasks: what it had learnt, in order.
        config: the run's whole configuration.
    """

    reader: ReadsPixels
    path: Path
    method: str
    ewc_lambda: float
    tasks: list[str]
    config: Mapping[str, Any]

    @property
    def learnt_from_embedded_digits(self) -> bool:
        """Whether it learnt scikit-learn's digits, not the MNIST and USPS archives."""
        datasets = self.config["benchmark"]["tasks"]
        return any(str(dataset_of(datasets[task])).startswith("embedded") for task in self.tasks)

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Read images.

        Args:
            pixels: 0 the paper and 255 full ink; [batch, 28, 28], uint8.

        Returns:
            The probability of each digit; [batch, classes].
        """
        with torch.inference_mode():
            return self.reader(pixels.unsqueeze(1).float() / 255)


def stage_checkpoint(directory: Path, index: int, task: str) -> Path:
    """Where a run keeps the state after one of its stages.

    Args:
        directory: the run's.
        index: the stage's place.
        task: its name.

    Returns:
        The path of the checkpoint.
    """
    return directory / "checkpoints" / f"stage-{index}-{task}.ckpt"


def read_stage(path: Path) -> Stage:
    """Read a stage's checkpoint; nothing in it is built or called.

    Args:
        path: the checkpoint, or a run's folder, whose last stage is taken.

    Returns:
        Its parts.

    Raises:
        CheckpointError: when there is no whole checkpoint, or a part of it is missing or of another
            kind than it must be.
    """  # noqa: DOC502
    path = _last_stage(path) if path.is_dir() else path
    content = load_checkpoint(path, "stage")

    def part(name: str, fits: Callable[[Any], bool], holder: Any = content) -> Any:
        value = holder.get(name)
        if not fits(value):
            raise CheckpointError(f"{path} is damaged: its `{name}` is none of a stage")
        return value

    about = part("about", _is_named)
    return Stage(
        path,
        network=part("network", _is_state),
        method=part("method", _is_named),
        stages=part("stages", _are_results),
        config=part("config", _is_named, about),
        data=part("data", _is_named, about),
        untrained=part("untrained", _are_numbers),
        journal=part("journal", _is_journal),
    )


def learner_after(job: "Job", index: int) -> "tuple[ContinualLearner, Method, Stage]":
    """The learner and the method of a job as one of its stages left them.

    Args:
        job: of the run that was learnt.
        index: the stage's place.

    Returns:
        The learner in eval mode, on the CPU, its method, and what its checkpoint holds.

    Raises:
        LifelongError: when the run kept no checkpoint of that stage, or a damaged one.
    """
    path = stage_checkpoint(job.directory, index, job.benchmark.task_names[index])
    if not path.is_file():
        raise LifelongError(f"{path} is not there; finish that run first")
    stage, method = read_stage(path), job.make_method()
    learner = job.make_learner(method)
    try:
        learner.network.load_state_dict(stage.network)
        method.load_state_dict(stage.method)
    except Exception as error:
        raise LifelongError(f"{stage.path} does not fit this run ({_one_line(error)})") from error
    return learner.eval(), method, stage


def load_network(path: Path, *, trust: bool = False) -> LearntNetwork:
    """Read the network of a stage checkpoint.

    Args:
        path: the checkpoint, or a run's folder, whose last stage is taken.
        trust: whether the checkpoint may name code other than the networks of ``lifelong.models``,
            ``torch.nn`` and ``torchvision`` to build its own with. The tensors are read without
            running any.

    Returns:
        The network.

    Raises:
        LifelongError: when there is no whole checkpoint, it names code that is not trusted, or its
            network does not read images.
    """
    stage = read_stage(path)
    path, method, benchmark = stage.path, stage.config.get("method"), stage.config.get("benchmark")
    if (
        not isinstance(method, Mapping)
        or not isinstance(method.get("name"), str)
        or not _is_number(method.get("ewc_lambda", 0.0))
        or not isinstance(benchmark, Mapping)
        or not isinstance(benchmark.get("tasks"), Mapping)
        or any(task not in benchmark["tasks"] for task in stage.tasks)
    ):
        raise LifelongError(f"{path} is damaged: its configuration is none of a run of ours")
    foreign = [task for task in stage.tasks if dataset_of(benchmark["tasks"][task]) is None]
    if foreign:
        raise LifelongError(
            f"{path} has learnt {foreign[0]}, data of a user's own; this command makes images of "
            "MNIST's form alone: build your network and load "
            "lifelong.run.learnt.read_stage(FILE).network"
        )
    try:
        network = _network(stage, trust)
    except UntrustedError as error:
        raise LifelongError(
            f"{path} builds its network with {error}; only networks of {', '.join(PACKAGES)} are "
            "built unasked: if you trust the file, type --trust"
        ) from error
    except Exception as error:
        raise LifelongError(f"{path}: its network cannot be built ({_one_line(error)})") from error
    return LearntNetwork(
        reader=ReadsPixels(network).eval(),
        path=path,
        method=method["name"],
        ewc_lambda=float(method.get("ewc_lambda", 0.0)),
        tasks=stage.tasks,
        config=stage.config,
    )


def _network(stage: Stage, trust: bool) -> nn.Module:
    config = stage.config.get("model")
    if trust:
        from hydra.utils import instantiate
        from omegaconf import OmegaConf

        network = instantiate(OmegaConf.create(config))
    else:
        network = build_network(config)
    odd = [name for name, t in stage.network.items() if not torch.isfinite(t).all()]
    if odd:
        raise ValueError(f"{odd[0]} holds numbers that are not finite")
    network.load_state_dict(stage.network)
    network.eval()
    with torch.inference_mode():
        scores = network(torch.zeros(2, 1, SIDE, SIDE))
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != 2:
        raise ValueError(f"it gives no scores of classes for images of {SIDE} × {SIDE} pixels")
    return network


def _last_stage(folder: Path) -> Path:
    found = {
        int(number): path
        for path in (*folder.glob("checkpoints/stage-*.ckpt"), *folder.glob("stage-*.ckpt"))
        if (number := path.name.split("-")[1]).isdecimal()
    }
    if not found:
        raise CheckpointError(
            f"{folder} holds no stage checkpoint; learn first: "
            f"lifelong-train hydra.run.dir={folder}"
        )
    return found[max(found)]


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _is_state(value: Any) -> bool:
    return _is_named(value) and bool(value) and all(isinstance(x, Tensor) for x in value.values())


def _are_results(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(_is_named(one) and isinstance(one.get("task"), str) for one in value)
    )


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(_is_number(one) for one in value)


def _is_journal(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, list | tuple)
        and len(entry) == 2
        and isinstance(entry[0], int)
        and _is_named(entry[1])
        for entry in value
    )


def _is_number(value: Any) -> bool:
    # `auto` never stands in a checkpoint: λ is chosen before the first stage begins.
    return isinstance(value, int | float) and -1e300 < value < 1e300


def _one_line(error: BaseException) -> str:
    # torch's own words about a state that does not fit are a line for each tensor.
    return " ".join(str(error).split())[:200] or type(error).__name__
