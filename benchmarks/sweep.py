"""An 8-value sweep of λ beside one run: both commands as typed, alternating, medians of the rounds.

Eight separate runs would take 8 times one run; the sweep learns the first task once.

    make bench-sweep ARGS='--rounds 3'
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VALUES = "0,1e1,1e2,1e3,1e4,1e5,1e6,1e7"


def timed(words: list[str], folder: Path) -> float:
    """Wall time of ``lifelong-train`` in seconds, the interpreter's start included."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "lifelong.train", *words, "logger=none"],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def parts(folder: Path) -> dict[str, float]:
    """Where the seconds of a sweep went, from its summaries; what was reused costs none."""
    spent = {"first task": 0.0, "second task, fits": 0.0, "second task, consolidations": 0.0}
    for path in folder.rglob("summary.json"):
        first, second = json.loads(path.read_text())["seconds"].values()
        spent["first task"] += first["fit"] + first["consolidate"]
        spent["second task, fits"] += second["fit"]
        spent["second task, consolidations"] += second["consolidate"]
    return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default=os.environ.get("LIFELONG_DATA", "data"))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    data = f"data_dir={Path(args.data).absolute()}"
    ones, sweeps = [], []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ones.append(timed([data, "stages=off"], folder))
            words = ["-m", f"method.ewc_lambda={VALUES}", f"stages={folder / 'stages'}", data]
            sweeps.append(timed([*words, f"hydra.sweep.dir={folder / 'sweep'}"], folder))
            spent = parts(folder / "sweep")
        print(f"one run {ones[-1]:6.1f} s   sweep of 8 {sweeps[-1]:6.1f} s", flush=True)
    ratio = statistics.median(s / o for s, o in zip(sweeps, ones, strict=True))
    print(f"8-value sweep ÷ one run: {ratio:.2f} (median of {args.rounds})")
    for what, seconds in spent.items():
        print(f"  {what:<29}{seconds:6.1f} s")
    print(f"  {'all else':<29}{sweeps[-1] - sum(spent.values()):6.1f} s")


if __name__ == "__main__":
    main()
