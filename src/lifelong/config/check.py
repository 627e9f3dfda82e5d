"""What the commands share: where the configuration lies, its check, and errors in one line.

Imports nothing heavy: help and errors of configuration come before torch is loaded.
"""

import errno
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NoReturn, TypeVar

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lifelong.config.processes import is_one_of_several
from lifelong.data.definition import check_benchmark
from lifelong.errors import LifelongError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AUTO = "auto"  # the λ that is to be chosen
RULES = ("best_average", "most_new")  # how lifelong.report.best chooses λ
TRACE = os.environ.get("HYDRA_FULL_ERROR", "0") != "0"

_silent: ContextVar[bool] = ContextVar("silent", default=False)

Result = TypeVar("Result")


def check(config: DictConfig) -> None:
    """Refuse what cannot be run, before anything heavy is imported or written.

    Args:
        config: the composed configuration.

    Raises:
        LifelongError: for a value out of range; one line that names the key and what it takes.
    """  # noqa: DOC502
    check_benchmark(config.benchmark, config.scenario)
    if config.method.get("ewc_lambda") == AUTO:
        _auto(config)
    elif "ewc_lambda" in config.method:
        _number(config, "method.ewc_lambda", "a finite number of at least 0", lambda x: x >= 0)
    _number(config, "optimizer.lr", "a finite number above 0", lambda x: x > 0)
    _number(config, "val_fraction", "a number between 0 and 1", lambda x: 0 < x < 1)
    _whole(config, "max_epochs", 1)
    _whole(config, "batch_size", 1)
    _whole(config, "seed", 0)
    _number(config, "checkpoint_every", "a finite number of seconds above 0", lambda x: x > 0)
    _number(config, "stages_limit", "a finite number of GB of at least 0", lambda x: x >= 0)
    _stages(config)
    _trainer(config)
    check_choice(config)


def check_choice(config: DictConfig) -> None:
    """Refuse an unknown rule for the choice of λ, and bounds that a search cannot draw from.

    Args:
        config: the composed configuration.

    Raises:
        LifelongError: one line that names the key and what it takes.
    """
    if config.choice.rule not in RULES:
        raise LifelongError(
            f"choice.rule is {config.choice.rule}; type "
            f"{' or '.join(f'choice.rule={rule}' for rule in RULES)}"
        )
    _number(config, "choice.at_most_lost", "points from 0 to 100", lambda x: 0 <= x <= 100)
    _number(config, "choice.low", "a finite number above 0", lambda x: x > 0)
    least = config.choice.low
    _number(config, "choice.high", f"a number of at least {least}", lambda x: x >= least)
    _whole(config, "choice.refine", 0)
    if config.search is None:
        return
    _number(config, "search.low", "a finite number above 0", lambda x: x > 0)
    low = config.search.low
    _number(config, "search.high", f"a number above search.low={low}", lambda x: x > low)
    _whole(config, "search.trials", 1)
    _whole(config, "search.seed", 0)


def run_command(command: Callable[[], Result]) -> Result:
    """Run a command; turn what the user can mend into one line and exit code 1.

    Set ``HYDRA_FULL_ERROR=1`` to see the whole trace instead.

    Args:
        command: the work.

    Returns:
        What the command returned.
    """
    if TRACE:
        return command()
    try:
        with _hydra_raises():
            return command()
    except KeyboardInterrupt as error:
        _exit(str(error) or "interrupted; what was finished lies in the run's folder", 130)
    except (LifelongError, HydraException, OmegaConfBaseException, OSError) as error:
        _exit(one_line(error), 1)


@contextmanager
def remove_if_empty(directory: str) -> Iterator[None]:
    """Take a run's folder away again if the run failed before it had a result.

    Args:
        directory: Hydra made it and put the configuration there.

    Yields:
        Nothing.
    """
    finished = False
    try:
        yield
        finished = True
    finally:
        folder = Path(directory)
        results = (f for f in folder.rglob("*") if f.is_file() and ".hydra" not in f.parts)
        if not finished and next(results, None) is None:
            shutil.rmtree(folder, ignore_errors=True)


def one_line(error: BaseException) -> str:
    """The message of an error that the user can mend, on one line with the cure.

    Args:
        error: ours, Hydra's, OmegaConf's or the system's.

    Returns:
        One line.
    """
    text = str(error)
    if isinstance(error, MissingConfigException):
        missing = re.search(r"Could not find '([^']*)'", text)
        options = re.search(r"Available options in '[^']*':\n((?:\t[^\n]*\n?)*)", text)
        if missing and options:
            group, _, name = missing[1].rpartition("/")
            known = ", ".join(options[1].split())
            return f"{group}={name} is not known; type {group}= with one of: {known}"
    if isinstance(error, OSError) and error.errno in FULL:
        return (
            f"{error.filename or 'a file'} could not be written ({error.strerror}); what was saved "
            "before is whole: free some space and go on with resume=true"
        )
    if isinstance(error, OSError) and error.filename:
        return (
            f"{error.filename}: {error.strerror}; "
            "choose a folder that can be written with hydra.run.dir=DIR"
        )
    key = re.search(r"Could not override '([^']*)'", text)
    if key:
        return f"{key[1]} is no key of the configuration; `lifelong-train --cfg job` lists the keys"
    return " ".join(text.split())


def say(line: str) -> None:
    """One line on standard error, so that the table alone is on standard output.

    Args:
        line: the words.
    """
    if not _silent.get():
        print(f"lifelong: {line}", file=sys.stderr, flush=True)


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is said in here, by this thread: a sweep's first run has said it.

    Yields:
        Nothing.
    """
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Hydra prints its errors and exits by itself, unless this variable is set while it runs."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _exit(message: str, code: int) -> NoReturn:
    say(message)
    sys.exit(code)


def _number(config: DictConfig, key: str, want: str, fits: Callable[[float], bool]) -> None:
    value = OmegaConf.select(config, key)
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not math.isfinite(value) or not fits(value):
        raise LifelongError(f"{key} is {value}; it must be {want}: type {key}=NUMBER")


def _auto(config: DictConfig) -> None:
    wrong = None
    if config.trainer.max_time is not None:
        wrong = "trainer.max_time: a clock makes no two runs comparable; leave one of them out"
    elif config.trainer.devices != 1 or is_one_of_several():
        wrong = "several processes; choose λ in one (trainer=cpu), then type that λ"
    elif len(config.benchmark.tasks) < 2:
        wrong = "a single task: λ weighs what was learnt before; type benchmark=mnist_usps"
    if wrong is not None:
        raise LifelongError(f"method.ewc_lambda=auto does not go with {wrong}")


def _trainer(config: DictConfig) -> None:
    trainer, fused = config.trainer, config.optimizer.get("fused", False)
    _whole(config, "trainer.accumulate_grad_batches", 1)
    if str(trainer.precision) not in PRECISIONS:
        raise LifelongError(
            f"trainer.precision is {trainer.precision}; it must be one of {', '.join(PRECISIONS)}: "
            "type trainer.precision=bf16-mixed"
        )
    if trainer.max_time is not None and not re.fullmatch(r"\d+(:\d\d){3}", str(trainer.max_time)):
        raise LifelongError(
            f"trainer.max_time is {trainer.max_time}; it must be days:hours:minutes:seconds: "
            "type trainer.max_time=00:00:10:00 for ten minutes a task"
        )
    if trainer.gradient_clip_val is not None:
        _number(config, "trainer.gradient_clip_val", "a finite number above 0", lambda x: x > 0)
        if fused and str(trainer.precision) == "16-mixed" and trainer.accelerator != "cpu":
            raise LifelongError(
                "with trainer.precision=16-mixed a fused optimizer unscales its gradients too late "
                "for trainer.gradient_clip_val; type optimizer.fused=false, or bf16-mixed"
            )


def _stages(config: DictConfig) -> None:
    if not isinstance(config.resume, bool):
        raise LifelongError(f"resume is {config.resume}; type resume=true or resume=false")
    # `off` is YAML's word for false: both mean the same here.
    if config.stages is False or config.stages is None:
        config.stages = "off"
    if not isinstance(config.stages, str):
        raise LifelongError(f"stages is {config.stages}; type stages=off or stages=FOLDER")


def _whole(config: DictConfig, key: str, least: int) -> None:
    value = OmegaConf.select(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise LifelongError(
            f"{key} is {value}; it must be a whole number of at least {least}: "
            f"type {key}={least + 4}"
        )
