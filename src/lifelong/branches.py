"""Several runs that share their first task: it is learnt once, and each goes on from there."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lifelong.choose import learn_config
from lifelong.commandline import CONF, check
from lifelong.continuing import note_run

if TYPE_CHECKING:
    from lifelong.run import Job, Summary


def compose_run(overrides: Sequence[str]) -> DictConfig:
    """The checked configuration of one run outside Hydra's own command.

    Args:
        overrides: ``key=value`` words; ``output_dir`` must be among them.

    Returns:
        What ``lifelong-train`` would have run.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    check(config)
    return config


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
        keep.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, keep / "config.yaml")
        note_run(config, [])
        yield learn_config(config, prepare=prepare)
