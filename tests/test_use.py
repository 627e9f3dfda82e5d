"""Using a learnt network: `lifelong-predict`, `lifelong-export`, `lifelong-demo`."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lifelong.cli import demo, export, predict
from lifelong.config.compose import compose_run
from lifelong.data.sets.sources import load
from lifelong.errors import LifelongError
from lifelong.run.learnt import load_network
from lifelong.run.resume.checkpoint import load_checkpoint, save_checkpoint
from lifelong.search.branches import learn_branches

from .browser import console, open_browser

SMALL = ["benchmark=embedded_digits", "max_epochs=15", "model.hidden=[64]", "logger=none"]
CHECKPOINT = "checkpoints/stage-1-digits_as_usps.ckpt"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    methods = ("ewc", "finetune")
    words = [[*SMALL, f"method={m}", f"output_dir={folder}/{m}", "stages=off"] for m in methods]
    assert len(list(learn_branches([compose_run(one) for one in words]))) == 2
    return {method: folder / method for method in methods}


@pytest.fixture
def digits(tmp_path: Path) -> list[tuple[Path, int]]:
    """Test images as files of other sizes and polarities."""
    test = load("embedded_mnist", tmp_path, announce=lambda _: None).test
    found = []
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(12):
        pixels = np.kron(test.images[index].numpy(), np.ones((index % 4 + 1,) * 2, np.uint8))
        if index % 2:
            pixels = 255 - pixels
        path = folder / f"{index:02}.{'png' if index % 3 else 'bmp'}"
        Image.fromarray(pixels).convert("RGB" if index % 5 else "L").save(path)
        found.append((path, int(test.labels[index])))
    return found


def test_the_loaded_network_is_the_one_that_was_tested(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    learnt = load_network(runs["ewc"])
    assert (learnt.method, learnt.ewc_lambda) == ("ewc", 1e4)
    assert learnt.tasks == ["digits_as_mnist", "digits_as_usps"]
    assert learnt.learnt_from_embedded_digits
    test = load("embedded_mnist", tmp_path, announce=lambda _: None).test
    read = learnt.probabilities(test.images)
    torch.testing.assert_close(read.sum(dim=1), torch.ones(len(read)), rtol=0, atol=1e-6)
    summary = json.loads((runs["ewc"] / "summary.json").read_text())
    right = float((read.argmax(dim=1) == test.labels).double().mean())
    assert right == pytest.approx(summary["accuracy"][1][0], abs=1e-6)
    first = load_network(runs["ewc"] / "checkpoints/stage-0-digits_as_mnist.ckpt")
    assert first.tasks == ["digits_as_mnist"]


def test_image_files_are_read_whatever_their_size_and_polarity(
    runs: dict[str, Path], digits: list[tuple[Path, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = digits[0][0].parent
    predict.main(["--checkpoint", str(runs["ewc"]), "--json", str(folder)])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [one["file"] for one in found] == [str(path) for path, _ in digits]
    assert [one["ink"] for one in found] == ["light", "dark"] * 6
    # what the network reads from the test images themselves, which lie as MNIST's do already
    learnt = load_network(runs["ewc"])
    test = load("embedded_mnist", folder, announce=lambda _: None).test
    direct = learnt.probabilities(test.images[:12]).argmax(dim=1).tolist()
    assert sum(one["digit"] == digit for one, digit in zip(found, direct, strict=True)) >= 11
    assert sum(one["digit"] == digit for one, (_, digit) in zip(found, digits, strict=True)) >= 9
    for one in found:
        assert one["probability"] == max(one["probabilities"])
        assert sum(one["probabilities"]) == pytest.approx(1.0, abs=1e-5)
    assert "normalised by MNIST's mean 0.1307 and deviation 0.3081" in said.err
    assert "embedded digits, not the archives" in said.err
    predict.main(["--checkpoint", str(runs["ewc"] / CHECKPOINT), str(digits[1][0])])
    table = capsys.readouterr().out
    assert "01.png" in table
    assert "dark" in table


def test_an_image_that_is_none_is_named_and_the_others_are_read(
    runs: dict[str, Path], digits: list[tuple[Path, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = digits[0][0].parent
    (folder / "text.png").write_text("no image")
    Image.new("L", (30, 30), 200).save(folder / "blank.png")
    whole = digits[1][0].read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit) as end:
        predict.main(["--checkpoint", str(runs["ewc"]), "--json", str(folder), "gone.png"])
    assert end.value.code == 1
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 12
    named = [line for line in said.err.splitlines() if "read by" not in line]
    assert len(named) == 4
    for name, words in {
        "text.png": "is no image",
        "blank.png": "shows no digit",
        "cut.png": "",
        "gone.png": "is not there",
    }.items():
        assert any(name in line and words in line for line in named), name


def test_what_cannot_be_used_is_said_in_one_line(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.ckpt").write_bytes((runs["ewc"] / CHECKPOINT).read_bytes()[:-500])
    for checkpoint, image, words in (
        (tmp_path / "none.ckpt", "x.png", "none.ckpt is not there"),
        (tmp_path / "empty", "x.png", "holds no stage checkpoint; learn first"),
        (tmp_path / "cut.ckpt", "x.png", "is damaged"),
        (runs["ewc"], str(tmp_path / "empty"), "holds no image file"),
    ):
        with pytest.raises(SystemExit) as end:
            predict.main(["--checkpoint", str(checkpoint), image])
        assert end.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_a_checkpoint_may_not_name_foreign_code(runs: dict[str, Path], tmp_path: Path) -> None:
    content = load_checkpoint(runs["ewc"] / CHECKPOINT, "stage")
    content = {key: value for key, value in content.items() if key not in ("kind", "format")}
    touched = tmp_path / "touched"
    content["about"]["config"]["model"] = {"_target_": "pathlib.Path.touch", "self": str(touched)}
    save_checkpoint(tmp_path / "foreign.ckpt", "stage", content)
    with pytest.raises(
        LifelongError, match=r"builds its network with pathlib.Path.touch; .*--trust"
    ):
        load_network(tmp_path / "foreign.ckpt")
    with pytest.raises(LifelongError, match="its network cannot be built"):
        load_network(tmp_path / "foreign.ckpt", trust=True)


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_an_exported_network_reads_test_images_alike(
    runs: dict[str, Path], tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript", reason="needs pip install 'lifelong-lightning[export]'")
    path = tmp_path / "out" / f"net.{form}"
    words = ["--checkpoint", str(runs["ewc"]), "--format", form, "--output", str(path)]
    export.main(words)
    said = capsys.readouterr()
    assert said.out == f"{path}\n"
    assert "checked on 397 images (the test sets of digits_as_mnist, digits_as_usps)" in said.err
    assert "0 digits are read otherwise" in said.err
    read = (export._read_onnx if form == "onnx" else export._read_torch)(path)
    images = load("embedded_usps", tmp_path, announce=lambda _: None).test.images
    learnt = load_network(runs["ewc"])
    for count in (1, 7):
        some = images[:count]
        found = read(some.unsqueeze(1).float() / 255)
        expected = learnt.probabilities(some).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_an_export_that_reads_otherwise_leaves_nothing(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(path: Path) -> Any:
        right = read(path)
        return lambda pixels: right(pixels) * 0.999

    read = export._read_torch
    monkeypatch.setattr(export, "_read_torch", worse)
    path = tmp_path / "net.pt2"
    path.write_text("before")
    with pytest.raises(LifelongError, match=r"differs by 1\.0e-03 .* nothing was written"):
        export.export(load_network(runs["ewc"]), path, "torch")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("net.pt2", "before")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def page(runs: dict[str, Path], tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("nicegui", reason="needs pip install 'lifelong-lightning[demo]'")
    port = free_port()
    words = [sys.executable, "-m", "lifelong.cli.demo", "--port", str(port), "--no-show"]
    words += ["--ewc", str(runs["ewc"]), "--finetune", str(runs["finetune"])]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    with subprocess.Popen(
        words, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    ) as server:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, server.communicate()[1]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.terminate()


READINGS = """
return [...document.querySelectorAll('.reading')].map(panel => [
  panel.id, panel.querySelector('.digit').innerText,
  [...panel.querySelectorAll('.percent')].map(cell => Number(cell.dataset.probability)),
  [...panel.querySelectorAll('.bar')].map(bar => bar.getBoundingClientRect().width)])
"""


@pytest.mark.browser
@pytest.mark.parametrize(("width", "mobile"), [(1000, False), (390, True)])
def test_a_digit_that_is_drawn_is_read_by_both(page: str, width: int, mobile: bool) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    def drawn(browser: Any) -> Any:
        found = browser.execute_script(READINGS)
        return found if len(found) == 2 and all(d != "–" for _, d, _, _ in found) else None

    with open_browser(width, 900, mobile=mobile) as browser:
        browser.get(page)
        wait = WebDriverWait(browser, 30)
        wait.until(lambda b: len(b.execute_script(READINGS)) == 2)
        assert drawn(browser) is None
        wait.until(lambda b: b.execute_script("return Boolean(window.clearPaper)"))
        paper = browser.find_element("id", "paper")
        # a zero: a stroke that comes back to where it began
        stroke = ActionChains(browser, duration=20).move_to_element_with_offset(paper, 0, -80)
        stroke.click_and_hold()
        angles = np.linspace(-np.pi / 2, 3 * np.pi / 2, 25)
        places = np.stack([50 * np.cos(angles), 80 * np.sin(angles)], axis=1).round().astype(int)
        for dx, dy in np.diff(places, axis=0).tolist():
            stroke.move_by_offset(dx, dy)
        stroke.release().perform()
        time.sleep(1)  # the last picture comes a tenth of a second after the last stroke
        found = wait.until(drawn)
        assert [name for name, *_ in found] == ["ewc", "finetune"]
        for _, digit, probabilities, bars in found:
            assert len(probabilities) == 10
            assert sum(probabilities) == pytest.approx(1.0, abs=1e-4)
            assert int(digit) == probabilities.index(max(probabilities))
            assert bars.index(max(bars)) == int(digit)
        assert found[0][1] == "0"
        seen = browser.execute_script("return document.getElementById('seen').naturalWidth")
        assert seen == 28
        assert browser.execute_script("return document.documentElement.scrollWidth") == width
        hosts = browser.execute_script(
            "return performance.getEntriesByType('resource').map(r => new URL(r.name).host)"
        )
        assert set(hosts) <= {page.removeprefix("http://"), ""}
        browser.find_element("id", "clear").click()
        wait.until(lambda b: all(d == "–" for _, d, _, _ in b.execute_script(READINGS)))
        assert console(browser) == []


def test_the_demo_takes_the_newest_finished_quickstart(tmp_path: Path) -> None:
    assert demo.last_quickstart(tmp_path) is None
    for name, methods in {"2026-01-01": 2, "2026-01-02": 2, "2026-01-03": 1}.items():
        for method in ("ewc", "finetune")[:methods]:
            (tmp_path / name / method).mkdir(parents=True)
            (tmp_path / name / method / "summary.json").write_text("{}")
    found = demo.last_quickstart(tmp_path)
    assert found is not None
    assert found["finetune"] == tmp_path / "2026-01-02/finetune"


def test_a_taken_port_and_a_missing_network_are_said_in_one_line(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as end:
            demo.main(["--port", str(port), "--no-show"])
    assert end.value.code == 1
    assert f"type --port {port + 1}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        demo.main(["--port", str(free_port()), "--ewc", str(runs["ewc"])])
    assert "--finetune is missing; give both, or neither" in capsys.readouterr().err
