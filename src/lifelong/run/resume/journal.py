"""Every figure that a run logged, so that its curves can be written again."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger

Entry = tuple[int, dict[str, float]]


class Journal(Logger):
    """A logger that remembers: the figures of a run with their steps, in order.

    It stands among the Trainer's loggers. A resumed run writes its entries to the other loggers
    anew, so that no curve has a gap or a doubled point; a stage that is taken from the store brings
    its entries along.

    Args:
        entries: what was logged before.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        super().__init__()
        self.entries: list[Entry] = [(int(step), dict(figures)) for step, figures in entries]

    @property
    def name(self) -> str:
        """The logger's name, as Lightning wants it."""
        return "journal"

    @property
    def version(self) -> int:
        """There is one."""
        return 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Remember some figures.

        Args:
            metrics: figure name → value.
            step: where on the horizontal axis they stand.
        """
        self.entries.append((int(step or 0), {name: float(x) for name, x in metrics.items()}))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: hyper-parameters are logged once, as a run ends.

        Args:
            *args: unused.
            **kwargs: unused.
        """


def write(entries: Iterable[Entry], loggers: Iterable[Logger]) -> None:
    """Log remembered figures.

    Args:
        entries: (step, figures) in order.
        loggers: where to.
    """
    rows = list(entries)
    for logger in loggers:
        for step, figures in rows:
            logger.log_metrics(figures, step=step)
