"""One of several processes of a run; ``lifelong.config.processes`` starts it."""

import json
import os
import re
import signal
import sys
import threading
import traceback
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lifelong.cli.train import learn
from lifelong.config.console import one_line
from lifelong.config.processes import LOST_TOUCH, LastWords
from lifelong.errors import LifelongError

# How gloo and NCCL say that another process is gone or too late; torch has no type for it.
LOST = re.compile("connection (closed|reset)|broken pipe|timed out|timeout|gloo|nccl|store", re.I)


def main() -> None:
    """Learn the configuration on standard input, as the process that the environment says."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    # Ctrl-C reaches every process of the terminal; the one that started us answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = OmegaConf.create(json.loads(_first_line()))
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        learn(config)
    except (LifelongError, HydraException, OmegaConfBaseException, OSError) as error:
        _leave(1, LastWords(one_line(error), True, traceback.format_exc()), folder, rank)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]  # torch goes on with a stack of its own
        lost = isinstance(error, RuntimeError) and LOST.search(str(error)) is not None
        line = re.sub(r"^\[.*?\] ", "", first) if lost else f"{type(error).__name__}: {first}"
        words = LastWords(line, False, traceback.format_exc())
        _leave(LOST_TOUCH if lost else 1, words, folder, rank)


def _leave(code: int, words: LastWords, folder: Path, rank: int) -> None:
    words.write(folder, rank)
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: an orderly end would wait for the others.
    os._exit(code)


def _first_line() -> bytes:
    # Not sys.stdin: a thread that waits in its buffer stops the interpreter from ending.
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(0, 65_536)
        if not read:
            os._exit(LOST_TOUCH)
        line += read
    return line


def _end_with_the_parent() -> None:
    while os.read(0, 65_536):
        pass
    os._exit(LOST_TOUCH)


if __name__ == "__main__":
    main()
