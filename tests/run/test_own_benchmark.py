"""A user's own data, by YAML: three tasks of colour images, learnt by a CNN, with EWC."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.learning import ContinualLearner
from tests.methods.jobs import InterruptError
from tests.run.own_benchmark import FITS, write_conf

from .conftest import Command
from .test_resume import difference

TASKS = ["red", "green", "blue"]


def left(directory: Path) -> dict[str, Any]:
    kept = torch.load(directory / "checkpoints/stage-2-blue.ckpt", weights_only=True)
    stages = [{k: s[k] for k in ("task", "accuracy", "steps", "curves")} for s in kept["stages"]]
    return {"network": kept["network"], "method": kept["method"], "stages": stages}


@pytest.mark.slow
def test_three_tasks_of_ones_own_are_learnt_resumed_and_recalled_to_the_same_bits(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config-dir", str(write_conf(tmp_path / "conf")), "benchmark=textures", *FITS]
    words += ["method=ewc", "method.ewc_lambda=100", "max_epochs=2", "optimizer.lr=0.01"]
    words += ["logger=none"]
    whole = command("train", *words, "stages=st", "hydra.run.dir=whole")
    assert whole.code == 0, whole.err
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    assert (summary["tasks"], summary["scenario"]) == (TASKS, "domain")
    assert summary["accuracy"][0][0] > 0.7
    assert summary["data_source"]["green"] == "tests.run.own_benchmark.Textures"
    expected = left(tmp_path / "whole")
    shapes = {tuple(t.shape) for t in expected["method"]["penalty"].values()}
    assert (8, 3, 3, 3) in shapes  # the first convolution, of three colours

    with monkeypatch.context() as patch:

        def fail(self: ContinualLearner, *_: Any) -> None:
            # In the middle of the second task's last epoch: its loaders have drawn at random.
            if self.current_task == "green" and self.trainer.global_step == 10:
                raise InterruptError

        patch.setattr(ContinualLearner, "on_train_batch_end", fail)
        part = [*words, "stages=off", "checkpoint_every=0.001", "hydra.run.dir=part"]
        with pytest.raises(InterruptError):
            command("train", *part)
    resumed = command("train", *words, "stages=off", "resume=true", "hydra.run.dir=part")
    assert resumed.code == 0, resumed.err
    assert "going on within green" in resumed.err
    assert difference(left(tmp_path / "part"), expected) is None

    recalled = command("train", *words, "stages=st", "hydra.run.dir=again")
    assert recalled.code == 0, recalled.err
    assert [f"{task}: taken from the stage store" in recalled.err for task in TASKS] == [True] * 3
    assert difference(left(tmp_path / "again"), expected) is None

    # Another setting of the user's own class is another stage.
    other = command("train", *words, "benchmark.tasks.green.noise=0.3", "stages=st")
    assert other.code == 0, other.err
    found = [f"{task}: taken from the stage store" in other.err for task in TASKS]
    assert found == [True, False, False]
