"""``lifelong-demo``: draw a digit; see what the EWC network and the fine-tuned one read."""

import argparse
import importlib.util
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lifelong.config.console import run_command, say
from lifelong.errors import LifelongError

if TYPE_CHECKING:
    from lifelong.run.learnt import LearntNetwork

QUICKSTART = Path("outputs/quickstart")
METHODS = ("ewc", "finetune")


def parser() -> argparse.ArgumentParser:
    """The words that the command takes.

    Returns:
        The parser.
    """
    words = argparse.ArgumentParser(
        prog="lifelong-demo",
        description="A page to draw a digit on, read by the EWC network and the fine-tuned one. "
        "By default they are those of the last lifelong-quickstart (make run); where there is "
        "none, both are learnt first.",
    )
    words.add_argument("--ewc", type=Path, help="a stage's .ckpt, or a run's folder")
    words.add_argument("--finetune", type=Path, help="the same, for the other side")
    words.add_argument("--port", type=int, default=8080)
    words.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets a phone in your network in"
    )
    words.add_argument("--no-show", action="store_true", help="do not open a browser")
    words.add_argument(
        "--trust", action="store_true", help="let the checkpoints name any code, and run it"
    )
    return words


def last_quickstart(folder: Path = QUICKSTART) -> dict[str, Path] | None:
    """The newest quickstart whose two runs were finished.

    Args:
        folder: where quickstarts lie.

    Returns:
        Method → the run's folder; None if there is none.
    """
    for one in sorted(folder.glob("*"), reverse=True):
        runs = {method: one / method for method in METHODS}
        if all((run / "summary.json").is_file() for run in runs.values()):
            return runs
    return None


def both_networks(words: argparse.Namespace) -> list["LearntNetwork"]:
    """The two networks, learnt first where there are none.

    Args:
        words: of the command line.

    Returns:
        The EWC one and the fine-tuned one.

    Raises:
        LifelongError: when one alone is given, or a checkpoint cannot be read.
    """
    from lifelong.run.learnt import load_network

    given = {"ewc": words.ewc, "finetune": words.finetune}
    missing = [method for method, path in given.items() if path is None]
    if len(missing) == 1:
        raise LifelongError(f"--{missing[0]} is missing; give both, or neither")
    if not missing:
        return [load_network(given[method], trust=words.trust) for method in METHODS]
    found = last_quickstart()
    if found is None:
        from lifelong.cli.quickstart import quickstart

        say(f"{QUICKSTART} holds no networks yet; learning both, a minute or so")
        quickstart([])
        found = last_quickstart()
    assert found is not None
    return [load_network(found[method], trust=words.trust) for method in METHODS]


def main(argv: list[str] | None = None) -> None:
    """The console script.

    Args:
        argv: the words after the command; those of the process by default.
    """
    words = parser().parse_args(sys.argv[1:] if argv is None else argv)
    run_command(lambda: _serve(words))


def _serve(words: argparse.Namespace) -> None:
    if importlib.util.find_spec("nicegui") is None:
        raise LifelongError(
            "the page needs nicegui, which is not installed; "
            "type pip install 'lifelong-lightning[demo]'"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((words.host, words.port))
        except OSError as error:
            raise LifelongError(
                f"port {words.port} of {words.host} cannot be had ({error.strerror}); "
                f"type --port {words.port + 1}"
            ) from error
    from lifelong.cli.demo_page import serve_page

    networks = both_networks(words)
    say(f"http://{words.host}:{words.port}  (Ctrl-C ends it)")
    serve_page(networks, host=words.host, port=words.port, show=not words.no_show)


if __name__ == "__main__":
    main()
