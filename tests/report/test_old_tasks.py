"""Old are all tasks but the last: each has its column, and every word on them is their mean."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from lifelong.report.accuracies import columns, final_test, final_validation, retention
from lifelong.report.best import Rule, candidate_of, choose_from, trade_off, verdict
from lifelong.report.figures import lambda_figure, retention_figure, trade_off_figure
from lifelong.report.groups import group_runs
from lifelong.report.page import make_report
from lifelong.report.results import Results, Run, read_results
from lifelong.report.tables import as_csv, as_markdown, print_wide, results_table, sweep_table
from lifelong.run.summary import Summary
from lifelong.search.notes import Note
from lifelong.search.overview import note_line, overview_table
from lifelong.search.trial import Trial, search_table

from .made import FREE, THREE, of_tasks, write

ONE = of_tasks({"a": 0.9}, test={"a": 0.8})
TWO = of_tasks({"a": 0.75, "b": 0.9}, test={"a": 0.7, "b": 0.8})


def groups(*summaries: Summary):
    return group_runs([Run(Path(str(i)), summary) for i, summary in enumerate(summaries)])


def report(*summaries: Summary):
    runs = [Run(Path(str(i)), summary) for i, summary in enumerate(summaries)]
    return make_report(Results(Path("results"), runs, []), Rule())


def shown(table: Table) -> tuple[list[str], list[list[str]]]:
    """The headings, each on one line, and the cells of the body."""
    headings = [str(column.header).replace("\n", " ") for column in table.columns]
    console = Console(file=io.StringIO(), width=400)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return headings, [[c.strip() for c in x.split("│")[1:-1]] for x in lines if "│" in x]


@pytest.mark.parametrize(
    ("summary", "wanted"),
    [
        (ONE, {"a": 0.9}),
        (TWO, {"a": 0.75, "b": 0.9}),
        (THREE, {"a": 0.7143, "b": 0.5857, "mean of 2 old tasks": 0.65, "c": 0.9}),
    ],
)
def test_a_task_is_a_column_and_several_old_ones_have_their_mean_too(
    summary: Summary, wanted: dict[str, float]
) -> None:
    found = columns(final_validation(summary))
    assert found == pytest.approx(wanted)
    assert list(found) == list(wanted)


def test_what_is_kept_is_the_same_by_every_way() -> None:
    assert candidate_of(THREE).old == pytest.approx(0.65)
    assert candidate_of(THREE).before == pytest.approx(0.95)
    assert retention(THREE) == pytest.approx([(0.9 + 0.95) / 2, 0.8, 0.65])
    assert retention(TWO) == pytest.approx([0.95, 0.8, 0.75])
    (point,) = trade_off([THREE])
    assert (point.old, point.new) == pytest.approx((65.0, 90.0))
    assert point.average == pytest.approx((71.43 + 58.57 + 90) / 3)
    assert point.average == pytest.approx(100 * candidate_of(THREE).average)


def test_sentence_and_table_of_a_sweep_agree() -> None:
    headings, rows = shown(sweep_table({"": [THREE, FREE]}, Rule()))
    assert headings == [
        *("λ", "seeds", "a kept % validation", "b kept % validation"),
        *("mean of 2 old tasks kept % validation", "c new % validation", "average % validation"),
        *("a kept % test", "b kept % test", "mean of 2 old tasks kept % test", "c new % test", ""),
    ]
    free, held = ("30.00 50.00 40.00 95.00 58.33", "71.43 58.57 65.00 90.00 73.33")
    on_test = ("20.00 40.00 30.00 90.00", "70.00 50.00 60.00 80.00")
    assert rows == [
        ["0", "1", *free.split(), *on_test[0].split(), ""],
        ["100", "1", *held.split(), *on_test[1].split(), "← best"],
    ]
    sentence = verdict(choose_from([THREE, FREE], Rule()), Rule())
    kept = re.search(r"It kept ([\d.]+) % \(mean of 2 old tasks, lost ([\d.]+) points\)", sentence)
    assert kept is not None, sentence
    assert kept[1] == rows[1][headings.index("mean of 2 old tasks kept % validation")]
    assert float(kept[2]) == pytest.approx(95 - 65)
    tight = Rule("most_new", 1.0)
    sentence = verdict(choose_from([THREE, FREE], tight), tight)
    assert "100 loses least, 30.00 points (mean of 2 old tasks, validation images)" in sentence


def test_two_tasks_have_no_mean_to_speak_of() -> None:
    headings, (row,) = shown(sweep_table({"": [TWO]}, Rule()))
    assert headings[2:5] == ["a kept % validation", "b new % validation", "average % validation"]
    assert row[2:7] == ["75.00", "90.00", "82.50", "70.00", "80.00"]
    assert "kept 75.00 % (lost 20.00 points)" in verdict(candidate_of(TWO), Rule())


def test_the_results_of_several_methods_differ_in_every_stage_after_the_first() -> None:
    other = of_tasks({"a": 0.3, "b": 0.5, "c": 0.95}, method="finetune", ewc_lambda=0.0)
    other.accuracy[1][:] = [0.4, 0.9, 0.1]
    headings, rows = shown(results_table([THREE, other]))
    assert headings == ["", "a %", "b %", "mean of 2 old tasks %", "c %"]
    assert rows == [
        ["after a", "90.00", "10.00", "", "10.00"],
        ["after b (EWC, λ = 100)", "90.00", "90.00", "", "10.00"],
        ["after b (fine-tuning)", "40.00", "90.00", "", "10.00"],
        ["after c (EWC, λ = 100)", "70.00", "50.00", "60.00", "80.00"],
        ["after c (fine-tuning)", "30.00", "50.00", "40.00", "95.00"],
    ]
    assert shown(results_table([ONE])) == (["", "a %"], [["after a (EWC, λ = 100)", "80.00"]])


def test_copies_have_a_column_for_each_task() -> None:
    head, _, row = as_markdown(groups(THREE)).splitlines()
    assert head == (
        "| method | λ | seeds | a test % | b test % | mean of 2 old tasks test % | c test % "
        "| a validation % | b validation % | mean of 2 old tasks validation % | c validation % |"
    )
    assert row == (
        "| EWC | 100 | 1 | 70.00 | 50.00 | 60.00 | 80.00 | 71.43 | 58.57 | 65.00 | 90.00 |"
    )
    head, row = as_csv(groups(THREE)).splitlines()
    assert head.count("standard error") == 8
    assert float(row.split(",")[head.split(",").index("mean of 2 old tasks test")]) == 60.0
    head, _, row = as_markdown(groups(ONE)).splitlines()
    assert head == "| method | λ | seeds | a test % | a validation % |"
    assert row == "| EWC | 100 | 1 | 80.00 | 90.00 |"


def test_pictures_draw_the_mean_and_say_so() -> None:
    points, tasks = trade_off([THREE, FREE]), THREE.tasks
    axes = trade_off_figure({"EWC": points}, tasks).axes[0]
    assert axes.get_ylabel() == "mean of 2 old tasks, % of validation images"
    assert axes.containers[0][0].get_ydata().tolist() == pytest.approx([40.0, 65.0])
    axes = lambda_figure({"EWC": points}, tasks).axes[0]
    assert axes.get_legend_handles_labels()[1] == ["mean of 2 old tasks", "c (new)"]
    axes = retention_figure([THREE, FREE]).axes[0]
    assert "mean of 2 old tasks" in axes.get_title()
    assert axes.lines[0].get_ydata() == pytest.approx([92.5, 80.0, 65.0])
    assert axes.get_legend_handles_labels()[1] == ["EWC, λ = 100", "EWC, λ = 0"]


def test_charts_draw_the_mean_and_say_so() -> None:
    charts = pytest.importorskip("lifelong.report.charts")
    pytest.importorskip("plotly")
    three, two = groups(FREE, THREE), groups(TWO)
    old, new = charts.lambda_chart(three).data
    assert (old.name, new.name) == ("mean of 2 old tasks, EWC", "c, EWC")
    assert old.y == pytest.approx((30.0, 60.0))
    assert new.y == pytest.approx((90.0, 80.0))
    chart = charts.trade_off_chart(three)
    assert chart.data[0].y == pytest.approx((30.0, 60.0))
    assert chart.layout.yaxis.title.text == "mean of 2 old tasks, % of test images"
    chart = charts.retention_chart(three)
    assert [curve.name for curve in chart.data] == ["EWC, λ = 0", "EWC, λ = 100"]
    assert chart.data[1].y == pytest.approx((92.5, 80.0, 65.0))
    assert chart.layout.xaxis.title.text == "epochs of c"
    assert charts.lambda_chart(two).data[0].name == "a, EWC"
    assert charts.retention_chart(two).data[0].y == pytest.approx((95.0, 80.0, 75.0))
    assert len(charts.matrix_chart(three[0]).data[0].z) == 3


@pytest.mark.parametrize(
    ("summaries", "cells", "words"),
    [
        ([ONE], ["80.00", "90.00"], None),
        ([TWO], ["70.00", "80.00", "75.00", "90.00"], None),
        (
            [THREE, FREE],
            ["70.00", "50.00", "60.00", "80.00", "71.43", "58.57", "65.00", "90.00"],
            "EWC: best λ = 100 by the rule: the best average over the tasks. It kept 65.00 % "
            "(mean of 2 old tasks, lost 30.00 points)",
        ),
    ],
    ids=("one task", "two tasks", "three tasks"),
)
def test_the_page_says_it_once(
    summaries: list[Summary], cells: list[str], words: str | None
) -> None:
    pytest.importorskip("plotly")
    page = report(*summaries).html
    body = page.partition('<table id="table">')[2].partition("</table>")[0]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in body
    assert ("<strong>" in page) == (words is not None)
    assert words is None or words in page
    assert ("is the mean of 2 old tasks." in page) == (words is not None)


def test_the_words_of_a_search_say_that_it_is_a_mean() -> None:
    found = candidate_of(THREE)
    assert found.words == "kept 65.00 % (mean of 2 old tasks), new 90.00 %"
    assert candidate_of(TWO).words == "kept 75.00 %, new 90.00 %"
    headings, rows = shown(search_table([Trial(0, 100.0, "finished", 2, found, 0.7, "x")], 100.0))
    assert headings[3:6] == ["mean of 2 old tasks kept %", "new %", "average %"]
    assert rows[0][3:] == ["65.00", "90.00", "73.33", "← best"]
    assert shown(search_table([], 1.0))[0][3] == "old kept %"
    figures = {"retained/a": 0.7143, "retained/b": 0.5857, "val/c/accuracy": 0.9}
    note = Note(0, "x", "finished", "c", 2, 2, figures)
    assert note_line(note) == f"x: {found.words}"
    assert "kept: the mean of the old tasks" in str(overview_table([note], 1).title)
    assert note_line(replace(note, figures={"retained/a": 0.75})) == "x: kept 75.00 %"


def test_a_wide_table_is_whole_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    seven = of_tasks({f"task_number_{i}": 0.5 for i in range(7)})
    print_wide(sweep_table({"": [seven]}, Rule()))
    said = capsys.readouterr().out
    assert all(said.count(f"task_number_{i} kept %") == 2 for i in range(6))
    assert "…" not in said


def test_the_choice_weighs_the_mean_and_not_the_first_task() -> None:
    # The first task alone would choose λ = 1, and so would an average that counts it once.
    first = of_tasks({"a": 0.9, "b": 0.1, "c": 0.9}, ewc_lambda=1.0)
    both = of_tasks({"a": 0.6, "b": 0.6, "c": 0.85}, ewc_lambda=2.0)
    for rule in (Rule(), Rule("most_new", 40.0)):
        assert choose_from([first, both], rule).ewc_lambda == 2.0


def test_runs_of_three_tasks_are_read_back(tmp_path: Path) -> None:
    write(tmp_path / "three", THREE)
    (run,) = read_results(tmp_path).runs
    assert run.summary == THREE
    assert final_test(run.summary) == {"a": 0.7, "b": 0.5, "c": 0.8}
