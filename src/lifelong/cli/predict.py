"""``lifelong-predict``: which digits image files show."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lifelong.config.console import run_command, say
from lifelong.errors import LifelongError

if TYPE_CHECKING:
    from lifelong.cli.user_images import Ink
    from lifelong.run.learnt import LearntNetwork

EPILOG = """\
How an image is read: colours become grey, and what is transparent becomes paper. Whether the digit
is darker or lighter than its paper is decided by the image's edge: the digit is lighter if the
image is lighter on average than the median of its outermost pixels (--ink says it where the digit
touches the edge). The digit is cut out, scaled so that its longer side is 20 pixels and placed in
28 × 28 with its centre of mass in the middle, as MNIST's are. Pixels are normalised by MNIST's mean
and deviation, whatever the task."""


@dataclass(frozen=True)
class Reading:
    """What an image was read as.

    Args:
        file: the image.
        digit: the most probable one.
        probability: of that digit.
        ink: whether the digit is ``dark`` or ``light`` against its paper.
        probabilities: of all ten.
    """

    file: str
    digit: int
    probability: float
    ink: str
    probabilities: list[float]


def parser() -> argparse.ArgumentParser:
    """The words that the command takes.

    Returns:
        The parser.
    """
    words = argparse.ArgumentParser(
        prog="lifelong-predict",
        description="Print digit and probability for image files of any size and polarity.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    words.add_argument(
        "--checkpoint", type=Path, required=True, help="a stage's .ckpt, or a run's folder"
    )
    words.add_argument("--json", action="store_true", help="JSON with all ten probabilities")
    words.add_argument("--ink", choices=("dark", "light"), help="the digit against its paper")
    words.add_argument(
        "--trust", action="store_true", help="let the checkpoint name any code, and run it"
    )
    return words


def predict(
    learnt: "LearntNetwork", paths: Iterable[Path], ink: "Ink | None" = None
) -> tuple[list[Reading], list[str]]:
    """Read image files one by one.

    Args:
        learnt: reads them.
        paths: image files.
        ink: the polarity of all of them; decided for each if None.

    Returns:
        The readings, and a line on each file that could not be read.
    """
    from lifelong.cli.user_images import PictureError, read_picture

    readings, failures = [], []
    for path in paths:
        try:
            picture = read_picture(path, ink)
        except PictureError as error:
            failures.append(str(error))
            continue
        (probabilities,) = learnt.probabilities(picture.pixels.unsqueeze(0)).tolist()
        digit = max(range(len(probabilities)), key=probabilities.__getitem__)
        readings.append(Reading(str(path), digit, probabilities[digit], picture.ink, probabilities))
    return readings, failures


def image_files(words: Sequence[Path]) -> list[Path]:
    """The files that are meant.

    Args:
        words: files, and folders, of which every file with the name of an image counts.

    Returns:
        In the order of the words, by name within a folder.

    Raises:
        LifelongError: when a folder holds no image.
    """
    from PIL import Image

    endings = set(Image.registered_extensions())
    found: list[Path] = []
    for word in words:
        if not word.is_dir():
            found.append(word)
            continue
        inside = sorted(p for p in word.iterdir() if p.suffix.lower() in endings and p.is_file())
        if not inside:
            raise LifelongError(f"{word} holds no image file; give one with PNG or JPEG files")
        found += inside
    return found


def describe(learnt: "LearntNetwork") -> str:
    """What reads, and by whose statistics it normalises.

    Args:
        learnt: the network.

    Returns:
        One line.
    """
    from lifelong.data.sets.images import MEAN, STD
    from lifelong.report.names import label
    from lifelong.run.summary import titled

    method = titled({"method": learnt.method})
    name = label(method["method_title"], learnt.ewc_lambda, has_lambda=method["has_lambda"])
    images = " (embedded digits, not the archives)" if learnt.learnt_from_embedded_digits else ""
    return (
        f"read by {name} after {' → '.join(learnt.tasks)}{images}; normalised by MNIST's "
        f"mean {MEAN} and deviation {STD}, as in every task"
    )


def main(argv: list[str] | None = None) -> None:
    """The console script.

    Args:
        argv: the words after the command; those of the process by default.
    """
    words = parser().parse_args(sys.argv[1:] if argv is None else argv)
    failures = run_command(lambda: _predict_and_print(words))
    if failures:
        sys.exit(1)


def _predict_and_print(words: argparse.Namespace) -> list[str]:
    from lifelong.run.learnt import load_network

    learnt = load_network(words.checkpoint, trust=words.trust)
    readings, failures = predict(learnt, image_files(words.images), words.ink)
    for line in failures:
        say(line)
    say(describe(learnt))
    if words.json:
        print(json.dumps([asdict(reading) for reading in readings], indent=1))
    elif readings:
        _print_table(readings)
    return failures


def _print_table(readings: Sequence[Reading]) -> None:
    from rich.table import Table

    from lifelong.report.tables import print_wide

    table = Table()
    table.add_column("image", overflow="fold")
    for heading in ("digit", "probability %", "ink"):
        table.add_column(heading, justify="right")
    for one in readings:
        table.add_row(one.file, str(one.digit), f"{100 * one.probability:.1f}", one.ink)
    print_wide(table)


if __name__ == "__main__":
    main()
