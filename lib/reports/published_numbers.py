"""Report of the published numbers: ours beside them, with a verdict each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from ..measuring.metrics import PaperConvention
from ..published_numbers import KEY, absent

AGREES, DIFFERS, REPORTED, NOT_RUN = "agrees", "differs", "no reference", "not run"

#: check -> its name in a table
CHECKS = {
    "lr_files": "low-resolution files, made anew",
    "bicubic": "bicubic enlargement",
    "noise": "noisy input",
    "own_noise": "noisy input, as papers draw it",
    "jpeg": "JPEG input",
    "mosaic": "mosaiced input",
    "pairs": "input of pairs",
    "dncnn": "DnCNN, published weights",
    "super_resolution": "super-resolution, published weights",
    "nlm": "non-local means beside BM3D",
    "bm3d": "BM3D",
}

#: metric -> digits and unit of a deviation
UNITS = {"psnr": (3, "dB"), "ssim": (4, "SSIM"), "identical": (0, "photographs")}


def compare(table: pd.DataFrame, images: pd.DataFrame, references: Iterable[str]) -> pd.DataFrame:
    """`table` with what was measured.

    New columns: measured (mean over the images, for `identical` their number), photographs, deviation, verdict (AGREES,
    DIFFERS, REPORTED, NOT_RUN) and why it was not run.
    """
    references = set(references)
    found = images.groupby(KEY, sort=False).value.agg(["mean", "sum", "count"]).reset_index()
    rows = table.merge(found, "left", KEY)
    rows["measured"] = rows["sum"].where(rows.metric == "identical", rows["mean"])
    rows["photographs"] = rows["count"].fillna(0).astype(int)
    rows["deviation"] = rows.measured - rows.value
    rows["why"] = [absent(row.check, row.images, references) for row in rows.itertuples()]
    within = rows.deviation.abs().round(6) <= rows.tolerance
    rows["verdict"] = np.select(
        [rows.measured.isna(), rows.value.isna() | rows.tolerance.isna(), within], [NOT_RUN, REPORTED, AGREES], DIFFERS
    )
    return rows.drop(columns=["mean", "sum", "count"])


def describe(how: PaperConvention) -> str:
    """One line for the head of a table; self-ensemble and tiles belong to the name of a number."""
    ensemble = "self-ensemble x8" if how.self_ensemble else "no self-ensemble"
    tiles = f"tiles of less than {how.tile:,} pixels" if how.tile else "no tiles"
    return f"{how.convention.describe()}, {ensemble}, {tiles}"


def summary(compared: pd.DataFrame) -> pd.DataFrame:
    """A row per check: sets, numbers, how many agree, largest deviation, how many were not run and why."""
    rows = {}
    for check, mine in compared.groupby("check", sort=False):
        run, not_run = mine[mine.verdict != NOT_RUN], mine[mine.verdict == NOT_RUN]
        judged = run[run.verdict != REPORTED]
        worst = judged.loc[judged.deviation.abs().groupby(judged.metric, sort=False).idxmax()]
        rows[CHECKS[check]] = {
            "sets": ", ".join(dict.fromkeys(map(_set, run["images"]))),
            "numbers": str(len(run)),
            "agree": f"{(judged.verdict == AGREES).sum()} of {len(judged)}" if len(judged) else "",
            "largest deviation": "; ".join(map(_deviation, worst.itertuples())),
            "tolerance": "; ".join(f"{value:g}" for value in worst.tolerance),
            NOT_RUN: f"{len(not_run)}, {_reasons(not_run.why)}" if len(not_run) else "",
        }
    return pd.DataFrame(rows).T.rename_axis("check")


def judged(compared: pd.DataFrame) -> pd.DataFrame:
    """What `plots.deviations` draws: PSNR and SSIM that have a tolerance, labelled by check, set and way."""
    rows = compared[compared.verdict.isin([AGREES, DIFFERS]) & compared.metric.isin(["psnr", "ssim"])]
    label = [", ".join(filter(None, (_title(row), _set(row.images), row.way.replace("_", " "))))
             for row in rows.itertuples()]  # fmt: skip
    return rows.assign(label=label, agrees=rows.verdict == AGREES)


def by_setting(compared: pd.DataFrame, digits: int) -> pd.DataFrame:
    """A row per way and set, a column per setting, each cell "measured (reference)"."""
    text = [NOT_RUN if row.verdict == NOT_RUN else f"{row.measured:.{digits}f}{_reference(row, digits)}"
            for row in compared.itertuples()]  # fmt: skip
    rows = compared.assign(text=text, set=compared["images"].map(_set))
    rows[["way", "set", "setting"]] = rows[["way", "set", "setting"]].apply(_in_order)
    return rows.pivot(index=["way", "set"], columns="setting", values="text").fillna("")


def in_full(compared: pd.DataFrame) -> pd.DataFrame:
    """A row per number with its published value, the source of that, and the verdict."""
    rows = compared[compared.verdict != NOT_RUN]
    table = pd.DataFrame({"check": rows.check.map(CHECKS), "set": rows["images"].map(_set), "setting": rows.setting,
                          "way": rows.way})  # fmt: skip
    table["measured"] = [f"{row.measured:.{UNITS[row.metric][0]}f}" for row in rows.itertuples()]
    table["reference"] = [_reference(row, 4 if row.metric == "ssim" else 2)[2:-1] for row in rows.itertuples()]
    table["deviation"] = [_deviation(row) for row in rows.itertuples()]
    return table.assign(verdict=rows.verdict, source=rows.source).set_index("check")


def finding(compared: pd.DataFrame) -> str:
    """How many numbers agree, which do not and by which way they do, and how many could not be measured."""
    rows = compared[compared.verdict.isin([AGREES, DIFFERS])]
    rows = rows.assign(name=[f"{_title(row)} of {_set(row.images)}" for row in rows.itertuples()])
    sentences = [f"{(rows.verdict == AGREES).sum()} of {len(rows)} numbers agree with their reference."]
    for (name, way), differing in rows[rows.verdict == DIFFERS].groupby(["name", "way"], sort=False):
        worst = differing.loc[differing.deviation.abs().groupby(differing.metric, sort=False).idxmax()]
        # a way "<way>; <exception>" that agrees explains the difference
        cures = rows[(rows.name == name) & rows.way.str.startswith(f"{way}; ")]
        cured = set(worst.metric) <= set(cures.metric) and (cures.verdict == AGREES).all()
        sentences.append(
            f"{name[0].upper()}{name[1:]}{f' ({way})' if way else ''} differs by up to "
            f"{' and '.join(map(_deviation, worst.itertuples()))}"
            f"{f', and agrees with {cures.way.iloc[0].removeprefix(way)[2:]}' if cured else ''}."
        )
    not_run = (compared.verdict == NOT_RUN).sum()
    return " ".join(sentences + ([f"{not_run} numbers were not run."] if not_run else []))


def _set(images: str) -> str:
    """The set of the photographs of a number: `set5/HR set5/LR_x2` -> `set5`."""
    return images.split()[0].split("/")[0]


def _reasons(why: Iterable[str]) -> str:
    """Reasons "what: names" in one line, the names of equal ones together."""
    found: dict[str, dict[str, None]] = {}
    for what, _, names in (reason.partition(": ") for reason in why):
        found.setdefault(what, {}).update(dict.fromkeys(names.split(", ")))
    return "; ".join(f"{what}: {', '.join(names)}".removesuffix(": ") for what, names in found.items())


def _title(row: Any) -> str:
    return CHECKS[row.check].partition(",")[0]


def _deviation(row: Any) -> str:
    """The deviation of a number with its unit, if it has one."""
    digits, unit = UNITS[row.metric]
    rounded = round(row.deviation, digits)
    return "" if pd.isna(row.deviation) else f"{rounded:+.{digits}f} {unit}" if rounded else f"0 {unit}"


def _reference(row: Any, digits: int) -> str:
    return f" ({row.value:.{digits}f})" if pd.notna(row.value) else ""


def _in_order(column: pd.Series) -> pd.Series:
    """The column as a categorical whose order is that of first appearance."""
    return column.astype(pd.CategoricalDtype(column.unique()))
