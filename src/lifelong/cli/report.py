"""``lifelong-report``: one run, a sweep or several methods as one page that works offline."""

import argparse
import importlib.util
import sys
from pathlib import Path

from lifelong.config.check import RULES
from lifelong.config.console import run_command, say
from lifelong.errors import LifelongError


def parser() -> argparse.ArgumentParser:
    """The words that the command takes.

    Returns:
        The parser.
    """
    words = argparse.ArgumentParser(
        prog="lifelong-report",
        description="Turn one run, a sweep or several methods into one HTML file that works "
        "offline, and its table into Markdown and CSV. Runs are found by their summary.json.",
    )
    words.add_argument("directory", type=Path, help="where the runs lie, at any depth")
    words.add_argument(
        "--output", type=Path, default=None, help="the page; DIRECTORY/report.html by default"
    )
    words.add_argument(
        "--rule", choices=RULES, default=RULES[0], help="which λ to mark, on validation images"
    )
    words.add_argument(
        "--at-most-lost", type=float, default=1.0, help="points that most_new may lose of the old"
    )
    return words


def write_report(directory: Path, output: Path, rule: str, at_most_lost: float) -> list[Path]:
    """Write the page and its table beside it.

    Args:
        directory: where the runs lie.
        output: the page; the tables have its name with ``.md`` and ``.csv``.
        rule: as ``choice.rule``.
        at_most_lost: as ``choice.at_most_lost``.

    Returns:
        What was written.

    Raises:
        LifelongError: when there is nothing to report, or plotly is missing.
    """
    if importlib.util.find_spec("plotly") is None:
        raise LifelongError(
            "a report needs plotly, which is not installed; "
            "type pip install 'lifelong-lightning[report]'"
        )
    from lifelong.data.files.whole import whole_file
    from lifelong.report.best import Rule
    from lifelong.report.page import make_report
    from lifelong.report.results import read_results

    results = read_results(directory)
    for note in results.notes:
        say(note)
    report = make_report(results, Rule(rule, at_most_lost))
    texts = {".html": report.html, ".md": report.markdown, ".csv": report.csv}
    written = []
    for ending, text in texts.items():
        path = output if ending == ".html" else output.with_suffix(ending)
        if text:
            with whole_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def main(argv: list[str] | None = None) -> None:
    """The console script.

    Args:
        argv: the words after the command; those of the process by default.
    """
    words = parser().parse_args(sys.argv[1:] if argv is None else argv)
    output = words.output or words.directory / "report.html"

    def write() -> None:
        for path in write_report(words.directory, output, words.rule, words.at_most_lost):
            print(path)

    run_command(write)


if __name__ == "__main__":
    main()
