"""Where the configuration lies, and its composition outside Hydra's own command."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from lifelong.config.check import check
from lifelong.errors import LifelongError


def conf_directory() -> Path:
    """Find ``conf/``: at the top of the checkout, or in the package that a wheel installed.

    Returns:
        An absolute path.
    """
    package = Path(__file__).resolve().parents[1]
    carried = package / "conf"
    return carried if carried.is_dir() else package.parents[1] / "conf"


CONF = conf_directory()


def compose_run(overrides: Sequence[str], *, config_dir: str | Path | None = None) -> DictConfig:
    """The checked configuration of one run outside Hydra's own command.

    Args:
        overrides: ``key=value`` words; ``output_dir`` must be among them.
        config_dir: a folder with YAML files of one's own beside ours, such as
            ``benchmark/mine.yaml``; what ``lifelong-train --config-dir`` takes.

    Returns:
        What ``lifelong-train`` would have run.

    Raises:
        LifelongError: when the folder is not there, or a value is out of range.
    """
    words = list(overrides)
    if config_dir is not None:
        folder = Path(config_dir).absolute()
        if not folder.is_dir():
            raise LifelongError(
                f"--config-dir is {config_dir}, which is no folder; type one that is"
            )
        quoted = str(folder).replace("'", "\\'")
        words.append(f"hydra.searchpath=['file://{quoted}']")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=words)
    check(config)
    return config
