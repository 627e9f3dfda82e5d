"""What all tests share: the folder of the real data, and a cache folder of the tests' own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def _real_data() -> Path | str:
    """Return the folder of the real archives, or why there is none."""
    # here, not above: a conftest is read before jaxtyping can hook into the package
    from lifelong.data.sets import sources

    named = os.environ.get("LIFELONG_DATA")
    if not named:
        return "LIFELONG_DATA names no folder with the real MNIST and USPS archives"
    folder = Path(named).absolute()
    for dataset in ("mnist", "usps"):
        if not sources.available(dataset, folder):
            return f"LIFELONG_DATA={named} has no {dataset} archives"
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("data"):
        found = _real_data()
        if isinstance(found, str):
            pytest.skip(found)


@pytest.fixture(scope="session")
def real_data() -> Path:
    found = _real_data()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session", autouse=True)
def _user_cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # parsed tensors that the tests keep must not land in the user's own cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
