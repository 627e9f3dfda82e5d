"""What was parsed is kept: whole, keyed by content, never trusted blindly, never required."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lifelong.data.files import cache
from lifelong.data.files.folders import is_writable
from lifelong.data.sets import sources
from lifelong.data.sets.images import LabelledImages
from lifelong.data.sets.sources import load


def entry_of(folder: Path) -> Path:
    (entry,) = folder.iterdir()
    return entry


def load_anew(folder: Path, announced: list[str]) -> str:
    sources._loaded.clear()
    return load("mnist", folder, download=False, announce=announced.append).fingerprint


def test_the_second_start_does_not_parse(
    mnist_dir: Path, announced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_anew(mnist_dir, announced)
    monkeypatch.setattr(sources, "_parse", None)
    assert load_anew(mnist_dir, announced) == first
    assert announced[0] == f"mnist: parsing the MNIST archives in {mnist_dir}"
    assert announced[1].endswith("from the cache)")
    assert entry_of(mnist_dir / ".lifelong-cache").name.startswith("mnist-")


def test_a_changed_archive_is_parsed_again(mnist_dir: Path, announced: list[str]) -> None:
    before = load_anew(mnist_dir, announced)
    raw = mnist_dir / "MNIST" / "raw"
    images = raw / "train-images-idx3-ubyte.gz"
    plain = bytearray(gzip.decompress(images.read_bytes()))
    plain[16] ^= 1
    images.write_bytes(gzip.compress(bytes(plain)))
    assert load_anew(mnist_dir, announced) != before


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "other content"])
def test_a_damaged_entry_is_told_of_and_made_anew(
    mnist_dir: Path, announced: list[str], damage: str
) -> None:
    expected = load_anew(mnist_dir, announced)
    entry = entry_of(mnist_dir / ".lifelong-cache")
    whole = entry.read_bytes()
    if damage == "other content":
        held = torch.load(entry, weights_only=True)
        held["train_labels"] = held["train_labels"].flip(0)
        torch.save(held, entry)
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        entry.write_bytes(
            {"cut": whole[:middle], "flip": flipped, "empty": b"", "text": b"digits"}[damage]
        )
    announced.clear()
    assert load_anew(mnist_dir, announced) == expected
    assert announced[0] == f"{entry} is damaged and is not used"
    announced.clear()
    load_anew(mnist_dir, announced)
    assert announced[0].endswith("from the cache)")


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


def test_an_entry_that_would_run_code_is_not_unpickled(
    mnist_dir: Path, announced: list[str], tmp_path: Path
) -> None:
    load_anew(mnist_dir, announced)
    entry = entry_of(mnist_dir / ".lifelong-cache")
    torch.save({"train_images": Payload(tmp_path / "canary")}, entry)
    announced.clear()
    load_anew(mnist_dir, announced)
    assert announced[0] == f"{entry} is damaged and is not used"
    assert not (tmp_path / "canary").exists()


def test_a_read_only_data_folder_is_left_alone(
    mnist_dir: Path, announced: list[str], user_cache: Path
) -> None:
    mnist_dir.chmod(0o555)
    load_anew(mnist_dir, announced)
    load_anew(mnist_dir, announced)
    mnist_dir.chmod(0o755)
    assert [path.name for path in mnist_dir.iterdir()] == ["MNIST"]
    assert entry_of(user_cache).name.startswith("mnist-")
    assert announced[-1].endswith("from the cache)")


def test_without_any_folder_to_write_the_archives_are_parsed_each_time(
    mnist_dir: Path, announced: list[str], user_cache: Path
) -> None:
    # files where the folders should be: not even the superuser can make these
    (mnist_dir / ".lifelong-cache").write_text("")
    user_cache.parent.write_text("")
    assert load_anew(mnist_dir, announced) == load_anew(mnist_dir, announced)
    assert [line.split(":")[1][:8] for line in announced] == [" parsing"] * 2


def test_a_full_disk_leaves_nothing_half_written(
    mnist_dir: Path, announced: list[str], user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(entry: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise RuntimeError("unexpected pos: no space left on device")

    monkeypatch.setattr(torch, "save", half)
    load_anew(mnist_dir, announced)
    assert list((mnist_dir / ".lifelong-cache").iterdir()) == []
    assert list(user_cache.iterdir()) == []


def test_two_processes_at_once_both_read_whole_data(mnist_dir: Path) -> None:
    code = (
        "import sys\n"
        "from lifelong.data.sets import sources\n"
        "for _ in range(8):\n"
        "    sources._loaded.clear()\n"
        "    for entry in sources.Path(sys.argv[1]).glob('.lifelong-cache/*.pt'):\n"
        "        entry.unlink(missing_ok=True)\n"
        "    task = sources.load('mnist', sys.argv[1], announce=lambda line: lines.append(line))\n"
        "    assert not any('damaged' in line for line in lines), lines\n"
        "print(task.fingerprint)\n"
    ).replace("import sys\n", "import sys\nlines = []\n")
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(mnist_dir)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    (first, first_error), (second, second_error) = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], first_error + second_error
    assert first == second
    kept = [path.name for path in (mnist_dir / ".lifelong-cache").iterdir()]
    assert len(kept) == 1
    assert kept[0].endswith(".pt")


def test_an_entry_gives_back_what_was_written(tmp_path: Path) -> None:
    sets = tuple(
        LabelledImages(
            torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8), torch.arange(count)
        )
        for count in (4, 3)
    )
    name = cache.key("mnist", [b"content"])
    assert cache.read(name, tmp_path, print) is None
    assert cache.write(name, tmp_path, sets) == tmp_path / ".lifelong-cache" / name
    kept = cache.read(name, tmp_path, print)
    assert kept is not None
    for ours, theirs in zip(sets, kept, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


def test_a_folder_yet_to_be_made_is_as_writable_as_its_parent(tmp_path: Path) -> None:
    assert is_writable(tmp_path / "a" / "b")
    tmp_path.chmod(0o500 & 0o555)
    assert not is_writable(tmp_path / "a" / "b")
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("")
    assert not is_writable(tmp_path / "file")
