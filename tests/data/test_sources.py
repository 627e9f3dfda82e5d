"""Files first, then torchvision's download, then an error with the cure; each step is announced."""

import functools
import hashlib
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lifelong.data.files import download
from lifelong.data.sets import sources
from lifelong.data.sets.sources import available, load
from lifelong.errors import LifelongError


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def point_torchvision_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST, USPS

    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    monkeypatch.setattr(MNIST, "mirrors", [f"{address}/MNIST/raw/"])
    splits = {part: [f"{address}/{name}", name, md5]
              for part, (_, name, md5) in USPS.split_list.items()}  # fmt: skip
    monkeypatch.setattr(USPS, "split_list", splits)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    point_torchvision_at(f"http://127.0.0.1:{port}", monkeypatch)


@pytest.fixture
def server(mnist_dir: Path, usps_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server on this machine that has the small archives, known to torchvision."""
    from torchvision.datasets import MNIST, USPS

    handler = functools.partial(QuietHandler, directory=str(mnist_dir))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        point_torchvision_at(f"http://127.0.0.1:{running.server_address[1]}", monkeypatch)

        def md5(name: str) -> str:
            return hashlib.md5((mnist_dir / name).read_bytes()).hexdigest()

        resources = [(name, md5(f"MNIST/raw/{name}")) for name, _ in MNIST.resources]
        monkeypatch.setattr(MNIST, "resources", resources)
        splits = {part: [*entry[:2], md5(entry[1])] for part, entry in USPS.split_list.items()}
        monkeypatch.setattr(USPS, "split_list", splits)
        yield mnist_dir
        running.shutdown()


@pytest.mark.parametrize("dataset", ["mnist", "usps"])
def test_files_are_used_without_asking_torchvision(
    mnist_dir: Path, usps_dir: Path, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "download_missing", None)
    task = load(dataset, mnist_dir, announce=lambda _: None)
    assert (len(task.train), len(task.test)) == (40, 20)
    assert task.source == f"{dataset.upper()} archives in {mnist_dir}"
    assert task.name == dataset


@pytest.mark.parametrize("dataset", ["mnist", "usps"])
def test_without_network_it_gives_up_within_seconds_and_says_what_to_do(
    tmp_path: Path, dataset: str, no_network: None, announced: list[str]
) -> None:
    timeout = socket.getdefaulttimeout()
    begin = time.monotonic()
    with pytest.raises(LifelongError) as caught:
        load(dataset, tmp_path / "data", announce=announced.append)
    assert time.monotonic() - begin < 20
    message = str(caught.value)
    wanted = {"mnist": "MNIST/raw/train-images-idx3-ubyte.gz", "usps": "usps.t.bz2"}[dataset]
    for part in (str(tmp_path / "data"), wanted, "lifelong-train benchmark=embedded_digits"):
        assert part in message
    assert "make run" in message
    assert "\n" not in message
    assert announced == [
        f"{dataset}: archives missing in {tmp_path / 'data'}; trying torchvision's download"
    ]
    assert not (tmp_path / "data").exists()
    assert socket.getdefaulttimeout() == timeout


def test_a_look_up_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()

    def look_up(*_: object, **__: object) -> None:
        hang.wait(30)
        raise OSError("no such name")

    monkeypatch.setattr(download, "PATIENCE", 0.2)
    monkeypatch.setattr(download.urllib.request, "urlopen", look_up)
    begin = time.monotonic()
    assert not download._answers(["http://a.invalid", "http://b.invalid"])
    assert time.monotonic() - begin < 5
    hang.set()


@pytest.mark.parametrize("dataset", ["mnist", "usps"])
def test_a_download_puts_whole_files_in_place(
    server: Path, tmp_path: Path, dataset: str, announced: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "new" / "data"
    task = load(dataset, folder, announce=announced.append)
    assert task.source == "torchvision download"
    assert task.fingerprint == load(dataset, server, announce=lambda _: None).fingerprint
    assert available(dataset, folder)
    assert not list(folder.glob(".lifelong-download-*"))
    assert announced[0].endswith("trying torchvision's download")
    assert capfd.readouterr() == ("", "")


def test_a_download_completes_a_folder_without_touching_what_is_there(
    server: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "half"
    folder.mkdir()
    own = (server / "usps.bz2").read_bytes()
    (folder / "usps.bz2").write_bytes(own)
    before = (folder / "usps.bz2").stat()
    load("usps", folder, announce=lambda _: None)
    assert (folder / "usps.bz2").stat().st_ino == before.st_ino
    assert (folder / "usps.t.bz2").read_bytes() == (server / "usps.t.bz2").read_bytes()


def test_a_download_that_does_not_arrive_whole_leaves_no_archive(
    server: Path, tmp_path: Path
) -> None:
    damaged = server / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    folder = tmp_path / "new"
    with pytest.raises(LifelongError, match="the download failed"):
        load("mnist", folder, announce=lambda _: None)
    assert not list(folder.rglob("*ubyte*"))


def test_a_read_only_folder_is_not_downloaded_into(tmp_path: Path, no_network: None) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(LifelongError, match="read-only"):
        load("usps", tmp_path, announce=lambda _: None)
    tmp_path.chmod(0o755)
    assert list(tmp_path.iterdir()) == []


def test_switched_off_a_download_is_not_tried(
    tmp_path: Path, announced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "download_missing", None)
    with pytest.raises(LifelongError, match=r"lacks usps\.bz2, usps\.t\.bz2 and downloading is"):
        load("usps", tmp_path, download=False, announce=announced.append)
    assert announced == []


def test_an_unknown_data_set_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    for ask in (lambda: available("cifar", tmp_path), lambda: load("cifar", ".", announce=print)):
        with pytest.raises(LifelongError, match=r"'cifar'.*mnist, usps, embedded_mnist"):
            ask()


def test_a_data_set_is_available_only_with_all_its_files(mnist_dir: Path) -> None:
    assert available("mnist", mnist_dir)
    assert not available("usps", mnist_dir)
    (mnist_dir / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    assert not available("mnist", mnist_dir)


def test_all_who_ask_share_the_same_tensors(mnist_dir: Path) -> None:
    first = load("mnist", mnist_dir, announce=lambda _: None)
    assert load("mnist", mnist_dir, announce=lambda _: None) is first


def test_files_are_read_without_importing_torchvision_or_lightning(
    mnist_dir: Path, usps_dir: Path
) -> None:
    code = (
        "import sys\n"
        "from lifelong.data.sets.sources import load\n"
        "for name in ('mnist', 'usps', 'embedded_mnist', 'embedded_usps'):\n"
        "    load(name, sys.argv[1], announce=lambda line: None)\n"
        "print([m for m in ('torchvision', 'lightning') if m in sys.modules])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(mnist_dir)], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"
