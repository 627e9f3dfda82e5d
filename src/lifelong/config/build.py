"""From a composed configuration to a job: the one place where configuration becomes objects."""

import copy
import importlib.util
import logging
import os
import warnings
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from lifelong.config.benchmark import build_benchmark
from lifelong.config.check import check_unscaling
from lifelong.config.console import say
from lifelong.config.fits import check_fits
from lifelong.config.processes import is_one_of_several, starts_processes
from lifelong.data.randomness import OwnRandomness
from lifelong.errors import LifelongError
from lifelong.learning import ContinualLearner
from lifelong.learning.progress import shows_progress
from lifelong.methods import Method
from lifelong.report.forgotten import observe_run
from lifelong.run import Job, NoStore, StageStore
from lifelong.run.store import GIGABYTE


def build_job(config: DictConfig) -> Job:
    """Make the objects that a configuration names.

    Args:
        config: checked by ``lifelong.config.check.check``.

    Returns:
        A job, with nothing trained or written yet but its folder.

    Raises:
        LifelongError: when the machine lacks the accelerator, or the images are not to be had.
    """
    _quieten()
    config = _with_accelerator(config)
    if starts_processes(config):
        raise LifelongError(
            f"trainer.devices is {config.trainer.devices} and this command runs in one process; "
            "type trainer=cpu or trainer=gpu, or learn with lifelong-train"
        )
    _check_loggers(config)
    directory = Path(config.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    benchmark = build_benchmark(config, rank_zero_only(say))
    with OwnRandomness("fits").swapped():
        check_fits(instantiate(config.model), benchmark.tasks)

    def make_learner(method: Method) -> ContinualLearner:
        return ContinualLearner(
            instantiate(config.model),
            instantiate(config.optimizer),
            benchmark.task_names,
            method=method,
            scheduler=instantiate(config.scheduler),
            compile_network=bool(config.compile),
        )

    flat = OmegaConf.to_container(config, resolve=True)
    assert isinstance(flat, dict)
    return Job(
        benchmark=benchmark,
        make_method=partial(_make_method, config),
        make_learner=make_learner,
        make_trainer=partial(_make_trainer, config, directory),
        method=config.method.name,
        seed=config.seed,
        max_epochs=config.max_epochs,
        directory=directory,
        config={str(key): value for key, value in flat.items()},
        make_loggers=lambda: [instantiate(one) for one in (config.logger or {}).values()],
        hyperparameters={key: flat[key] for key in ("seed", "max_epochs", "batch_size")}
        | {"ewc_lambda": float(config.method.get("ewc_lambda", 0.0)), "method": config.method.name}
        | {"benchmark": benchmark.name, "lr": float(config.optimizer.lr)},
        store=_stage_store(config),
        resume=config.resume,
        checkpoint_every=float(config.checkpoint_every),
        tell=rank_zero_only(say),
        observe=observe_run,
    )


def _make_method(config: DictConfig) -> Method:
    settings = {name: value for name, value in config.method.items() if name != "name"}
    if "diagnostics" in signature(get_class(settings["_target_"])).parameters:
        settings.setdefault("diagnostics", bool(config.diagnostics))
    method: Method = instantiate(settings)
    method.speaks = "keys"
    return method


def _with_accelerator(config: DictConfig) -> DictConfig:
    has_gpu = torch.cuda.is_available()
    if config.trainer.accelerator in ("gpu", "cuda") and not has_gpu:
        raise LifelongError(
            f"trainer.accelerator is {config.trainer.accelerator} and this machine has no GPU "
            "that torch can use; type trainer=cpu"
        )
    # A copy: on another machine the same configuration may be resumed or learnt again.
    config = copy.deepcopy(config)
    if config.trainer.accelerator == "auto":
        config.trainer.accelerator = "gpu" if has_gpu else "cpu"
        check_unscaling(config)
    return config


def _check_loggers(config: DictConfig) -> None:
    needs = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}
    for name, one in (config.logger or {}).items():
        if str(one.get("tracking_uri", "")).startswith("file:"):
            # MLflow keeps this store as it is and asks every user to say that it shall be used.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        package = needs.get(str(one.get("_target_")).rpartition(".")[2])
        if package is not None and importlib.util.find_spec(package) is None:
            raise LifelongError(
                f"logger={name} needs {package}, which is not installed; "
                "type pip install 'lifelong-lightning[loggers]'"
            )


def _stage_store(config: DictConfig) -> StageStore:
    # What a clock ends has no key, and of several processes one would have to speak for all.
    if config.stages == "off" or config.trainer.max_time is not None or is_one_of_several():
        return NoStore()
    return StageStore(Path(config.stages), float(config.stages_limit) * GIGABYTE, say)


def _make_trainer(
    config: DictConfig, directory: Path, *, callbacks: list[Callback] | None = None, **also: Any
) -> Trainer:
    terminal = shows_progress()
    bar: list[Callback] = [RichProgressBar(leave=True)] if terminal else []
    trainer = instantiate(config.trainer)
    chosen = [instantiate(callback) for callback in (config.get("callbacks") or {}).values()]
    return trainer(
        callbacks=[*bar, *(callbacks or []), *chosen],
        default_root_dir=directory,
        enable_progress_bar=terminal,
        **also,
    )


def _quieten() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # Our loaders hold tensors in memory: worker processes would only copy them.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # The accuracies are the same in all processes: they were counted over all.
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    # Lightning speaks of its own use of torch here; nothing that a user could mend.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
