"""Conventions against the literature: every check on tiny images whose answer is known, and on real ones."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lib import models
from lib.images import registry, sets
from lib.images.download import download
from lib.measuring.inference import restore
from lib.measuring.metrics import CONVENTIONS, Convention, psnr, published
from lib.params import ROOT
from lib.published_numbers import KEY, absent, check, numbers
from lib.reports import published_numbers as report
from lib.tasks.degradations import resize

HR, LOW = "set5/HR", "set5/LR_x2"


def picture(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    """An image with structure finer than x2 resolves, uint8."""
    noise = torch.rand(1, channels, height // 2 + 1, width // 2 + 1, generator=torch.Generator().manual_seed(seed))
    pixels = as_pixels(resize(noise, up=2)[:, :, :height, :width].clamp(0, 1))
    return pixels[:, :, 0] if channels == 1 else pixels


def as_pixels(image: torch.Tensor) -> np.ndarray:
    return np.moveaxis((image[0] * 255).round().byte().numpy(), 0, 2)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(pixels, 2, 0).copy())[None] / 255


class Study:
    """A folder of images with the manifests of the study."""

    def __init__(self, folder: Path):
        self.folder = folder / "manifests"
        self.folder.mkdir()

    def add(self, reference: str, **images: np.ndarray) -> None:
        rows = []
        for name, pixels in images.items():
            file = self.folder.parent / f"{registry.manifest_of(reference)}_{name}.npy"
            np.save(file, pixels)
            rows.append((reference.split("/")[0], name, file.name, "", sets.pixels_sha256(pixels), ""))
        with (self.folder / registry.manifest_of(reference)).open("w", newline="") as file:
            csv.writer(file).writerows([sets.COLUMNS, *rows])

    def measure(self, *wanted: tuple) -> pd.DataFrame:
        """Images measured for numbers (check, images, setting, way, metric)."""
        table = pd.DataFrame(wanted, columns=KEY)
        return check.measure(table, self.folder, workers=1)


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


def test_every_number_can_be_measured_and_says_where_it_is_from():
    table = numbers()
    assert not table.duplicated(KEY).any()
    assert set(table.check) == set(report.CHECKS) == set(check._MEASURES)
    registry.check_references({reference for images in table["images"] for reference in images.split()})
    assert set(table.metric) <= {"psnr", "ssim", "identical"}
    assert (table.source != "").equals(table.value.notna())
    assert not (table.tolerance.notna() & table.value.isna()).any() and (table.tolerance.dropna() >= 0).all()
    ways = set(table.way[table.check == "own_noise"])
    assert {tuple(way.split()) for way in ways} <= set(CONVENTIONS)


def test_low_resolution_files_are_compared_pixel_by_pixel(study):
    high = picture(40, 48, 3, seed=0)
    pixels = as_pixels(resize(as_tensor(high), down=2, border="replicate", rounding="both"))
    other = pixels.copy()
    other[0, 0, 0] ^= 1
    study.add(HR, a=high, b=high)
    study.add(LOW, a=pixels, b=other)
    ways = ("replicate, both", "mirror, both")
    found = study.measure(*(("lr_files", f"{HR} {LOW}", "x2", way, "identical") for way in ways))
    by_way = found.pivot(index="way", columns="image", values="value")
    assert by_way.loc[[*ways], ["a", "b"]].to_numpy().tolist() == [[1, 0], [0, 0]]


def test_bicubic_rows_in_their_two_procedures(study):
    image = picture(40, 41, 3, seed=1)  # 41 columns: one is left out
    study.add(HR, a=image)
    low = np.zeros((20, 20, 3), np.uint8)
    study.add(LOW, a=low)
    wanted = [("bicubic", HR, "x2", way, "psnr") for way in ("8-bit images", "Y first")]
    ours, y_first = study.measure(*wanted).value
    (given,) = study.measure(("bicubic", f"{HR} {LOW}", "x2", "8-bit images", "psnr")).value
    clean = as_tensor(image[:, :40])
    y = torch.from_numpy(Convention("y8").planes(clean))[None]
    assert y_first == Convention("gray", 2, True).measure(resize(resize(y, down=2), up=2), y)["psnr"]
    assert 15 < ours < 60 and abs(ours - y_first) < 1
    assert given == Convention("y8", 2, True).measure(torch.zeros_like(clean), clean)["psnr"]


def test_a_gray_image_over_its_full_range_counts_its_error_in_full(study):
    gray = np.repeat(picture(48, 48, 1, seed=2)[:, :, None], 3, axis=2)
    study.add(HR, bridge=gray, other=gray)
    ways = ("Y first", "Y first; bridge full range")
    found = study.measure(*(("bicubic", HR, "x2", way, "psnr") for way in ways))
    value = found.set_index(["way", "image"]).value
    assert value[ways[0], "bridge"] - value[ways[1], "bridge"] == pytest.approx(20 * math.log10(255 / 219), abs=0.1)
    assert value[ways[1], "other"] == value[ways[0], "other"]


def test_noise_has_its_theoretical_psnr_until_it_is_clamped(study):
    study.add("set12", a=picture(256, 256, 1, seed=3))
    found = study.measure(*(("noise", "set12", "25", way, "psnr") for way in ("not clamped", "clamped")))
    unclamped, clamped = found.value
    assert unclamped == pytest.approx(20 * math.log10(255 / 25), abs=0.05)
    assert clamped > unclamped + 0.1


def test_lir_draws_noise_for_the_whole_image_and_cuts_it_afterwards(study):
    image = picture(40, 70, 3, seed=4)
    study.add("cbsd68", a=image)
    (value,) = study.measure(("own_noise", "cbsd68", "50", "lir color_denoise", "psnr")).value
    drawn = np.random.RandomState(0).standard_normal(image.shape)[:32, :64] * 50 / 255
    assert value == pytest.approx(psnr(drawn, np.zeros_like(drawn)), abs=1e-4)


def test_panet_stores_noisy_images(study):
    study.add("cbsd68", a=picture(64, 64, 3, seed=5))
    wanted = [("own_noise", "cbsd68", "50", f"{paper} color_denoise", "psnr") for paper in ("panet", "lir")]
    stored, drawn = study.measure(*wanted).value
    assert stored > drawn + 0.3  # clipped values are not as far off


def test_tiles_restore_like_the_whole_where_they_overlap_by_what_dncnn_sees():
    network = models.build("dncnn", width=4).eval()
    for weight in (p for p in network.parameters() if p.ndim > 1):
        torch.nn.init.kaiming_normal_(weight)  # so that the farthest pixel counts
    given = torch.rand(1, 1, 90, 75)
    with torch.no_grad():
        wanted = network(given)
    assert torch.allclose(restore(network, given, 60, 2 * check.REACH), wanted, atol=1e-6)
    assert not torch.allclose(restore(network, given, 60, check.REACH), wanted, atol=1e-7)


def compared() -> pd.DataFrame:
    rows = [
        ("bicubic", "set14/HR", "x2", "Y first", "psnr", 30.24, 0.02, "a"),
        ("bicubic", "set14/HR", "x2", "Y first; bridge full range", "psnr", 30.24, 0.02, "a"),
        ("noise", "set12", "25", "clamped", "psnr", math.nan, math.nan, ""),
        ("nlm", "set12", "25", "", "psnr", 29.96, math.nan, "BM3D"),
        ("pairs", "cc15", "rgb", "", "psnr", 33.41, 0.02, "b"),
        ("pairs", "rain100l", "y8", "", "psnr", 26.90, 0.02, "b"),
        ("lr_files", "set5/HR set5/LR_x2", "x2", "mirror, both", "identical", 2, 0, "c"),
    ]
    table = pd.DataFrame(rows, columns=list(numbers().columns))
    values = [(30.32, 30.33), (30.235, 30.235), (20.3,), (29.0,), (), (26.90 + 0.02,), (1.0, 1.0)]
    images = [
        {**row, "image": str(n), "value": value}
        for row, several in zip(table[KEY].to_dict("records"), values, strict=True)
        for n, value in enumerate(several)
    ]
    return report.compare(table, pd.DataFrame(images), ["set14/HR", "set12", "rain100l", "set5/HR", "set5/LR_x2"])


def test_verdicts():
    found = compared()
    expected = (
        report.DIFFERS,
        report.AGREES,
        report.REPORTED,
        report.REPORTED,
        report.NOT_RUN,
        report.AGREES,
        report.AGREES,
    )
    assert (*found.verdict,) == expected
    assert found.deviation[0] == pytest.approx(0.085) and found.photographs[0] == 2
    assert found.measured[6] == 2  # identical images are counted
    assert found.why[4] == "not in this profile: cc15"


def test_tables_for_readers():
    found = compared()
    rows = report.summary(found)
    assert rows.loc["bicubic enlargement", "agree"] == "1 of 2"
    assert rows.loc["bicubic enlargement", "largest deviation"] == "+0.085 dB"
    assert rows.loc["input of pairs", "not run"] == "1, not in this profile: cc15"
    assert rows.loc["non-local means beside BM3D", ["agree", "largest deviation"]].tolist() == ["", ""]
    assert report.by_setting(found[found.check == "bicubic"], 2).loc[("Y first", "set14"), "x2"] == "30.32 (30.24)"
    assert list(report.in_full(found).verdict) == [v for v in found.verdict if v != report.NOT_RUN]
    assert set(report.judged(found).metric) == {"psnr"} and report.judged(found).agrees.sum() == 2
    text = report.finding(found)
    assert text.startswith("3 of 4 numbers agree")
    assert "set14 (Y first) differs by up to +0.085 dB, and agrees with bridge full range." in text


def test_what_a_profile_lacks_is_not_run(study):
    study.add("set12", a=picture(32, 32, 1, seed=6))
    table = numbers()
    found = report.compare(table, check.measure(table[table.check == "dncnn"], study.folder, workers=1), ["set12"])
    assert set(found.verdict) == {report.NOT_RUN}
    assert found.why[found.check == "dncnn"].iloc[0] == "not in this profile: weights"
    assert absent("bm3d", "set12", []) == "not in this profile: set12"


# --- on the published images --------------------------------------------------------------------------------------


PUBLISHED = (
    "set5/HR set5/LR_x2 set5/LR_x3 set5/LR_x4 set14/HR set14/LR_x2 set14/LR_x3 set14/LR_x4 "
    "b100/HR b100/LR_x2 b100/LR_x4 classic5 live1/gray_y cc15 rain100l mcmaster"
)


@pytest.fixture(scope="module")
def benchmark(mirror, tmp_path_factory) -> Path:
    """Manifests of Set5, of two images of Set12, and of the public weights."""
    folder = tmp_path_factory.mktemp("published")
    references = [*PUBLISHED.split(), "set12", "weights"]
    if not (mirror.parent / "weights" / "imdn_x2.pth").is_file():
        pytest.skip("the public weights are not beside the mirror")
    download(references, folder, folder / "cache", mirror=str(mirror))
    registry.published().write_set_manifests(folder / "manifests", references)
    lines = (folder / "manifests" / "set12.csv").read_text().splitlines(keepends=True)
    (folder / "manifests" / "set12.csv").write_text("".join(lines[:3]))
    return folder / "manifests"


def test_public_networks_for_super_resolution_give_published_numbers_back(benchmark):
    """IMDN within 0.02 dB with Y not rounded, up to 0.09 dB below with it rounded."""
    table = numbers()
    table = table[(table.check == "super_resolution") & table["images"].str.contains("set5")]
    found = report.compare(table, check.measure(table, benchmark, workers=1), [*PUBLISHED.split(), "weights"])
    exact = found[found.way == "IMDN; Y not rounded"]
    assert len(exact) == 4 and set(exact.verdict) == {report.AGREES}
    assert (exact.deviation.abs() < exact.metric.map({"psnr": 0.02, "ssim": 5e-4})).all()
    rounded = found[(found.way == "IMDN") & (found.metric == "psnr")]
    assert rounded.deviation.between(-0.1, -0.01).all()
    assert " SSIM, and agrees with Y not rounded." in report.finding(found)


@pytest.mark.parametrize(
    ("measured", "many"),
    [
        ("(?:bicubic|lr_files) set5/HR", 21),
        ("set14/HR .*replicate, both", 3),
        ("b100/HR .*replicate, both", 2),
        ("jpeg.*classic5.*uniform", 8),
        ("jpeg.*live1.*10.*uniform", 2),
        ("cc15.*psnr", 1),
        ("rain100l.*psnr", 1),
        ("mcmaster.*psnr", 1),
    ],
)
def test_benchmarks_agree_with_the_literature(benchmark, measured, many):
    table = numbers()
    table = table[table[KEY].agg(" ".join, axis=1).str.contains(measured)]
    found = report.compare(table, check.measure(table, benchmark, workers=1), PUBLISHED.split())
    assert len(found) == many and set(found.verdict) <= {report.AGREES, report.REPORTED}
    agree = found[found.verdict == report.AGREES]
    assert (agree.deviation.abs() < agree.metric.map({"psnr": 5e-3, "ssim": 5e-5, "identical": 1e-9})).all()


def test_dncnn_restores_as_in_the_committed_report(benchmark):
    committed = numbers(ROOT / "results/gpu/published_numbers/images.csv")
    table = numbers().query("check == 'dncnn' and images == 'set12 weights'")
    found = check.measure(table, benchmark, workers=1)
    rows = committed.query("check == 'dncnn' and images == 'set12 weights'").set_index("image")
    assert list(found.image) == ["01", "02"]
    assert list(found.value) == pytest.approx(list(rows.value[found.image]), abs=0.001)


def test_a_conventions_name_says_self_ensemble_and_tiles():
    dagl = "gray, whole image, clamped, not rounded, self-ensemble x8, tiles of less than 10,000 pixels"
    assert report.describe(published("dagl", "gray_denoise")) == dagl
    assert report.describe(published("lir", "derain")).endswith("rounded to 8 bit, no self-ensemble, no tiles")
