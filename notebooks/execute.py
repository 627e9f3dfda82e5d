"""Run the notebooks and keep their outputs: `make notebooks`.

What changes from run to run without meaning (times, the interpreter's version, how printed lines
were cut into pieces) is left out, so that a diff shows what changed in the text and the figures.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

FOLDER = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(
    path: Path,
    *,
    checks: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    timeout: int = 600,
) -> NotebookNode:
    """Run a notebook from its first cell to its last in an empty folder.

    Args:
        path: the file, which is left as it is.
        checks: code run after the last cell, in the same kernel, and not kept.
        environment: variables that the kernel has besides those of this process.
        timeout: seconds that one cell may take.

    Returns:
        The notebook with its outputs.
    """
    notebook = nbformat.read(path, as_version=4)
    cells = list(notebook.cells)
    notebook.cells += [new_code_cell(check) for check in checks]
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
        )
        # a folder of its own for IPython too: what the user has it run at the start stays out
        # a torch that is newer than Lightning has it warn of its own words
        quiet = "ignore:IProgress,ignore:`isinstance(treespec"
        own = {"IPYTHONDIR": folder, "PYTHONWARNINGS": quiet}
        client.execute(env={**os.environ, **own, **(environment or {})})
    notebook.cells = cells
    return _without_accidents(notebook)


def _without_accidents(notebook: NotebookNode) -> NotebookNode:
    notebook.metadata = nbformat.from_dict(METADATA)
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02d}"
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    return notebook


def _joined(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    # the kernel sends printed text whenever its buffer is flushed
    joined: list[NotebookNode] = []
    for output in outputs:
        before = joined[-1] if joined else None
        if before and output.output_type == "stream" and before.get("name") == output.name:
            before.text += output.text
        else:
            joined.append(output)
    return joined


def main() -> None:
    """Execute in place, and say how long each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of them by default")
    for path in parser.parse_args().notebooks or sorted(FOLDER.glob("*.ipynb")):
        begin = time.perf_counter()
        notebook = execute(path)
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
