"""Results written down as runs leave them, with figures that can be checked by hand."""

import base64
import json
from dataclasses import replace
from pathlib import Path

from lifelong.run.summary import StageResult, Summary, summarize

TASKS = ("mnist", "usps")


def summary(
    *,
    method: str = "ewc",
    ewc_lambda: float = 100.0,
    seed: int = 0,
    old: float = 0.9,
    new: float = 0.8,
    source: str = "archives",
) -> Summary:
    """A run over two tasks; on validation images it does one point better than on test images."""
    stages = [
        StageResult("mnist", [0.98, 0.5], {"fit": 1.0}, 10, {"val/mnist/accuracy": [0.9, 0.99]}),
        StageResult(
            "usps",
            [old, new],
            {"fit": 1.0},
            10,
            {"retained/mnist": [0.95, old + 0.01], "val/usps/accuracy": [0.7, new + 0.01]},
        ),
    ]
    made = summarize(
        stages,
        [0.1, 0.1],
        benchmark="mnist_usps",
        scenario="domain",
        method=method,
        ewc_lambda=ewc_lambda,
        seed=seed,
        max_epochs=2,
        data_source=dict.fromkeys(TASKS, source),
        parameters=1000,
    )
    return replace(made, versions={"torch": "2"})


def write(folder: Path, content: Summary, words: list[str] | None = None) -> Path:
    content.write(folder / "summary.json")
    if words is not None:
        (folder / ".hydra").mkdir()
        note = {"config": {}, "overrides": words}
        (folder / ".hydra" / "run.json").write_text(json.dumps(note))
    return folder


def sweep(folder: Path) -> Path:
    """λ = 0, 10, 1000 × two seeds, with fine-tuning and joint training beside."""
    kept = {0.0: (0.6, 0.9), 10.0: (0.9, 0.88), 1000.0: (0.96, 0.7)}
    for ewc_lambda, (old, new) in kept.items():
        for seed in (0, 1):
            one = summary(ewc_lambda=ewc_lambda, seed=seed, old=old + 0.02 * seed, new=new)
            words = [f"method.ewc_lambda={ewc_lambda:g}", f"seed={seed}"]
            write(folder / f"sweep/{ewc_lambda:g},{seed}", one, words)
    write(folder / "finetune", summary(method="finetune", ewc_lambda=0.0, old=0.6, new=0.9))
    write(folder / "joint", summary(method="joint", ewc_lambda=0.0, old=0.97, new=0.93))
    return folder


def forget(folder: Path, count: int, shown: int) -> None:
    pixels = bytearray(28 * 28)
    pixels[28 * 14 : 28 * 14 + 14] = b"\xff" * 14
    digit = {"index": 1, "label": 7, "before": 7, "after": 2}
    digit["pixels"] = base64.b64encode(bytes(pixels)).decode()
    one = {"task": "mnist", "after": "usps", "count": count, "digits": [digit] * shown}
    (folder / "forgotten.json").write_text(json.dumps([one]))
