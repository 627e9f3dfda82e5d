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


def of_tasks(
    validation: dict[str, float],
    *,
    test: dict[str, float] | None = None,
    method: str = "ewc",
    ewc_lambda: float = 100.0,
    seed: int = 0,
) -> Summary:
    """A run over any number of tasks, by what it knows of each at the end.

    Right after it was learnt, each task is known to 0.95 on validation images; before the last task
    each old one is at 0.9.
    """
    *old, last = tasks = list(validation)
    at_the_end = test or validation
    stages = []
    for index, task in enumerate(tasks):
        row = [0.9 if place <= index else 0.1 for place in range(len(tasks))]
        curves = {f"retained/{name}": [0.92, 0.9] for name in tasks[:index]}
        curves[f"val/{task}/accuracy"] = [0.5, 0.95]
        if task == last:
            row = [at_the_end[name] for name in tasks]
            curves = {f"retained/{name}": [0.8, validation[name]] for name in old}
            curves[f"val/{task}/accuracy"] = [0.5, validation[task]]
        stages.append(StageResult(task, row, {"fit": 1.0, "test": 0.5}, 10, curves))
    made = summarize(
        stages,
        [0.1] * len(tasks),
        benchmark="made",
        scenario="domain",
        method=method,
        ewc_lambda=ewc_lambda,
        seed=seed,
        max_epochs=2,
        data_source=dict.fromkeys(tasks, "archives"),
        parameters=1000,
    )
    return replace(made, versions={"torch": "2"})


# Old: 71.43 and 58.57 %, together 65 %; on test images 70 and 50 %, together 60 %.
THREE = of_tasks(
    {"a": 0.7143, "b": 0.5857, "c": 0.9}, test={"a": 0.7, "b": 0.5, "c": 0.8}, ewc_lambda=100.0
)
FREE = of_tasks(
    {"a": 0.3, "b": 0.5, "c": 0.95}, test={"a": 0.2, "b": 0.4, "c": 0.9}, ewc_lambda=0.0
)
