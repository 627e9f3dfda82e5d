"""The learner as a stage left it."""

from pathlib import Path

import pytest
import torch

from lifelong.config.build import build_job
from lifelong.config.compose import compose_run
from lifelong.config.learnt import learnt_stage
from lifelong.errors import LifelongError
from lifelong.run.resume.checkpoint import FORMAT, CheckpointError, load_checkpoint
from lifelong.search.branches import learn_branches

SMALL = ["benchmark=embedded_digits", "max_epochs=2", "model.hidden=[16]", "logger=none"]


def test_a_stage_comes_back_with_its_network_and_its_penalty(tmp_path: Path) -> None:
    configs = [
        compose_run([*SMALL, f"method.ewc_lambda={x}", f"output_dir={tmp_path}/{x}"])
        for x in (10, 20)
    ]
    first, second = learn_branches(configs)
    before, after = learnt_stage(configs[0], 0), learnt_stage(configs[0], -1)
    assert not before.training
    task = build_job(configs[0]).benchmark.tasks[0]
    images, labels = next(iter(task.test_dataloader()))
    for learner, figure in ((before, first.accuracy[0][0]), (after, first.accuracy[1][0])):
        right = (learner(images).argmax(dim=-1) == labels).double().mean()
        torch.testing.assert_close(float(right), figure, rtol=0, atol=1e-6)
    # consolidated there: nothing has moved yet, and afterwards something has
    omega = [
        float(before.method.penalty.value(dict(x.network.named_parameters())))
        for x in (before, after)
    ]
    assert omega[0] == 0.0 < omega[1]
    # what was learnt once lies with both runs
    for name, tensor in learnt_stage(configs[1], 0).state_dict().items():
        assert torch.equal(tensor, before.state_dict()[name]), name
    assert learnt_stage(configs[1], 1).method.ewc_lambda == second.ewc_lambda == 20.0
    elsewhere = compose_run([*SMALL, f"output_dir={tmp_path}/elsewhere"])
    with pytest.raises(LifelongError, match="finish that run first"):
        learnt_stage(elsewhere, 0)


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("kind", ["stage", "progress"])
def test_no_code_runs_from_a_checkpoint(tmp_path: Path, kind: str) -> None:
    ran, file = tmp_path / "ran", tmp_path / "one.ckpt"
    torch.save({"kind": kind, "format": FORMAT, "network": Payload(ran)}, file)
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_checkpoint(file, kind)
    assert not ran.exists()
