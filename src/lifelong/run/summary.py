"""What a run found, as it stands in ``summary.json``.

Whoever reads results waits for no torch: what makes a summary out of a run imports it then.
"""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lifelong.data.files.whole import whole_file
from lifelong.errors import LifelongError

PACKAGES = ("lifelong-lightning", "torch", "torchvision", "lightning", "torchmetrics", "hydra-core")
# What summaries did not say before they had ``method_title`` and ``has_lambda``.
_UNTITLED = {
    "ewc": ("EWC", True),
    "online_ewc": ("online EWC", True),
    "kronecker_ewc": ("Kronecker EWC", True),
    "finetune": ("fine-tuning", False),
    "joint": ("joint training", False),
}


@dataclass(frozen=True)
class StageResult:
    """What learning one task gave.

    Args:
        task: the task's name.
        accuracy: fractions right on every task's official test set, in the order of the tasks.
        seconds: wall-clock seconds of ``fit``, ``consolidate`` and ``test``.
        steps: optimizer steps that were taken.
        curves: ``val/<task>/accuracy`` and ``retained/<task>`` on the validation images, one figure
            per epoch.
        reused: the parts that were taken from the stage store, with the seconds that each took
            when it was learnt.
        warnings: what was odd about λ while the task was learnt.
    """

    task: str
    accuracy: list[float]
    seconds: dict[str, float]
    steps: int
    curves: dict[str, list[float]] = field(default_factory=dict)
    reused: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """A finished run: the content of ``summary.json``; figures that one task lacks are null.

    ``method_title`` is the method in words; ``has_lambda`` says whether it has a λ at all, and
    ``ewc_lambda`` is 0 where it has none. ``choice`` says how λ was chosen where it was ``auto``:
    the rule, what each candidate did on validation images, and the seconds that all of it took.
    ``budget`` says how one was kept that took the place of λ: what was allowed, what the inputs
    that were watched changed by, the bound on it, how many and of how many bytes they are, and the
    λ at the end.
    """

    benchmark: str
    scenario: str
    method: str
    method_title: str
    has_lambda: bool
    ewc_lambda: float
    seed: int
    max_epochs: int
    tasks: list[str]
    data_source: dict[str, str]
    accuracy: list[list[float]]
    untrained_accuracy: list[float]
    average_accuracy: float | None
    backward_transfer: float | None
    forward_transfer: float | None
    forgetting: float | None
    retained: dict[str, float]
    seconds: dict[str, dict[str, float]]
    curves: list[dict[str, list[float]]]
    parameters: int
    versions: dict[str, str]
    reused: dict[str, dict[str, float]] = field(default_factory=dict)
    choice: dict[str, Any] | None = None
    budget: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the summary as JSON, whole or not at all; process 0 alone does.

        Args:
            path: the file.
        """
        from lightning.pytorch.utilities import rank_zero_only

        rank_zero_only(self._write)(path)

    def _write(self, path: Path) -> None:
        with whole_file(path) as temporary:
            text = json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Summary":
        """Read what a finished run wrote.

        Args:
            path: its ``summary.json``.

        Returns:
            The summary.

        Raises:
            LifelongError: when the file is none.
        """
        try:
            content = titled(json.loads(path.read_text(encoding="utf-8")))
            return cls(**{x.name: content[x.name] for x in fields(cls) if x.name in content})
        except (ValueError, KeyError, TypeError) as error:
            raise LifelongError(
                f"{path} is no summary of this version of lifelong ({error}); remove it to have "
                "it written anew"
            ) from error


def titled(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary says of its method, completed where it was written before it said so.

    Args:
        about: fields of ``Summary``, ``method`` at least.

    Returns:
        The same with ``method_title`` and ``has_lambda``; a method of a user's own is called by its
        name and has a λ.

    Example:
        >>> titled({"method": "joint"})["method_title"], titled({"method": "my_own"})["has_lambda"]
        ('joint training', True)
    """
    name, has_lambda = _UNTITLED.get(about["method"], (about["method"], True))
    return {"method_title": name, "has_lambda": has_lambda} | dict(about)


def summarize(stages: Sequence[StageResult], untrained: Sequence[float], **about: Any) -> Summary:
    """Sum up the stages of a run.

    Args:
        stages: one result per task, in order.
        untrained: the accuracies before the first task.
        **about: the fields of ``Summary`` that say what was run.

    Returns:
        The summary with its figures.
    """
    import torch

    from lifelong.core import average_accuracy, backward_transfer, forgetting, forward_transfer

    accuracy = torch.tensor([stage.accuracy for stage in stages], dtype=torch.float64)
    baseline = torch.tensor(untrained, dtype=torch.float64)
    names = [stage.task for stage in stages]
    return Summary(
        **titled(about),
        tasks=names,
        accuracy=[stage.accuracy for stage in stages],
        untrained_accuracy=list(untrained),
        average_accuracy=_or_null(average_accuracy(accuracy)),
        backward_transfer=_or_null(backward_transfer(accuracy)),
        forward_transfer=_or_null(forward_transfer(accuracy, baseline)),
        forgetting=_or_null(forgetting(accuracy)),
        retained=dict(zip(names, stages[-1].accuracy, strict=True)),
        seconds={stage.task: stage.seconds for stage in stages},
        reused={stage.task: stage.reused for stage in stages if stage.reused},
        curves=[stage.curves for stage in stages],
        warnings=[line for stage in stages for line in stage.warnings],
        versions=_versions(),
    )


def hyperparameter_metrics(summary: Summary) -> Mapping[str, float]:
    """The final figures that stand beside the hyper-parameters in TensorBoard.

    Args:
        summary: of a finished run.

    Returns:
        Figure name → value; figures that a single task lacks are left out.
    """
    figures = {"average_accuracy": summary.average_accuracy, "forgetting": summary.forgetting}
    figures |= {f"final/{task}/accuracy": value for task, value in summary.retained.items()}
    return {name: value for name, value in figures.items() if value is not None}


def _or_null(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
