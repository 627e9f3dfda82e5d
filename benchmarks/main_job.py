"""The README's table: the main job with EWC and with fine-tuning over seeds: `make results`."""

import argparse
import statistics
import tempfile
from pathlib import Path

from lifelong.branches import compose_run, learn_branches
from lifelong.report.picture import draw_retention
from lifelong.run import Summary
from statistics_over_seeds import markdown_row


def main() -> None:
    """Run both methods for every seed; print the table and draw the first seed's picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--picture", type=Path, default=None)
    parser.add_argument("overrides", nargs="*")
    words = parser.parse_args()
    methods: dict[str, list[Summary]] = {"ewc": [], "finetune": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in words.seeds.split(","):
            configs = [
                compose_run(
                    [
                        f"method={m}",
                        *words.overrides,
                        f"seed={seed}",
                        f"output_dir={folder}/{seed}/{m}",
                    ]
                )
                for m in methods
            ]
            for method, summary in zip(methods, learn_branches(configs), strict=True):
                methods[method].append(summary)
    first = methods["ewc"][0]
    if words.picture is not None:
        draw_retention([methods["ewc"][0], methods["finetune"][0]], words.picture)
    print(
        f"Test accuracy, %, mean ± standard error over seeds {words.seeds}, "
        f"λ = {first.ewc_lambda:g}\n"
    )
    print(f"| | {' | '.join(first.tasks)} |\n|---|{'---|' * len(first.tasks)}")
    print(markdown_row(f"after {first.tasks[0]}", percent(methods["ewc"], 0)))
    print(markdown_row(f"after {first.tasks[-1]}, EWC", percent(methods["ewc"], -1)))
    print(markdown_row(f"after {first.tasks[-1]}, fine-tuning", percent(methods["finetune"], -1)))
    print("\nseconds, median over seeds:")
    for task in first.tasks:
        parts = methods["ewc"][0].seconds[task]
        medians = {p: statistics.median(s.seconds[task][p] for s in methods["ewc"]) for p in parts}
        print(f"{task}: " + ", ".join(f"{part} {value:.1f}" for part, value in medians.items()))


def percent(summaries: list[Summary], stage: int) -> list[list[float]]:
    """The test accuracies after one stage, one row per seed."""
    return [[100 * accuracy for accuracy in summary.accuracy[stage]] for summary in summaries]


if __name__ == "__main__":
    main()
