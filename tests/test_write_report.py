"""`lifelong-report`: the page in a browser, offline; errors in one line."""

import base64
import io
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("plotly", reason="needs pip install 'lifelong-lightning[report]'")

from lifelong.cli import report as write_report

from .browser import console, open_browser
from .report.made import forget, summary, sweep, write

CHARTS = """
return [...document.querySelectorAll('.js-plotly-plot')].map(plot => ({
  id: plot.id,
  width: plot.querySelector('.main-svg').getBoundingClientRect().width,
  room: plot.parentElement.getBoundingClientRect().width,
  traces: plot.data.map(t => ({name: t.name, y: t.y, x: t.x, error: t.error_y && t.error_y.array,
                               symbol: t.marker && t.marker.symbol})),
  drawn: plot.querySelectorAll('.point, .heatmaplayer image, .js-line').length,
}))
"""


def settled(browser: Any) -> dict[str, Any]:
    """The charts, once none is wider than its place: plotly fits them in one after the other."""
    deadline = time.monotonic() + 20
    while True:
        charts = browser.execute_script(CHARTS)
        if all(c["width"] <= c["room"] + 1 for c in charts) or time.monotonic() > deadline:
            return {chart["id"]: chart for chart in charts}
        time.sleep(0.1)


def made(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[Path]:
    write_report.main([str(folder), *words])
    return [Path(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.browser
@pytest.mark.parametrize(("width", "mobile"), [(1000, False), (390, True)])
def test_the_page_shows_every_picture_without_a_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], width: int, mobile: bool
) -> None:
    sweep(tmp_path)
    forget(tmp_path / "finetune", 3000, 40)
    forget(tmp_path / "sweep/10,0", 2, 2)
    page, *_ = made(tmp_path, capsys)
    with open_browser(width, 900, mobile=mobile) as browser:
        browser.execute_cdp_cmd("Network.enable", {})
        browser.execute_cdp_cmd(
            "Network.emulateNetworkConditions",
            {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
        )
        browser.get(page.as_uri())
        charts = settled(browser)
        images = browser.execute_script(
            "return [...document.images].map(i => [i.naturalWidth, i.alt, i.src])"
        )
        overflow = browser.execute_script("return document.documentElement.scrollWidth")
        rows = browser.execute_script(
            "return [...document.querySelectorAll('#table tr')]"
            ".map(row => [row.className, row.innerText])"
        )
        requests = browser.execute_script(
            "return performance.getEntriesByType('resource').map(r => r.name)"
            ".filter(n => !n.startsWith('data:'))"
        )
        assert console(browser) == []
    assert requests == []
    assert overflow == width
    # fine-tuning, joint training and the chosen λ of EWC have a matrix each
    assert set(charts) == {"lambda", "trade-off", "retention", "matrix-0", "matrix-1", "matrix-2"}
    for chart in charts.values():
        assert chart["drawn"] > 0, chart["id"]
        assert 0 < chart["width"] <= chart["room"] + 1, chart["id"]
    curve = charts["lambda"]["traces"][0]
    assert curve["name"] == "mnist, EWC"
    assert curve["y"] == pytest.approx([61.0, 91.0, 97.0])
    assert curve["error"] == pytest.approx([1.0, 1.0, 1.0])
    assert curve["x"] == pytest.approx([0.0, 1.0, 3.0])  # λ = 0 a decade below the smallest
    points = {trace["name"]: trace for trace in charts["trade-off"]["traces"]}
    assert set(points) == {"EWC, at each λ", "fine-tuning", "joint training"}
    assert points["joint training"]["y"] == pytest.approx([97.0])
    assert points["joint training"]["x"] == pytest.approx([93.0])
    assert len({trace["symbol"] for trace in points.values()}) == 3
    kept = {trace["name"]: trace["y"] for trace in charts["retention"]["traces"]}
    assert kept["EWC, λ = 10"] == pytest.approx([99.0, 95.0, 92.0])
    # forgotten digits of both, dark ink on white
    assert len(images) == 16 + 2
    assert {(size, alt) for size, alt, _ in images} == {(28, "a 7, read as 2")}
    from PIL import Image

    source = images[0][2].partition(",")[2]
    picture = Image.open(io.BytesIO(base64.b64decode(source)))
    assert (picture.getpixel((0, 14)), picture.getpixel((20, 14))) == (0, 255)
    assert [text.split("\t")[:2] for mark, text in rows if mark == "best"] == [["EWC", "10"]]


@pytest.mark.browser
def test_the_table_is_copied_by_a_button(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, markdown, csv = made(sweep(tmp_path), capsys)
    with open_browser() as browser:
        browser.get(page.as_uri())
        for name, path in (("markdown", markdown), ("csv", csv)):
            button = browser.find_element("css selector", f"button[data-from={name}]")
            browser.execute_script("arguments[0].closest('details').open = true", button)
            button.click()
            assert button.text == "Copied"
            shown = browser.find_element("id", name).get_attribute("value")
            assert shown.strip() == path.read_text().strip()


def test_one_run_alone_has_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, summary(), ["seed=0"])
    page, *_ = made(tmp_path, capsys, "--output", str(tmp_path / "there/one.html"))
    assert page == tmp_path / "there/one.html"
    text = page.read_text()
    assert 'id="lambda"' not in text
    assert 'id="trade-off"' in text
    assert "<pre>lifelong-train seed=0</pre>" in text
    assert "embedded digits" not in text.partition("</h1>")[2].partition("<h2>")[0]
    assert (tmp_path / "there/one.csv").read_text().count("\n") == 2


def test_embedded_digits_are_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, summary(source="embedded digits"))
    (page, *_) = made(tmp_path, capsys)
    assert "not the MNIST and USPS archives" in page.read_text()


def test_names_that_look_like_html_are_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, summary(), ["model.name=<script>alert(1)</script>", "seed=0"])
    (page, *_) = made(tmp_path, capsys)
    assert "<script>alert(1)" not in page.read_text()


@pytest.mark.parametrize("kind", ["empty", "none"])
def test_nothing_to_report_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folder = tmp_path if kind == "empty" else tmp_path / "none"
    with pytest.raises(SystemExit) as end:
        write_report.main([str(folder)])
    assert end.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert {"empty": "holds no finished run", "none": "is no folder"}[kind] in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_corrupt_summary_is_named_on_the_page_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "good", summary())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/summary.json").write_text("{")
    write_report.main([str(tmp_path)])
    said = capsys.readouterr()
    assert "bad/summary.json" in said.err
    assert "bad/summary.json" in (tmp_path / "report.html").read_text()


def test_a_missing_plotly_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setattr(write_report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        write_report.main([str(tmp_path)])
    assert "pip install 'lifelong-lightning[report]'" in capsys.readouterr().err
