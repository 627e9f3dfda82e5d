"""Several runs that share their first task: it is learnt once, and each goes on from there."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from lifelong.config.continuing import note_run
from lifelong.config.folder import own_folder
from lifelong.search.decades import learn_config

if TYPE_CHECKING:
    from lifelong.run import Job, Summary


def learn_branches(
    configs: Iterable[DictConfig], *, prepare: Callable[["Job"], "Job"] | None = None
) -> Iterator["Summary"]:
    """Learn one configuration after another; what they share comes from the stage store.

    Args:
        configs: any number of them.
        prepare: changes a job before it is run.

    Yields:
        The summary of each run as it is finished.
    """
    for config in configs:
        keep = Path(config.output_dir) / ".hydra"
        with own_folder(config.output_dir):
            keep.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(config, keep / "config.yaml")
            note_run(config, [])
            summary = learn_config(config, prepare=prepare)
        yield summary
