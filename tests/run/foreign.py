"""Files from elsewhere that name code: what a stranger could write where a network's class stands.

Each payload makes a file, the canary, if any of it is called.
"""

import pickle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


class Pickled:
    """Touches a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return (open, (self.path, "w"))


def payloads(folder: Path) -> dict[str, dict[str, Any]]:
    """What a file may name; all of them would make ``folder / "canary"``."""
    canary = str(folder / "canary")
    code = f"open({canary!r}, 'w').close()"
    script, weights, hub = folder / "script.py", folder / "weights.pt", folder / "hub"
    script.write_text(code)
    weights.write_bytes(pickle.dumps(Pickled(canary)))
    hub.mkdir(exist_ok=True)
    (hub / "hubconf.py").write_text(f"{code}\ndef net(): return None\n")
    load = {"f": str(weights), "weights_only": False}
    shell = ["touch", canary]
    hubs = {"repo_or_dir": str(hub), "model": "net", "source": "local"}
    write = {"_args_": [canary], "data": "x"}
    nn = "torch.nn.modules.module"
    return {
        "system": {"_target_": "os.system", "command": f"touch {canary}"},
        "popen": {"_target_": "subprocess.Popen", "args": shell},
        "check_output": {"_target_": "subprocess.check_output", "_args_": [shell]},
        "eval": {"_target_": "builtins.eval", "_args_": [code]},
        "exec": {"_target_": "builtins.exec", "_args_": [code]},
        "open": {"_target_": "builtins.open", "file": canary, "mode": "w"},
        "touch": {"_target_": "pathlib.Path.touch", "self": canary},
        "makedirs": {"_target_": "os.makedirs", "name": canary},
        "runpy": {"_target_": "runpy.run_path", "path_name": str(script)},
        "hub": {"_target_": "torch.hub.load", **hubs},
        "pickle": {"_target_": "torch.load", **load},
        "call": {"_target_": "hydra.utils.call", "config": {"_target_": "os.system"}},
        "walk_hub": {"_target_": f"{nn}.torch.hub.load", **hubs},
        "walk_load": {"_target_": f"{nn}.torch.load", **load},
        "walk_path": {"_target_": "lifelong.run.learnt.Path.write_text", **write},
        "walk_model": {
            "_target_": "lifelong.models.perceptron.nn.modules.module.torch.load",
            **load,
        },
        "walk_class": {"_target_": "torch.nn.Module.__init__.__globals__", "x": 1},
        "ours": {"_target_": "lifelong.data.files.whole.whole_file", "path": canary},
        "sweep": {"_target_": "lifelong.search.sweep.Notebook", "folder": canary, "note": None},
        "nested": {
            "_target_": "torch.nn.Sequential",
            "_args_": [{"_target_": "os.system", "command": f"touch {canary}"}],
        },
        "nested_in_ours": {
            "_target_": "lifelong.models.Perceptron",
            "in_features": 784,
            "hidden": [{"_target_": "builtins.open", "file": canary, "mode": "w"}],
            "num_classes": 10,
        },
        "partial": {"_target_": "builtins.exec", "_partial_": True, "_args_": [code]},
        "function": {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"},
        "prefix": {"_target_": "torch.nnx.Linear"},
    }


with TemporaryDirectory() as _folder:
    NAMES = tuple(payloads(Path(_folder)))
