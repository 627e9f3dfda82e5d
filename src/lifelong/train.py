"""``lifelong-train``: one network learns the tasks of a benchmark one after another."""

import sys

import hydra
from omegaconf import DictConfig

from lifelong.commandline import CONF, check, remove_if_empty, run_command
from lifelong.sweep import end_overview, in_sweep, note_epochs, run_of_sweep


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def train(config: DictConfig) -> float | None:
    """Learn, test and report one configuration.

    Args:
        config: composed by Hydra from ``conf/`` and the command line.

    Returns:
        The average accuracy after the last task.
    """
    if in_sweep():
        return run_of_sweep(config, _train)
    # Here and not only around Hydra, which would print a second line for an error in its job.
    with remove_if_empty(config.output_dir):
        return run_command(lambda: _train(config))


def _train(config: DictConfig) -> float | None:
    check(config)
    if config.search is not None:
        from lifelong.search import search

        return search(config)
    from lifelong.jobs import build_job
    from lifelong.report.table import print_results
    from lifelong.run import learn_sequence

    job = note_epochs(build_job(config))
    summary = learn_sequence(job)
    if not in_sweep():
        print_results([summary], job.directory)
    return summary.average_accuracy


def main() -> None:
    """The console script."""
    # Hydra reads the program's name from here; under `python -m` it would be a path.
    sys.argv[0] = "lifelong-train"
    try:
        run_command(train)
    finally:
        end_overview()


if __name__ == "__main__":
    main()
