"""``lifelong-quickstart``: the main job in one command, EWC beside fine-tuning.

The first task is learnt once; both methods go on from there. Without archives and without a
network it falls back to the embedded digits, and says so wherever a result appears.
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lifelong.commandline import CONF, check, run_command, say

USAGE = """lifelong-quickstart [key=value ...]
MNIST, then USPS: Elastic Weight Consolidation beside fine-tuning. Takes the keys of lifelong-train;
results go to outputs/quickstart/."""


def quickstart(overrides: list[str]) -> None:
    """Learn the main job with both methods and show what each kept.

    Args:
        overrides: ``key=value`` words as for ``lifelong-train``.
    """
    directory = Path("outputs/quickstart") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    configs = _compose(directory, ["benchmark=mnist_usps", *overrides])
    from lifelong.jobs import build_job
    from lifelong.report.picture import draw_retention
    from lifelong.report.table import print_results
    from lifelong.run import learn_sequence, stage_checkpoint

    if not _images_are_to_be_had(configs["ewc"]):
        say(
            "MNIST and USPS are not here and cannot be downloaded: "
            "falling back to the embedded digits (1,797 real images that scikit-learn installs)"
        )
        embedded = [o for o in overrides if not o.startswith("benchmark=")]
        configs = _compose(directory, ["benchmark=embedded_digits", *embedded])
    summaries = []
    start: Path | None = None
    for config in configs.values():
        _keep(config)
        job = build_job(config)
        first = job.benchmark.task_names[0]
        say(f"{config.method.name}: {' then '.join(job.benchmark.task_names)}")
        summaries.append(learn_sequence(job, start=start))
        start = start or stage_checkpoint(job.directory, 0, first)
    picture = draw_retention(summaries, directory / "retained.png")
    print_results(summaries, directory, picture=picture)


def _compose(directory: Path, overrides: list[str]) -> dict[str, DictConfig]:
    configs = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for method in ("ewc", "finetune"):
            own = [f"method={method}", f"output_dir={directory / method}"]
            mine = [o for o in overrides if method == "ewc" or not o.startswith("method.ewc_lambda")]
            configs[method] = compose("train", overrides=[*mine, *own])
            check(configs[method])
    return configs


def _images_are_to_be_had(config: DictConfig) -> bool:
    from lifelong.data.sources import MissingArchivesError, load

    try:
        for dataset in config.benchmark.tasks.values():
            load(dataset, config.data_dir, announce=say)
    except MissingArchivesError:
        return False
    return True


def _keep(config: DictConfig) -> None:
    folder = Path(config.output_dir) / ".hydra"
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "config.yaml")


def main(argv: list[str] | None = None) -> Any:
    """The console script.

    Args:
        argv: the words after the command; those of the process by default.
    """
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(words):
        print(USAGE)
        return
    run_command(lambda: quickstart(words))


if __name__ == "__main__":
    main()
