"""Avalanche beside ours, if an environment with it is given: `make bench-peers PEERS=DIR`.

The same job on both sides, as whole commands: the six-layer perceptron, MNIST one epoch, Fisher
information, USPS one epoch with EWC, batch 128. Avalanche estimates from squared batch means.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from alternating import alternate, ratio

PEER = """
import sys, torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.supervised import EWC
from torch.utils.data import TensorDataset
torch.set_num_threads(2)
stream = {"train": [], "test": []}
for part in stream:
    for name in ("mnist", "usps"):
        x, y = torch.load(f"{sys.argv[1]}/{name}-{part}.pt")
        data = TensorDataset(x, y)
        data.targets = y.tolist()
        stream[part].append(as_classification_dataset(data))
widths = [784, 1024, 512, 256, 128, 128]
layers = [torch.nn.Flatten()]
for before, after in zip(widths, widths[1:]):
    layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
network = torch.nn.Sequential(*layers, torch.nn.Linear(128, 10))
strategy = EWC(
    network, torch.optim.Adam(network.parameters(), lr=1e-3), torch.nn.CrossEntropyLoss(),
    ewc_lambda=1e4, train_mb_size=128, train_epochs=1, eval_mb_size=1000,
)
benchmark = benchmark_from_datasets(**stream)
for experience in benchmark.train_stream:
    strategy.train(experience)
    strategy.eval(benchmark.test_stream)
"""


def main() -> None:
    """Time both commands, alternating, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path, help="a virtual environment with avalanche-lib")
    parser.add_argument("--data", default="data")
    words = parser.parse_args()
    peer_python = words.environment / "bin" / "python"
    if not peer_python.exists():
        sys.exit(
            f"{peer_python} is not there; make it: python3 -m venv {words.environment} && "
            f"{words.environment}/bin/pip install avalanche-lib"
        )
    import torch

    from raw import images

    with tempfile.TemporaryDirectory() as folder:
        for name in ("mnist", "usps"):
            for part in ("train", "test"):
                data = images(Path(words.data), name, test=part == "test")
                torch.save(data, f"{folder}/{name}-{part}.pt")
        ours = [sys.executable, "-m", "lifelong.train", "max_epochs=1", "batch_size=128"]
        ours += [f"data_dir={words.data}", "scheduler=constant"]

        def run_ours() -> None:
            subprocess.run(
                [*ours, f"hydra.run.dir={tempfile.mkdtemp(dir=folder)}"],
                check=True,
                capture_output=True,
            )

        def run_peer() -> None:
            subprocess.run(
                [str(peer_python), "-c", PEER, folder], check=True, stdout=subprocess.DEVNULL
            )

        peer, own = alternate(run_peer, run_ours, rounds=3, warmup=0)
    print(f"Avalanche's whole job ÷ ours: {ratio(peer, own):.2f}")


if __name__ == "__main__":
    main()
