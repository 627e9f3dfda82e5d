"""TensorBoard in a real browser: curves by λ, λ beside the final figures, pictures."""

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ..browser import open_browser
from .conftest import SMALL, Command

OLD, NEW = "digits_as_mnist", "digits_as_usps"


def test_a_run_leaves_pictures_and_the_digits_it_forgot(command: Command, tmp_path: Path) -> None:
    words = (*SMALL, "max_epochs=8", "method.ewc_lambda=1")
    assert command("train", *words, "stages=st", "hydra.run.dir=run").code == 0
    events = EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"images": 0})
    images = events.Reload()
    tags = images.Tags()["images"]
    assert set(tags) == {"accuracy_matrix", "fisher/first_layer", f"forgotten/{OLD}"}
    assert len(images.Images("fisher/first_layer")) == 2
    for tag in tags:
        for picture in images.Images(tag):
            assert picture.width > 100
            assert picture.encoded_image_string.startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    (lost,) = json.loads((tmp_path / "run/forgotten.json").read_text())
    assert (lost["task"], lost["after"]) == (OLD, NEW)
    # some that were wrong before are right now: at least as many were lost as the accuracy fell by
    fell = (summary["accuracy"][0][0] - summary["accuracy"][1][0]) * 199
    assert lost["count"] >= round(fell) > 5
    assert 0 < len(lost["digits"]) <= 64
    assert all(d["label"] == d["before"] != d["after"] for d in lost["digits"])
    # recalled from the store they are the same
    assert command("train", *words, "stages=st", "hydra.run.dir=again").code == 0
    assert json.loads((tmp_path / "again/forgotten.json").read_text()) == [lost]


def test_looking_at_the_end_changes_no_bit(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lifelong.config import build as jobs

    words = (*SMALL, "stages=off")
    assert command("train", *words, "hydra.run.dir=seen").code == 0
    monkeypatch.setattr(jobs, "observe_run", lambda *_: None)
    assert command("train", *words, "hydra.run.dir=unseen").code == 0
    states = [
        torch.load(tmp_path / f"{name}/checkpoints/stage-1-{NEW}.ckpt")["network"]
        for name in ("seen", "unseen")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.fixture
def board() -> Iterator[Callable[[Path], str]]:
    servers = []

    def serve(folder: Path) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
        words += ["--port", str(port), "--load_fast=false", "--reload_interval=1"]
        servers.append(subprocess.Popen(words, stderr=subprocess.DEVNULL))
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        return f"http://127.0.0.1:{port}"

    yield serve
    for server in servers:
        server.kill()
        server.wait()


# The pages are web components within web components.
DEEP = """
const found = [], walk = root => { for (const node of root.querySelectorAll('*')) {
  found.push(node); if (node.shadowRoot) walk(node.shadowRoot); } };
walk(document);
"""


def until(look: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.3)


@pytest.mark.slow
@pytest.mark.browser
def test_tensorboard_shows_a_sweep(
    command: Command, tmp_path: Path, board: Callable[[Path], str]
) -> None:
    words = [*SMALL, "max_epochs=4", "method.ewc_lambda=0,100,1e5", "stages=st"]
    assert command("train", "-m", *words, "hydra.sweep.dir=sweep").code == 0
    runs = {
        path.parent.name: json.loads(path.read_text())
        for path in (tmp_path / "sweep").glob("*/summary.json")
    }
    assert set(runs) == {f"method.ewc_lambda={x}" for x in ("0", "100", "1e5")}
    address = board(tmp_path / "sweep")
    with open_browser(1400, 1000) as browser:
        browser.get(f"{address}/#timeseries")
        text = "return document.body.innerText"
        seen = until(lambda: all(name in browser.execute_script(text) for name in runs))
        assert seen, browser.execute_script(text)
        box = "input[placeholder*='Filter tags']"
        until(lambda: browser.find_elements("css selector", box))
        browser.find_element("css selector", box).send_keys("retained")
        # one chart, with a curve for each λ
        cards = (
            "return [...document.querySelectorAll('scalar-card')]"
            ".map(c => [c.innerText.replaceAll('\\n', ''), c.querySelectorAll('path').length])"
        )

        def chart() -> list[Any]:
            tag = f"retained/{OLD}"
            return [c for c in browser.execute_script(cards) if c[0].startswith(tag) and c[1] >= 3]

        (found,) = until(chart)
        assert all(name in found[0] for name in runs), found
        time.sleep(2)
        browser.save_screenshot(str(tmp_path / "scalars.png"))

        browser.get(f"{address}/#hparams")
        browser.refresh()
        table = DEEP + (
            "return found.filter(n => /^(VAADIN-GRID-CELL-CONTENT|TD|TB-DATA-TABLE-CONTENT-CELL)$/"
            ".test(n.tagName)).map(n => n.innerText.trim())"
        )
        wanted = [f"{run['average_accuracy']:.4g}" for run in runs.values()]
        until(lambda: all(w in " ".join(browser.execute_script(table)) for w in wanted), 40)
        browser.save_screenshot(str(tmp_path / "hparams.png"))
        shown = browser.execute_script(table)
        numbers = [float(x) for x in shown if re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", x)]
        for run in runs.values():
            for figure in (run["ewc_lambda"], run["average_accuracy"], run["forgetting"]):
                near = min((abs(figure - number) for number in numbers), default=1e9)
                assert near <= 1e-4 * max(1.0, abs(figure)), (figure, sorted(numbers))

        browser.get(f"{address}/#images")
        browser.refresh()
        loaded = DEEP + (
            "return found.filter(n => n.tagName === 'IMG' && n.src.includes('individualImage'))"
            ".map(n => n.naturalWidth)"
        )
        until(lambda: browser.execute_script(loaded))
        until(lambda: all(browser.execute_script(loaded)), 20)
        browser.save_screenshot(str(tmp_path / "images.png"))
        widths = browser.execute_script(loaded)
        assert len(widths) >= 3
        assert all(width > 100 for width in widths)
