"""The effect of each choice of a convention: choices whose effect is known, and the table made from them."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lib.images import sets
from lib.measuring.metrics import Convention
from lib.published_numbers import BASE, DRAWN, sensitivity
from lib.reports import choices
from lib.tasks import degradations

FULL_RANGE = 20 * math.log10(255 / 219)


def item(folder: Path, channels: int) -> sets.Item:
    rough = torch.rand(1, channels, 32, 36, generator=torch.Generator().manual_seed(channels))
    pixels = np.moveaxis((degradations.resize(rough, up=2)[0].clamp(0, 1) * 255).byte().numpy(), 0, 2)
    path = folder / f"{channels}.npy"
    np.save(path, pixels[:, :, 0] if channels == 1 else pixels)
    return sets.Item("some", str(channels), path)


def table(rows: list[dict]) -> pd.Series:
    """Differences of PSNR to the base, by choice."""
    frame = pd.DataFrame(rows)
    base = frame.psnr[frame.choice == BASE[1]].item()
    return frame.groupby("choice").psnr.mean() - base


def test_choices_of_enlargement(tmp_path):
    rows = sensitivity.enlarging(item(tmp_path, 3))
    change = table(rows)
    assert change["Y from 0 to 255"] == pytest.approx(-FULL_RANGE, abs=0.1)
    assert change["RGB"] < -1 and change["without antialiasing"] < -0.1
    assert 0 < abs(change["input rounded once, not twice"]) < 0.05
    assert change["uniform, 8 x 8"] == 0
    by_choice = pd.DataFrame(rows).set_index("choice").ssim
    assert by_choice["uniform, 8 x 8"] != by_choice[BASE[1]]


def test_choices_of_denoising(tmp_path):
    gray = sensitivity.denoising(item(tmp_path, 1), None, crop=48, draws=3)
    change = table(gray)
    assert change["gray stored as RGB, measured as Y"] == pytest.approx(FULL_RANGE, abs=0.05)
    assert change["noisy input clipped"] != 0
    assert change["output not rounded"] > 0
    assert change["tiles of 100 pixels, overlap 12"] == 0  # one tile
    assert change["self-ensemble x8"] != 0
    draws = [row["psnr"] for row in gray if row["choice"] == DRAWN[1]]
    assert len(set(draws)) == 3
    assert "gray by MATLAB's rgb2gray" not in change
    assert "gray by MATLAB's rgb2gray" in table(sensitivity.denoising(item(tmp_path, 3), None, crop=32, draws=1))


def test_draws_are_those_of_the_study(tmp_path):
    gray = item(tmp_path, 1)
    clean = torch.from_numpy(np.load(gray.target))[None, None] / 255
    noise = degradations.build("gaussian_noise", sigma=25)
    found = sensitivity.denoising(gray, None, crop=64, draws=2)
    network = sensitivity.models.build("nlm", sigma=25)
    for row in found[-2:]:
        noisy = noise(clean[:, :, :, 4:68], noise.generator("some", "1", row["draw"]))
        assert row["psnr"] == Convention("gray", quantise=True).measure(network(noisy), clean[:, :, :, 4:68])["psnr"]


def rows(choice: tuple[str, str], draw: float = math.nan, ssim: float = 0.9, **psnr: float) -> list[dict]:
    keys = {"number": "one", "group": choice[0], "choice": choice[1], "draw": draw, "ssim": ssim}
    return [{**keys, "image": image, "psnr": value} for image, value in psnr.items()]


def measured() -> pd.DataFrame:
    return pd.DataFrame(
        rows(BASE, a=30.0, b=20.0)
        + rows(("border", "8 pixels left out"), ssim=0.92, a=30.5, b=20.1)
        + rows(("channel", "gray by MATLAB's rgb2gray"), b=19.0)
        + rows(DRAWN, draw=0, a=30.2, b=20.2)
        + rows(DRAWN, draw=1, a=29.9, b=20.1)
    )


def test_what_choices_are_worth(tmp_path):
    measured().to_csv(tmp_path / "choices.csv", index=False)
    worth = choices.worth(choices.measured(tmp_path / "choices.csv")).set_index("choice")
    assert worth.difference[BASE[1]] == 0
    assert worth.difference["8 pixels left out"] == pytest.approx(0.3)
    assert worth.ssim_difference["8 pixels left out"] == pytest.approx(0.02)
    assert worth.difference["gray by MATLAB's rgb2gray"] == pytest.approx(-0.5)  # photograph a stays as it is
    drawn = worth.loc[DRAWN[1]]
    assert (drawn.low, drawn.high) == (pytest.approx(0.0), pytest.approx(0.2))
    assert drawn.spread == pytest.approx(0.2 / 2**0.5)
    assert worth.low.notna().sum() == 1
    error = (1e-3 + 1e-2) / 2
    assert worth.psnr["PSNR of the mean error"] == pytest.approx(-10 * math.log10(error))


def test_readers_see_every_choice_and_the_range_of_draws():
    worth = choices.worth(measured())
    shown = choices.for_readers(worth).set_index("choice")
    assert shown.loc["as published", ["PSNR (dB)", "difference (dB)"]].tolist() == ["25.00", "+0.000"]
    assert shown.loc["drawn anew", "difference (dB)"] == "+0.100 (+0.000 to +0.200)"
    text = choices.finding(worth)
    assert "4 of 4 choices are worth more than 0.05 dB, most of all mean, PSNR of the mean error (-2.40 dB)" in text
    assert "spreads it by 0.141 dB" in text
    assert f"{worth.number.iloc[0]}: no choice is worth 5 dB." in choices.finding(worth, matters=5)


def test_gray_conversions_are_compared_where_both_were_run():
    number = partial(dict, check="dncnn", images="urban100/HR weights")
    both = pd.DataFrame([number(way="opencv", measured=29.97), number(way="matlab", measured=29.95)])
    found = choices.gray_conversion(both)
    assert found.difference.round(4).tolist() == [0.0, -0.02]
    assert found.number.unique().tolist() == ["DnCNN, urban100/HR, sigma 25"]
    assert choices.gray_conversion(both.iloc[:1]).empty
    said = "DnCNN, urban100/HR, sigma 25: channel, gray by MATLAB's rgb2gray, is not worth 0.05 dB."
    assert choices.finding(pd.concat([choices.worth(measured()), found])).endswith(said)
