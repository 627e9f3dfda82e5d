"""The learner as one of a run's stages left it, to look into after the run."""

from pathlib import Path

from omegaconf import DictConfig

from lifelong.config.build import build_job
from lifelong.errors import LifelongError
from lifelong.learning import ContinualLearner
from lifelong.run import stage_checkpoint
from lifelong.run.resume.checkpoint import load_checkpoint


def learnt_stage(config: DictConfig, index: int) -> ContinualLearner:
    """The network and the penalty after one stage of a finished run.

    Args:
        config: that the run was learnt with, as ``compose_run`` returned it.
        index: the stage's place; −1 is the last.

    Returns:
        The learner in eval mode, on the CPU. Its ``network`` maps images to logits; its ``method``
        holds what it kept of the tasks up to that stage.

    Raises:
        LifelongError: when the run kept no checkpoint of that stage, or a damaged one.
    """
    job = build_job(config)
    tasks = job.benchmark.task_names
    index = range(len(tasks))[index]
    path = stage_checkpoint(Path(config.output_dir), index, tasks[index])
    if not path.is_file():
        raise LifelongError(f"{path} is not there; finish that run first")
    method = job.make_method()
    learner = job.make_learner(method)
    content = load_checkpoint(path, "stage")
    learner.network.load_state_dict(content["network"])
    method.load_state_dict(content["method"])
    return learner.eval()
