"""A progress bar for passes over the data that are not training."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int | None], None]


@contextmanager
def pass_progress(what: str) -> Iterator[Progress | None]:
    """Show how far a pass over the data is; silent where the output is no terminal.

    Args:
        what: the words beside the bar.

    Yields:
        A function of (examples done, examples in all or None), or None where nothing is shown.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
