"""What a finished run leaves to look at: pictures in TensorBoard, and the images that it forgot."""

import base64
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor

from lifelong.data.files.whole import whole_file
from lifelong.data.task import Task
from lifelong.report.figures import accuracy_matrix_figure, digits_figure, importance_figure
from lifelong.run import Job, Summary
from lifelong.run.learnt import learner_after

if TYPE_CHECKING:
    from lifelong.learning import ContinualLearner

KEPT = 64  # forgotten images of a task in the file
SHOWN = 16  # of them in TensorBoard


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
    old = zip(job.benchmark.tasks[:-1], learners, strict=False)
    looked = [_forgotten(task, learner, learners[-1]) for task, learner in old]
    forgotten = [one for one in looked if one is not None]
    if forgotten:
        _write(job, summary, forgotten)
    steps = 0
    for index, (_, method, stage) in enumerate(stages):
        steps += int(stage.stages[-1]["steps"])
        figure = importance_figure(method.single_importances(), summary.tasks[: index + 1])
        for board in boards if figure is not None else []:
            board.add_figure("fisher/first_layer", figure, steps)
    for board in boards:
        board.add_figure("accuracy_matrix", accuracy_matrix_figure([summary]), steps)
        for one in forgotten:
            if one["digits"]:
                board.add_figure(f"forgotten/{one['task']}", _figure(one), steps)


def _tested(task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    # A loader gives each process of a trainer its share; one process alone is here.
    trainer, task.trainer = task.trainer, None
    try:
        yield from task.test_dataloader()
    finally:
        task.trainer = trainer


@torch.inference_mode()
def _forgotten(
    task: Task, before: "ContinualLearner", after: "ContinualLearner"
) -> dict[str, Any] | None:
    stored = getattr(task, "test_images", None)
    pictures = getattr(stored, "images", None)
    if not isinstance(pictures, Tensor) or pictures.dtype != torch.uint8 or pictures.ndim != 3:
        return None  # no grey values in memory to show
    read = [
        (labels, before.network(images).argmax(dim=-1), after.network(images).argmax(dim=-1))
        for images, labels in _tested(task)
    ]
    labels, known, now = (torch.cat(column) for column in zip(*read, strict=True))
    if not torch.equal(labels, getattr(stored, "labels", labels[:0])):
        return None  # the loader has another order: no telling which picture is whose
    lost = ((known == labels) & (now != labels)).nonzero().flatten()
    some = lost[:: max(1, -(-len(lost) // KEPT))]
    digits = [
        {
            "index": i,
            "label": int(labels[i]),
            "before": int(known[i]),
            "after": int(now[i]),
            "pixels": base64.b64encode(pictures[i].numpy().tobytes()).decode(),
        }
        for i in some.tolist()
    ]
    shape = list(pictures.shape[1:])
    return {"task": task.name, "count": len(lost), "shape": shape, "digits": digits}


def _write(job: Job, summary: Summary, forgotten: Sequence[dict[str, Any]]) -> None:
    content = [one | {"after": summary.tasks[-1]} for one in forgotten]
    with whole_file(job.directory / "forgotten.json") as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def _figure(one: dict[str, Any]) -> Any:
    digits = one["digits"][:: max(1, len(one["digits"]) // SHOWN)][:SHOWN]
    pixels = [torch.frombuffer(bytearray(base64.b64decode(d["pixels"])), dtype=torch.uint8)
              for d in digits]  # fmt: skip
    captions = [f"{d['label']} → {d['after']}" for d in digits]
    return digits_figure(torch.stack(pixels).view(-1, *one["shape"]), captions)
