"""Where a data set's images come from: files, else a download, else an error with the cure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from lifelong.data.files import archives, cache
from lifelong.data.files.download import DownloadError
from lifelong.data.files.download import download as download_missing
from lifelong.data.sets.embedded import embedded_mnist, embedded_usps
from lifelong.data.sets.images import TaskImages
from lifelong.data.sets.mnist import parse_mnist
from lifelong.data.sets.usps import parse_usps
from lifelong.errors import LifelongError

_EMBEDDED = {"embedded_mnist": embedded_mnist, "embedded_usps": embedded_usps}
DATASETS = (*archives.ARCHIVES, *_EMBEDDED)
_KEPT_IN_MEMORY = 4  # data sets: those of a benchmark, so that a sweep's runs share them
_loaded: OrderedDict[tuple[str, str], TaskImages] = OrderedDict()


class MissingArchivesError(LifelongError):
    """A data set whose files are not there and could not be had.

    Args:
        dataset: The data set.
        folder: Where the files were looked for.
        reason: Why no download gave them, in a few words.
    """

    def __init__(self, dataset: str, folder: Path, reason: str) -> None:
        wanted = ", ".join(archive.name for archive in archives.missing(dataset, folder))
        super().__init__(
            f"{dataset}: {folder} lacks {wanted} and {reason}: put the files there, name their "
            "folder with data_dir=DIR or LIFELONG_DATA=DIR, or work offline with "
            "`lifelong-train benchmark=embedded_digits` or `make run`"
        )


def available(dataset: str, data_dir: str | Path) -> bool:
    """Return whether a data set can be loaded without a download; only looks for the files.

    Args:
        dataset: One of `DATASETS`.
        data_dir: The folder to look in; it need not exist.

    Returns:
        True when all its files are there. The embedded digits always are.

    Raises:
        LifelongError: There is no such data set.

    Example:
        >>> available("embedded_mnist", "nowhere"), available("mnist", "nowhere")
        (True, False)
    """  # noqa: DOC502
    _check_name(dataset)
    return dataset in _EMBEDDED or not archives.missing(dataset, Path(data_dir))


def load(
    dataset: str,
    data_dir: str | Path,
    *,
    download: bool = True,
    announce: Callable[[str], None],
) -> TaskImages:
    """Return a data set from its files, else from torchvision's download.

    MNIST's files may be compressed or not, below `MNIST/raw`, `MNIST` or the folder itself; those
    of USPS are `usps.bz2` and `usps.t.bz2` or their text. What was parsed is kept by `cache`, and
    within a process the same tensors are shared by all who ask: do not write into them.

    Args:
        dataset: One of `DATASETS`.
        data_dir: The folder of the files; a read-only one is left as it is.
        download: Whether torchvision may fetch what is missing.
        announce: Told, a line each time, what is done.

    Returns:
        The data set, saying in `source` where it came from.

    Raises:
        MissingArchivesError: The files are neither there nor to be had.
        LifelongError: There is no such data set, or its files are damaged.

    Example:
        >>> load("embedded_usps", "data", announce=print).train.images.shape
        embedded_usps: embedded digits (scikit-learn load_digits), half B laid out as USPS
        torch.Size([700, 28, 28])
    """  # noqa: DOC502
    _check_name(dataset)
    if dataset in _EMBEDDED:
        task = _EMBEDDED[dataset]()
        announce(f"{dataset}: {task.source}")
        return task

    folder = Path(data_dir)
    source = f"{dataset.upper()} archives in {folder}"
    if archives.missing(dataset, folder):
        if not download:
            raise MissingArchivesError(dataset, folder, "downloading is switched off")
        announce(f"{dataset}: archives missing in {folder}; trying torchvision's download")
        try:
            download_missing(dataset, folder)
        except DownloadError as error:
            raise MissingArchivesError(dataset, folder, f"the download failed ({error})") from error
        source = "torchvision download"
    return _from_files(dataset, folder, source, announce)


def _from_files(
    dataset: str, folder: Path, source: str, announce: Callable[[str], None]
) -> TaskImages:
    paths = archives.find(dataset, folder)
    stored = {role: archives.read(path) for role, path in paths.items()}
    name = cache.key(dataset, stored.values())
    task = _loaded.get((name, source))
    if task is None:
        sets = cache.read(name, folder, announce)
        if sets is None:
            announce(f"{dataset}: parsing the {source}")
            sets = _parse(dataset, paths, stored)
            cache.write(name, folder, sets)
        else:
            announce(f"{dataset}: {source} (parsed before, from the cache)")
        task = TaskImages(dataset, *sets, source)
    else:
        announce(f"{dataset}: {source} (in memory)")
    _loaded[name, source] = task
    _loaded.move_to_end((name, source))
    while len(_loaded) > _KEPT_IN_MEMORY:
        _loaded.popitem(last=False)
    return task


def _parse(dataset: str, paths: Mapping[str, Path], stored: Mapping[str, bytes]) -> cache.Sets:
    content = {role: archives.unpack(path, stored[role]) for role, path in paths.items()}
    if dataset == "usps":
        return (
            parse_usps(content["train"], paths["train"]),
            parse_usps(content["test"], paths["test"]),
        )
    train, test = (
        parse_mnist(
            content[f"{part}_images"],
            content[f"{part}_labels"],
            paths[f"{part}_images"],
            paths[f"{part}_labels"],
        )
        for part in ("train", "test")
    )
    return train, test


def _check_name(dataset: str) -> None:
    if dataset not in DATASETS:
        raise LifelongError(f"no data set is called {dataset!r}: take one of {', '.join(DATASETS)}")
