"""Where the configuration lies, and its composition outside Hydra's own command."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from lifelong.config.check import check


def conf_directory() -> Path:
    """Find ``conf/``: at the top of the checkout, or in the package that a wheel installed.

    Returns:
        An absolute path.
    """
    package = Path(__file__).resolve().parents[1]
    carried = package / "conf"
    return carried if carried.is_dir() else package.parents[1] / "conf"


CONF = conf_directory()


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
