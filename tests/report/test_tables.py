"""The tables of a sweep, and the overview while it runs, by hand."""

import io
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lifelong.report.best import Candidate, Rule, choose_from, verdict
from lifelong.report.tables import sweep_table
from lifelong.search.notes import (
    FAILED,
    FINISHED,
    PRUNED,
    Note,
    Notebook,
    read_notes,
    remove_notes,
)
from lifelong.search.overview import Overview, note_line, overview_table
from lifelong.search.trial import Trial, search_table

from .test_figures import RUNS


def rows(table: Table) -> list[list[str]]:
    """The cells of the body, without frame and blanks."""
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]


# λ = 0: old 40 and 40, new 100 and 90; λ = 100: old 80 and 60, new 90 and 80 (per cent).
# Of two values a and b the mean has the standard error |a − b| / 2.
FREE = ["0", "2", "40.00 ± 0.00", "95.00 ± 5.00", "67.50 ± 2.50", "25.00 ± 0.00", "75.00 ± 0.00"]
HELD = ["100", "2", "70.00 ± 10.00", "85.00 ± 5.00", "77.50 ± 7.50", "25.00 ± 0.00", "75.00 ± 0.00"]


def test_the_table_of_a_sweep_is_by_lambda_with_mean_and_standard_error() -> None:
    assert rows(sweep_table({"": RUNS}, Rule())) == [[*FREE, ""], [*HELD, "← best"]]


def test_the_rule_decides_which_lambda_is_marked() -> None:
    # Right after the first task it had 95 %: λ = 100 loses 25 points.
    generous = rows(sweep_table({"": RUNS}, Rule("most_new", 60.0)))
    assert [row[-1] for row in generous] == ["← best", ""]
    best = choose_from(RUNS, Rule("most_new", 10.0))
    assert best.ewc_lambda == 100.0
    assert "100 loses least, 25.00 points" in verdict(best, Rule("most_new", 10.0))
    sentence = verdict(choose_from(RUNS, Rule()), Rule())
    assert sentence.startswith("best λ = 100 by the rule: the best average over the tasks.")
    assert "kept 70.00 % (lost 25.00 points) and reached 85.00 %" in sentence


def test_what_else_was_swept_has_rows_and_a_best_of_its_own() -> None:
    worse = [replace(run, ewc_lambda=1.0) for run in RUNS[:1]]
    table = rows(sweep_table({"method=ewc": RUNS, "method=mas": worse}, Rule()))
    assert [(row[0], row[1], row[2], row[-1]) for row in table] == [
        ("method=ewc", "0", "2", ""),
        ("method=ewc", "100", "2", "← best"),
        ("method=mas", "1", "1", ""),  # the only one is no best
    ]
    assert table[2][3] == "80.00"


def test_the_test_figures_stand_beside_and_do_not_choose() -> None:
    inverted = [
        replace(run, accuracy=[[0.0, 0.0], [1.0, 1.0] if run.ewc_lambda == 0 else [0.0, 0.0]])
        for run in RUNS
    ]
    free, held = rows(sweep_table({"": inverted}, Rule()))
    assert free[5:] == ["100.00 ± 0.00", "100.00 ± 0.00", ""]
    assert held[5:] == ["0.00 ± 0.00", "0.00 ± 0.00", "← best"]


def test_the_table_of_a_search_is_by_lambda_and_says_what_was_given_up() -> None:
    trials = [
        Trial(0, 1e4, FINISHED, 5, Candidate(1e4, 0.9, 0.8, 0.7), 0.75, "a"),
        Trial(1, 10.0, PRUNED, 1, Candidate(10.0, 0.9, 0.5, 0.9), None, "b"),
        Trial(2, 1e6, FAILED, 0, None, None, "c", "the loss became NaN"),
    ]
    assert rows(search_table(trials, 1e4)) == [
        ["10", "1", "1", "50.00", "90.00", "70.00", "given up"],
        ["1e4", "0", "5", "80.00", "70.00", "75.00", "← best"],
        ["1e6", "2", "0", "", "", "", "failed"],
    ]


def test_a_note_is_read_as_it_was_written_last(tmp_path: Path) -> None:
    book = Notebook(tmp_path, Note(3, "seed=3"))
    Notebook(tmp_path, Note(0, "seed=0")).write(state=FAILED, message="no images")
    book.epoch("usps", 2, 5, {"retained/a": 0.5, "retained/b": 0.7, "val/usps/accuracy": 0.25})
    (tmp_path / ".progress" / "1.json").write_text('{"number": 1, "na')  # just being written
    first, second = read_notes(tmp_path)
    assert first == Note(0, "seed=0", state=FAILED, message="no images")
    assert (second.task, second.epoch, second.epochs, second.new) == ("usps", 2, 5, 0.25)
    assert second.kept == 0.6
    assert not list(tmp_path.rglob("*.tmp"))
    remove_notes(tmp_path)
    assert read_notes(tmp_path) == []


NOTES = [
    Note(0, "l=0", FINISHED, "usps", 5, 5, {"retained/mnist": 0.4, "val/usps/accuracy": 0.96}),
    Note(1, "l=1", FAILED, message="no disk"),
    Note(2, "l=2", PRUNED, "usps", 1, 5, {"retained/mnist": 0.5, "val/usps/accuracy": 0.9}),
    Note(3, "l=3", "running", "mnist", 2, 5, {"val/mnist/accuracy": 0.91}),
]


def test_the_overview_shows_what_runs_first_and_then_the_newest() -> None:
    assert rows(overview_table(NOTES, 6)) == [
        ["l=3", "mnist", "2/5", "", "91.00"],
        ["l=2", "given up", "1/5", "50.00", "90.00"],
        ["l=1", "failed", "", "", ""],
        ["l=0", "finished", "5/5", "40.00", "96.00"],
    ]
    assert overview_table(NOTES, 6).title.startswith("3 of 6 runs done")  # type: ignore[union-attr]


def test_a_run_that_has_ended_is_one_line() -> None:
    assert [note_line(note) for note in NOTES[:3]] == [
        "l=0: kept 40.00 %, new 96.00 %",
        "l=1 failed: no disk",
        "l=2: kept 50.00 %, new 90.00 %, given up after epoch 1 of 5",
    ]


def test_without_a_terminal_each_run_is_said_once_as_it_ends(tmp_path: Path) -> None:
    said: list[str] = []
    overview = Overview(tmp_path, total=4, say=said.append)
    for note in NOTES[:2]:
        Notebook(tmp_path, note)
    deadline = time.monotonic() + 20
    while len(said) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert said == ["[1/4] l=0: kept 40.00 %, new 96.00 %", "[2/4] l=1 failed: no disk"]
    Notebook(tmp_path, NOTES[2])
    assert [note.number for note in overview.close()] == [0, 1, 2]
    assert [line[:5] for line in said] == ["[1/4]", "[2/4]", "[3/4]"]
    overview.close()
    assert len(said) == 3


def test_on_a_terminal_the_table_is_live_and_failures_stay_above_it(tmp_path: Path) -> None:
    said: list[str] = []
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    overview = Overview(tmp_path, total=4, say=said.append, console=screen)
    for note in NOTES:
        Notebook(tmp_path, note)
    overview.close()
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "3 of 4 runs done" in shown
    assert "96.00" in shown
    assert shown.endswith("\x1b[?25h")  # the cursor is back
    assert said == ["[2/4] l=1 failed: no disk"]
