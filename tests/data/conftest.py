"""Small archives in the formats of MNIST and USPS, and a record of what was announced."""

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Announced = list[str]


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def libsvm(grey: np.ndarray, labels: np.ndarray) -> bytes:
    lines = [
        f"{label} " + " ".join(f"{place}:{value:.6f}" for place, value in enumerate(row, start=1))
        for row, label in zip(grey, labels, strict=True)
    ]
    return ("\n".join(lines) + " \n").encode()


def mnist_files(seed: int = 0, train: int = 40, test: int = 20) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    files = {}
    for prefix, count in (("train", train), ("t10k", test)):
        files[f"{prefix}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28)))
        files[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(count) % 10)
    return files


def usps_files(seed: int = 0, train: int = 40, test: int = 20) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    return {
        name: libsvm(rng.uniform(-1, 1, (count, 256)), np.arange(count) % 10 + 1)
        for name, count in (("usps", train), ("usps.t", test))
    }


@pytest.fixture(autouse=True)
def _nothing_in_memory() -> None:
    # here, not above: a conftest is read before jaxtyping can hook into the package
    from lifelong.data.sets import sources

    sources._loaded.clear()


@pytest.fixture
def as_idx() -> Callable[[np.ndarray], bytes]:
    return idx


@pytest.fixture
def as_libsvm() -> Callable[[np.ndarray, np.ndarray], bytes]:
    return libsvm


@pytest.fixture
def announced() -> Announced:
    return []


@pytest.fixture
def mnist_dir(tmp_path: Path) -> Path:
    """A folder with small MNIST archives, compressed, as torchvision lays them out."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in mnist_files().items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path / "data"


@pytest.fixture
def usps_dir(tmp_path: Path) -> Path:
    """A folder with small USPS archives, compressed."""
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    for name, content in usps_files().items():
        (folder / f"{name}.bz2").write_bytes(bz2.compress(content))
    return folder


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user's cache folder of one test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user" / "lifelong"
