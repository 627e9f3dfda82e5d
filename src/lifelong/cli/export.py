"""``lifelong-export``: the network as ONNX, or by ``torch.export``, checked on test images."""

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.config.console import run_command, say
from lifelong.errors import LifelongError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lifelong.run.learnt import LearntNetwork

NEEDS = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "torch": ()}
ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
BOUND = 1e-4  # of a probability; float32 sums in another order differ by some 1e-6
CHECKED = 1000  # test images of each task


@dataclass(frozen=True)
class Check:
    """How an exported network compares with the one that was learnt.

    Args:
        images: how many test images both read.
        largest: the largest difference of a probability.
        other_digits: how many images they read differently.
        source: where the images came from.
    """

    images: int
    largest: float
    other_digits: int
    source: str


def parser() -> argparse.ArgumentParser:
    """The words that the command takes.

    Returns:
        The parser.
    """
    words = argparse.ArgumentParser(
        prog="lifelong-export",
        description="Write a learnt network as ONNX or by torch.export, and check it on test "
        "images. It takes `pixels` [batch, 1, 28, 28], float32, 0 the paper and 1 full ink, laid "
        "out as MNIST's, normalises them itself, and gives `probabilities` [batch, 10].",
    )
    words.add_argument(
        "--checkpoint", type=Path, required=True, help="a stage's .ckpt, or a run's folder"
    )
    words.add_argument("--format", choices=tuple(NEEDS), default="onnx")
    words.add_argument("--output", type=Path, help="network.onnx or network.pt2 by default")
    words.add_argument("--data-dir", type=Path, help="of the test images; the run's by default")
    words.add_argument(
        "--trust", action="store_true", help="let the checkpoint name any code, and run it"
    )
    return words


def export(learnt: "LearntNetwork", path: Path, form: str, data_dir: Path | None = None) -> Check:
    """Write the network, whole or not at all, once what was written reads test images alike.

    Args:
        learnt: the network.
        path: the file.
        form: ``onnx`` or ``torch``.
        data_dir: where the test images lie; the run's own folder if None.

    Returns:
        What the check found.

    Raises:
        LifelongError: when a package is missing, or the exported network reads otherwise.
    """
    from lifelong.data.files.whole import whole_file

    missing = [name for name in NEEDS[form] if importlib.util.find_spec(name) is None]
    if missing:
        raise LifelongError(
            f"--format {form} needs {', '.join(missing)}; "
            "type pip install 'lifelong-lightning[export]'"
        )
    images, source = _test_images(learnt, data_dir)
    expected = learnt.probabilities(images).numpy()
    pixels = images.unsqueeze(1).float() / 255
    write, read = (_write_onnx, _read_onnx) if form == "onnx" else (_write_torch, _read_torch)
    with whole_file(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(learnt, temporary)
        # Another number of images than it was traced with: the batch must not be fixed.
        found = read(temporary)(pixels)
        largest = float(abs(found - expected).max())
        others = int((found.argmax(1) != expected.argmax(1)).sum())
        if not largest <= BOUND:
            raise LifelongError(
                f"the exported network differs by {largest:.1e} in a probability, more than "
                f"{BOUND:g}; nothing was written: try --format "
                f"{'torch' if form == 'onnx' else 'onnx'}"
            )
    return Check(len(images), largest, others, source)


def _write_onnx(learnt: "LearntNetwork", path: Path) -> None:
    import onnx
    import torch

    with torch.no_grad():
        program = torch.onnx.export(
            learnt.reader,
            (torch.zeros(2, 1, 28, 28),),
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, _about(learnt))
    path.write_bytes(model.SerializeToString())


def _read_onnx(path: Path) -> "Callable[[Tensor], np.ndarray[Any, Any]]":
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["probabilities"], {"pixels": pixels.numpy()})[0]


def _write_torch(learnt: "LearntNetwork", path: Path) -> None:
    import io

    import torch

    program = torch.export.export(
        learnt.reader,
        (torch.zeros(2, 1, 28, 28),),
        dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
    )
    # Through memory: a file must end in .pt2 for torch, and the temporary one does not.
    written = io.BytesIO()
    torch.export.save(program, written)
    path.write_bytes(written.getbuffer())


def _read_torch(path: Path) -> "Callable[[Tensor], np.ndarray[Any, Any]]":
    import io

    import torch

    module = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return lambda pixels: module(pixels).detach().numpy()


def _about(learnt: "LearntNetwork") -> dict[str, str]:
    return {
        "method": learnt.method,
        "ewc_lambda": str(learnt.ewc_lambda),
        "seed": str(learnt.config["seed"]),
        "tasks": ", ".join(learnt.tasks),
        "input": "pixels, 0 the paper and 1 full ink, laid out as MNIST's",
    }


def _test_images(learnt: "LearntNetwork", data_dir: Path | None) -> "tuple[Tensor, str]":
    import torch

    from lifelong.data.definition import dataset_of
    from lifelong.data.sets.sources import MissingArchivesError, load

    def quiet(_: str) -> None:
        return

    folder = data_dir or Path(learnt.config["data_dir"])
    found = [dataset_of(learnt.config["benchmark"]["tasks"][task]) for task in learnt.tasks]
    names = [name for name in found if name is not None]
    try:
        tasks = [load(name, folder, download=False, announce=quiet) for name in names]
        source = f"the test sets of {', '.join(learnt.tasks)}"
    except MissingArchivesError:
        tasks = [load("embedded_mnist", folder, announce=quiet)]
        source = f"embedded digits, for {folder} does not hold {', '.join(learnt.tasks)}"
    return torch.cat([task.test.images[:CHECKED] for task in tasks]), source


def main(argv: list[str] | None = None) -> None:
    """The console script.

    Args:
        argv: the words after the command; those of the process by default.
    """
    words = parser().parse_args(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        from lifelong.run.learnt import load_network

        learnt = load_network(words.checkpoint, trust=words.trust)
        path = words.output or Path("network").with_suffix(ENDINGS[words.format])
        check = export(learnt, path, words.format, words.data_dir)
        say(
            f"checked on {check.images} images ({check.source}): probabilities differ by at most "
            f"{check.largest:.1e}, {check.other_digits} digits are read otherwise"
        )
        print(path)

    run_command(work)


if __name__ == "__main__":
    main()
