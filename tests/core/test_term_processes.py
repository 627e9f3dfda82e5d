"""The gradient of L + λΩ over two processes that accumulate."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from .test_penalty_term import KINDS, both, gradients, micro_batches, same

WORKER = """
import os, sys, torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, {tests!r})
from test_penalty_term import LAMBDA, both, task_loss
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method={address!r}, rank=rank, world_size=2)
found = {{}}
for kind in ("diagonal", "kronecker", "offloaded"):
    for views in (False, True):
        net, _, term = both(kind)[0]
        wrapped = DistributedDataParallel(net, gradient_as_bucket_view=views, bucket_cap_mb=1e-4)
        for _ in range(2):
            net.zero_grad(set_to_none=False)
            with wrapped.no_sync():
                (term(task_loss(wrapped, rank), LAMBDA) / 2).backward()
            (term(task_loss(wrapped, 2 + rank), LAMBDA) / 2).backward()
        found[kind, views] = {{n: p.grad for n, p in net.named_parameters()}}
torch.save(list(found.values()), f"{folder}/{{rank}}.pt")
distributed.barrier()
# Threads of gloo and of the reducers may outlive an ordered end, and abort it.
os._exit(0)
"""


def test_two_processes_that_accumulate_have_the_gradient_of_the_whole_objective(
    tmp_path: Path,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    code = WORKER.format(tests=str(Path(__file__).parent), address=address, folder=tmp_path)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(rank)], env=environment)
        for rank in range(2)
    ]
    assert [one.wait(120) for one in running] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for place in range(2 * len(KINDS)):
        plain, _, formula = both(KINDS[place // 2])[1]
        micro_batches(plain, formula)
        for rank in range(2):
            same(found[rank][place], gradients(plain))
