"""The README's pictures are those of the stored results."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def test_the_readmes_pictures_are_those_of_the_stored_results(tmp_path: Path) -> None:
    path = ROOT / "benchmarks/pictures.py"
    spec = importlib.util.spec_from_file_location("pictures", path)
    assert spec is not None
    assert spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pictures.main(["--to", str(tmp_path)])
    made = sorted(tmp_path.iterdir())
    assert [one.name for one in made] == ["lambda.png", "retained.png", "trade_off.png"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for one in made:
        assert f"docs/{one.name}" in readme
        here, there = (np.asarray(Image.open(p).convert("L"), float) for p in (
            one, ROOT / "docs" / one.name))  # fmt: skip
        assert here.shape == there.shape
        # a few pixels may differ by the fonts' rasterizer; a figure that moved changes thousands
        assert (np.abs(here - there) > 64).mean() < 1e-3, one.name


@pytest.mark.parametrize(
    ("method", "stage", "name"),
    [
        ("ewc", 0, "after MNIST"),
        ("ewc", 1, "after USPS, EWC (λ = 1e4)"),
        ("kronecker_ewc", 1, "after USPS, Kronecker EWC (λ = 100)"),
        ("finetune", 1, "after USPS, fine-tuning"),
    ],
)
def test_the_readmes_table_is_that_of_the_stored_results(
    method: str, stage: int, name: str
) -> None:
    from lifelong.report.groups import group_runs
    from lifelong.report.results import read_results

    groups = group_runs(read_results(ROOT / "benchmarks/results/main_job").runs)
    (group,) = (one for one in groups if one.method == method)
    assert group.seeds == [0, 1, 2, 3, 4]
    figures = [str(group.mean(lambda s, t=task: s.accuracy[stage][t])) for task in (0, 1)]
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("**", "")
    assert f"| {name} | {figures[0]} | {figures[1]} |" in readme
