"""A sweep: names for its runs, an overview while they run, a table at the end.

A run that fails is said and noted, the others go on, and the sweep's exit code is 1. All of it goes
through files in the sweep's folder, so that any of Hydra's launchers may start the runs.
"""

import importlib.util
import math
import re
import shlex
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from lifelong.config.check import check_choice
from lifelong.config.console import one_line, remove_if_empty, run_command, say, silence
from lifelong.config.folder import own_folder
from lifelong.errors import LifelongError
from lifelong.report.numbers import as_typed
from lifelong.search.notes import FAILED, FINISHED, Note, Notebook, remove_notes
from lifelong.search.overview import Overview

if TYPE_CHECKING:
    from lifelong.run import Job, Summary

LAMBDA, SEED = "method.ewc_lambda", "seed"

_notebook: Notebook | None = None
_open: "SweepOverview | None" = None


def in_sweep() -> bool:
    """Whether this run is one of a sweep.

    Returns:
        False outside Hydra's own command.
    """
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_of_sweep(config: DictConfig, learn: Callable[[DictConfig], float | None]) -> float | None:
    """Learn one configuration of a sweep; what goes wrong is noted and does not end the sweep.

    Args:
        config: of this run.
        learn: does the work.

    Returns:
        What ``learn`` returned, or NaN for a run that failed.

    Raises:
        KeyboardInterrupt: when Ctrl-C ended the run, which ends the sweep too.
    """
    global _notebook
    hydra = HydraConfig.get()
    folder, directory = Path(hydra.sweep.dir).absolute(), Path(config.output_dir).absolute()
    name = str(directory.relative_to(folder)) if directory.is_relative_to(folder) else directory
    _notebook = Notebook(folder, Note(int(hydra.job.num), str(name)))
    from lifelong.learning.progress import without_bars

    try:
        with _alone(config), without_bars(), _unless_first(_notebook.note):
            result = learn(config)
        _notebook.write(state=FINISHED)
        return result
    except (LifelongError, HydraException, OmegaConfBaseException, OSError) as error:
        _notebook.write(state=FAILED, message=one_line(error))
    except SystemExit as error:
        # So Lightning answers Ctrl-C: that ends the sweep, not this run alone.
        raise KeyboardInterrupt from error
    except Exception as error:
        traceback.print_exc()
        _notebook.write(state=FAILED, message=f"{type(error).__name__}: {one_line(error)}")
    finally:
        _notebook = None
    return math.nan


@contextmanager
def _alone(config: DictConfig) -> Iterator[None]:
    # Another run's folder is refused before it could be taken away as one without results.
    with own_folder(config.output_dir), remove_if_empty(config.output_dir):
        yield


def _unless_first(note: Note) -> AbstractContextManager[None]:
    return silence() if note.number else nullcontext()


def note_epochs(job: "Job") -> "Job":
    """In a sweep, let the job note how far it is.

    Args:
        job: about to be run.

    Returns:
        The job with a callback more, or as it was.
    """
    return job if _notebook is None else tell_epochs(job, _notebook.epoch)


def tell_epochs(job: "Job", tell: Callable[..., None]) -> "Job":
    """Have a job tell of each epoch.

    Args:
        job: about to be run.
        tell: as ``lifelong.learning.epochs.RecordCurves`` takes it.

    Returns:
        The changed job.
    """
    return replace(job, tell_epoch=tell)


class SweepOverview(Callback):
    """Hydra's callback around a sweep; in a worker process it does nothing."""

    def __init__(self) -> None:
        self._overview: Overview | None = None
        self._folder = Path()
        self._swept: dict[str, int] = {}
        self.command = ""

    def __getstate__(self) -> dict[str, Any]:
        """What goes to the workers: nothing, the display is not theirs.

        Returns:
            The state of a fresh callback.
        """
        return {"_overview": None, "_folder": self._folder, "_swept": self._swept, "command": ""}

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Name the runs after what is swept, and begin to watch.

        Args:
            config: of the sweep.
            **_: unused.
        """
        # Hydra turns a callback's errors into warnings; what the user can mend ends the command.
        run_command(lambda: self._start(config))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table; runs that failed make the exit code 1.

        Args:
            config: of the sweep.
            **_: unused.
        """
        run_command(lambda: self.finish(config))

    def _start(self, config: DictConfig) -> None:
        global _open
        check_choice(config)
        _check_launcher(config)
        self._folder = Path(config.hydra.sweep.dir).absolute()
        remove_notes(self._folder)
        self._swept = swept_keys(config)
        _name_by(config, self._swept)
        self._config = config
        self.command = _command(config, self._folder)
        total = math.prod(self._swept.values()) if all(self._swept.values()) else None
        self._overview = Overview(self._folder, total=total, say=say)
        _open = self

    def finish(self, config: DictConfig | None = None) -> None:
        """End the display and print the table of what is finished; a second call does nothing.

        Args:
            config: of the sweep; None after an interruption.

        Raises:
            LifelongError: when a run failed.
        """
        global _open
        if self._overview is None:
            return
        notes = self._overview.close()
        self._overview, _open = None, None
        self._print_table([note for note in notes if note.state == FINISHED])
        remove_notes(self._folder)
        failed = [note.name for note in notes if note.state == FAILED]
        if failed and config is not None:
            raise LifelongError(
                f"{len(failed)} of {len(notes)} runs failed ({'; '.join(failed)}): see above"
            )

    def _print_table(self, notes: list[Note]) -> None:
        from lifelong.report.best import Rule, choose_from, verdict
        from lifelong.report.names import title
        from lifelong.report.results import read_summaries
        from lifelong.report.tables import print_wide, sweep_table

        groups: dict[str, list[Summary]] = {}
        for note in notes:
            directory = self._folder / note.name
            for summary in read_summaries([directory]):
                groups.setdefault(self._setting(directory), []).append(summary)
        if not groups or any(len(s.tasks) < 2 for runs in groups.values() for s in runs):
            return
        rule = Rule(self._config.choice.rule, float(self._config.choice.at_most_lost))
        for name in dict.fromkeys(title(runs[0]) for runs in groups.values()):
            same = {label: runs for label, runs in groups.items() if title(runs[0]) == name}
            print_wide(sweep_table(same, rule))
        for label, runs in groups.items():
            if len({run.ewc_lambda for run in runs}) > 1:
                sentence = verdict(choose_from(runs, rule), rule)
                print_wide(f"{label}: {sentence}" if label else sentence)
        print_wide(
            f"results      {self._folder}", f"TensorBoard  tensorboard --logdir {self._folder}"
        )

    def _setting(self, directory: Path) -> str:
        words = [str(word) for word in OmegaConf.load(directory / ".hydra" / "overrides.yaml")]
        others = set(self._swept) - {LAMBDA, SEED}
        return ", ".join(word for word in words if word.partition("=")[0].lstrip("+~") in others)


def short_name(name: str) -> str:
    """A run's name with its round numbers as people write them.

    Args:
        name: of swept keys and values; Hydra writes 1e4 as 10000.0.

    Returns:
        The name.

    Example:
        >>> short_name("method.ewc_lambda=10000.0,optimizer.lr=0.01,seed=0")
        'method.ewc_lambda=1e4,optimizer.lr=0.01,seed=0'
    """
    number = r"(?<==)\d+(?:\.\d+)?(?:e[+-]?\d+)?(?=,|$)"
    return re.sub(number, lambda found: as_typed(float(found[0])), name)


# Here, so that a worker process has it too: it imports this module with the callback.
OmegaConf.register_new_resolver("short_name", short_name, replace=True)


def how_to_continue_sweep() -> str | None:
    """What to type to go on with the sweep that this process has begun.

    Returns:
        The command; None outside a sweep.
    """
    return None if _open is None else _open.command


def end_overview() -> None:
    """End the display of a sweep that did not come to its end."""
    if _open is not None:
        _open.finish()


def swept_keys(config: DictConfig) -> dict[str, int]:
    """What a sweep goes over: the keys with several values, and those that its experiment names.

    Args:
        config: of the sweep.

    Returns:
        Key → the number of its values; 0 where that cannot be counted.
    """
    named = OmegaConf.select(config, "hydra.sweeper.params") or {}
    words = [f"{key}={value}" for key, value in named.items()]
    words += list(config.hydra.overrides.task)
    keys: dict[str, int] = {}
    for override in OverridesParser.create().parse_overrides(words):
        key = override.key_or_group
        if not override.is_sweep_override():
            # The command line's single value takes the place of the experiment's several.
            keys.update({key: 1} if key in keys else {})
        elif override.is_discrete_sweep():
            keys[key] = len(list(override.sweep_string_iterator()))
        else:
            keys[key] = 0
    return keys


def _name_by(config: DictConfig, swept: dict[str, int]) -> None:
    words = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    others = {word.key_or_group for word in words} - set(swept)
    if not swept or not others:
        return  # nothing to leave out, or nothing that would be left
    quoted = ",".join(f"'{key}'" for key in sorted(others))
    key = "hydra.job.config.override_dirname.exclude_keys"
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra.append(f"{key}=[{quoted}]")


def _command(config: DictConfig, folder: Path) -> str:
    words = [word for word in config.hydra.overrides.task if not word.startswith("resume=")]
    launcher = ("hydra/launcher", "hydra.launcher")
    words += [word for word in config.hydra.overrides.hydra if word.startswith(launcher)]
    words += ["resume=true", f"hydra.sweep.dir={folder}"]
    return shlex.join(["lifelong-train", "-m", *words])


def _check_launcher(config: DictConfig) -> None:
    target = str(OmegaConf.select(config, "hydra.launcher._target_"))
    package = ".".join(target.split(".")[:2])
    if target.startswith("hydra_plugins.") and importlib.util.find_spec(package) is None:
        raise LifelongError(
            f"this hydra/launcher needs {package.partition('.')[2]}, which is not installed; "
            "type pip install 'lifelong-lightning[launchers]'"
        )
