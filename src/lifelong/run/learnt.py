"""A learnt network, ready to read images: from a stage checkpoint."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from lifelong.data.definition import dataset_of
from lifelong.data.sets.images import normalised
from lifelong.errors import LifelongError
from lifelong.run.resume.checkpoint import load_checkpoint

KNOWN = ("lifelong.", "torch.nn.")


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


def load_network(path: Path, *, trust: bool = False) -> LearntNetwork:
    """Read the network of a stage checkpoint.

    Args:
        path: the checkpoint, or a run's folder, whose last stage is taken.
        trust: whether the checkpoint may name code outside ``lifelong`` and ``torch.nn`` to build
            its network with. The tensors are read without running any.

    Returns:
        The network.

    Raises:
        LifelongError: when there is no whole checkpoint, or it names code that is not trusted.
    """
    path = _last_stage(path) if path.is_dir() else path
    content = load_checkpoint(path, "stage")
    config = content["about"]["config"]
    unknown = sorted({x for x in _targets(config["model"]) if not x.startswith(KNOWN)})
    if unknown and not trust:
        raise LifelongError(
            f"{path} builds its network with {', '.join(unknown)}; if you trust the file, type "
            "--trust"
        )
    try:
        network = instantiate(OmegaConf.create(config["model"]))
        network.load_state_dict(content["network"])
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise LifelongError(f"{path}: its network cannot be built ({first})") from error
    return LearntNetwork(
        reader=ReadsPixels(network).eval(),
        path=path,
        method=str(config["method"]["name"]),
        ewc_lambda=float(config["method"].get("ewc_lambda", 0.0)),
        tasks=[str(stage["task"]) for stage in content["stages"]],
        config=config,
    )


def _last_stage(folder: Path) -> Path:
    found = [*folder.glob("checkpoints/stage-*.ckpt"), *folder.glob("stage-*.ckpt")]
    if not found:
        raise LifelongError(
            f"{folder} holds no stage checkpoint; learn first: "
            f"lifelong-train hydra.run.dir={folder}"
        )
    return max(found, key=lambda path: int(path.name.split("-")[1]))


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield str(value["_target_"])
        for item in value.values():
            yield from _targets(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _targets(item)
