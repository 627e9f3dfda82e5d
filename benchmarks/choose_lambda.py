"""Choose λ on validation images: `make choose-lambda`.

Each seed learns the first task once; every λ goes on from there. The rule: the largest mean over
seeds of the average validation accuracy of the two tasks. The official test sets take no part.
"""

import argparse
import statistics
import sys
import tempfile

from lifelong.config.compose import compose_run
from lifelong.report.best import candidate_of
from lifelong.run import Summary
from lifelong.search.branches import learn_branches
from statistics_over_seeds import markdown_row


def validation(summary: Summary) -> tuple[float, float]:
    """The final accuracies on the validation images of the old and of the new task, in percent."""
    found = candidate_of(summary)
    return 100 * found.old, 100 * found.new


def main() -> None:
    """Run the grid and print it, best first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--lambdas", default="2e3,5e3,1e4,2e4")
    parser.add_argument("overrides", nargs="*")
    words = parser.parse_args()
    lambdas = words.lambdas.split(",")
    found: dict[str, list[tuple[float, float]]] = {ewc_lambda: [] for ewc_lambda in lambdas}
    with tempfile.TemporaryDirectory() as folder:
        for seed in words.seeds.split(","):
            common = ["logger=none", f"stages={folder}/stages", *words.overrides, f"seed={seed}"]
            configs = (
                compose_run([*common, f"method.ewc_lambda={x}", f"output_dir={folder}/{seed}/{x}"])
                for x in lambdas
            )
            for ewc_lambda, summary in zip(lambdas, learn_branches(configs), strict=True):
                found[ewc_lambda].append(validation(summary))
                print(f"seed {seed}, λ = {ewc_lambda}: {found[ewc_lambda][-1]}", file=sys.stderr)

    def average(ewc_lambda: str) -> float:
        return statistics.mean(statistics.mean(row) for row in found[ewc_lambda])

    print(f"Validation accuracy, %, mean ± standard error over seeds {words.seeds}; best first.\n")
    print("| λ | old task | new task | average |\n|---|---|---|---|")
    for ewc_lambda in sorted(lambdas, key=average, reverse=True):
        rows = [(*row, statistics.mean(row)) for row in found[ewc_lambda]]
        print(markdown_row(ewc_lambda, rows))


if __name__ == "__main__":
    main()
