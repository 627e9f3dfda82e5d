"""The contract that every method passes; a new method is one line in ``jobs.METHODS``."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from torch import nn

from lifelong import methods
from lifelong.errors import LifelongError
from lifelong.run import StageStore, learn_sequence

from . import jobs
from .jobs import (
    METHODS,
    TASKS,
    InterruptAt,
    InterruptError,
    OwnModule,
    Points,
    class_of,
    job,
    left,
    make,
)

every_method = pytest.mark.parametrize("name", METHODS)


def difference(one: Any, other: Any, where: str = "") -> str | None:
    """Where two nested values first differ, by a bit; None where they are the same."""
    if isinstance(one, torch.Tensor):
        return None if torch.equal(one, other) else where
    if isinstance(one, list | tuple):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict):
        if list(one) != list(other):
            return f"{where}: {list(one)} and {list(other)}"
        return next(filter(None, (difference(one[k], other[k], f"{where}/{k}") for k in one)), None)
    return None if one == other else f"{where}: {one!r} and {other!r}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of each method, uninterrupted and without a store; learnt when first asked for."""
    found: dict[str, tuple[Path, Any]] = {}

    def of(name: str) -> tuple[Path, Any]:
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            found[name] = folder, learn_sequence(job(name, folder))
        return found[name]

    return of


def test_every_method_of_the_package_is_in_the_contract() -> None:
    assert {class_of(name) for name in METHODS} == set(methods.__all__) - {
        "Method",
        "PenaltyMethod",
    }


@every_method
def test_three_tasks_are_learnt_in_turn(name: str, whole: Any) -> None:
    folder, summary = whole(name)
    method = make(name, **METHODS[name][0])
    assert summary.tasks == list(TASKS)
    assert [len(row) for row in summary.accuracy] == [3, 3, 3]
    assert summary.accuracy[0][0] > 0.6
    said = method.facts()
    assert (summary.method_title, summary.has_lambda) == (said["method_title"], said["has_lambda"])
    assert summary.ewc_lambda == METHODS[name][0].get("ewc_lambda", 0.0)
    assert (left(folder)["method"] != {}) is method.keeps_state


@every_method
def test_without_its_strength_it_is_fine_tuning_bit_for_bit(
    name: str, whole: Any, tmp_path: Path
) -> None:
    folder, _ = whole("Finetune")
    free = METHODS[name][1]
    if free is None:
        pytest.skip(f"{name} has no strength that could be zero")
    learn_sequence(job(name, tmp_path, free))
    assert difference(left(tmp_path)["network"], left(folder)["network"]) is None
    if free != METHODS[name][0]:
        held, _ = whole(name)
        assert difference(left(held)["network"], left(folder)["network"]) is not None


@every_method
@pytest.mark.parametrize(("task", "step"), [("a", 3), ("b", 5)])
def test_a_run_that_is_resumed_is_the_uninterrupted_one(
    name: str, task: str, step: int, whole: Any, tmp_path: Path
) -> None:
    folder, summary = whole(name)
    with pytest.raises(InterruptError):
        learn_sequence(job(name, tmp_path, interrupt=InterruptAt(task, step)))
    assert (tmp_path / "checkpoints/progress.ckpt").is_file()
    assert learn_sequence(job(name, tmp_path, resume=True)).accuracy == summary.accuracy
    assert difference(left(tmp_path), left(folder)) is None


@every_method
def test_a_stage_that_is_recalled_is_the_learnt_one(name: str, whole: Any, tmp_path: Path) -> None:
    folder, _ = whole(name)
    store = StageStore(tmp_path / "store", 1e9, print)
    learn_sequence(job(name, tmp_path / "first", store=store))
    again = learn_sequence(job(name, tmp_path / "again", store=store))
    parts = {"fit", "consolidate"} if make(name, **METHODS[name][0]).keeps_state else {"fit"}
    assert {task: set(reused) for task, reused in again.reused.items()} == dict.fromkeys(
        TASKS, parts
    )
    assert difference(left(tmp_path / "again"), left(folder)) is None
    # What is lost of the method is estimated again where it follows from the network.
    for path in (tmp_path / "store").glob("*.state"):
        path.unlink()
    learn_sequence(job(name, tmp_path / "estimated", store=store))
    assert difference(left(tmp_path / "estimated"), left(folder)) is None


@every_method
def test_its_state_goes_round(name: str, whole: Any) -> None:
    folder, _ = whole(name)
    state = left(folder)["method"]
    fresh = make(name, **METHODS[name][0])
    fresh.load_state_dict(state)
    assert difference(fresh.state_dict(), state) is None


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each method's run in two processes, and in one."""
    folder = tmp_path_factory.mktemp("processes")
    words = [sys.executable, jobs.__file__, str(folder), *METHODS]
    env = os.environ | {"OMP_NUM_THREADS": "1", "IN_ORDER": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        joint = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        joint["MASTER_PORT"] = str(free.getsockname()[1])
    ranks = [{**joint, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(2)]
    running = [
        subprocess.Popen(words, env=env | rank, stderr=subprocess.PIPE, text=True)
        for rank in (*ranks, {})
    ]
    said = [one.communicate(timeout=240)[1] for one in running]
    assert [one.returncode for one in running] == [0, 0, 0], said
    return folder


@every_method
def test_two_processes_learn_what_one_does(name: str, both: Path) -> None:
    one, two = left(both / f"{name}-1"), left(both / f"{name}-2")
    steps = [[stage["steps"] for stage in run["stages"]] for run in (one, two)]
    assert steps[0] == steps[1]
    if make(name, **METHODS[name][0]).uses_old_data:
        # Old and new data are mixed, by each number of processes in an order of its own.
        own, theirs = (run["stages"][-1]["accuracy"] for run in (one, two))
        assert theirs == pytest.approx(own, abs=0.15)
        return
    for a, b in zip(one["stages"], two["stages"], strict=True):
        assert a["accuracy"] == b["accuracy"]
    torch.testing.assert_close(two["network"], one["network"], rtol=1e-9, atol=1e-12)
    mine, theirs = (tensors(run["method"]) for run in (one, two))
    torch.testing.assert_close(theirs, mine, rtol=1e-9, atol=1e-12)


@every_method
def test_two_processes_hold_a_strangers_module_as_one_does(name: str, both: Path) -> None:
    one, two = (
        torch.load(both / f"{name}-callback-{count}.pt", weights_only=True) for count in (1, 2)
    )
    torch.testing.assert_close(tensors(two), tensors(one), rtol=1e-9, atol=1e-12)


def tensors(state: Any, where: str = "") -> dict[str, torch.Tensor]:
    """All tensors of nested values."""
    if isinstance(state, torch.Tensor):
        return {where: state}
    pairs = state.items() if isinstance(state, dict) else enumerate(state)
    inner = [(k, v) for k, v in pairs if isinstance(v, dict | list | torch.Tensor)]
    return {n: t for k, v in inner for n, t in tensors(v, f"{where}/{k}").items()}


@every_method
def test_as_a_callback_it_leaves_a_strangers_module_as_it_was(name: str) -> None:
    seed_everything(0, verbose=False)
    module, method = OwnModule(), make(name, **METHODS[name][0])
    own = module.training_step
    for task in range(2):
        jobs.trainer(method).fit(module, Points(task).train_dataloader())
        assert module.training_step == own
        assert all(not p._post_accumulate_grad_hooks for p in module.parameters())
    if not method.keeps_state:
        return
    fresh = make(name, **METHODS[name][0])
    if name == "SI":  # it has to have seen the learning
        with pytest.raises(LifelongError):
            fresh.consolidate(module, Points(1).train_dataloader())
        fresh = method
    else:
        fresh.consolidate(module, Points(1).train_dataloader())
    assert difference(fresh.state_dict(), make(name, **METHODS[name][0]).state_dict()) is not None
    if not isinstance(method, methods.PenaltyMethod):
        return
    # What was learnt last is where the penalty holds it: for one task its anchor is the weights.
    params = dict(module.named_parameters())
    assert float(fresh.penalty.value(params)) == pytest.approx(0.0, abs=1e-12)
    moved = {n: p.detach() + 0.1 for n, p in params.items()}
    assert float(fresh.penalty.value(moved)) > 1e-3
    last = getattr(method, "anchors", "each") == "last"
    assert float(method.penalty.value(moved)) > float(method.penalty.value(params)) >= 0
    assert (float(method.penalty.value(params)) == 0) is last


@every_method
def test_as_a_callback_it_trains_as_it_does_in_a_run(name: str) -> None:
    held: list[dict[str, torch.Tensor]] = []
    for stranger in (False, True):
        seed_everything(0, verbose=False)
        method = make(name, **METHODS[name][0])
        body = network_without_state()
        if stranger:
            module: Any = OwnModule()
            module.body = body
        else:
            module = jobs.ContinualLearner(
                body, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.5), TASKS, method=method
            )
        for task in range(2):
            data = Points(task).examples(0, 48)
            loader = torch.utils.data.DataLoader(data, batch_size=12)
            jobs.trainer(method).fit(module, loader)
        held.append({n: p.detach().clone() for n, p in body.named_parameters()})
    assert difference(held[0], held[1]) is None


def network_without_state() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
