"""How long a pass over the data will take."""

import time

from lightning.pytorch.utilities import rank_zero_info

from lifelong.learning.progress import Progress

# A pass that takes longer is announced, in seconds.
LONG = 10.0


class Forecast:
    """Says how long a pass will take, once and early, where that is more than some seconds.

    Args:
        title: of the method whose pass it is.
        samples: how many examples it looks at, at most; None for all.
        progress: told of the progress, too.
        total: how many examples there will be, None where nothing says so.
    """

    def __init__(
        self, title: str, samples: int | None, progress: Progress | None, total: int | None
    ) -> None:
        self._title, self._progress = title, progress
        self._total = samples if total is None else min(total, samples or total)
        self._first: tuple[float, int] | None = None  # when, and how many were done
        self._is_said = False

    def __call__(self, done: int, total: int | None) -> None:
        """Take the progress.

        Args:
            done: examples that are done.
            total: examples in all, None where unknown.
        """
        total = self._total if total is None else total
        if self._progress is not None:
            self._progress(done, total)
        now = time.monotonic()
        # The first chunk takes what reading the data and finding out about the network take, too.
        if self._first is None:
            self._first = now, done
        start, before = self._first
        if self._is_said or done <= before or now - start < LONG / 20 or total is None:
            return
        self._is_said = True
        whole = (now - start) / (done - before) * total
        if whole > LONG:
            rank_zero_info(
                f"{self._title}: what matters will take about {whole:.0f} s for {total} examples; "
                "samples=1000 or labels='sampled' takes less"
            )
