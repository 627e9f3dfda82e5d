"""Joint training: the upper bound, which keeps the old images."""

import json
from pathlib import Path

from .conftest import SMALL, Command


def test_joint_training_shares_the_first_task_and_keeps_it(
    command: Command, tmp_path: Path
) -> None:
    words = [*SMALL, "max_epochs=4", "logger=none", "stages=st"]
    found = {}
    for method in ("finetune", "joint"):
        done = command("train", *words, f"method={method}", f"hydra.run.dir={method}")
        assert done.code == 0, done.err
        found[method] = json.loads((tmp_path / method / "summary.json").read_text())
    assert "digits_as_mnist: taken from the stage store" in done.err
    assert "digits_as_usps: taken" not in done.err
    joint, alone = found["joint"], found["finetune"]
    assert joint["accuracy"][0] == alone["accuracy"][0]
    # 1,260 images in batches of 64 instead of 630
    assert joint["accuracy"][1][0] > alone["accuracy"][1][0] + 0.1
    assert joint["accuracy"][1][1] > alone["accuracy"][1][1] - 0.1
    assert joint["method"] == "joint"
