"""The README's pictures, made from the stored results: `make pictures`.

benchmarks/results/main_job/      what `make results ARGS='--keep DIR'` keeps
benchmarks/results/lambda_sweep/  lifelong-train -m experiment=lambda_sweep method=ewc,kronecker_ewc
                                  and -m method=joint seed=0,1,2: the summaries
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from lifelong.data.files.whole import whole_file
from lifelong.report.best import trade_off
from lifelong.report.figures import draw_retention, lambda_figure, trade_off_figure
from lifelong.report.groups import families, group_runs
from lifelong.report.results import read_results

STORED = Path(__file__).with_name("results")
DOCS = Path(__file__).parents[1] / "docs"


def main(argv: list[str] | None = None) -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--to", type=Path, default=DOCS)
    to = parser.parse_args(argv).to
    runs = read_results(STORED / "main_job").runs
    first = {run.summary.method: run.summary for run in runs if run.summary.seed == 0}
    draw_retention([first["ewc"], first["finetune"]], to / "retained.png")
    unheld = [run for run in runs if not run.summary.has_lambda]
    sweeps, single = {}, {}
    every = [*read_results(STORED / "lambda_sweep").runs, *unheld]
    for family, groups in families(group_runs(every)).items():
        points = trade_off(summary for group in groups for summary in group.summaries)
        if groups[0].has_lambda:
            sweeps[family] = points
        else:
            (single[family],) = points
    tasks = first["ewc"].tasks
    save(lambda_figure(sweeps, tasks), to / "lambda.png")
    save(trade_off_figure(sweeps, tasks, single=single), to / "trade_off.png")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    main()
