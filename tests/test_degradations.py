"""Degradations: what they compute, what they draw, what they refuse, and the published low-resolution files."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from oracles import photographs, refused
from PIL import Image

from lib.tasks import degradations
from lib.tasks.degradations import DEGRADATIONS, DegradationError, build, resize

#: Options that make each degradation small enough for a test.
EXAMPLES = {
    "gaussian_noise": {"sigma": [0, 50]},
    "bicubic": {"scale": 2},
    "bayer": {},
    "jpeg": {"quality": [10, 40]},
    "rain": {},
    "blur": {"noise": 2},
    "haze": {},
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- building -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("noise", {}, "unknown degradation 'noise'; known: bayer, bicubic, blur"),
        ("gaussian_noise", {"sgima": 25}, "gaussian_noise: unknown option 'sgima'; known: sigma, quantise, noise"),
        ("gaussian_noise", {}, "gaussian_noise: option 'sigma' is missing"),
        ("gaussian_noise", {"sigma": -1}, "gaussian_noise: sigma is -1; it must be a number from 0 to 255"),
        ("gaussian_noise", {"sigma": [50, 0]}, r"sigma is \[50, 0\]"),
        ("gaussian_noise", {"sigma": "25"}, "sigma is '25'"),
        ("gaussian_noise", {"sigma": 25, "noise": "panet"}, "noise is 'panet'; known: study, dagl, lir, kair"),
        ("gaussian_noise", {"sigma": [0, 50], "noise": "dagl"}, "noise 'dagl' needs one sigma"),
        ("bicubic", {}, "bicubic: option 'scale' is missing"),
        ("bicubic", {"scale": 5}, "bicubic: scale is 5; it must be 2, 3 or 4"),
        ("bicubic", {"scale": 2, "border": "reflect"}, "border is 'reflect'; known: mirror, replicate"),
        ("bicubic", {"scale": 2, "rounding": None}, "rounding is None; known: none, last, both"),
        ("bayer", {"pattern": "RGGB"}, "bayer: unknown option 'pattern'; known: none"),
        ("jpeg", {"quality": 0}, "jpeg: quality is 0"),
        ("jpeg", {"quality": []}, r"jpeg: quality is \[\]"),
        ("rain", {"density": 2}, "rain: density is 2"),
        ("rain", {"length": 100}, "rain: length is 100"),
        ("blur", {"kernel": "disk"}, "blur: kernel is 'disk'; known: gaussian, motion"),
        ("haze", {"airlight": 1.5}, "haze: airlight is 1.5"),
    ],
)
def test_what_cannot_be_built(name, options, says):
    with refused(DegradationError, match=says):
        build(name, **options)


def test_a_paired_degradation_cannot_be_called():
    with pytest.raises(DegradationError, match="there is no degraded image"):
        build("paired")(torch.rand(1, 3, 8, 8), generator())


def test_what_the_pipeline_asks():
    smaller = [build("bicubic", scale=s) for s in (2, 3, 4)]
    assert [each.scale for each in smaller] == [each.multiple for each in smaller] == [2, 3, 4]
    fresh = {name: build(name, **options).fresh for name, options in EXAMPLES.items()}
    assert [name for name, value in fresh.items() if not value] == ["bicubic"]
    assert not build("jpeg", quality=10).fresh
    assert not build("paired").fresh
    assert set(DEGRADATIONS) == {*EXAMPLES, "paired"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_draw_depends_on_the_generator_alone(name):
    degradation, clean = build(name, **EXAMPLES[name]), photographs()
    kept = clean.clone()
    torch.manual_seed(1)
    first = degradation(clean, generator())
    torch.manual_seed(2)
    assert torch.equal(first, degradation(clean, generator()))
    assert torch.equal(clean, kept)
    assert first.dtype == torch.float32
    assert first.shape[2] * degradation.scale == clean.shape[2]
    if name not in ("bicubic", "bayer"):
        assert not torch.equal(first, degradation(clean, generator(1)))
        same = degradation(clean[:1].expand(3, -1, -1, -1), generator())
        assert not torch.equal(same[0], same[1])  # every image of a batch has its own draw


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in ("bayer",)])
def test_gray_images_are_degraded_too(name):
    assert build(name, **EXAMPLES[name])(photographs()[:, :1], generator()).shape[1] == 1


# --- noise --------------------------------------------------------------------------------------------------------


def test_noise_has_its_sigma_and_is_not_clipped():
    noisy = build("gaussian_noise", sigma=25)(torch.zeros(1, 1, 256, 256), generator())
    assert float(noisy.std()) * 255 == pytest.approx(25, rel=0.02)
    assert float(noisy.min()) < -0.3


def test_blind_noise_draws_one_sigma_per_image():
    noisy = build("gaussian_noise", sigma=[10, 50])(torch.zeros(64, 1, 64, 64), generator()) * 255
    levels = noisy.std((1, 2, 3))
    assert 9 < levels.min() < 16
    assert 44 < levels.max() < 52


def test_stored_noise_is_clipped_and_rounded_with_the_same_draw():
    clean = photographs()
    noisy = build("gaussian_noise", sigma=25)(clean, generator())
    stored = build("gaussian_noise", sigma=25, quantise=True)(clean, generator()) * 255
    assert torch.equal(stored.round() / 255, (noisy.clamp(0, 1) * 255).round() / 255)
    assert torch.allclose(stored, stored.round(), atol=1e-4)


def test_noise_of_an_evaluation_belongs_to_set_image_sigma_and_realisation():
    noise = build("gaussian_noise", sigma=25)
    seed = noise.generator("set12", "01").initial_seed()
    assert seed == 3741806142265641759  # published with the results: must never change
    for same in (build("gaussian_noise", sigma=25.0), build("gaussian_noise", sigma=25, quantise=True)):
        assert same.generator("set12", "01").initial_seed() == seed
    others = [
        noise.generator("set12", "02"),
        noise.generator("bsd68", "01"),
        noise.generator("set12", "01", 1),
        build("gaussian_noise", sigma=15).generator("set12", "01"),
        build("rain").generator("set12", "01"),
        build("rain", length=[5, 9]).generator("set12", "01"),
    ]
    assert len({seed, *(g.initial_seed() for g in others)}) == 7


def test_noise_as_papers_draw_it():
    clean = torch.zeros(1, 3, 10, 12)
    torch.manual_seed(1)
    expected = torch.randn(clean.shape) * (25 / 255)
    for image in ("01", "02"):
        drawn = build("gaussian_noise", sigma=25, noise="dagl")
        noisy = drawn.realise(clean, "set12", image)
        assert torch.allclose(noisy, expected, rtol=1e-6, atol=0)
    np.random.seed(0)  # noqa: NPY002 - the papers' own generator
    expected = np.random.normal(0, 25 / 255, (10, 12, 3)).transpose(2, 0, 1)  # noqa: NPY002
    for noise in ("lir", "kair"):
        drawn = build("gaussian_noise", sigma=25, noise=noise)
        noisy = drawn.realise(clean, "cbsd68", "x")
        assert noisy[0].numpy() == pytest.approx(expected, rel=1e-5)


# --- bicubic ------------------------------------------------------------------------------------------------------


def imresize_matrix(size: int, up: int, down: int, border: str) -> np.ndarray:
    """Weights (out, in) of MATLAB's bicubic kernel along one side, from its definition."""
    scale = up / down
    stretch = max(1 / scale, 1)
    matrix = np.zeros((size * up // down, size))
    for row in range(len(matrix)):
        centre = (row + 0.5) / scale - 0.5
        at = np.arange(math.floor(centre - 2 * stretch), math.ceil(centre + 2 * stretch) + 1)
        x = np.abs(at - centre) / stretch
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weights = np.where(x <= 1, near, np.where(x <= 2, far, 0))
        mirrored = np.minimum(at % (2 * size), 2 * size - 1 - at % (2 * size))
        inside = at.clip(0, size - 1) if border == "replicate" else mirrored
        np.add.at(matrix[row], inside, weights / weights.sum())
    return matrix


@pytest.mark.parametrize("border", ["mirror", "replicate"])
@pytest.mark.parametrize(("up", "down"), [(1, 2), (1, 3), (1, 4), (2, 1), (3, 1), (4, 1)])
def test_resize_is_matlabs_kernel(up, down, border):
    image = torch.rand(1, 2, 24, 36, generator=generator()).double()
    rows, columns = (torch.from_numpy(imresize_matrix(n, up, down, border)) for n in (24, 36))
    expected = torch.einsum("oh,bchw,pw->bcop", rows, image, columns)
    assert torch.allclose(resize(image, up, down, border), expected, atol=1e-12)
    assert torch.allclose(resize(image.float(), up, down, border).double(), expected, atol=1e-6)


def test_resize_keeps_a_constant_and_takes_images_smaller_than_the_kernel():
    for shape in ((1, 1, 4, 4), (1, 3, 3, 5)):
        image = torch.full(shape, 0.25)
        assert torch.allclose(resize(image, up=3), torch.full((*shape[:2], 3 * shape[2], 3 * shape[3]), 0.25))
    assert torch.allclose(resize(torch.full((1, 1, 4, 4), 0.25), down=4), torch.tensor(0.25))


def test_roundings():
    image = photographs(1)
    levels = {r: resize(image, down=2, rounding=r) * 255 for r in ("none", "last", "both")}
    assert torch.allclose(levels["last"], (levels["none"] + 0.5).floor().clamp(0, 255), atol=1e-4)
    assert torch.allclose(levels["both"], levels["both"].round(), atol=1e-4)
    difference = (levels["both"] - levels["last"]).round().abs()
    assert 0 < difference.max() <= 2


def test_sides_must_be_multiples():
    with pytest.raises(DegradationError, match=r"\(9, 8\) pixels has sides that are no multiples of 2"):
        build("bicubic", scale=2)(torch.rand(1, 1, 9, 8), generator())


# --- the others ---------------------------------------------------------------------------------------------------


def test_bayer_keeps_red_green_green_blue():
    clean = torch.arange(1.0, 37).view(1, 3, 3, 4)
    kept = build("bayer")(clean, generator())
    where = "RGRG", "GBGB", "RGRG"
    for row, column in np.ndindex(3, 4):
        channel = "RGB".index(where[row][column])
        expected = torch.zeros(3)
        expected[channel] = clean[0, channel, row, column]
        assert torch.equal(kept[0, :, row, column], expected)
    with pytest.raises(DegradationError, match="1 channels; it must have 3"):
        build("bayer")(clean[:, :1], generator())


@pytest.mark.parametrize("quality", [10, 20, 30, 40, 75])
def test_jpeg_tables_are_those_that_the_docstring_states(quality):
    annex_k = [16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55]  # the first two rows
    s = 5000 // quality if quality < 50 else 200 - 2 * quality
    file = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(file, "JPEG", quality=quality)
    table = Image.open(file).quantization[0]
    assert list(table[:16]) == [min(max(math.floor((t * s + 50) / 100), 1), 255) for t in annex_k]


def test_jpeg_quality():
    clean = photographs(1)[:, :1]
    errors = [float((build("jpeg", quality=q)(clean, None) - clean).square().mean()) for q in (10, 20, 40, 95)]
    assert errors == sorted(errors, reverse=True)
    compressed = build("jpeg", quality=10)(clean, None) * 255
    assert torch.allclose(compressed, compressed.round(), atol=1e-4)
    assert build("jpeg", quality=10)(photographs(2, 61), None).shape == (2, 3, 61, 61)


def test_jpeg_of_several_qualities():
    clean = photographs(1)[:, :1].expand(32, -1, -1, -1)
    both = [build("jpeg", quality=[q])(clean, generator()) for q in (10, 90)]
    mixed = build("jpeg", quality=[10, 90])(clean, generator())
    error = (mixed - clean).square().mean((1, 2, 3))
    threshold = sum(float((x - clean).square().mean()) for x in both) / 2
    assert 8 <= int((error > threshold).sum()) <= 24
    assert len({image.numpy().tobytes() for image in both[0]}) > 16  # the grid lies at random
    assert (both[1] - clean).abs().mean((1, 2, 3)).max() < 4 / 255  # and the image stays in place


def test_rain_only_brightens_and_saturates():
    clean = photographs(2, 128)
    rainy = build("rain")(clean, generator())
    streaks = rainy - clean
    assert streaks.min() >= 0
    assert rainy.max() <= 1
    assert torch.equal(build("rain", density=0)(clean, generator()), clean)
    dark = torch.zeros(1, 3, 128, 128)
    streaks = build("rain", angle=0, length=15)(dark, generator())
    assert torch.equal(streaks[:, 0], streaks[:, 2])
    down, across = (streaks.diff(dim=side).abs().mean() for side in (2, 3))
    assert down < 0.5 * across  # streaks are upright
    db = -10 * math.log10(float((rainy - clean).square().mean()))
    assert 20 < db < 32  # Rain100L: 26.9


def test_blur_keeps_the_mean_and_has_its_size():
    dot = torch.zeros(4, 1, 41, 41)
    dot[:, :, 20, 20] = 1
    at = torch.arange(41.0) - 20
    for options, variance in (({"kernel": "gaussian", "size": 2}, 2 * 2.0**2), ({"size": 9}, 9**2 / 12)):
        spread = build("blur", **options)(dot, generator())
        assert torch.allclose(spread.sum((1, 2, 3)), torch.ones(4), atol=1e-5)
        measured = (spread[:, 0] * (at[:, None] ** 2 + at**2)).sum((1, 2))
        assert torch.allclose(measured, torch.full((4,), variance), rtol=0.15)
    flat = torch.full((2, 3, 20, 20), 0.5)
    assert torch.allclose(build("blur")(flat, generator()), flat, atol=1e-6)  # also at the border
    assert torch.allclose(build("blur", size=1)(photographs(), generator()), photographs(), atol=1e-6)
    noise = build("blur", size=1, noise=10)(photographs(), generator()) - photographs()
    assert float(noise.std()) * 255 == pytest.approx(10, rel=0.05)


def test_haze_follows_its_law():
    black, white = torch.zeros(1, 3, 40, 50), torch.ones(1, 3, 40, 50)
    haze = build("haze", beta=1, airlight=0.8)
    veil = haze(black, generator())  # A (1 - t)
    transmission = 1 - veil / 0.8
    assert float(transmission.max()) == pytest.approx(1)
    assert float(transmission.min()) == pytest.approx(math.exp(-1))
    assert torch.allclose(haze(white, generator()), transmission + veil, atol=1e-6)
    assert transmission[:, :, 0].mean() < transmission[:, :, -1].mean()  # farther above


def test_filters_are_applied_per_image():
    clean, kernels = photographs(2, 16), torch.rand(2, 1, 3, 3, generator=generator())
    for border in ("zero", "mirror"):
        batch = degradations._filter(clean, kernels, border)
        for image, kernel, out in zip(clean, kernels, batch, strict=True):
            alone = degradations._filter(image[None], kernel[None], border)
            assert torch.allclose(alone[0], out, atol=1e-6)
    inner = torch.nn.functional.conv2d(clean[:1, :1], kernels[:1])
    assert torch.allclose(batch[:1, :1, 1:-1, 1:-1], inner, atol=1e-6)
