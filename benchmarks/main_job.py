"""The README's table: the main job with each method over seeds: `make results`."""

import argparse
import statistics
import tempfile
from pathlib import Path

from lifelong.config.compose import compose_run
from lifelong.report.names import label_of
from lifelong.run import Summary
from lifelong.search.branches import learn_branches
from statistics_over_seeds import markdown_row

METHODS = ("ewc", "kronecker_ewc", "finetune")


def main() -> None:
    """Run every method for every seed; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the summaries")
    parser.add_argument("overrides", nargs="*")
    words = parser.parse_args()
    methods: dict[str, list[Summary]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in words.seeds.split(","):
            # What consolidates alike shares the learnt first task.
            for group in (["ewc", "finetune"], ["kronecker_ewc"]):
                configs = [
                    compose_run(
                        [
                            f"method={method}",
                            *words.overrides,
                            f"seed={seed}",
                            f"output_dir={folder}/{seed}/{method}",
                            f"stages={folder}/stages",
                        ]
                    )
                    for method in group
                ]
                for method, summary in zip(group, learn_branches(configs), strict=True):
                    methods[method].append(summary)
                    if words.keep is not None:
                        summary.write(words.keep / method / f"seed={seed}" / "summary.json")
    first = methods["ewc"][0]
    print(f"Test accuracy, %, mean ± standard error over seeds {words.seeds}\n")
    print(f"| | {' | '.join(first.tasks)} |\n|---|{'---|' * len(first.tasks)}")
    print(markdown_row(f"after {first.tasks[0]}", percent(methods["ewc"], 0)))
    for method in METHODS:
        name = label_of(methods[method][0])
        print(markdown_row(f"after {first.tasks[-1]}, {name}", percent(methods[method], -1)))
    print("\nseconds, median over seeds:")
    for method in ("ewc", "kronecker_ewc"):
        for task in first.tasks:
            rows = [summary.seconds[task] for summary in methods[method]]
            medians = {part: statistics.median(row[part] for row in rows) for part in rows[0]}
            parts = ", ".join(f"{part} {value:.1f}" for part, value in medians.items())
            print(f"{method}, {task}: {parts}")


def percent(summaries: list[Summary], stage: int) -> list[list[float]]:
    """The test accuracies after one stage, one row per seed."""
    return [[100 * accuracy for accuracy in summary.accuracy[stage]] for summary in summaries]


if __name__ == "__main__":
    main()
