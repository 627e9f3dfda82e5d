"""The file that carries what is held, and networks that change on the way."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lifelong.data.files.tensors import read_tensors, write_tensors
from lifelong.errors import LifelongError
from lifelong.methods import EWC, KroneckerEWC, OnlineEWC

from .strangers import Stranger, loader, params, trainer

kinds = pytest.mark.parametrize("kind", [EWC, OnlineEWC, KroneckerEWC])


def learnt(kind: Any = EWC, **settings: Any) -> tuple[Stranger, Any]:
    module, method = Stranger(), kind(20.0, **settings)
    trainer(method).fit(module, loader())
    return module, method


def moved(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p + 0.1 for name, p in params(module).items()}


@kinds
def test_what_was_saved_is_what_is_loaded_bit_for_bit(kind: Any, tmp_path: Path) -> None:
    module, method = learnt(kind, damping=0.1)
    method.save(tmp_path / "old.safetensors")
    fresh = kind.load(tmp_path / "old.safetensors")
    mine, theirs = fresh.state_dict(), method.state_dict()
    assert mine["penalty"].keys() == theirs["penalty"].keys()
    assert all(torch.equal(mine["penalty"][n], t) for n, t in theirs["penalty"].items())
    assert mine["remembered"] == theirs["remembered"]
    assert (fresh.ewc_lambda, fresh.penalty.damping, fresh.decay) == (20.0, 0.1, method.decay)
    assert kind.load(tmp_path / "old.safetensors", ewc_lambda=3, decay=0.5).decay == 0.5
    assert float(fresh.penalty.value(moved(module))) == float(method.penalty.value(moved(module)))


@kinds
def test_a_fit_with_the_file_is_the_fit_with_the_callback(kind: Any, tmp_path: Path) -> None:
    module, method = learnt(kind)
    method.save(tmp_path / "old.safetensors")
    ends = []
    for callback in (method, kind(20.0, anchor=tmp_path / "old.safetensors")):
        after = Stranger()
        after.load_state_dict(module.state_dict())
        trainer(callback).fit(after, loader(1))
        ends.append(params(after))
        assert len(callback.remembered.examples) == 2
    assert all(torch.equal(ends[0][name], p) for name, p in ends[1].items())


@pytest.mark.parametrize(("precision", "off"), [("bfloat16", 2**-8), ("log8", 0.068)])
def test_a_smaller_importance_is_off_by_no_more_than_is_said(
    precision: Any, off: float, tmp_path: Path
) -> None:
    _, method = learnt()
    method.save(tmp_path / "whole"), method.save(tmp_path / "small", precision=precision)
    fresh = EWC.load(tmp_path / "small")
    for name, f in method.penalty.importances().items():
        kept = fresh.penalty.importances()[name].double()
        assert bool(((kept - f).abs() <= off * f).all()), name
    anchors = fresh.penalty.anchors()
    assert all(torch.equal(anchors[n], a) for n, a in method.penalty.anchors().items())
    assert (tmp_path / "small").stat().st_size < (tmp_path / "whole").stat().st_size


def test_logarithms_keep_zeros_and_leave_out_what_is_far_below_the_largest(tmp_path: Path) -> None:
    _, method = learnt()
    f = method.penalty.importances()["head.bias"]
    f.copy_(torch.tensor([0.0, 1.0, 1e-30]))
    method.save(tmp_path / "small", precision="log8")
    kept = EWC.load(tmp_path / "small").penalty.importances()["head.bias"]
    assert kept[0] == 0
    assert kept[1] == pytest.approx(1.0, rel=1e-6)
    assert kept[2] < 1e-14


def test_factors_have_no_logarithms(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="negative entries"):
        learnt(KroneckerEWC)[1].save(tmp_path / "x", precision="log8")


def test_the_file_says_whose_it_is(tmp_path: Path) -> None:
    _, method = learnt()
    method.save(tmp_path / "old")
    _, texts = read_tensors(tmp_path / "old")
    remembered = json.loads(texts["remembered"])
    assert remembered["shapes"]["head.weight"] == [3, 8]
    assert remembered["examples"] == [48]
    assert json.loads(texts["likelihood"]) == "categorical"
    assert json.loads(texts["versions"]).keys() == {"lifelong", "torch"}
    assert json.loads(texts["settings"])["damping"] == 0.01


def test_the_format_is_the_one_of_the_package_of_that_name(tmp_path: Path) -> None:
    other = pytest.importorskip("safetensors.torch")
    tensors = {"a": torch.randn(3, 2), "b.c": torch.randn(5).bfloat16(), "e": torch.tensor(2.0)}
    write_tensors(tmp_path / "ours", tensors, {"about": "λ"})
    theirs = other.load_file(tmp_path / "ours")
    assert all(torch.equal(theirs[name], t) for name, t in tensors.items())
    other.save_file(tensors, tmp_path / "theirs", {"about": "λ"})
    ours, texts = read_tensors(tmp_path / "theirs")
    assert texts == {"about": "λ"}
    assert all(torch.equal(ours[n], t) for n, t in tensors.items())


def damaged(change: Any) -> Any:
    def of(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        words = json.dumps(header).encode()
        return struct.pack("<Q", len(words)) + words + content[8 + length :]

    return of


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content[:5],
        lambda content: b"",
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: struct.pack("<Q", 2**62) + content[8:],
        lambda content: content[:8] + b"[" + content[9:],
        damaged(lambda header: header["a"].update(shape=[2**40])),
        damaged(lambda header: header["a"].update(shape=[-2, -3])),
        damaged(lambda header: header["a"].update(dtype="PICKLE")),
        damaged(lambda header: header["a"].update(data_offsets=[8, 32])),
        damaged(lambda header: header["a"].update(data_offsets=[0, 10**15])),
        damaged(lambda header: header.update(a=7)),
        damaged(lambda header: header["__metadata__"].update(about="changed")),
        damaged(lambda header: header.update(__metadata__=["x"])),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors(path, {"a": torch.arange(6.0).reshape(2, 3)}, {"about": "x"})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(LifelongError) as error:
        read_tensors(path)
    assert "\n" not in str(error.value)
    assert "file" in str(error.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    learnt(KroneckerEWC)[1].save(tmp_path / "factors")
    with pytest.raises(LifelongError, match=r"saved by KroneckerEWC.*take KroneckerEWC"):
        EWC.load(tmp_path / "factors")
    write_tensors(tmp_path / "weights", {"a": torch.zeros(1)}, {})
    with pytest.raises(LifelongError, match="not written by save"):
        EWC.load(tmp_path / "weights")
    with pytest.raises(LifelongError, match="cannot read"):
        trainer(EWC(1.0, anchor=tmp_path / "none")).fit(Stranger(), loader())
    with pytest.raises(LifelongError, match="holds nothing yet"):
        EWC(1.0).save(tmp_path / "empty")


def test_an_empty_folder_stays_empty_when_saving_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision"):
        learnt()[1].save(tmp_path / "x", precision="int4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [EWC, KroneckerEWC])
def test_an_output_layer_that_grows_keeps_its_old_rows_protected(kind: Any) -> None:
    module, method = learnt(kind, damping=0.0)
    before = float(method.penalty.value(moved(module)))
    wide = Stranger(classes=5)
    wide.body.load_state_dict(module.body.state_dict())
    with torch.no_grad():
        wide.head.weight[:3], wide.head.bias[:3] = module.head.weight, module.head.bias
    now = method.hold(wide)
    assert float(method.penalty.value(now)) == pytest.approx(0.0, abs=1e-12)
    far = {name: p.clone() for name, p in moved(wide).items()}
    assert float(method.penalty.value(far)) == pytest.approx(before, rel=1e-9)
    far["head.weight"][3:], far["head.bias"][3:] = 7.0, -7.0
    assert float(method.penalty.value(far)) == pytest.approx(before, rel=1e-9)
    trainer(method).fit(wide, loader(1, classes=5))
    assert method.remembered.shapes["head.weight"] == [5, 8]


@pytest.mark.parametrize("kind", [EWC, KroneckerEWC])
def test_a_changed_shape_names_parameter_shapes_and_cure(kind: Any) -> None:
    _, method = learnt(kind)
    smaller = Stranger(classes=2)
    with pytest.raises(
        LifelongError, match=r"'head.weight'.*\(3, 8\).*\(2, 8\).*ignore='head\.\*'"
    ):
        trainer(method).fit(smaller, loader(1, classes=2))
    method.chosen.ignore = ("head.*",)
    trainer(method).fit(smaller, loader(1, classes=2))
    assert not {"head.weight", "head.bias"} & set(method.penalty.held(params(smaller)))


def test_a_renamed_parameter_is_named() -> None:
    _, method = learnt()
    other = Stranger()
    other.classifier, other.head = other.head, nn.Identity()
    with pytest.raises(LifelongError, match=r"missing: head\.weight, head\.bias.*'head\.\*'"):
        trainer(method).fit(other, loader(1))


@pytest.mark.parametrize("kind", [EWC, KroneckerEWC])
def test_patterns_say_what_is_protected(kind: Any) -> None:
    module, method = learnt(kind, modules="body")
    assert sorted(method.penalty.held(params(module))) == ["body.0.bias", "body.0.weight"]
    module, method = learnt(kind, ignore=["head"])
    assert sorted(method.penalty.held(params(module))) == ["body.0.bias", "body.0.weight"]
    with pytest.raises(LifelongError, match="'boddy' fits no parameter"):
        learnt(kind, modules="boddy")


@pytest.mark.parametrize("kind", [EWC, KroneckerEWC])
def test_what_was_frozen_is_told_of_or_protected(kind: Any) -> None:
    for include in (False, True):
        module, method = Stranger(), kind(1.0, include_frozen=include)
        module.body.requires_grad_(False)
        trainer(method).fit(module, loader())
        assert ("body.0.weight" in method.penalty.held(params(module))) is include
        module.body.requires_grad_(True)
        if include:
            assert method.remembered.unprotected(method.penalty, method.hold(module), all) is None
        else:
            with pytest.warns(UserWarning, match=r"2 trainable parameters.*56 of 83 numbers"):
                trainer(method).fit(module, loader(1))


@pytest.mark.parametrize("freeze", [None, True, False])
def test_running_statistics_stay_unless_they_shall_not(freeze: bool | None) -> None:
    module, method = Stranger(norm=True), EWC(1.0, freeze_norm=freeze)
    before = module.body[1].running_mean.clone()
    trainer(method).fit(module, loader())
    learnt_ = module.body[1].running_mean.clone()
    assert not torch.equal(before, learnt_)  # nothing was held yet
    trainer(method).fit(module, loader(1))
    assert torch.equal(module.body[1].running_mean, learnt_) is (freeze is not False)
    assert module.body[1].training


def test_without_a_strength_running_statistics_move() -> None:
    module, method = Stranger(norm=True), EWC(0.0)
    trainer(method).fit(module, loader())
    before = module.body[1].running_mean.clone()
    trainer(method).fit(module, loader(1))
    assert not torch.equal(module.body[1].running_mean, before)
