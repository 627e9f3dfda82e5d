"""The house: who may import whom, what the wheel carries, and what no file of ours may hold."""

import ast
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import lifelong
from lifelong.config.compose import compose_run, conf_directory
from lifelong.errors import LifelongError

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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a wheel and a source distribution."""
    root = PACKAGE.parents[1]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("not in a checkout")
    folder = tmp_path_factory.mktemp("built")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", folder],
        cwd=root,
        check=True,
        capture_output=True,
    )
    return folder


def test_the_wheel_and_the_sources_carry_the_configuration(built: Path) -> None:
    root = PACKAGE.parents[1]
    ours = {f"{path.relative_to(root)}" for path in (root / "conf").rglob("*.yaml")}
    assert len(ours) > 10
    (wheel,), (sources,) = built.glob("*.whl"), built.glob("*.tar.gz")
    carried = set(zipfile.ZipFile(wheel).namelist())
    assert {f"lifelong/{name}" for name in ours} | {"lifelong/py.typed"} <= carried
    with tarfile.open(sources) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert ours | {"src/lifelong/py.typed", "pyproject.toml", "LICENSE"} <= names


OWN = {
    "benchmark/mine.yaml": "name: mine\ntasks: {one: {dataset: embedded_mnist}}\n"
    "defaults: [/base/images@tasks.one, _self_]\n",
    "method/gentle.yaml": "defaults: [ewc]\nname: gentle\newc_lambda: 3.0\n",
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for name, text in OWN.items():
        (tmp_path / "my conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my conf" / name).write_text(text)
    return tmp_path


def composed(folder: Path, package: Path, *words: str) -> dict[str, Any]:
    """What a package composes in a process of its own, far from the checkout."""
    where = (
        "import runpy, sys, lifelong; print(lifelong.__file__, file=sys.stderr); "
        "sys.argv = ['lifelong-train', *sys.argv[1:]]; "
        "runpy.run_module('lifelong.train', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", where, "--cfg", "job", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(str(package)), done.stderr
    return yaml.safe_load(done.stdout)


def test_a_wheel_far_from_the_checkout_finds_its_configuration_and_a_users_own(
    built: Path, own: Path
) -> None:
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(own / "site")
    words = ["--config-dir", "my conf", "benchmark=mine", "method=gentle"]
    for package in (own / "site", PACKAGE.parent):
        assert composed(own, package)["benchmark"]["name"] == "mnist_usps"
        config = composed(own, package, *words)
        assert config["benchmark"]["name"] == "mine"
        assert list(config["benchmark"]["tasks"]) == ["one"]
        assert (config["method"]["name"], config["method"]["ewc_lambda"]) == ("gentle", 3.0)


def test_python_finds_a_users_own_configuration_too(own: Path) -> None:
    words = ["benchmark=mine", "method=gentle", "output_dir=out"]
    config = compose_run(words, config_dir=own / "my conf")
    assert (config.benchmark.name, config.method.name) == ("mine", "gentle")
    with pytest.raises(LifelongError, match="--config-dir is nowhere, which is no folder"):
        compose_run(words, config_dir="nowhere")


def test_the_configuration_lies_at_the_top_of_the_repository() -> None:
    if not (PACKAGE.parents[1] / "pyproject.toml").is_file():
        pytest.skip("not in a checkout")
    assert conf_directory() == PACKAGE.parents[1] / "conf"
