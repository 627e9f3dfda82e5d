"""What a budget promised and what was kept: KL on official test images of the old task.

For each method, number of inputs and seed one run of ``lifelong-train method.at_most=…``; then the
network after the first task is compared with the one after the second on test images that nothing
was chosen by.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from lifelong.config.benchmark import build_benchmark
from lifelong.core import Categorical


def kept(run: Path) -> float:
    """The mean divergence of the old task's test images in nats."""
    config = OmegaConf.load(run / ".hydra/config.yaml")
    benchmark = build_benchmark(config, lambda _: None)  # type: ignore[arg-type]
    outputs: list[Tensor] = []
    for index in (0, len(benchmark.tasks) - 1):
        network = instantiate(config.model)
        (file,) = (run / "checkpoints").glob(f"stage-{index}-*.ckpt")
        network.load_state_dict(torch.load(file, weights_only=True)["network"])
        network.eval()
        data = benchmark.stage(0)
        data.setup("test")
        with torch.no_grad():
            outputs.append(torch.cat([network(x) for x, _ in data.test_dataloader()[0]]))
    return float(Categorical().divergence(outputs[0], outputs[1], None).mean())


def main() -> None:
    """Print a row a run, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmarks", default="mnist_usps")
    parser.add_argument("--methods", default="kronecker_ewc,ewc")
    parser.add_argument("--watch", default="200")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--at-most", default="0.02")
    parser.add_argument("words", nargs="*", help="more keys for every run")
    asked = parser.parse_args()
    lists = (
        getattr(asked, name).split(",") for name in ("benchmarks", "methods", "watch", "seeds")
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| benchmark | method | inputs | seed | promised | kept | old task % | new task % | λ |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for number, (benchmark, method, watch, seed) in enumerate(product(*lists)):
            run = Path(folder) / str(number)
            words = [f"benchmark={benchmark}", f"method={method}", f"method.watch={watch}"]
            words += [f"method.at_most={asked.at_most}", f"seed={seed}", f"hydra.run.dir={run}"]
            command = [sys.executable, "-m", "lifelong.train", "logger=none", *words, *asked.words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            summary = json.loads((run / "summary.json").read_text())
            first, last = summary["accuracy"][0][0], summary["accuracy"][-1]
            print(
                f"| {benchmark} | {method} | {watch} | {seed} | {asked.at_most} | {kept(run):.3f} "
                f"| {100 * first:.2f} → {100 * last[0]:.2f} | {100 * last[-1]:.2f} "
                f"| {summary['budget']['ewc_lambda']:.3g} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
