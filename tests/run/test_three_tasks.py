"""A sweep over three tasks says the same thing of the old ones everywhere."""

import json
import re
from pathlib import Path
from statistics import fmean

import pytest

from .conftest import SMALL, Command

THIRD = (
    "+base@benchmark.tasks.digits_again=images",
    "benchmark.tasks.digits_again.dataset=embedded_mnist",
)
OLD = ("digits_as_mnist", "digits_as_usps")
MEAN = "mean of 2 old tasks"


def kept(path: Path) -> list[float]:
    last = json.loads(path.read_text())["curves"][-1]
    return [100 * last[f"retained/{task}"][-1] for task in OLD]


def test_table_sentences_and_page_of_three_tasks_agree(command: Command, tmp_path: Path) -> None:
    words = (*SMALL, *THIRD, "logger=none", "method.ewc_lambda=0,1e3", "hydra.sweep.dir=sweep")
    done = command("train", "-m", *words)
    assert done.code == 0, done.err
    sentence = re.search(rf"best λ = (\S+) by .* It kept ([\d.]+) % \({MEAN}, lost", done.out)
    assert sentence is not None, done.out
    for ewc_lambda in ("0", "1e3"):
        by_task = kept(tmp_path / f"sweep/method.ewc_lambda={ewc_lambda}/summary.json")
        (row,) = [x for x in done.out.splitlines() if re.match(rf"│ +{ewc_lambda} │", x)]
        cells = [cell.strip() for cell in row.split("│")]
        mean = f"{fmean(by_task):.2f}"
        assert cells[3:6] == [*(f"{figure:.2f}" for figure in by_task), mean]
        assert f"method.ewc_lambda={ewc_lambda}: kept {mean} % ({MEAN}), new" in done.err
        if ewc_lambda == sentence[1]:
            assert sentence[2] == mean

    pytest.importorskip("plotly")
    from lifelong.cli import report

    report.main([str(tmp_path / "sweep")])
    page = (tmp_path / "sweep/report.html").read_text()
    assert sentence[0] in page
    assert f"<td>{sentence[2]}</td>" in page
    line = (tmp_path / "sweep/report.md").read_text().splitlines()[0]
    assert all(f"| {name} validation % |" in f"{line} |" for name in (*OLD, MEAN))


@pytest.mark.slow
def test_a_choice_over_three_tasks_speaks_of_their_mean(command: Command, tmp_path: Path) -> None:
    choice = ("choice.low=10", "choice.high=100", "choice.refine=0", "method.ewc_lambda=auto")
    done = command("train", *SMALL, *THIRD, "logger=none", *choice, "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert len(re.findall(rf"λ = 10+: kept [\d.]+ % \({MEAN}\), new", done.err)) == 2
    said = re.search(rf"It kept ([\d.]+) % \({MEAN}", done.err)
    assert said is not None
    assert said[1] == f"{fmean(kept(tmp_path / 'run/summary.json')):.2f}"
    assert f"{MEAN} kept %" in done.out
    assert f"{MEAN} %" in done.out
