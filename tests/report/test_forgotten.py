"""Images that a run forgot: shown where a task has them in memory, of any height and width."""

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor

from lifelong.report.forgotten import _figure, _forgotten
from lifelong.report.page import _source
from lifelong.report.results import read_results

from .made import of_tasks, write

LABELS = torch.tensor([0, 1, 1, 0])
PICTURES = torch.arange(4 * 2 * 3, dtype=torch.uint8).view(4, 2, 3)


class Task:
    """Two batches of what the networks read: here the labels that they shall read, by column."""

    name = "old"

    def __init__(self, stored: object) -> None:
        self.trainer = SimpleNamespace(world_size=2)
        if stored is not None:
            self.test_images = stored

    def test_dataloader(self) -> list[tuple[Tensor, Tensor]]:
        assert self.trainer is None, "a process of several would get its share alone"
        before, after = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 0])
        both = torch.stack([before, after], dim=1)
        return [(both[:3], LABELS[:3]), (both[3:], LABELS[3:])]


def reads(column: int) -> SimpleNamespace:
    return SimpleNamespace(network=lambda both: torch.eye(2)[both[:, column]])


def looked_at(stored: object):
    return _forgotten(Task(stored), reads(0), reads(1))  # type: ignore[arg-type]


def test_what_was_right_and_is_wrong_is_kept_with_its_shape(tmp_path: Path) -> None:
    found = looked_at(SimpleNamespace(images=PICTURES, labels=LABELS))
    assert found is not None
    assert (found["task"], found["count"], found["shape"]) == ("old", 1, [2, 3])
    (one,) = found["digits"]
    assert (one["index"], one["label"], one["before"], one["after"]) == (1, 1, 1, 0)
    assert base64.b64decode(one["pixels"]) == bytes(range(6, 12))
    assert _figure(found).axes[0].images[0].get_array().tolist() == [[6, 7, 8], [9, 10, 11]]
    write(tmp_path, of_tasks({"old": 0.5, "new": 0.5}))
    (tmp_path / "forgotten.json").write_text(json.dumps([found]))
    ((image,),) = (one.images for one in read_results(tmp_path).runs[0].forgotten)
    assert image.shape == (2, 3)
    shown = Image.open(io.BytesIO(base64.b64decode(_source(image).partition(",")[2])))
    assert (shown.size, shown.getpixel((0, 0)), shown.getpixel((2, 1))) == ((3, 2), 249, 244)


@pytest.mark.parametrize(
    "stored",
    [
        None,
        SimpleNamespace(images=PICTURES.float(), labels=LABELS),
        SimpleNamespace(images=PICTURES.unsqueeze(1), labels=LABELS),
        SimpleNamespace(images=PICTURES, labels=1 - LABELS),
        SimpleNamespace(images=PICTURES),
    ],
    ids=("nothing in memory", "no bytes", "with channels", "another order", "no labels"),
)
def test_where_there_is_no_picture_nothing_is_said(stored: object) -> None:
    assert looked_at(stored) is None


def test_the_trainer_of_a_task_is_given_back() -> None:
    task = Task(SimpleNamespace(images=PICTURES, labels=LABELS))
    trainer = task.trainer
    _forgotten(task, reads(0), reads(1))  # type: ignore[arg-type]
    assert task.trainer is trainer
