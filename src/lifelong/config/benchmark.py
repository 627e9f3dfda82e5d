"""From a benchmark's section of the configuration to its tasks, set up."""

from collections.abc import Callable

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lifelong.data.benchmark import Benchmark
from lifelong.data.randomness import OwnRandomness


def build_benchmark(config: DictConfig, announce: Callable[[str], None]) -> Benchmark:
    """Make the tasks of a benchmark and set them up.

    Args:
        config: The whole configuration, checked.
        announce: Told, a line each time, where the images come from.

    Returns:
        The benchmark; of a user's own data modules, what they draw at random is a function of seed
        and name.
    """
    tasks, settings = {}, {}
    for name, one in config.benchmark.tasks.items():
        with OwnRandomness("build", config.seed, name).swapped():
            tasks[str(name)] = instantiate(one)
        settings[str(name)] = OmegaConf.to_container(one, resolve=True)
    benchmark = Benchmark(
        config.benchmark.name,
        tasks,
        scenario=config.scenario,
        seed=config.seed,
        settings=settings,  # type: ignore[arg-type]  # a DictConfig's container is a dict
        announce=announce,
    )
    for task in benchmark.tasks:
        task.setup("fit")
    return benchmark
