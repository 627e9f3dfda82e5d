"""What a finished run leaves to look at: pictures in TensorBoard, and the digits that it forgot."""

import base64
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor

from lifelong.data.files.whole import whole_file
from lifelong.data.sets.images import LabelledImages, normalised
from lifelong.methods import PenaltyMethod
from lifelong.report.digits import digits_figure
from lifelong.report.importance import importance_figure
from lifelong.report.matrix import accuracy_matrix_figure
from lifelong.run import Job, Summary
from lifelong.run.learnt import learner_after

if TYPE_CHECKING:
    from lifelong.learning import ContinualLearner

KEPT = 64  # forgotten digits of a task in the file
SHOWN = 16  # of them in TensorBoard
BATCH = 2000


def observe_run(job: Job, summary: Summary, loggers: Sequence[Logger]) -> None:
    """Write ``forgotten.json``; show it, the accuracy matrix and the importances in TensorBoard.

    Everything comes from the stage checkpoints, so that it does not matter whether a stage was
    learnt, resumed or recalled.

    Args:
        job: of the run.
        summary: of the run.
        loggers: those of TensorBoard get pictures.
    """
    boards = [one.experiment for one in loggers if isinstance(one, TensorBoardLogger)]
    stages = [learner_after(job, index) for index in range(len(summary.tasks))]
    learners = [learner for learner, _, _ in stages]
    forgotten = [
        _forgotten(_images(job, index), task, learners[index], learners[-1])
        for index, task in enumerate(summary.tasks[:-1])
        if hasattr(job.benchmark.tasks[index], "test_images")  # digits in memory, which it shows
    ]
    if forgotten:
        _write(job, summary, forgotten)
    steps = 0
    for index, (_, method, stage) in enumerate(stages):
        steps += int(stage.stages[-1]["steps"])
        # Kronecker factors have no importance of a single weight.
        known = method.penalty.importances() if isinstance(method, PenaltyMethod) else {}
        figure = importance_figure(known, summary.tasks[: index + 1])
        for board in boards if figure is not None else []:
            board.add_figure("fisher/first_layer", figure, steps)
    for board in boards:
        board.add_figure("accuracy_matrix", accuracy_matrix_figure([summary]), steps)
        for one in forgotten:
            if one["digits"]:
                board.add_figure(f"forgotten/{one['task']}", _figure(one), steps)


def _images(job: Job, index: int) -> LabelledImages:
    images: LabelledImages = job.benchmark.tasks[index].test_images  # type: ignore[attr-defined]
    return images


@torch.inference_mode()
def _read(learner: "ContinualLearner", images: Tensor) -> Tensor:
    return torch.cat(
        [
            learner.network(normalised(part.unsqueeze(1))).argmax(dim=-1)
            for part in images.split(BATCH)
        ]
    )


def _forgotten(
    test: LabelledImages, task: str, before: "ContinualLearner", after: "ContinualLearner"
) -> dict[str, Any]:
    known, now = (_read(learner, test.images) for learner in (before, after))
    lost = ((known == test.labels) & (now != test.labels)).nonzero().flatten()
    some = lost[:: max(1, -(-len(lost) // KEPT))]
    digits = [
        {
            "index": i,
            "label": int(test.labels[i]),
            "before": int(known[i]),
            "after": int(now[i]),
            "pixels": base64.b64encode(test.images[i].numpy().tobytes()).decode(),
        }
        for i in some.tolist()
    ]
    return {"task": task, "count": len(lost), "digits": digits}


def _write(job: Job, summary: Summary, forgotten: Sequence[dict[str, Any]]) -> None:
    content = [one | {"after": summary.tasks[-1]} for one in forgotten]
    with whole_file(job.directory / "forgotten.json") as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def _figure(one: dict[str, Any]) -> Any:
    digits = one["digits"][:: max(1, len(one["digits"]) // SHOWN)][:SHOWN]
    pixels = [torch.frombuffer(bytearray(base64.b64decode(d["pixels"])), dtype=torch.uint8)
              for d in digits]  # fmt: skip
    captions = [f"{d['label']} → {d['after']}" for d in digits]
    return digits_figure(torch.stack(pixels).view(-1, 28, 28), captions)
