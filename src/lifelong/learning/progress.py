"""How far the work is: which steps log, and a bar for passes that are not training."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only

Progress = Callable[[int, int | None], None]


def is_logging_step(trainer: Trainer) -> bool:
    """Whether the Trainer's next optimizer step is one that logs.

    Args:
        trainer: while it trains.

    Returns:
        True on the first step and on every ``log_every_n_steps``-th after it.
    """
    every = int(trainer.log_every_n_steps)  # type: ignore[attr-defined]  # set by Lightning
    return every > 0 and trainer.global_step % every == 0


_hidden = False


def shows_progress() -> bool:
    """Whether bars are to be shown: on a terminal that nothing else draws on.

    Returns:
        False for a file, within ``without_bars``, and in every process but the first.
    """
    first = not getattr(rank_zero_only, "rank", None)
    return first and sys.stderr.isatty() and not _hidden


@contextmanager
def without_bars() -> Iterator[None]:
    """No bars in here: the overview of a sweep has the terminal.

    Yields:
        Nothing.
    """
    global _hidden
    before, _hidden = _hidden, True
    try:
        yield
    finally:
        _hidden = before


@contextmanager
def pass_progress(what: str) -> Iterator[Progress | None]:
    """Show how far a pass over the data is.

    Silent where the output is no terminal, and in every process but the first.

    Args:
        what: the words beside the bar.

    Yields:
        A function of (examples done, examples in all or None), or None where nothing is shown.
    """
    if not shows_progress():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
