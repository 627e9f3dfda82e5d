"""``lifelong-quickstart``: the main job in one command, EWC beside fine-tuning.

The first task is learnt once; both methods go on from there. Without archives and without a
network it falls back to the embedded digits, and says so wherever a result appears.
"""

import argparse
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig

from lifelong.config.compose import compose_run
from lifelong.config.console import remove_if_empty, run_command, say
from lifelong.config.folder import claim
from lifelong.search.branches import learn_branches

DESCRIPTION = """MNIST, then USPS: Elastic Weight Consolidation beside fine-tuning.
Takes the keys of lifelong-train; results go to outputs/quickstart/."""


def quickstart(overrides: list[str], config_dir: str | None = None) -> None:
    """Learn the main job with both methods and show what each kept.

    Args:
        overrides: ``key=value`` words as for ``lifelong-train``.
        config_dir: a folder with YAML files of one's own.
    """
    directory = claim(Path("outputs/quickstart") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    with remove_if_empty(str(directory)):
        _learn_both(directory, overrides, config_dir)


def _learn_both(directory: Path, overrides: list[str], config_dir: str | None) -> None:
    configs = _both_methods(directory, ["benchmark=mnist_usps", *overrides], config_dir)
    if not _images_are_to_be_had(configs[0]):
        say(
            "MNIST and USPS are not here and cannot be downloaded: "
            "falling back to the embedded digits (1,797 real images that scikit-learn installs)"
        )
        others = [word for word in overrides if not word.startswith("benchmark=")]
        configs = _both_methods(directory, ["benchmark=embedded_digits", *others], config_dir)
    tasks = " then ".join(configs[0].benchmark.tasks)
    say(f"learning {tasks} with EWC, and again from the learnt first task with fine-tuning")
    summaries = list(learn_branches(configs))
    from lifelong.report.figures import draw_retention
    from lifelong.report.tables import print_results

    picture = draw_retention(summaries, directory / "retained.png")
    print_results(summaries, directory, picture=picture)


def _both_methods(
    directory: Path, overrides: list[str], config_dir: str | None
) -> list[DictConfig]:
    configs = []
    for method in ("ewc", "finetune"):
        # What sets λ is meant for EWC: fine-tuning is λ = 0.
        mine = [w for w in overrides if method == "ewc" or not w.startswith("method.")]
        own = [f"method={method}", f"output_dir={directory / method}"]
        configs.append(compose_run([*own, *mine], config_dir=config_dir))
    return configs


def _images_are_to_be_had(config: DictConfig) -> bool:
    from lifelong.data.definition import dataset_of
    from lifelong.data.sets.sources import MissingArchivesError, load

    try:
        for task in config.benchmark.tasks.values():
            dataset = dataset_of(task)
            if dataset is not None:
                load(dataset, config.data_dir, announce=say)
    except MissingArchivesError:
        return False
    return True


def main(argv: list[str] | None = None) -> None:
    """The console script.

    Args:
        argv: the words after the command; those of the process by default.
    """
    parser = argparse.ArgumentParser("lifelong-quickstart", description=DESCRIPTION)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for lifelong-train")
    parser.add_argument("--config-dir", "-cd", metavar="DIR", help="YAML files of your own")
    said = parser.parse_intermixed_args(argv)
    run_command(lambda: quickstart(said.overrides, said.config_dir))


if __name__ == "__main__":
    main()
