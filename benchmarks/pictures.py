"""The README's pictures, made from the stored results: `make pictures`.

benchmarks/results/main_job/      what `make results ARGS='--keep DIR'` keeps
benchmarks/results/lambda_sweep/  lifelong-train -m experiment=lambda_sweep method=ewc,kronecker_ewc
                                  and -m method=joint seed=0,1,2: the summaries
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from lifelong.data.files.whole import whole_file
from lifelong.report.groups import families, group_runs
from lifelong.report.picture import draw_retention
from lifelong.report.results import read_results
from lifelong.report.trade_off import lambda_figure, trade_off, trade_off_figure

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
    swept = group_runs(read_results(STORED / "lambda_sweep").runs)
    points = {
        family: trade_off(summary for group in groups for summary in group.summaries)
        for family, groups in families(swept).items()
    }
    joint = points.pop("joint training")
    finetune = trade_off(run.summary for run in runs if run.summary.method == "finetune")
    single = {"joint training": joint[0], "fine-tuning": finetune[0]}
    old, new = first["ewc"].tasks[0], first["ewc"].tasks[-1]
    save(lambda_figure(points, old=old, new=new), to / "lambda.png")
    save(trade_off_figure(points, old=old, new=new, single=single), to / "trade_off.png")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    main()
