"""Image files laid out as MNIST's: any size, polarity, depth and colour give the same digit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lifelong.cli.user_images import PictureError, as_mnist, read_grey, read_picture
from lifelong.data.sets.images import centre_in_frame
from lifelong.data.sets.sources import load


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load("embedded_mnist", Path("nowhere"), announce=lambda _: None).test.images[:40]


def far(one: Tensor, other: Tensor) -> float:
    """The mean absolute difference, of 255."""
    return float((one.float() - other.float()).abs().mean())


def test_an_inverted_image_gives_the_same_digit(digits: Tensor) -> None:
    for image in digits:
        light, dark = as_mnist(image.float()), as_mnist(255 - image.float())
        assert (light.ink, dark.ink) == ("light", "dark")
        assert torch.equal(light.pixels, dark.pixels)


def test_what_is_laid_out_so_already_changes_little(digits: Tensor) -> None:
    for image in digits:
        assert far(as_mnist(image.float()).pixels, image) < 4


@pytest.mark.parametrize("scale", [2, 5, 9])
def test_the_size_does_not_matter(digits: Tensor, scale: int) -> None:
    for image in digits[:10]:
        large = torch.kron(image.float(), torch.ones(scale, scale))
        assert far(as_mnist(large).pixels, as_mnist(image.float()).pixels) < 6


def test_where_the_digit_lies_and_how_wide_its_paper_is_do_not_matter(digits: Tensor) -> None:
    expected = as_mnist(digits[3].float()).pixels
    wide = torch.zeros(90, 60)
    wide[50:78, 5:33] = digits[3].float()
    assert torch.equal(as_mnist(wide).pixels, expected)


def test_grey_paper_and_faint_ink_are_stretched(digits: Tensor) -> None:
    expected = as_mnist(digits[5].float()).pixels
    faint = 180 - 0.3 * digits[5].float()
    found = as_mnist(faint)
    assert found.ink == "dark"
    assert int((found.pixels.int() - expected.int()).abs().max()) <= 1


def test_the_centre_of_mass_comes_to_the_middle(digits: Tensor) -> None:
    for image in digits:
        pixels = as_mnist(image.float()).pixels.double()
        rows, columns = (pixels.sum(dim=d) for d in (1, 0))
        middle = [float((x * torch.arange(28)).sum() / x.sum()) for x in (rows, columns)]
        assert max(abs(m - 14) for m in middle) <= 0.51
        box = (pixels > 255 / 20).nonzero()
        assert int((box.amax(0) - box.amin(0)).amax()) + 1 in (19, 20)


def test_the_frame_of_one_pixel() -> None:
    assert centre_in_frame(torch.full((1, 1), 9.0)).nonzero().tolist() == [[14, 14]]


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "I;16", "RGBA", "LA"])
def test_every_mode_of_a_file_gives_the_same_digit(
    tmp_path: Path, digits: Tensor, mode: str
) -> None:
    pixels = ((digits[7] > 100) * 255).to(torch.uint8).numpy()  # what one bit can hold
    expected = as_mnist(torch.from_numpy(pixels).float()).pixels
    path = tmp_path / "digit.png"
    if mode == "I;16":
        Image.fromarray(pixels.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(pixels).convert(mode).save(path)
    assert torch.equal(read_picture(path).pixels, expected)


def test_transparent_paper_is_paper(tmp_path: Path, digits: Tensor) -> None:
    ink = digits[7].numpy()
    expected = as_mnist(digits[7].float()).pixels
    for shade, name in ((0, "dark"), (255, "light")):
        image = np.dstack([np.full_like(ink, shade)] * 3 + [ink])
        Image.fromarray(image, "RGBA").save(tmp_path / "digit.png")
        found = read_picture(tmp_path / "digit.png")
        assert found.ink == name
        assert int((found.pixels.int() - expected.int()).abs().max()) <= 1


def test_a_camera_held_sideways_is_obeyed(tmp_path: Path, digits: Tensor) -> None:
    image = Image.fromarray(digits[2].numpy())
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90° clockwise
    image.rotate(90).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(read_grey(tmp_path / "turned.png"), digits[2].float())


def test_noise_of_a_camera_is_paper(digits: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    large = torch.kron(255 - digits[4].float(), torch.ones(10, 10))
    large = torch.nn.functional.pad(large, (100, 100, 60, 60), value=255.0)
    noisy = large * 0.8 + 6 * torch.randn(large.shape, generator=generator)
    assert far(as_mnist(noisy).pixels, as_mnist(digits[4].float()).pixels) < 6


def test_what_is_no_digit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="shows no digit"):
        as_mnist(torch.full((28, 28), 77.0))
    with pytest.raises(ValueError, match="ink is 'grey'"):
        as_mnist(torch.zeros(3, 3), "grey")  # type: ignore[arg-type]
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(PictureError, match=r"text\.png is no image that Pillow can read"):
        read_picture(tmp_path / "text.png")
    with pytest.raises(PictureError, match="is not there"):
        read_picture(tmp_path / "gone.png")
