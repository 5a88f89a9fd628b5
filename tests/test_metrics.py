"""Metrics: worked constants, an independent SSIM, errors, and published numbers of real images."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from lib.measuring.metrics import CHANNELS, CONVENTIONS, Convention, ConventionError, luma, psnr, published, ssim
from lib.tasks import degradations


def pair(channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(channels, 40, 33, generator=generator)
    return target + 0.1 * torch.randn(target.shape, generator=generator), target


def reference_ssim(a: np.ndarray, b: np.ndarray, window: np.ndarray) -> float:
    """The formula of the MATLAB script, valid convolutions on the 0-255 scale."""

    def mean(x: np.ndarray) -> np.ndarray:
        return convolve2d(x, window / window.sum(), mode="valid")

    a, b = a * 255.0, b * 255.0
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    return float((((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


def test_psnr_of_one_gray_level():
    target = np.full((1, 16, 16), 0.5)
    assert psnr(target + 1 / 255, target) == pytest.approx(20 * math.log10(255), abs=1e-9)  # 48.1308


def test_rgb_takes_the_mean_error_over_channels():
    target = torch.full((3, 16, 16), 0.5)
    restored = target + torch.tensor([0.1, 0.0, 0.0])[:, None, None]
    assert Convention("rgb").measure(restored, target)["psnr"] == pytest.approx(-10 * math.log10(0.01 / 3), abs=1e-5)
    assert Convention("r").measure(restored, target)["psnr"] == pytest.approx(20, abs=1e-5)
    assert Convention("g").measure(restored, target)["psnr"] == math.inf


def test_equal_images_have_infinite_psnr_and_ssim_one():
    _, target = pair()
    for channel in ("rgb", "y", "y8", "b"):
        assert Convention(channel).measure(target, target) == {"psnr": math.inf, "ssim": pytest.approx(1)}


def test_luma_is_that_of_matlab():
    colours = np.array([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float).T[:, None]
    assert luma(colours)[0] * 255 == pytest.approx([16, 235, 81.481, 144.553, 40.966])
    image = torch.from_numpy(np.broadcast_to(colours[:, :, 2:3], (3, 16, 16)).copy())
    assert Convention("y8").planes(image) * 255 == pytest.approx(81)
    assert Convention("y").planes(image) * 255 == pytest.approx(81.481)


def test_a_gray_image_is_its_own_luma():
    restored, target = pair(1)
    assert Convention("y").measure(restored, target) == Convention("gray").measure(restored, target)


def test_clamping_and_rounding():
    target = torch.zeros(1, 16, 16)
    restored = torch.full((1, 16, 16), -0.5)
    assert Convention().measure(restored, target)["psnr"] == math.inf
    assert Convention().measure(restored, target, clamp=False)["psnr"] == pytest.approx(-20 * math.log10(0.5))
    assert Convention(clamp=False).measure(restored, target)["psnr"] == pytest.approx(-20 * math.log10(0.5))
    restored = torch.full((1, 16, 16), 1.4 / 255)
    expected = {False: 1.4 / 255, True: 1 / 255}
    for quantise, error in expected.items():
        value = Convention(quantise=quantise).measure(restored, target)["psnr"]
        assert value == pytest.approx(-20 * math.log10(error), abs=1e-4)


def test_border_is_left_out():
    restored, target = pair(1)
    restored[:, :3] = restored[:, -3:] = 0
    restored[:, :, :3] = restored[:, :, -3:] = 0
    inner = Convention(border=3).measure(restored, target)
    assert inner == Convention().measure(restored[:, 3:-3, 3:-3], target[:, 3:-3, 3:-3])
    assert inner["psnr"] > Convention().measure(restored, target)["psnr"]


def test_ssim_is_that_of_the_matlab_script():
    restored, target = (x.double().numpy() for x in pair(2))
    at = np.arange(-5, 6)
    gaussian = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    for window, weights in {"gaussian": gaussian, "uniform": np.ones((8, 8))}.items():
        expected = [reference_ssim(a, b, weights) for a, b in zip(restored, target, strict=True)]
        assert ssim(restored, target, window) == pytest.approx(np.mean(expected), abs=1e-10)
        of_first = Convention("y", clamp=False, window=window).measure(restored[:1], target[:1])["ssim"]
        assert of_first == pytest.approx(expected[0], abs=1e-10)


def test_a_batch_of_one_an_array_and_half_precision_are_accepted():
    restored, target = pair()
    expected = Convention("rgb").measure(restored, target)
    assert Convention("rgb").measure(restored[None], target.numpy()) == expected
    assert Convention("rgb").measure(restored.bfloat16(), target)["psnr"] == pytest.approx(expected["psnr"], abs=0.05)


@pytest.mark.parametrize(
    ("restored", "target", "how", "says"),
    [
        (torch.rand(1, 20, 20), torch.rand(1, 20, 21), Convention(), r"restored image has shape \(1, 20, 20\)"),
        (torch.rand(1, 20, 0), torch.rand(1, 20, 0), Convention(), "nothing is left to measure"),
        (torch.rand(1, 20, 20), torch.rand(1, 20, 20), Convention(border=10), "nothing is left to measure"),
        (torch.rand(1, 20, 20), torch.rand(1, 20, 20), Convention(border=5), "SSIM needs 11"),
        (torch.rand(3, 20, 20), torch.rand(3, 20, 20), Convention(), "3 channels; 'gray' is measured on 1"),
        (torch.rand(1, 20, 20), torch.rand(1, 20, 20), Convention("rgb"), "1 channels; 'rgb' is measured on 3"),
        (torch.full((1, 20, 20), math.nan), torch.rand(1, 20, 20), Convention(), "NaN"),
        (torch.rand(2, 1, 20, 20), torch.rand(2, 1, 20, 20), Convention(), r"shape \(2, 1, 20, 20\)"),
        (np.zeros((1, 20, 20), np.uint8), torch.rand(1, 20, 20), Convention(), "uint8"),
    ],
)
def test_images_that_cannot_be_measured(restored, target, how, says):
    with pytest.raises(ConventionError, match=says):
        how.measure(restored, target)


@pytest.mark.parametrize("options", [{"channel": "Y"}, {"border": -1}, {"border": 1.5}, {"window": "hann"}])
def test_unknown_conventions(options):
    with pytest.raises(ConventionError, match=next(iter(options))):
        Convention(**options)


def test_every_choice_shows_in_the_description():
    plain = Convention()
    changes = [{"channel": m} for m in CHANNELS if m != "gray"]
    changes += [{"border": 4}, {"quantise": True}, {"clamp": False}, {"window": "uniform"}]
    others = [replace(plain, **change) for change in changes]
    assert len({p.describe() for p in [plain, *others]}) == 1 + len(others)
    described = "Y of BT.601 (16-235), border of 4 px left out, clamped, rounded to 8 bit"
    assert Convention("y", 4, True).describe() == described


def test_published_conventions():
    assert published("ignn", "sr", 3).convention == Convention("y", 3, True)
    assert published("dagl", "gray_denoise").self_ensemble
    assert all(c.noise in degradations.GaussianNoise.NOISE for c in CONVENTIONS.values())
    image = torch.arange(40.0 * 70).view(1, 1, 40, 70)
    assert torch.equal(published("lir", "derain").cut(image), image[:, :, :32, :64])
    assert published("dagl", "jpeg").cut(image).shape == image.shape
    with pytest.raises(ConventionError, match="no convention of 'edsr' for 'sr'; known: dagl"):
        published("edsr", "sr")
