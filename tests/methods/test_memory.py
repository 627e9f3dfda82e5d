"""Less memory for what is held: each argument, alone and in files, in any loop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import lifelong
from lifelong.core import fisher_diagonal
from lifelong.data.files.tensors import read_tensors, write_tensors
from lifelong.errors import LifelongError
from lifelong.methods import EWC, KroneckerEWC, OnlineEWC

from .strangers import Stranger, loader, params, trainer

kinds = pytest.mark.parametrize("kind", [EWC, OnlineEWC])
storages = pytest.mark.parametrize("storage", ["bfloat16", "log8"])
OFF = {"bfloat16": 2**-8, "log8": 0.068}


def learnt(kind: Any = EWC, **settings: Any) -> tuple[Stranger, Any]:
    module, method = Stranger(), kind(20.0, **settings)
    trainer(method).fit(module, loader())
    return module, method


def public(path: Path, module: Stranger, **also: Any) -> Path:
    """The module's weights as somebody published them, under names of their own."""
    weights = {f"model.{name}": p for name, p in params(module).items()}
    write_tensors(path, {**weights, "more": torch.zeros(3), **also}, {})
    return path


@kinds
@storages
def test_f_is_kept_as_the_argument_says(kind: Any, storage: Any) -> None:
    module, method = learnt(kind, storage=storage, damping=0.0)
    numbers = list(method.penalty.importance.buffers())
    assert {n.element_size() for n in numbers} == {2 if storage == "bfloat16" else 1}
    exact = fisher_diagonal(module, list(loader()))
    for name, f in method.penalty.importances().items():
        off = (f.double() - exact[name]).abs()
        assert bool((off <= OFF[storage] * exact[name] + exact[name].max() * 2**-47).all())
        assert bool(off.any())


@kinds
def test_where_f_stays_is_what_the_argument_says_and_the_fit_is_the_same(kind: Any) -> None:
    ends = []
    for device in (None, "cpu"):
        module, method = learnt(kind, device=device)
        assert method.penalty.device == (None if device is None else torch.device("cpu"))
        assert (method.penalty.pull_of(params(module), 1.0) is None) is (device is None)
        trainer(method).fit(module, loader(1))
        ends.append(params(module))
        trainer(method, max_epochs=1, accumulate_grad_batches=2, gradient_clip_val=0.1).fit(
            module, loader(2)
        )
        ends[-1] |= {f"{name} later": p for name, p in params(module).items()}
    for name, p in ends[0].items():
        torch.testing.assert_close(ends[1][name], p, rtol=1e-10, atol=1e-12)


@storages
@pytest.mark.parametrize("step", ["explicit", "proximal"])
def test_a_file_and_a_plain_loop_go_on_with_what_was_kept(
    storage: Any, step: Any, tmp_path: Path
) -> None:
    module, method = learnt(storage=storage)
    method.save(tmp_path / "old")
    fresh = EWC.load(tmp_path / "old", step=step)
    assert fresh.penalty.storage == storage
    mine, theirs = fresh.penalty.state_dict(), method.penalty.state_dict()
    if storage == "log8":
        assert all(torch.equal(mine[name], t) for name, t in theirs.items() if name != "folds")
    other = Stranger()
    other.load_state_dict(module.state_dict())
    optimizer = other.configure_optimizers()
    guard = lifelong.protect(other, optimizer, tmp_path / "old", step=step)
    for _ in range(2):
        for x, y in loader(1):
            optimizer.zero_grad()
            guard.term(cross_entropy(other(x), y)).backward()
            optimizer.step()
    fresh.consolidates = False
    trainer(fresh).fit(module, loader(1))
    for name, p in params(module).items():
        torch.testing.assert_close(params(other)[name], p, rtol=0, atol=1e-6)


@storages
def test_a_file_is_read_into_another_storage(storage: Any, tmp_path: Path) -> None:
    _, method = learnt()
    method.save(tmp_path / "old")
    small = EWC.load(tmp_path / "old", storage=storage)
    assert {n.element_size() for n in small.penalty.importance.buffers()} <= {1, 2}
    small.save(tmp_path / "small")
    again = EWC.load(tmp_path / "small", storage="float32")
    for name, f in small.penalty.importances().items():
        torch.testing.assert_close(again.penalty.importances()[name], f)
    assert (tmp_path / "small").stat().st_size < (tmp_path / "old").stat().st_size


@pytest.mark.parametrize("kind", [EWC, OnlineEWC])
@pytest.mark.parametrize("precision", ["float32", "log8"])
def test_a_file_that_refers_to_public_weights_holds_none_of_them(
    kind: Any, precision: Any, tmp_path: Path
) -> None:
    module, method = learnt(kind)
    file, weights = tmp_path / "old", public(tmp_path / "model.safetensors", module)
    method.save(file, precision=precision, reference=weights)
    assert not [name for name in read_tensors(file)[0] if name.startswith("anchor.")]
    method.save(tmp_path / "whole", precision=precision)
    size = sum(p.nbytes for p in params(module).values())
    header = 600  # the digests
    assert (tmp_path / "whole").stat().st_size - file.stat().st_size > size - header
    (tmp_path / "folder").mkdir()
    public(tmp_path / "folder" / "model.safetensors", module)
    for fresh in (
        kind.load(file, reference=weights),
        kind.load(file, reference=tmp_path / "folder"),
        kind(20.0, anchor=file, reference=weights),
    ):
        fresh.hold(module)
        for name, anchor in method.penalty.anchors().items():
            assert torch.equal(fresh.penalty.anchors()[name], anchor)
    guard = lifelong.protect(module, module.configure_optimizers(), file, reference=weights)
    assert guard.omega == pytest.approx(0.0, abs=1e-12)


def test_other_public_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    module, method = learnt()
    file, weights = tmp_path / "old", public(tmp_path / "model.safetensors", module)
    method.save(file, reference=weights)
    with pytest.raises(LifelongError, match=r"refers to a public file.*reference=FILE") as error:
        EWC.load(file)
    assert "\n" not in str(error.value)
    with torch.no_grad():
        module.head.bias[1] += 1e-12
    other = public(tmp_path / "other.safetensors", module)
    with pytest.raises(LifelongError, match=r"other.* has another 'model.head.bias' than") as error:
        EWC.load(file, reference=other)
    assert "\n" not in str(error.value)
    write_tensors(tmp_path / "few", {"model.head.bias": module.head.bias}, {})
    with pytest.raises(LifelongError, match="few lacks 'model"):
        EWC.load(file, reference=tmp_path / "few")
    with pytest.raises(LifelongError, match="cannot read"):
        EWC.load(file, reference=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LifelongError, match="holds no safetensors file"):
        EWC.load(file, reference=tmp_path / "empty")


def test_only_what_a_public_file_has_is_left_out(tmp_path: Path) -> None:
    module, method = learnt()
    weights = tmp_path / "model.safetensors"
    write_tensors(weights, {"body": module.body[0].weight}, {})
    method.save(tmp_path / "old", reference=weights)
    kept = {name for name in read_tensors(tmp_path / "old")[0] if name.startswith("anchor.")}
    assert kept == {"anchor.body.0.bias", "anchor.head.weight", "anchor.head.bias"}
    write_tensors(weights, {"body": module.body[0].weight + 1}, {})
    with pytest.raises(LifelongError, match="holds none of the 4 consolidated tensors"):
        method.save(tmp_path / "old", reference=weights)


def test_weights_that_were_read_into_a_wider_type_are_the_public_ones(tmp_path: Path) -> None:
    module = Stranger()
    narrow = {name: p.half() for name, p in params(module).items()}
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(narrow[name])
    write_tensors(tmp_path / "half", narrow, {})
    method = EWC(1.0)
    method.consolidate(module, list(loader()))
    method.save(tmp_path / "old", reference=tmp_path / "half")
    fresh = EWC.load(tmp_path / "old", reference=tmp_path / "half")
    for name, p in params(module).items():
        assert torch.equal(fresh.penalty.anchors()[name], p)


def test_factors_are_kept_as_they_are() -> None:
    for settings in ({"storage": "log8"}, {"device": "cpu"}):
        with pytest.raises(ValueError, match=r"which is for diagonals.*or take EWC"):
            KroneckerEWC(1.0, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="storage is 'int4'"):
        EWC(1.0, storage="int4")  # type: ignore[arg-type]


@storages
def test_a_fit_that_is_resumed_ends_with_the_bits_of_one_that_was_not(
    storage: Any, tmp_path: Path
) -> None:
    _, method = learnt(storage=storage)
    states = []
    for resumed in (False, True):
        one = EWC(20.0, storage=storage)
        one.load_state_dict(method.state_dict())
        module = Stranger()
        if resumed:
            first = trainer(one, max_epochs=1, enable_checkpointing=True, default_root_dir=tmp_path)
            one.consolidates = False
            first.fit(module, loader(1))
            first.save_checkpoint(tmp_path / "middle.ckpt")
            one, module = EWC(20.0, storage=storage), Stranger()
            trainer(one, max_epochs=2).fit(module, loader(1), ckpt_path=tmp_path / "middle.ckpt")
        else:
            trainer(one, max_epochs=2).fit(module, loader(1))
        states.append({**one.penalty.state_dict(), **params(module)})
    assert all(torch.equal(states[1][name], t) for name, t in states[0].items())
