"""The embedded digits: two disjoint halves of real handwriting, in two layouts."""

import torch
from sklearn.datasets import load_digits

from lifelong.data.sets import embedded
from lifelong.data.sets.embedded import embedded_mnist, embedded_usps


def test_the_halves_are_disjoint_and_cover_all_digits() -> None:
    (first, first_labels), (second, second_labels) = embedded._halves()
    pixels = torch.cat([first, second]).flatten(1) * 16 / 255
    ours = sorted(
        (*row, label)
        for row, label in zip(
            pixels.round().int().tolist(),
            torch.cat([first_labels, second_labels]).tolist(),
            strict=True,
        )
    )
    digits = load_digits()
    theirs = sorted(
        (*map(int, row), int(label)) for row, label in zip(digits.data, digits.target, strict=True)
    )
    assert ours == theirs
    assert (len(first), len(second)) == (899, 898)


def test_each_half_has_700_training_images_and_every_class_its_share() -> None:
    for task in (embedded_mnist(), embedded_usps()):
        assert len(task.train) == 700
        for part in (task.train, task.test):
            counts = part.labels.bincount(minlength=10) / len(part)
            torch.testing.assert_close(counts, torch.full((10,), 0.1), atol=0.01, rtol=0)
        train = {bytes(image.flatten().tolist()) for image in task.train.images}
        test = {bytes(image.flatten().tolist()) for image in task.test.images}
        assert not train & test


def test_half_a_is_laid_out_as_mnist() -> None:
    images = embedded_mnist().train.images
    inked = images > 0
    for lines in (inked.any(dim=1), inked.any(dim=2)):
        places = [line.nonzero().squeeze(1) for line in lines]
        assert max(int(p[-1] - p[0]) + 1 for p in places) <= 20
    places = torch.arange(28.0)
    ink = images.float().sum(dim=(1, 2))
    for axis in (1, 2):
        centre = (images.float().sum(dim=3 - axis) * places).sum(dim=1) / ink
        torch.testing.assert_close(centre, torch.full_like(centre, 14.0), atol=0.51, rtol=0)


def test_half_b_fills_the_frame_and_is_smooth() -> None:
    plain, smooth = embedded_mnist().train.images, embedded_usps().train.images
    rows = (smooth > 64).any(dim=2)
    assert float(rows[:, :2].any(dim=1).float().mean()) > 0.9
    assert float(rows[:, -2:].any(dim=1).float().mean()) > 0.9

    def roughness(images: torch.Tensor) -> float:
        return float(images.float().diff(dim=2).abs().mean() / images.float().mean())

    assert roughness(smooth) < roughness(plain)


def test_a_point_of_ink_is_spread_as_a_gaussian_of_sigma_three_quarters() -> None:
    image = torch.zeros(1, 8, 8)
    image[0, 3:5, 3:5] = 255.0
    spread = embedded._as_usps(image)[0].double()
    places = (torch.arange(28.0).double() + 0.5) * 16 / 28 - 7.5 - 0.5
    profile = spread.sum(dim=0)
    variance = float((profile * places**2).sum() / profile.sum())
    # variances add: the block's own in 16×16, σ², and 1/6 of the triangle that scales to 28×28
    block = embedded._scaled(image, 16)[0].double().sum(dim=0)
    fine = torch.arange(16.0).double() - 7.5
    before = float((block * fine**2).sum() / block.sum())
    torch.testing.assert_close(variance - before, 0.75**2 + 1 / 6, atol=0.03, rtol=0)


def test_the_source_says_that_these_are_the_embedded_digits() -> None:
    assert embedded_mnist().source == (
        "embedded digits (scikit-learn load_digits), half A laid out as MNIST"
    )
    assert embedded_usps().source.endswith("half B laid out as USPS")
