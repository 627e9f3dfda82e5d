"""Several processes for one run: started, watched and ended together.

Each process is ``python -m lifelong.cli.worker`` with the composed configuration on its standard
input, and with the variables that ``torchrun`` sets, so that Lightning takes it for one that was
started elsewhere. Lightning would rather run the command line again by itself; under Hydra that
composes another configuration (another time in the folder's name, every job of a sweep again), and
nobody watches when process 0 is the one that dies. `start_processes` of torch.distributed.elastic
leaves its processes running when the one that started them is killed (seen with torch 2.15).
Imports nothing heavy.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from lifelong.errors import LifelongError

# The exit code of a process that lost touch with another one: an effect, never the cause.
LOST_TOUCH = 3
# Seconds between two looks at the processes, and from the request to end to the end.
LOOK, GRACE = 0.05, 5.0
RANK = (sys.executable, "-m", "lifelong.cli.worker")


def process_count(config: DictConfig) -> int:
    """How many processes of this machine a configuration asks for.

    Args:
        config: the composed configuration.

    Returns:
        The number; 1 where Lightning is to choose the devices.
    """
    devices = config.trainer.get("devices", 1)
    if isinstance(devices, ListConfig):
        return len(devices)
    return max(1, devices) if isinstance(devices, int) else 1


def is_one_of_several() -> bool:
    """Whether this process was started as one of several, by ``run_processes``, torchrun or srun.

    Returns:
        What the environment says.
    """
    return "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def starts_processes(config: DictConfig) -> bool:
    """Whether this process is to start others for the run instead of learning itself.

    Args:
        config: the composed configuration.

    Returns:
        Whether it asks for several processes, and this is none of them.
    """
    return process_count(config) > 1 and not is_one_of_several()


def run_processes(config: DictConfig) -> None:
    """Run a configuration in as many processes as it asks for, until all are done.

    As soon as one of them fails or is killed, the others are ended, within ``LOOK + GRACE``
    seconds; if this process is killed, they end by themselves.

    Args:
        config: the composed configuration.

    Raises:
        LifelongError: when a process failed; what the first one said.
    """
    content = json.dumps(OmegaConf.to_container(config, resolve=True)) + "\n"
    with tempfile.TemporaryDirectory(prefix="lifelong-") as said, _all(config, said) as processes:
        for process in processes:
            # A process that is gone already is found below.
            with contextlib.suppress(BrokenPipeError):
                assert process.stdin is not None
                # It stays open: its end tells them that this process is gone.
                process.stdin.write(content.encode())
                process.stdin.flush()
        while True:
            codes = [process.poll() for process in processes]
            if any(codes):
                rank = _first_cause(codes)
                code = codes[rank]
                assert code is not None
                raise LifelongError(_in_words(rank, len(codes), code, Path(said)))
            if all(code == 0 for code in codes):
                return
            time.sleep(LOOK)


@dataclass(frozen=True)
class LastWords:
    """What a process leaves behind when it fails.

    Args:
        line: the error on one line.
        expected: whether the user can mend it; else it is a defect or a loss of touch.
        trace: where it came from.
    """

    line: str
    expected: bool
    trace: str

    def write(self, folder: Path, rank: int) -> None:
        """Leave them for the process that watches.

        Args:
            folder: where it looks.
            rank: whose words they are.
        """
        (folder / f"{rank}.json").write_text(json.dumps(vars(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, rank: int) -> "LastWords | None":
        """Find what a process left.

        Args:
            folder: where it was told to.
            rank: which process.

        Returns:
            Its words, or nothing.
        """
        path = folder / f"{rank}.json"
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


@contextmanager
def _all(config: DictConfig, said: str) -> Iterator[list["subprocess.Popen[bytes]"]]:
    # inside the block they run, after it none is left
    count, processes = process_count(config), list[subprocess.Popen[bytes]]()
    port = _free_port()
    try:
        for rank in range(count):
            # Only the first one speaks; what others say last is shown if they fail.
            with Path(said, f"{rank}.stderr").open("wb") as aside:
                process = subprocess.Popen(
                    [*RANK, said],
                    env=_environment(rank, count, port),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL if rank else None,
                    stderr=aside if rank else None,
                )
            processes.append(process)
        yield processes
    finally:
        _end(processes)


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // count)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # Lightning looks for this one before it looks for Slurm, within which we may be.
        "TORCHELASTIC_RUN_ID": f"lifelong-{os.getpid()}",
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def _first_cause(codes: Sequence[int | None]) -> int:
    # those that only lost touch come last
    failed = [rank for rank, code in enumerate(codes) if code]
    return min(failed, key=lambda rank: codes[rank] == LOST_TOUCH)


def _in_words(rank: int, count: int, code: int, said: Path) -> str:
    who = f"process {rank} of {count}"
    words = LastWords.read(said, rank)
    if code < 0:
        name = signal.Signals(-code).name
        return f"{who} was killed by {name}; the others were ended, type the command again"
    if words is None:
        own = said / f"{rank}.stderr"
        sys.stderr.write(own.read_text(encoding="utf-8", errors="replace"))
        return f"{who} ended with code {code} without a word; the others were ended"
    if words.expected:
        return words.line
    if code == LOST_TOUCH:
        return (
            f"{who} lost touch with another one ({words.line}); a process that is only slow gets "
            "longer with trainer.strategy.timeout.minutes=30"
        )
    sys.stderr.write(words.trace)
    return f"{who} failed: {words.line}"
