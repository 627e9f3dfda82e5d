"""What a checkpoint says is data: nothing is built from it but classes that are networks."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lifelong.cli import demo, export, predict
from lifelong.errors import LifelongError
from lifelong.models import Perceptron
from lifelong.run.learnt import load_network, read_stage
from lifelong.run.resume.checkpoint import FORMAT, load_checkpoint, save_checkpoint
from lifelong.run.safe_build import UntrustedError, build_network, network_class

from .foreign import NAMES, payloads

MODEL = {
    "_target_": "lifelong.models.Perceptron",
    "in_features": 784,
    "hidden": [8],
    "num_classes": 10,
}


def content(model: Any = MODEL, **changes: Any) -> dict[str, Any]:
    network = Perceptron(784, [8], 10)
    config = {
        "model": model,
        "method": {"name": "ewc", "ewc_lambda": 1.0},
        "benchmark": {"tasks": {"digits": "embedded_mnist"}},
        "seed": 0,
        "data_dir": "data",
    }
    return {
        "network": network.state_dict(),
        "method": {},
        "stages": [{"task": "digits", "steps": 1}],
        "untrained": [0.1],
        "journal": [],
        "about": {"config": config, "data": {"digits": "0" * 64}},
    } | changes


def stage(path: Path, made: dict[str, Any]) -> Path:
    save_checkpoint(path, "stage", made)
    return path


def undigested(path: Path, made: dict[str, Any]) -> Path:
    torch.save({"kind": "stage", "format": FORMAT, **made, "digest": ""}, path)
    return path


def one_line(work: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        work()
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", NAMES)
def test_no_command_runs_what_a_checkpoint_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = stage(tmp_path / "foreign.ckpt", content(payloads(tmp_path)[name]))
    before = set(sys.modules)
    for work in (
        lambda: predict.main(["--checkpoint", str(path), "x.png"]),
        lambda: export.main(["--checkpoint", str(path), "--output", str(tmp_path / "x.onnx")]),
        lambda: demo.run_command(
            lambda: demo.both_networks(
                demo.parser().parse_args(["--ewc", str(path), "--finetune", str(path)])
            )
        ),
    ):
        line = one_line(work, capsys)
        assert "foreign.ckpt" in line
        assert line.endswith("type --trust")
    assert not (tmp_path / "canary").exists()
    assert not {"runpy", "torch.nnx"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("lifelong.models.Perceptron", Perceptron),
        ("lifelong.models.perceptron.Perceptron", Perceptron),
        ("torch.nn.Linear", nn.Linear),
        ("torch.nn.modules.linear.Linear", nn.Linear),
    ],
)
def test_a_class_goes_by_its_own_name_and_by_the_one_its_package_offers(
    name: str, own: type
) -> None:
    assert network_class(name) is own


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "torch", "torch.nn", "torch.nn.", ".torch.nn.Linear", "Perceptron"),
        "torch.nn.modules.transformer.Linear",  # there, but at home elsewhere
        "torch.nn.functional.linear",
        "torch.nn.Parameter",
        "torch.nn.Linear.__init__",
        "torch.nn.modules.module.Module.load_state_dict",
        "torch.nn.modules.module.torch.nn.Linear",
        "torch.nn.__init__.Linear",
        "torch.jit.ScriptModule",
        "torchvision.models.resnet18",
        "torchvision.models.feature_extraction.DualGraphModule",  # runs a graph's code
        "lifelong.learning.ContinualLearner",  # a module, and no network
        "lifelong.models.perceptron.nn.Linear",
        "lifelong.modelsx.Perceptron",
    ],
)
def test_any_other_name_is_refused(name: str) -> None:
    with pytest.raises(UntrustedError):
        network_class(name)


def test_a_package_whose_name_only_begins_alike_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvisionx.py").write_text("from torch import nn\nclass Net(nn.Module): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UntrustedError):
        network_class("torchvisionx.Net")
    assert "torchvisionx" not in sys.modules


def test_nothing_is_imported_where_one_name_of_several_is_refused() -> None:
    config = {"_target_": "torchvision.ops.MLP", "x": {"_target_": "zipapp.create_archive"}}
    before = set(sys.modules)
    with pytest.raises(UntrustedError, match="zipapp"):
        build_network(config)
    assert set(sys.modules) == before


def test_networks_within_a_network_are_built_and_arguments_are_plain() -> None:
    config = {
        "_target_": "torch.nn.Sequential",
        "_args_": [{"_target_": "torch.nn.Flatten"}, MODEL | {"hidden": [4, 3]}],
    }
    network = build_network(config)
    assert [type(one) for one in network] == [nn.Flatten, Perceptron]
    assert network(torch.zeros(5, 1, 28, 28)).shape == (5, 10)
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    for more in (
        {"hidden": torch.ones(2)},
        {"hidden": deep},
        {"hidden": "${oc.env:HOME}"},
        {1: 2},
        {"_partial_": True},
        {"_recursive_": False},
        {"_convert_": "all"},
        {"_args_": "abc"},
        {"_target_": ["torch.nn.Linear"]},
    ):
        with pytest.raises(UntrustedError):
            build_network(MODEL | more)
    for none in (None, [], "torch.nn.Linear", {}, {"x": MODEL}):
        with pytest.raises(UntrustedError, match="no class"):
            build_network(none)


def without(made: dict[str, Any], *keys: str) -> dict[str, Any]:
    inner = made
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return made


def with_tensor(tensor: torch.Tensor) -> dict[str, Any]:
    made = content()
    name = next(iter(made["network"]))
    made["network"][name] = tensor
    return made


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


DAMAGED: dict[str, Callable[[], dict[str, Any]]] = {
    **{
        "no " + ".".join(keys): lambda keys=keys: without(content(), *keys)
        for keys in (
            ("network",),
            ("stages",),
            ("about",),
            ("about", "config"),
            ("about", "config", "model"),
            ("about", "config", "method"),
            ("about", "config", "method", "name"),
            ("about", "config", "benchmark"),
            ("about", "config", "benchmark", "tasks", "digits"),
        )
    },
    **{
        f"{part} is {value!r}": lambda part=part, value=value: content(**{part: value})
        for part in ("network", "stages", "about")
        for value in (None, 5, "text", [], {}, [1], {"x": 1})
    },
    **{f"method is {value!r}": lambda v=value: content(method=v) for value in (None, 5, [1])},
    "stages without task": lambda: content(stages=[{"steps": 1}]),
    "other shapes": lambda: content(MODEL | {"hidden": [9]}),
    "other arguments": lambda: content(MODEL | {"depth": 9}),
    "no image": lambda: content({"_target_": "torch.nn.Identity"}, network={}),
    "nan": lambda: with_tensor(torch.full((8, 784), float("nan"))),
    "expanded": lambda: with_tensor(torch.zeros(1).expand(8, 784)),
}
# Their digest alone would take terabytes, or end in a trace.
UNDIGESTED: dict[str, Callable[[], dict[str, Any]]] = {
    "sparse": lambda: with_tensor(torch.eye(3).to_sparse()),
    "meta": lambda: with_tensor(torch.zeros(3, device="meta")),
    "expanded to 4 TB": lambda: with_tensor(torch.zeros(1).expand(10**12)),
    "odd keys": lambda: content(untrained={(1, 2): 3}),
}


@pytest.mark.parametrize("name", DAMAGED | UNDIGESTED)
def test_content_that_is_none_of_a_stage_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = tmp_path / "odd.ckpt"
    if name in DAMAGED:
        stage(path, DAMAGED[name]())
    else:
        undigested(path, UNDIGESTED[name]())
    line = one_line(lambda: predict.main(["--checkpoint", str(path), "x.png"]), capsys)
    assert str(path) in line
    assert len(line) < 600


def test_what_is_trusted_is_built_as_it_says(tmp_path: Path) -> None:
    model = {"_target_": "tests.run.test_safe_build.mine", "hidden": [8]}
    path = stage(tmp_path / "mine.ckpt", content(model))
    with pytest.raises(LifelongError, match=r"network with tests\.run\.\S+mine; .*type --trust$"):
        load_network(path)
    sys.modules.setdefault("tests.run.test_safe_build", sys.modules[__name__])
    assert load_network(path, trust=True).tasks == ["digits"]


def mine(hidden: list[int]) -> nn.Module:
    return Perceptron(784, list(hidden), 10)


def test_a_stage_is_read_in_parts(tmp_path: Path) -> None:
    made = content()
    made["method"]["penalty.constant"] = torch.tensor(3.0)
    stage(tmp_path / "stage-0-digits.ckpt", made)
    stage(tmp_path / "stage-x-digits.ckpt", made)
    read = read_stage(tmp_path)
    assert (read.path.name, read.tasks) == ("stage-0-digits.ckpt", ["digits"])
    assert set(read.network) == set(Perceptron(784, [8], 10).state_dict())
    assert set(read.method) == {"penalty.constant"}
    assert read.config == made["about"]["config"]
    assert json.dumps(load_checkpoint(read.path, "stage")["about"]) == json.dumps(made["about"])
