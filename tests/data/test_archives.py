"""Files found under every name, read as torchvision reads them, refused when they are damaged."""

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lifelong.data.files import archives
from lifelong.data.files.archives import DamagedArchiveError
from lifelong.data.sets.mnist import parse_mnist
from lifelong.data.sets.sources import load
from lifelong.data.sets.usps import parse_usps
from lifelong.errors import LifelongError

Idx = Callable[[np.ndarray], bytes]
Libsvm = Callable[[np.ndarray, np.ndarray], bytes]
IMAGES, LABELS = Path("train-images"), Path("train-labels")


def refusal(dataset: str, folder: Path) -> str:
    with pytest.raises(LifelongError) as caught:
        load(dataset, folder, download=False, announce=lambda _: None)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "."])
@pytest.mark.parametrize("compressed", [True, False])
def test_mnist_is_found_in_every_place_compressed_or_not(
    mnist_dir: Path, tmp_path: Path, place: str, compressed: bool
) -> None:
    expected = load("mnist", mnist_dir, announce=lambda _: None)
    folder = tmp_path / "other" / place
    folder.mkdir(parents=True)
    for archive in (mnist_dir / "MNIST" / "raw").iterdir():
        content = archive.read_bytes()
        if compressed:
            (folder / archive.name).write_bytes(content)
        else:
            (folder / archive.stem).write_bytes(gzip.decompress(content))
    found = load("mnist", tmp_path / "other", download=False, announce=lambda _: None)
    assert found.fingerprint == expected.fingerprint


def test_the_extracted_text_of_usps_is_found_too(usps_dir: Path, tmp_path: Path) -> None:
    expected = load("usps", usps_dir, announce=lambda _: None)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("usps", "usps.t"):
        content = bz2.decompress((usps_dir / f"{name}.bz2").read_bytes())
        (other / name).write_bytes(content)
    found = load("usps", other, download=False, announce=lambda _: None)
    assert found.fingerprint == expected.fingerprint


def test_idx_files_give_their_bytes_back(as_idx: Idx) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    labels = np.array([9, 0, 3, 3, 1])
    read = parse_mnist(as_idx(pixels), as_idx(labels), IMAGES, LABELS)
    assert read.images.tolist() == pixels.tolist()
    assert read.labels.tolist() == labels.tolist()


def test_usps_grey_becomes_bytes_by_hand(as_libsvm: Libsvm) -> None:
    # constant images: scaling leaves them constant, so the byte of the text is seen
    grey = np.repeat(np.array([[-1.0], [0.0], [1.0], [0.2]]), 256, axis=1)
    read = parse_usps(as_libsvm(grey, np.array([1, 10, 5, 2])), Path("usps"))
    assert [image.unique().tolist() for image in read.images] == [[0], [127], [255], [153]]
    assert read.labels.tolist() == [0, 9, 4, 1]


def test_usps_is_scaled_between_pixel_centres(as_libsvm: Libsvm) -> None:
    column = np.where(np.arange(16) == 15, 1.0, -1.0)
    read = parse_usps(as_libsvm(np.tile(column, 16)[None], np.array([1])), Path("usps"))
    # pixel j of 28 looks at (j + ½)·16/28 - ½ of 16: 14.643 for j = 26 (one third and more of
    # white), 14.0714 for j = 25, and beyond the last centre for j = 27
    expected = [0.0714 * 255, 0.6429 * 255, 255.0]
    torch.testing.assert_close(
        read.images[0, 3, 25:].double(), torch.tensor(expected).double(), atol=0.6, rtol=0
    )
    assert int(read.images[0, :, :25].max()) == 0


@pytest.mark.parametrize("keep", [0, 3, 40, 0.5, -1])
@pytest.mark.parametrize("dataset", ["mnist", "usps"])
def test_a_truncated_archive_is_named_with_its_cure(
    mnist_dir: Path, usps_dir: Path, dataset: str, keep: float
) -> None:
    victim = archives.find(dataset, mnist_dir)["train_images" if dataset == "mnist" else "train"]
    content = victim.read_bytes()
    end = int(keep * len(content)) if isinstance(keep, float) else keep
    victim.write_bytes(content[:end])
    message = refusal(dataset, mnist_dir)
    assert str(victim) in message
    assert "delete it and run again to download it, or copy it anew" in message


@pytest.mark.parametrize("dataset", ["mnist", "usps"])
def test_a_flipped_bit_in_an_archive_is_noticed(
    mnist_dir: Path, usps_dir: Path, dataset: str
) -> None:
    victim = archives.find(dataset, mnist_dir)["train_images" if dataset == "mnist" else "train"]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0x10
    victim.write_bytes(content)
    assert str(victim) in refusal(dataset, mnist_dir)


def test_plain_files_that_are_cut_off_are_refused(as_idx: Idx, as_libsvm: Libsvm) -> None:
    labels = as_idx(np.arange(4))
    with pytest.raises(DamagedArchiveError, match="2350 bytes where its header says 3136"):
        parse_mnist(as_idx(np.zeros((4, 28, 28)))[:2366], labels, IMAGES, LABELS)
    text = as_libsvm(np.zeros((2, 256)), np.array([1, 2]))
    with pytest.raises(DamagedArchiveError, match="2 lines are not all"):
        parse_usps(text[:-40], Path("usps"))


def test_a_label_outside_0_to_9_is_refused(as_idx: Idx, as_libsvm: Libsvm) -> None:
    images = as_idx(np.zeros((2, 28, 28)))
    with pytest.raises(DamagedArchiveError, match=r"train-labels .*label 10 is outside 0\.\.9"):
        parse_mnist(images, as_idx(np.array([9, 10])), IMAGES, LABELS)
    for wrong in (0, 11, 1.5):
        with pytest.raises(DamagedArchiveError, match=f"label {wrong} is outside"):
            parse_usps(as_libsvm(np.zeros((2, 256)), np.array([1, wrong])), Path("usps"))


def test_counts_of_images_and_labels_that_differ_are_refused(as_idx: Idx) -> None:
    with pytest.raises(DamagedArchiveError, match="3 labels for the 2 images of train-images"):
        parse_mnist(as_idx(np.zeros((2, 28, 28))), as_idx(np.arange(3)), IMAGES, LABELS)


@pytest.mark.parametrize(
    ("shape", "said"), [((2, 16, 16), "not 28×28"), ((0, 28, 28), "empty"), ((784,), "idx file")]
)
def test_images_of_another_shape_are_refused(
    as_idx: Idx, shape: tuple[int, ...], said: str
) -> None:
    with pytest.raises(DamagedArchiveError, match=said):
        parse_mnist(as_idx(np.zeros(shape)), as_idx(np.arange(2)), IMAGES, LABELS)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b" 7:", b" 8:", "not numbered 1 to 256"),
        (b" 7:0.000000", b"", "not all a label"),
        (b" 7:0.000000", b" 7:1.500000", r"outside -1\.\.1"),
        (b" 7:0.000000", b" 7:nan", r"outside -1\.\.1"),
        (b" 7:0.000000", b" 7:zero", "no number"),
    ],
)
def test_text_that_is_not_usps_is_refused(
    as_libsvm: Libsvm, old: bytes, new: bytes, said: str
) -> None:
    text = as_libsvm(np.zeros((3, 256)), np.array([1, 2, 3]))
    with pytest.raises(DamagedArchiveError, match=said):
        parse_usps(text.replace(old, new, 1), Path("usps"))


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(DamagedArchiveError, match="not all a label"):
        parse_usps(b"", Path("usps"))


@pytest.mark.data
def test_the_real_archives_have_the_official_counts(real_data: Path) -> None:
    mnist = load("mnist", real_data, download=False, announce=lambda _: None)
    usps = load("usps", real_data, download=False, announce=lambda _: None)
    # columns: the digits 0 to 9
    assert mnist.train.labels.bincount().tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949
    ]  # fmt: skip
    assert mnist.test.labels.bincount().tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
    ]  # fmt: skip
    assert usps.train.labels.bincount().tolist() == [
        1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644
    ]  # fmt: skip
    assert usps.test.labels.bincount().tolist() == [
        359, 264, 198, 166, 200, 160, 170, 147, 166, 177
    ]  # fmt: skip


@pytest.mark.data
def test_the_real_archives_are_read_as_torchvision_reads_them(
    real_data: Path, tmp_path: Path
) -> None:
    from torchvision.datasets import USPS
    from torchvision.datasets.mnist import read_image_file, read_label_file

    from lifelong.data.sets.images import fill_frame

    usps = load("usps", real_data, download=False, announce=lambda _: None)
    theirs = USPS(real_data, train=False, download=False)
    assert torch.equal(usps.test.images, fill_frame(torch.from_numpy(theirs.data)))
    assert usps.test.labels.tolist() == theirs.targets

    mnist = load("mnist", real_data, download=False, announce=lambda _: None)
    for role, path in archives.find("mnist", real_data).items():
        (tmp_path / role).write_bytes(archives.unpack(path, path.read_bytes()))
    assert torch.equal(mnist.train.images, read_image_file(str(tmp_path / "train_images")))
    assert torch.equal(mnist.test.labels, read_label_file(str(tmp_path / "test_labels")))
