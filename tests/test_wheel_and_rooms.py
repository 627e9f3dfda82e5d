"""The house: who may import whom, what the wheel carries, and what no file of ours may hold."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lifelong

PACKAGE = Path(lifelong.__file__).parent
# From the top floor down: each imports only from those before it.
ORDER = (
    "core",
    "models",
    "data",
    "learning",
    "methods",
    "run",
    "report",
    "config",
    "search",
    "cli",
)
ROOMS = {room: set(ORDER[:place]) for place, room in enumerate(ORDER)}
ROOMS |= {"models": set(), "data": set(), "learning": {"core", "models", "data"}}
OUTSIDE = {"core": {"torch", "jaxtyping"}, "models": {"torch", "jaxtyping"}}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_the_rooms_above_it(room: str) -> None:
    files = list((PACKAGE / room).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            top, _, rest = name.partition(".")
            if top == "lifelong" and rest:
                inner = rest.split(".")[0]
                allowed = ROOMS[room] | {room} | ({"errors"} if room != "core" else set())
                assert inner in allowed, f"{path.name} imports {name}"
            elif room in OUTSIDE and top not in sys.stdlib_module_names:
                assert top in OUTSIDE[room], f"{path.name} imports {name}"


def test_the_wheel_carries_the_configuration(tmp_path: Path) -> None:
    root = PACKAGE.parents[1]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("not in a checkout")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=root,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    carried = set(zipfile.ZipFile(wheel).namelist())
    ours = {f"lifelong/{path.relative_to(root)}" for path in (root / "conf").rglob("*.yaml")}
    assert len(ours) > 10
    assert ours <= carried
