"""The learner as one of a run's stages left it, to look into after the run."""

from omegaconf import DictConfig

from lifelong.config.build import build_job
from lifelong.learning import ContinualLearner
from lifelong.run.learnt import learner_after


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
    """  # noqa: DOC502
    job = build_job(config)
    learner, _, _ = learner_after(job, range(len(job.benchmark.task_names))[index])
    return learner
