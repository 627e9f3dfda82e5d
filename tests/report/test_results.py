"""Runs read back: what is counted, what is left out by name, what is refused."""

import os
from pathlib import Path

import pytest

from lifelong.errors import LifelongError
from lifelong.report.best import Rule
from lifelong.report.groups import chosen, group_runs, old_test
from lifelong.report.results import read_results
from lifelong.report.tables import as_csv, as_markdown
from lifelong.run.summary import Summary

from .made import forget, summary, sweep, write


def test_a_sweep_is_grouped_by_all_but_the_seed(tmp_path: Path) -> None:
    results = read_results(sweep(tmp_path))
    assert len(results.runs) == 8
    assert results.notes == []
    groups = group_runs(results.runs)
    assert [(g.method, g.ewc_lambda, len(g.runs)) for g in groups] == [
        ("ewc", 0.0, 2),
        ("ewc", 10.0, 2),
        ("ewc", 1000.0, 2),
        ("finetune", 0.0, 1),
        ("joint", 0.0, 1),
    ]
    # 90 and 92: mean 91, standard deviation √2, over √2
    mean = groups[1].mean(old_test)
    assert mean.value == pytest.approx(91.0)
    assert mean.error == pytest.approx(1.0)
    assert str(mean) == "91.00 ± 1.00"
    assert groups[1].command == "lifelong-train -m method.ewc_lambda=10 seed=0,1"
    assert groups[3].command == (
        "lifelong-train benchmark=mnist_usps method=finetune max_epochs=2 seed=0"
    )


def test_the_rule_chooses_by_validation_images_alone(tmp_path: Path) -> None:
    for ewc_lambda, old in ((1.0, 0.9), (2.0, 0.8)):
        content = summary(ewc_lambda=ewc_lambda, old=old)
        if ewc_lambda == 2.0:  # worse on validation images, better on test images
            content.accuracy[-1][:] = [1.0, 1.0]
        write(tmp_path / str(ewc_lambda), content)
    groups = group_runs(read_results(tmp_path).runs)
    assert [g.ewc_lambda for g in chosen(groups, Rule("best_average"))] == [1.0]


def test_what_else_was_set_makes_a_group_of_its_own(tmp_path: Path) -> None:
    for lr in ("0.1", "0.2"):
        words = ["method=ewc", f"optimizer.lr={lr}", "seed=0", "data_dir=there", "hydra.x=1"]
        write(tmp_path / lr, summary(), words)
    groups = group_runs(read_results(tmp_path).runs)
    assert [g.label for g in groups] == [
        "EWC (optimizer.lr=0.1), λ = 100",
        "EWC (optimizer.lr=0.2), λ = 100",
    ]


def test_a_corrupt_summary_is_named_and_left_out(tmp_path: Path) -> None:
    write(tmp_path / "good", summary())
    bad = {"cut": '{"method": "ewc"', "foreign": '{"a": 1}', "list": "[]"}
    for name, text in bad.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(text)
    odd = summary()
    odd.accuracy[1].append(0.5)
    write(tmp_path / "odd", odd)
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary/summary.json").write_bytes(b"\xff\xfe\x00")
    results = read_results(tmp_path)
    assert [run.directory.name for run in results.runs] == ["good"]
    assert len(results.notes) == 5
    for name in (*bad, "odd", "binary"):
        assert sum(f"{name}/summary.json" in note for note in results.notes) == 1


def test_a_repeated_run_is_no_second_sample(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write(tmp_path / name, summary(old=0.9 + 0.05 * number))
        os.utime(tmp_path / name / "summary.json", (number, number))
    results = read_results(tmp_path)
    assert [run.directory.name for run in results.runs] == ["b"]
    assert results.notes == [f"left out: {tmp_path}/a repeats {tmp_path}/b, which is newer"]


def test_what_cannot_be_reported_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(LifelongError, match=r"nowhere is no folder; type lifelong-report DIR"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(LifelongError, match="holds no finished run; learn one first"):
        read_results(tmp_path)
    write(tmp_path / "one", summary())
    write(tmp_path / "other", summary(source="embedded digits"))
    with pytest.raises(
        LifelongError, match=r"different tasks \(.*1 below .*one; .*1 below .*other"
    ):
        read_results(tmp_path)


def test_digits_that_cannot_be_read_are_no_error(tmp_path: Path) -> None:
    write(tmp_path, summary())
    assert read_results(tmp_path).runs[0].forgotten == []
    forget(tmp_path, 30, 2)
    (found,) = read_results(tmp_path).runs[0].forgotten
    assert (found.task, found.count, len(found.images)) == ("mnist", 30, 2)
    assert (found.images[0].label, found.images[0].after) == (7, 2)
    assert found.images[0].shape == (28, 28)  # no shape was written: it is square
    (tmp_path / "forgotten.json").write_text('[{"task": "mnist"}]')
    assert read_results(tmp_path).runs[0].forgotten == []


def test_the_tables_hold_the_same_figures(tmp_path: Path) -> None:
    groups = group_runs(read_results(sweep(tmp_path)).runs)
    markdown = as_markdown(groups).splitlines()
    assert markdown[0] == (
        "| method | λ | seeds | mnist test % | usps test % | mnist validation % "
        "| usps validation % |"
    )
    assert markdown[4] == (
        "| EWC | 1e3 | 2 | 97.00 ± 1.00 | 70.00 ± 0.00 | 98.00 ± 1.00 | 71.00 ± 0.00 |"
    )
    assert markdown[6] == "| joint training | – | 1 | 97.00 | 93.00 | 98.00 | 94.00 |"
    assert len(markdown) == 7
    lines = as_csv(groups).splitlines()
    assert len(lines) == 6
    heads, third = lines[0].split(","), lines[3].split(",")
    row = dict(zip(heads, third, strict=False))
    assert (row["method"], row["lambda"], row["seeds"]) == ("ewc", "1000.0", "0 1")
    assert float(row["mnist test"]) == pytest.approx(97.0)
    assert float(row["mnist test standard error"]) == pytest.approx(1.0)
    single = dict(zip(heads, lines[5].split(","), strict=False))
    assert (single["mnist test standard error"], single["lambda"]) == ("", "")


def test_a_summary_survives_being_written_and_read(tmp_path: Path) -> None:
    write(tmp_path, summary())
    assert Summary.read(tmp_path / "summary.json") == summary()
