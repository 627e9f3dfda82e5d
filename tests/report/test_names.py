"""What methods are called and how they are drawn follows from what summaries say."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lifelong.report.figures import accuracy_matrix_figure
from lifelong.report.groups import group_runs
from lifelong.report.names import label, label_of
from lifelong.report.palette import PALETTE, styles
from lifelong.report.results import Run
from lifelong.run.summary import Summary, titled

from .made import of_tasks

TWO = of_tasks({"a": 0.75, "b": 0.9})


@pytest.mark.parametrize(
    ("title", "has_lambda", "ewc_lambda", "wanted"),
    [
        ("EWC", True, 1e4, "EWC, λ = 1e4"),
        ("EWC", True, 0.0, "EWC, λ = 0"),
        ("EWC", True, 0.01, "EWC, λ = 0.01"),
        ("Kronecker EWC", True, 100.0, "Kronecker EWC, λ = 100"),
        ("fine-tuning", False, 0.0, "fine-tuning"),
        ("joint training", False, 0.0, "joint training"),
        ("my own", True, 25000.0, "my own, λ = 25000"),
        ("my own", False, 3.0, "my own"),
    ],
)
def test_a_method_is_labelled_with_lambda_where_it_has_one(
    title: str, has_lambda: bool, ewc_lambda: float, wanted: str
) -> None:
    assert label(title, ewc_lambda, has_lambda=has_lambda) == wanted
    summary = replace(TWO, method_title=title, has_lambda=has_lambda, ewc_lambda=ewc_lambda)
    assert label_of(summary) == wanted
    (group,) = group_runs([Run(Path("x"), summary)])
    assert group.label == wanted
    assert (group.lambda_cell == "–") == (not has_lambda)
    assert ("method.ewc_lambda" in group.command) == has_lambda
    assert accuracy_matrix_figure([summary]).axes[0].get_title() == wanted


@pytest.mark.parametrize(
    ("method", "title", "has_lambda"),
    [
        ("ewc", "EWC", True),
        ("online_ewc", "online EWC", True),
        ("kronecker_ewc", "Kronecker EWC", True),
        ("finetune", "fine-tuning", False),
        ("joint", "joint training", False),
        ("my_own", "my_own", True),
    ],
)
def test_a_summary_of_before_says_as_much(
    tmp_path: Path, method: str, title: str, has_lambda: bool
) -> None:
    content = asdict(replace(TWO, method=method))
    del content["method_title"], content["has_lambda"]
    (tmp_path / "summary.json").write_text(json.dumps(content))
    found = Summary.read(tmp_path / "summary.json")
    assert (found.method_title, found.has_lambda) == (title, has_lambda)
    said = {"method": method, "method_title": "said", "has_lambda": not has_lambda}
    assert titled(said) == said


def test_curves_of_one_picture_are_told_apart_and_stay_as_they_are() -> None:
    names = [f"method {i}" for i in range(len(PALETTE))]
    looks = styles(names)
    assert len({style.colour for style in looks.values()}) == len(names)
    assert len({style.marker for style in looks.values()}) == len(names)
    assert len({style.symbol for style in looks.values()}) == len(names)
    assert styles(names) == looks
    assert styles([*names, "one more"])["one more"] == PALETTE[0]


def test_the_order_of_runs_does_not_change_what_they_look_like() -> None:
    runs = [
        Run(Path(method), of_tasks({"a": 0.7, "b": 0.9}, method=method, ewc_lambda=x))
        for method, x in (("joint", 0.0), ("ewc", 1.0), ("finetune", 0.0), ("ewc", 0.0))
    ]
    wanted = ["EWC, λ = 0", "EWC, λ = 1", "fine-tuning", "joint training"]
    assert [g.label for g in group_runs(runs)] == wanted
    assert [g.label for g in group_runs(runs[::-1])] == wanted


def test_reading_results_loads_no_torch() -> None:
    rooms = "results groups tables page figures charts best accuracies"
    words = f"import sys, {', '.join(f'lifelong.report.{name}' for name in rooms.split())}\n" + (
        "heavy = {'torch', 'lightning', 'torchvision', 'matplotlib', 'plotly', 'scipy'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
