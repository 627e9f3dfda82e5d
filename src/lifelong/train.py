"""``lifelong-train``: one network learns the tasks of a benchmark one after another."""

import json
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lifelong.commandline import CONF, check, remove_if_empty, run_command
from lifelong.continuing import continued, how_to_continue, note_run


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def train(config: DictConfig) -> float | None:
    """Learn, test and report one configuration.

    Args:
        config: composed by Hydra from ``conf/`` and the command line.

    Returns:
        The average accuracy after the last task.
    """
    # Here and not only around Hydra, which would print a second line for an error in its job.
    with remove_if_empty(config.output_dir):
        return run_command(lambda: _train(config, list(HydraConfig.get().overrides.task)))


def _train(config: DictConfig, overrides: list[str]) -> float | None:
    if config.resume is True:
        config = continued(config, overrides)
    check(config)
    note_run(config, overrides)
    try:
        return _learn(config)
    except KeyboardInterrupt as error:
        words = f"interrupted; to go on type: {how_to_continue(config.output_dir)}"
        raise KeyboardInterrupt(words) from error


def _learn(config: DictConfig) -> float | None:
    from lifelong.processes import run_processes, starts_processes

    if not starts_processes(config):
        return learn(config)
    run_processes(config)
    summary = json.loads(Path(config.output_dir, "summary.json").read_text(encoding="utf-8"))
    return summary["average_accuracy"]


def learn(config: DictConfig) -> float | None:
    """Learn, test and report in this process, be it the only one or one of several.

    Args:
        config: checked.

    Returns:
        The average accuracy after the last task.
    """
    from lightning.pytorch.utilities import rank_zero_only

    from lifelong.jobs import build_job
    from lifelong.report.table import print_results
    from lifelong.run import learn_sequence

    job = build_job(config)
    summary = learn_sequence(job)
    rank_zero_only(print_results)([summary], job.directory)
    return summary.average_accuracy


def main() -> None:
    """The console script."""
    # Hydra reads the program's name from here; under `python -m` it would be a path.
    sys.argv[0] = "lifelong-train"
    run_command(train)


if __name__ == "__main__":
    main()
