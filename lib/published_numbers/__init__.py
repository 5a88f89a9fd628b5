"""Published numbers that need no training. numbers.csv has a row for each:

    check             the measured quantity, a key of `reports.published_numbers.CHECKS`
    images            references of the registry: the photographs first, then the further sets it needs (low-resolution
                      files; `weights`, the public checkpoints)
    setting           scale, sigma, quality, or the channel that is measured
    way               the convention, where there is more than one; the function of a check explains its ways
    metric            psnr (dB), ssim, or identical (number of images that equal the published file)
    value, tolerance  the published value, and how far ours may be from it; without a tolerance it is reported alone
    source            where the value was published

`check` measures them, `sensitivity` the effect of each choice of a convention; `reports.published_numbers` compares.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

NUMBERS = Path(__file__).with_name("numbers.csv")

#: Columns that name a number.
KEY = ["check", "images", "setting", "way", "metric"]

#: (group, choice): what the others differ from, and the one that is made several times.
BASE, DRAWN = ("", "as published"), ("noise", "drawn anew")


def numbers(path: Path = NUMBERS) -> pd.DataFrame:
    """The rows of numbers.csv, or of what was measured: values and tolerances are numbers or NaN, all else is text."""
    return pd.read_csv(path, dtype={"setting": str, "way": str, "image": str}, keep_default_na=False, na_values={
        "value": [""], "tolerance": [""]})  # fmt: skip


def absent(check: str, images: str, references: Iterable[str]) -> str:
    """Why a number cannot be measured with the sets `references`, or ""."""
    lacking = dict.fromkeys(r.split("/")[0] for r in images.split() if r not in references)
    if lacking:
        return f"not in this profile: {', '.join(lacking)}"
    if check == "bm3d" and not importlib.util.find_spec("bm3d"):
        return "the package bm3d is not installed"
    return ""
