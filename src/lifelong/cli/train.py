"""``lifelong-train``: one network learns the tasks of a benchmark one after another."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lifelong.config.check import check
from lifelong.config.compose import CONF
from lifelong.config.console import remove_if_empty, run_command, say
from lifelong.config.continuing import (
    continued,
    continues_alone,
    finished_run,
    how_to_continue,
    note_run,
)
from lifelong.config.folder import let_go
from lifelong.search.sweep import (
    end_overview,
    how_to_continue_sweep,
    in_sweep,
    note_epochs,
    run_of_sweep,
)

if TYPE_CHECKING:
    from lifelong.run import Summary


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def train(config: DictConfig) -> float | None:
    """Learn, test and report one configuration.

    Args:
        config: composed by Hydra from ``conf/`` and the command line.

    Returns:
        The average accuracy after the last task.
    """
    overrides = list(HydraConfig.get().overrides.task)
    if in_sweep():
        return run_of_sweep(config, lambda config: _train(config, overrides))
    # Here and not only around Hydra, which would print a second line for an error in its job.
    with remove_if_empty(config.output_dir):
        return run_command(lambda: _train(config, overrides))


def _train(config: DictConfig, overrides: list[str]) -> float | None:
    if config.resume is True and continues_alone(overrides):
        done = finished_run(config.output_dir)
        if done is not None:
            return _show_finished(done, Path(config.output_dir))
    if config.resume is True:
        config = continued(config, overrides)
    check(config)
    if not config.resume and Path(config.output_dir, "summary.json").exists():
        say(f"{config.output_dir} holds a finished run; this one takes its place")
    note_run(config, overrides)
    try:
        return _learn(config)
    except KeyboardInterrupt as error:
        words = f"interrupted; to go on type: {how_to_continue(config.output_dir)}"
        raise KeyboardInterrupt(words) from error


def _show_finished(summary: "Summary", directory: Path) -> float | None:
    from lifelong.report.tables import print_results

    say(f"{directory} holds a finished run; it is left as it is")
    print_results([summary], directory)
    return summary.average_accuracy


def _learn(config: DictConfig) -> float | None:
    from lifelong.config.processes import run_processes, starts_processes

    if config.search is not None:
        from lifelong.search.optuna import search

        return search(config)
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

    from lifelong.report.tables import print_results
    from lifelong.search.decades import learn_config

    summary = learn_config(config, prepare=note_epochs)
    if not in_sweep():
        rank_zero_only(print_results)([summary], Path(config.output_dir))
    return summary.average_accuracy


def _train_or_say_how_to_go_on() -> None:
    try:
        train()
    except KeyboardInterrupt as error:
        words = how_to_continue_sweep()
        if words is None:
            raise
        raise KeyboardInterrupt(f"interrupted; to go on type: {words}") from error


def main() -> None:
    """The console script."""
    # Hydra reads the program's name from here; under `python -m` it would be a path.
    sys.argv[0] = "lifelong-train"
    try:
        run_command(_train_or_say_how_to_go_on)
    finally:
        end_overview()
        let_go()


if __name__ == "__main__":
    main()
