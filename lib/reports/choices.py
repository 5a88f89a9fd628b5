"""The effect of each choice of a convention, from what `published_numbers.sensitivity` measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ..published_numbers import BASE
from .text import number as text


def measured(path: Path) -> pd.DataFrame:
    """What `vary` measured, from its file."""
    return pd.read_csv(path, dtype={"image": str}).fillna({"group": BASE[0]})


def worth(rows: pd.DataFrame) -> pd.DataFrame:
    """The effect of each choice of `vary`: a row per number and choice.

    Columns: number, group, choice, psnr (mean over the photographs, dB), difference and ssim_difference to the base;
    low and high (of the difference over the draws), spread (standard deviation over them), NaN where nothing is drawn.
    """
    found = []
    for number, mine in rows.groupby("number", sort=False):
        base = mine[mine.choice == BASE[1]].set_index("image")[["psnr", "ssim"]]
        for (group, choice), these in mine.groupby(["group", "choice"], sort=False):
            # photographs that a choice does not concern stay as they are
            means = pd.DataFrame(
                [part.set_index("image")[["psnr", "ssim"]].combine_first(base).mean()
                 for _, part in these.groupby("draw", dropna=False)]
            )  # fmt: skip
            change = means - base.mean()
            row = {"psnr": means.psnr.mean(), "difference": change.psnr.mean(), "ssim_difference": change.ssim.mean()}
            if len(means) > 1:
                row |= {"low": change.psnr.min(), "high": change.psnr.max(), "spread": means.psnr.std()}
            found.append({"number": number, "group": group, "choice": choice, **row})
        of_mean_error = -10 * np.log10((10 ** (-base.psnr / 10)).mean())
        found.append({"number": number, "group": "mean", "choice": "PSNR of the mean error", "psnr": of_mean_error,
                      "difference": of_mean_error - base.psnr.mean()})  # fmt: skip
    columns = ["number", "group", "choice", "psnr", "difference", "ssim_difference", "low", "high", "spread"]
    return pd.DataFrame(found).reindex(columns=columns)


def gray_conversion(compared: pd.DataFrame) -> pd.DataFrame:
    """A row like those of `worth` for the two gray conversions of a set that DnCNN was run on, or none."""
    found = []
    for images, rows in compared[compared.check == "dncnn"].groupby("images", sort=False):
        by_way = rows.set_index("way").measured
        if {"opencv", "matlab"} <= set(by_way.dropna().index):
            number = f"DnCNN, {images.split()[0]}, sigma 25"
            for (group, choice), way in ((BASE, "opencv"), (("channel", "gray by MATLAB's rgb2gray"), "matlab")):
                found.append({"number": number, "group": group, "choice": choice, "psnr": by_way[way],
                              "difference": by_way[way] - by_way["opencv"]})  # fmt: skip
    table = pd.DataFrame(found, columns=["number", "group", "choice", "psnr", "difference"])
    return table.astype({"psnr": float, "difference": float})


def for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `worth` as text; what is drawn several times as "mean (low to high)"."""
    several = [f" ({row.low:+.3f} to {row.high:+.3f})" if pd.notna(row.low) else "" for row in table.itertuples()]
    difference = [text(value, 3, signed=True) for value in table.difference + 0.0]
    return pd.DataFrame(
        {
            "number": table.number,
            "group": table.group,
            "choice": table.choice,
            "PSNR (dB)": [text(value, 2) for value in table.psnr],
            "difference (dB)": [one + drawn for one, drawn in zip(difference, several, strict=True)],
            "difference of SSIM": [text(value, 4, signed=True) for value in table.ssim_difference],
        }
    ).set_index("number")


def finding(table: pd.DataFrame, matters: float = 0.05) -> str:
    """Per number: how many choices matter, which matters most, and what a draw of the noise does."""
    sentences = []
    for number, rows in table.groupby("number", sort=False):
        changed = rows[rows.group != BASE[0]]
        most = changed.loc[changed.difference.abs().idxmax()]
        many = (changed.difference.abs() > matters).sum()
        if many:
            said = f"{many} of {len(changed)} choices are worth more than {matters} dB, most of all {most.group}"
            sentences.append(f"{number}: {said}, {most.choice} ({most.difference:+.2f} dB).")
        else:
            said = "no choice is" if len(changed) > 1 else f"{most.group}, {most.choice}, is not"
            sentences.append(f"{number}: {said} worth {matters} dB.")
        for drawn in changed[changed.low.notna()].itertuples():
            sentences.append(f"Noise drawn anew spreads it by {drawn.spread:.3f} dB (standard deviation).")
    return " ".join(sentences)
