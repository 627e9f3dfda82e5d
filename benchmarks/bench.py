"""The cost of what this package adds, as ratios: `make bench` (ARGS='steps fisher' for a part).

The six-layer perceptron, batch 128, two threads. Every figure is the median of at least five
ratios, measured in one process with the two sides alternating.
"""

import argparse
import copy
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from alternating import alternate, ratio
from large import large
from lifelong.config.build import build_job
from lifelong.config.compose import compose_run
from lifelong.core import (
    KroneckerPenalty,
    Penalty,
    PenaltyTerm,
    QuadraticPenalty,
    fisher_diagonal,
    kronecker_factors,
)
from lifelong.models import Perceptron
from lifelong.run import learn_sequence
from raw import Data, epoch, images, raw_job, step

BATCH = 128
STEPS = 50
Row = tuple[str, float, str]

FUSED = partial(torch.optim.Adam, lr=1e-3, fused=True)
DEFAULT = partial(torch.optim.Adam, lr=1e-3)


def trained(data: Data, epochs: int = 5) -> nn.Module:
    """The perceptron after some epochs of raw training."""
    torch.manual_seed(0)
    network = Perceptron()
    optimizer = FUSED(network.parameters())
    for _ in range(epochs):
        epoch(network, optimizer, data, BATCH)
    return network


def stepping(
    network: nn.Module,
    make: Callable[..., torch.optim.Optimizer],
    data: Data,
    penalty: Penalty | None = None,
) -> Callable[[], None]:
    """``STEPS`` training steps; with a penalty, on L + λΩ in value and in gradient."""
    network = copy.deepcopy(network)
    optimizer = make(network.parameters())
    term = None if penalty is None else PenaltyTerm(penalty, dict(network.named_parameters()))

    def run() -> None:
        for number in range(STEPS):
            if term is None:
                step(network, optimizer, data, number, BATCH)
            else:
                step(network, optimizer, data, number, BATCH, objective=lambda x: term(x, 1e3))

    return run


def folded(network: nn.Module, fisher: dict[str, torch.Tensor], tasks: int) -> QuadraticPenalty:
    """A penalty of so many consolidated tasks, the anchors a little apart."""
    penalty = QuadraticPenalty()
    for task in range(tasks):
        moved = {n: p.detach() + 1e-4 * task for n, p in network.named_parameters()}
        penalty.fold(moved, fisher)
    return penalty


def steps(data: Data) -> list[Row]:
    """What the penalty costs in a training step."""
    network = trained(data, 1)
    fisher = fisher_diagonal(network, [(data[0][:2000], data[1][:2000])])
    one, twenty = folded(network, fisher, 1), folded(network, fisher, 20)
    plain, held, held20, default = alternate(
        stepping(network, FUSED, data),
        stepping(network, FUSED, data, one),
        stepping(network, FUSED, data, twenty),
        stepping(network, DEFAULT, data),
        rounds=15,
    )
    sizes = [sum(b.numel() for b in p.buffers()) for p in (one, twenty)]
    assert sizes[0] == sizes[1], sizes
    return [
        (
            "step on L + λΩ, its value in every step, ÷ on L (fused Adam)",
            ratio(held, plain),
            "1.25",
        ),
        ("step with 20 consolidated tasks ÷ with 1 (same state size)", ratio(held20, held), "1.02"),
        ("our step with the penalty ÷ raw step, default Adam", ratio(held, default), "1.00"),
    ]


def fisher(data: Data) -> list[Row]:
    """What consolidation costs, against one raw training epoch with PyTorch's default Adam."""
    network = trained(data, 5)
    learning = copy.deepcopy(network)
    optimizer = DEFAULT(learning.parameters())
    batches = list(zip(data[0].split(1000), data[1].split(1000), strict=True))
    exact, sampled, empirical, kronecker, raw = alternate(
        lambda: fisher_diagonal(network, batches),
        lambda: fisher_diagonal(network, batches, labels="sampled"),
        lambda: fisher_diagonal(network, batches, labels="empirical"),
        lambda: kronecker_factors(network, batches),
        lambda: epoch(learning, optimizer, data, BATCH),
        rounds=5,
    )
    return [
        ("exact Fisher of all images, trained network ÷ one raw epoch", ratio(exact, raw), "2.5"),
        ("sampled Fisher ÷ one raw epoch", ratio(sampled, raw), "1.0"),
        ("empirical Fisher ÷ one raw epoch", ratio(empirical, raw), "1.0"),
        ("Kronecker factors ÷ one raw epoch", ratio(kronecker, raw), "2.0"),
    ]


def high_water_mark() -> int:
    """The most memory this process had resident, in kB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def memory(data: Data) -> list[Row]:
    """The highest memory of the Fisher pass over what was there before it, in MB."""
    network = trained(data, 1)
    batches = list(zip(data[0].split(1000), data[1].split(1000), strict=True))
    step(network, FUSED(network.parameters()), data, 0, BATCH)
    # The kernel's high-water mark, reset to what is there now.
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water_mark()
    fisher_diagonal(network, batches)
    peak = high_water_mark() - before
    return [("extra memory of the exact Fisher pass, MB", peak / 1024, "100")]


def kronecker(data: Data) -> list[Row]:
    """What the Kronecker penalty costs in a training step."""
    network = trained(data, 1)
    batches = [(data[0][:6000], data[1][:6000])]
    factors = kronecker_factors(network, batches)
    exact, rounded = KroneckerPenalty(), KroneckerPenalty(precision="bfloat16")
    for penalty in (exact, rounded):
        penalty.fold(dict(network.named_parameters()), factors)
    plain, default, single = alternate(
        stepping(network, FUSED, data),
        stepping(network, FUSED, data, rounded),
        stepping(network, FUSED, data, exact),
        rounds=7,
    )
    return [
        ("step on L + λΩ, Kronecker (default), ÷ on L", ratio(default, plain), "3.0"),
        ("the same with `precision=float32`", ratio(single, plain), ""),
    ]


def jobs(data: Data, data_dir: str) -> list[Row]:
    """Lightning's epoch and our whole job against raw scripts."""
    del data
    common = [f"data_dir={data_dir}", "max_epochs=1", "scheduler=constant", f"batch_size={BATCH}"]
    common += ["stages=off"]

    def ours() -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            learn_sequence(build_job(compose_run([*common, f"output_dir={folder}"])))

    job, raw = alternate(ours, lambda: raw_job(data_dir, BATCH), rounds=5)
    return [
        ("whole job, 1 epoch a task ÷ raw script with the naive penalty", ratio(job, raw), "1.10")
    ]


def lightning_epoch(data: Data, data_dir: str) -> list[Row]:
    """An epoch under Lightning against the raw loop's, fused Adam in both."""
    import tempfile

    from lightning import Trainer

    with tempfile.TemporaryDirectory() as folder:
        job = build_job(
            compose_run(
                [
                    f"data_dir={data_dir}",
                    f"output_dir={folder}",
                    "val_fraction=0.0001",
                    "max_epochs=1",
                    f"batch_size={BATCH}",
                ]
            )
        )
        method = job.make_method()
        learner = job.make_learner(method)
        stage = job.benchmark.stage(0)

        def ours() -> None:
            trainer: Trainer = job.make_trainer(callbacks=[method], logger=list(job.make_loggers()))
            trainer.fit(learner, datamodule=stage)

        torch.manual_seed(0)
        network = Perceptron()
        optimizer = FUSED(network.parameters())
        lightning, raw = alternate(ours, lambda: epoch(network, optimizer, data, BATCH), rounds=7)
    return [("Lightning's training epoch ÷ the raw loop's", ratio(lightning, raw), "1.08")]


def processor() -> str:
    """The processor's name, as the system has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data", type=str)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("parts", nargs="*")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    wanted = words.parts or ["all"]
    data = images(Path(words.data)) if wanted != ["large"] else (torch.empty(0), torch.empty(0))
    parts: dict[str, Callable[[], list[Row]]] = {
        "memory": lambda: memory(data),
        "steps": lambda: steps(data),
        "kronecker": lambda: kronecker(data),
        "fisher": lambda: fisher(data),
        "epoch": lambda: lightning_epoch(data, words.data),
        "jobs": lambda: jobs(data, words.data),
        "large": large,
    }
    print(f"torch {torch.__version__}, {words.threads} threads, {processor()}\n")
    print("| figure | measured | at most |\n|---|---|---|")
    for part in words.parts or parts:
        for name, figure, bound in parts[part]():
            print(f"| {name} | {figure:.3g} | {bound} |", flush=True)
    print("\nlower is better; medians of alternating rounds in one process", file=sys.stderr)


if __name__ == "__main__":
    main()
