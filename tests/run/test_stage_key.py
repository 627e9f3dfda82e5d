"""The table of keys, and what counts in a stage's key: everything but what the table frees."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lifelong.config.compose import CONF
from lifelong.run import stage_key
from lifelong.run.keys import (
    FREE,
    FREE_FOR_STATE,
    LABELS,
    NAMES,
    flat,
    is_free,
    is_setting,
    settings,
    shaping,
    targets,
)
from lifelong.run.stage_key import code, fit_key, state_key

TASKS = [("a", "11"), ("b", "22"), ("c", "33")]
# Hydra's own groups are no part of what a run sees; base is what benchmarks are made of.
GROUPS = sorted(
    (path.parent.name, path.stem)
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("base", "hydra")
)


@cache
def composed(*words: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["output_dir=out", *words])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return plain


def leaves(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from leaves(value, (*path, key))
    else:
        yield path


def changed(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    other = deepcopy(config)
    inner = other
    for key in path[:-1]:
        inner = inner[key]
    value = inner[path[-1]]
    if isinstance(value, bool):
        inner[path[-1]] = not value
    elif isinstance(value, int | float):
        inner[path[-1]] = value + 1
    elif isinstance(value, list):
        inner[path[-1]] = [*value, 1]
    else:
        inner[path[-1]] = "another"
    return other


@pytest.fixture(params=GROUPS, ids=lambda group: "=".join(group))
def each_option(request: pytest.FixtureRequest) -> dict[str, Any]:
    return composed("=".join(request.param))


@pytest.fixture
def same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a key costs apart from the configuration is looked at once, elsewhere."""
    monkeypatch.setattr(stage_key, "code", lambda names=(): sorted(set(names)))
    monkeypatch.setattr(stage_key, "machine", dict)


def test_every_key_of_every_group_counts_unless_the_table_frees_it(
    each_option: dict[str, Any], same_code: None
) -> None:
    names = list(each_option["benchmark"]["tasks"])
    tasks = [(name, "0") for name in names]
    last = len(tasks) - 1
    key = fit_key(each_option, tasks, last, plain=False)
    walked = list(leaves(each_option))
    assert len(walked) > 40
    for path in walked:
        word = ".".join(path)
        same = fit_key(changed(each_option, path), tasks, last, plain=False) == key
        assert same is (is_free(word) or word in LABELS), word


def test_every_key_of_the_method_counts_for_what_it_keeps_unless_the_table_frees_it(
    each_option: dict[str, Any], same_code: None
) -> None:
    key = state_key("fit", each_option)
    free = {*FREE_FOR_STATE, "name"}
    for path in leaves(each_option["method"]):
        other = {"method": changed(each_option["method"], path)}
        assert (state_key("fit", other) == key) is (path[0] in free), path
    assert state_key("another", each_option) != key


def test_nothing_is_declared_that_the_configuration_does_not_have() -> None:
    words = {group for group, _ in GROUPS} | {"hydra"}
    for group, option in GROUPS:
        words |= {".".join(path) for path in leaves(composed(f"{group}={option}"))}
    words |= {word.rpartition(".")[0] for word in words}
    for declared in (*FREE, *LABELS, *NAMES):
        known = {
            word for word in words if fnmatch(word, declared) or fnmatch(word, f"{declared}.*")
        }
        assert known or declared == "method._target_", declared


@pytest.mark.parametrize(
    "key",
    [
        *("val_fraction", "benchmark.val_fraction", "batch_size", "benchmark.batch_size", "seed"),
        *("optimizer", "optimizer.lr", "scheduler", "callbacks", "max_epochs", "compile"),
        *("diagnostics", "model", "trainer", "trainer.precision", "trainer.max_epochs", "method"),
        *("benchmark", "benchmark.tasks", "benchmark.tasks.a.dataset", "scenario", "unheard.of"),
    ],
)
def test_what_shapes_numbers_is_not_declared_free(key: str) -> None:
    assert not is_free(key)


def test_each_key_that_is_free_has_its_reason() -> None:
    assert all(len(reason) > 10 for reason in FREE.values())


@pytest.mark.parametrize(
    "word",
    [
        *("val_fraction=0.2", "batch_size=32", "optimizer=sgd", "optimizer.lr=0.1"),
        *("scheduler=constant", "callbacks=early_stopping", "max_epochs=1", "compile=true"),
        *("diagnostics=false", "seed=1", "model.hidden=[3]", "trainer.precision=bf16-mixed"),
        *("trainer.accumulate_grad_batches=2", "+benchmark.rotation=30", "+anything=1"),
    ],
)
def test_the_first_stage_knows_what_it_was_learnt_with(word: str, same_code: None) -> None:
    key = fit_key(composed(), TASKS, 0, plain=True)
    assert fit_key(composed(), TASKS, 0, plain=True) == key
    assert fit_key(composed(word), TASKS, 0, plain=True) != key


@pytest.mark.parametrize(
    "word",
    [
        *("method=kronecker_ewc", "method.ewc_lambda=7", "data_dir=elsewhere", "logger=csv"),
        *("stages=off", "choice.low=2", "checkpoint_every=5", "resume=true"),
        "experiment=lambda_search",
    ],
)
def test_a_plain_stage_is_shared_by_all_methods_and_places(word: str, same_code: None) -> None:
    key = fit_key(composed(), TASKS, 0, plain=True)
    assert fit_key(composed(word), TASKS, 0, plain=True) == key


def test_the_method_counts_where_it_takes_part(same_code: None) -> None:
    one, other = composed(), composed("method.ewc_lambda=7")
    assert fit_key(one, TASKS, 1, plain=False) != fit_key(other, TASKS, 1, plain=False)
    assert fit_key(one, TASKS, 1, plain=True) == fit_key(other, TASKS, 1, plain=True)
    assert fit_key(one, TASKS, 1, plain=True) != fit_key(one, TASKS, 1, plain=False)


def benchmark(**tasks: Any) -> dict[str, Any]:
    return {"seed": 0, "benchmark": {"name": "b", "tasks": tasks}, "method": {"ewc_lambda": 1.0}}


def test_a_stage_depends_on_its_tasks_in_their_order_and_on_no_later_one(same_code: None) -> None:
    one = benchmark(a={"_target_": "x.A", "angle": 0}, b={"angle": 1}, c={"angle": 2})
    later = benchmark(a={"_target_": "x.A", "angle": 0}, b={"angle": 1}, d={"angle": 5})
    first = benchmark(a={"_target_": "x.A", "angle": 9}, b={"angle": 1}, c={"angle": 2})
    tasks = [*TASKS[:2], ("d", "44")]
    for index, same in ((0, True), (1, True), (2, False)):
        key = fit_key(one, TASKS, index, plain=False)
        assert (fit_key(later, tasks, index, plain=False) == key) is same
        assert fit_key(first, TASKS, index, plain=False) != key
    later["benchmark"]["name"] = "another"
    assert fit_key(later, tasks, 1, plain=False) == fit_key(one, TASKS, 1, plain=False)
    key = fit_key(one, TASKS, 1, plain=False)
    assert fit_key(one, [TASKS[1], TASKS[0], TASKS[2]], 1, plain=False) != key
    assert fit_key(one, [("a", "12"), *TASKS[1:]], 1, plain=False) != key


def test_arguments_of_a_users_own_benchmark_count(same_code: None) -> None:
    config = {"benchmark": {"_target_": "mine.Benchmark", "setting": 0}, "method": {}}
    other = {"benchmark": {"_target_": "mine.Benchmark", "setting": 3}, "method": {}}
    assert fit_key(config, TASKS, 0, plain=True) != fit_key(other, TASKS, 0, plain=True)


def test_threads_and_precision_of_products_count() -> None:
    config = benchmark(a={})
    key = fit_key(config, TASKS, 0, plain=True)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(threads + 1)
        assert fit_key(config, TASKS, 0, plain=True) != key
        torch.set_num_threads(threads)
        assert fit_key(config, TASKS, 0, plain=True) == key
        torch.set_float32_matmul_precision("medium")
        assert fit_key(config, TASKS, 0, plain=True) != key
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def test_our_source_counts_but_for_the_rooms_that_shape_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "lifelong"
    shutil.copytree(stage_key.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = code()["lifelong"]
    monkeypatch.setattr(stage_key, "PACKAGE", copy)
    assert code()["lifelong"] == before
    rooms = {path.parent.name for path in copy.glob("*/__init__.py")}
    assert rooms >= {"core", "models", "data", "learning", "methods", "run", "config", "cli"}
    (copy / "new_room").mkdir()
    for room in (*sorted(rooms), "new_room", "."):
        before = code()["lifelong"]
        (copy / room / "added.py").write_text(f"{len(room)}\n")
        same = room in ("report", "search", "cli")
        assert (code()["lifelong"] == before) is same, room


def test_the_users_own_code_counts_with_all_of_it_that_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    files = {
        "own_net_of_a_test.py": "import numpy\ndef build():\n    import own_layers_of_a_test\n",
        "own_layers_of_a_test.py": "from own_package_of_a_test.deep import x\nimport torch\n",
        "own_package_of_a_test/__init__.py": "",
        "own_package_of_a_test/deep.py": "import sklearn\n",
        "own_package_of_a_test/beside.py": "",
    }
    (tmp_path / "own_package_of_a_test").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    names = ["own_net_of_a_test.build", "torch.optim.Adam", "datetime.timedelta"]
    own = {name.split("/")[0].removesuffix(".py") for name in files}
    before = code(names)
    assert code(names) == before
    assert set(before) - set(code()) == {*own, "sklearn"}
    assert before["sklearn"].startswith("scikit-learn ")
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}# changed\n")
        after = code(names)
        assert after != before, name
        before = after
    config = benchmark(a={"_target_": "own_net_of_a_test.build"})
    key = fit_key(config, TASKS, 0, plain=True)
    (tmp_path / "own_layers_of_a_test.py").write_text("")
    assert fit_key(config, TASKS, 0, plain=True) != key
    config = {"method": {"_target_": "own_net_of_a_test.build"}}
    kept = state_key("fit", config)
    (tmp_path / "own_net_of_a_test.py").write_text("")
    assert state_key("fit", config) != kept


def test_what_was_typed_at_a_prompt_is_never_taken_for_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    assert code(["__main__.Net"]) != code(["__main__.Net"])


def test_all_that_a_configuration_builds_is_found() -> None:
    config = {
        "model": {"_target_": "a.Net", "layers": [{"_target_": "b.Layer"}, {"x": 1}]},
        "f": {"_target_": "hydra.utils.get_method", "path": "c.function"},
        "_target_": 3,
    }
    assert set(targets(config)) == {"a.Net", "b.Layer", "hydra.utils.get_method", "c.function"}


def test_reports_group_by_what_is_neither_free_nor_a_name() -> None:
    found = settings(composed("method.ewc_lambda=3", "data_dir=x", "seed=4"))
    assert found["max_epochs"] == 5
    assert found["method.step"] == "explicit"
    assert not any(is_free(key) for key in found)
    assert not {"seed", "benchmark.seed", "method.ewc_lambda", "method.name"} & set(found)
    again = settings(composed("method.ewc_lambda=9", "data_dir=y", "seed=5", "logger=none"))
    assert found == again
    words = ["trainer", "trainer.precision", "method.step", "scenario", "benchmark.val_fraction"]
    assert all(is_setting(word) for word in words)
    words = ["method", "benchmark", "seed", "hydra/launcher", "hydra.sweep.dir", "choice.rule"]
    assert not any(is_setting(word) for word in words)


def test_what_shapes_is_the_configuration_less_what_is_free() -> None:
    config = composed()
    kept, whole = flat(shaping(config)), flat(config)
    assert {key: whole[key] for key in kept if key in whole} == {
        key: value for key, value in whole.items() if not is_free(key) and key not in LABELS
    }


@pytest.mark.parametrize(
    "key",
    [
        *("resume", "output_dir", "hydra.run.dir", "data_dir", "benchmark.tasks.mnist.data_dir"),
        *("stages", "stages_limit", "checkpoint_every", "logger.csv", "choice.rule", "search.low"),
        "trainer.enable_model_summary",
    ],
)
def test_what_no_number_depends_on_is_declared_free(key: str) -> None:
    assert is_free(key)


def test_only_how_a_task_is_held_is_left_out_of_what_is_kept_of_it() -> None:
    # λ and the step act while a later task is learnt; all else of a method may shape what it keeps
    assert set(FREE_FOR_STATE) == {"ewc_lambda", "step"}
