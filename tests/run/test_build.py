"""Every key reaches the object that it is for, and every file of conf/ names what there is."""

from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from lifelong.config.build import build_job
from lifelong.config.check import check
from lifelong.config.compose import CONF, compose_run
from lifelong.errors import LifelongError
from lifelong.learning import EarlyStoppingPerTask
from lifelong.run import Job, NoStore

FILES = sorted(str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml"))


def built(folder: Path, *words: str) -> Job:
    return build_job(
        compose_run(["benchmark=embedded_digits", "logger=none", f"output_dir={folder}", *words])
    )


def test_every_key_reaches_the_job_that_is_built(tmp_path: Path) -> None:
    default, other = (
        built(tmp_path, *words)
        for words in (
            [],
            [
                *("diagnostics=false", "compile=true", "scheduler=constant", "optimizer=sgd"),
                *("resume=true", "checkpoint_every=7", "seed=4", "max_epochs=3", "batch_size=9"),
                *(f"stages={tmp_path}/st", "stages_limit=2", "optimizer.lr=0.5", "logger=csv"),
                *("callbacks=early_stopping", "method.ewc_lambda=3", "val_fraction=0.5"),
                *("trainer.gradient_clip_val=2", "model.hidden=[3]", "method.damping=0.5"),
            ],
        )
    )
    made = {}
    for name, job in (("default", default), ("other", other)):
        method = job.make_method()
        learner = job.make_learner(method)
        trainer = job.make_trainer(callbacks=[method], logger=False)
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = learner.make_optimizer([parameter])
        made[name] = {
            "speaks": method.setting("step", "proximal"),
            "watched": method._diagnose is not None,
            "λ, damping": (method.ewc_lambda, method.penalty.damping),
            "the learner's": learner.method is method,
            "compiled": learner._trained[0] is not learner.network,
            "optimizer": (type(optimizer).__name__, optimizer.param_groups[0]["lr"]),
            "scheduler": type(learner.make_scheduler(optimizer, total_iters=5)).__name__,
            "width": next(learner.network.parameters()).shape[0],
            "stops early": any(isinstance(one, EarlyStoppingPerTask) for one in trainer.callbacks),
            "its own callbacks": method in trainer.callbacks,
            "trainer": (trainer.max_epochs, trainer.gradient_clip_val),
            "folder": trainer.default_root_dir == str(tmp_path),
            "job": (job.seed, job.max_epochs, job.resume, job.checkpoint_every, job.method),
            "store": (job.store.folder.name, job.store.limit),
            "loggers": [type(one).__name__ for one in job.make_loggers()],
            "batches": len(job.benchmark.tasks[0].train_dataloader()),
            "told to loggers": dict(job.hyperparameters),
        }
    assert made["default"] == {
        "speaks": "method.step=proximal",
        "watched": True,
        "λ, damping": (1e4, 0.01),
        "the learner's": True,
        "compiled": False,
        "optimizer": ("Adam", 1e-3),
        "scheduler": "PolynomialLR",
        "width": 1024,
        "stops early": False,
        "its own callbacks": True,
        "trainer": (30, None),
        "folder": True,
        "job": (0, 30, False, 30.0, "ewc"),
        "store": made["default"]["store"],
        "loggers": [],
        "batches": 10,
        "told to loggers": {
            "seed": 0,
            "max_epochs": 30,
            "batch_size": 64,
            "ewc_lambda": 1e4,
            "method": "ewc",
            "benchmark": "embedded_digits",
            "lr": 1e-3,
        },
    }
    assert made["other"] == {
        "speaks": "method.step=proximal",
        "watched": False,
        "λ, damping": (3.0, 0.5),
        "the learner's": True,
        "compiled": True,
        "optimizer": ("SGD", 0.5),
        "scheduler": "ConstantLR",
        "width": 3,
        "stops early": True,
        "its own callbacks": True,
        "trainer": (3, 2),
        "folder": True,
        "job": (4, 3, True, 7.0, "ewc"),
        "store": ("st", 2e9),
        "loggers": ["CSVLogger"],
        "batches": 39,
        "told to loggers": {
            "seed": 4,
            "max_epochs": 3,
            "batch_size": 9,
            "ewc_lambda": 3.0,
            "method": "ewc",
            "benchmark": "embedded_digits",
            "lr": 0.5,
        },
    }


def test_what_a_clock_ends_or_nobody_wants_is_not_kept_in_a_store(tmp_path: Path) -> None:
    assert isinstance(built(tmp_path, "stages=off").store, NoStore)
    clock = built(tmp_path, f"stages={tmp_path}/st", "trainer.max_time='00:00:01:00'")
    assert isinstance(clock.store, NoStore)
    assert not isinstance(built(tmp_path, f"stages={tmp_path}/st").store, NoStore)


def test_building_draws_no_random_number_and_refuses_a_network_that_does_not_fit(
    tmp_path: Path,
) -> None:
    before = torch.get_rng_state()
    built(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(LifelongError, match=r"type model\.in_features=784"):
        built(tmp_path, "model.in_features=5")


def bound(config: Any) -> int:
    """Bind every ``_target_`` with its arguments; how many there were."""
    if isinstance(config, list):
        return sum(bound(one) for one in config)
    if not isinstance(config, dict):
        return 0
    count = sum(bound(one) for one in config.values())
    if "_target_" not in config:
        return count
    words = {key: value for key, value in config.items() if not key.startswith("_")}
    if config["_target_"].startswith("lifelong.methods."):
        words.pop("name", None)  # for the command line
    made = get_object(config["_target_"])
    try:
        signature(made).bind_partial(*config.get("_args_", ()), **words)
    except ValueError:  # a class without a signature, as datetime's
        made(**words)
    except TypeError as error:
        raise AssertionError(f"{config['_target_']}: {error}") from error
    return count + 1


@pytest.mark.parametrize("file", FILES)
def test_every_target_of_every_file_takes_the_arguments_that_stand_beside_it(file: str) -> None:
    if "launcher" in file:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    content = OmegaConf.to_container(OmegaConf.load(CONF / file))
    assert isinstance(content, dict)
    content.pop("defaults", None)
    assert bound(content) == (CONF / file).read_text().count("_target_:")


def test_every_file_composes_to_a_run_whose_targets_take_their_arguments() -> None:
    options = [file.removesuffix(".yaml").split("/") for file in FILES if file.count("/") == 1]
    options = [option for option in options if option[0] != "base"]
    assert len(options) > 20
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for group, name in options:
            config = compose("train", overrides=["output_dir=out", f"{group}={name}"])
            # model, trainer, method, optimizer, scheduler and at least two tasks
            assert bound(OmegaConf.to_container(config, resolve=True)) >= 7, (group, name)
            check(config)
