"""Do our conventions give published numbers back? numbers.csv has a row for each number:

    check             the measured quantity, a key of CHECKS
    images            references of the registry: the photographs first, then the further sets it needs (low-resolution
                      files; `weights`, the public checkpoints)
    setting           scale, sigma, quality, or the channel that is measured
    way               the convention, where there is more than one; the function of a check explains its ways
    metric            psnr (dB), ssim, or identical (number of images that equal the published file)
    value, tolerance  the published value, and how far ours may be from it; without a tolerance it is reported alone
    source            where the value was published

`sensitivity` measures the effect of each choice of a convention.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .. import models, official
from ..images import sets
from ..images.registry import manifest_of
from ..images.sets import Item
from ..measuring.inference import restore
from ..measuring.metrics import Convention, PaperConvention, psnr, published, ssim
from ..tasks import Task
from ..tasks.degradations import build, resize
from ..tasks.experiment import degraded, target
from .parallel import each

NUMBERS = Path(__file__).with_name("numbers.csv")

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

#: How DnCNN's numbers were made, and for fairness those of the classical denoisers here.
DNCNN = published("dncnn", "gray_denoise")

#: DnCNN's 17 convolutions see this many pixels to each side; tiles that overlap by twice that restore like the whole.
REACH = 17
TILE = 1024

#: Columns that name a number.
KEY = ["check", "images", "setting", "way", "metric"]


def numbers(path: Path = NUMBERS) -> pd.DataFrame:
    """The rows of numbers.csv: `value` and `tolerance` are numbers or NaN, all else is text."""
    return pd.read_csv(path, dtype={"setting": str, "way": str}, keep_default_na=False, na_values={
        "value": [""], "tolerance": [""]})  # fmt: skip


def absent(check: str, images: str, references: Iterable[str]) -> str:
    """Why a number cannot be measured with the sets `references`, or ""."""
    lacking = dict.fromkeys(r.split("/")[0] for r in images.split() if r not in references)
    if lacking:
        return f"not in this profile: {', '.join(lacking)}"
    if check == "bm3d" and not importlib.util.find_spec("bm3d"):
        return "the package bm3d is not installed"
    return ""


# --- numbers ------------------------------------------------------------------------------------------------------


def measure(
    table: pd.DataFrame, manifests: Path, say: Callable[[str], None] = lambda line: None, workers: int | None = None
) -> pd.DataFrame:
    """Measure every image of every number in `table` that can be measured.

    manifests: folder with a manifest per set, see `registry.manifest_of`. workers: processes, None for one per core.

    Returns rows check, images, setting, way, metric, image, value.
    """
    jobs, keys = [], []
    held = {reference for images in table["images"] for reference in images.split()
            if (manifests / manifest_of(reference)).exists()}  # fmt: skip
    for key, rows in table.groupby(["check", "images", "setting"], sort=False):
        check, images, setting = key
        if absent(check, images, held):
            continue
        asked = [(way, list(of_way.metric)) for way, of_way in rows.groupby("way", sort=False)]
        photographs, *others = (sets.read(manifests / manifest_of(reference)) for reference in images.split())
        for item in photographs:
            # with a photograph goes the file of its name in each other set; of `weights` any, as all lie in one folder
            files = [next((o for o in other if o.name == item.name), other[0]) for other in others]
            jobs.append(partial(_of_image, check, item, files, setting, asked))
            keys.append((*key, item.name))
    rows = [
        (check, images, setting, way, metric, name, value)
        for (check, images, setting, name), found in zip(keys, each(jobs, say, workers), strict=True)
        for (way, metric), value in found.items()
    ]
    return pd.DataFrame(rows, columns=[*KEY, "image", "value"])


def _of_image(
    check: str, item: Item, files: Sequence[Item], setting: str, asked: Sequence[tuple[str, Sequence[str]]]
) -> dict[tuple[str, str], float]:
    """The metrics asked for of each way, and no more: the SSIM of a large image takes half a second."""
    found = {}
    for way, metrics in asked:
        restored, clean, how = _MEASURES[check](item, files, setting, way)
        a, b = how.planes(restored), how.planes(clean)
        for metric in metrics:
            if metric == "identical":
                found[way, metric] = float(torch.equal((restored * 255).round(), (clean * 255).round()))
            else:
                found[way, metric] = psnr(a, b) if metric == "psnr" else ssim(a, b, how.window)
    return found


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


# --- one image in one way: (restored, clean, how they are measured) -------------------------------------------------

Measured = tuple[Tensor, Tensor, Convention]


def lr_files(item: Item, files: Sequence[Item], setting: str, way: str) -> Measured:
    """Our low-resolution image and the published one; the way is "border, rounding" of downscaling."""
    border, rounding = way.split(", ")
    given, _ = _pair(item, task_of("bicubic", scale=int(setting[1:]), border=border, rounding=rounding))
    return given, target(files[0], task_of("paired")), Convention("rgb")


def bicubic(item: Item, files: Sequence[Item], setting: str, way: str) -> Measured:
    """Bicubic enlargement.

    Ways: `8-bit images` enlarges the low-resolution file (ours where there is none) to 8 bit and takes Y of that; `Y
    first` takes Y, rounded, there and back without rounding, as the published rows do; `Y first; <image> full range`
    leaves that gray image at 0 to 255, as it is published, where Y of three equal channels has 16 to 235.
    """
    scale = int(setting[1:])
    given, clean = _pair(item, task_of("bicubic", scale=scale))
    if way == "8-bit images":
        low = target(files[0], task_of("paired")) if files else given
        return resize(low, scale, rounding="both"), clean, Convention("y8", scale, True)
    gray = clean[:, :1].double() if way == f"Y first; {item.name} full range" else luma8(clean)
    return there_and_back(gray, scale), gray, Convention("gray", scale, True)


def noise(item: Item, files: Sequence[Item], setting: str, way: str) -> Measured:
    """Noisy input, gray, by the study's noise. Ways: `clamped`, `not clamped`."""
    return *_pair(item, noise_task(float(setting), "study")), Convention("gray", clamp=way == "clamped")


def own_noise(item: Item, files: Sequence[Item], setting: str, way: str) -> Measured:
    """Noisy input as papers draw, store and cut it, see `metrics.CONVENTIONS`; the way is "paper kind"."""
    paper, kind = way.split()
    how = published(paper, kind)
    gray = "opencv" if how.convention.channel == "gray" else ""
    given, clean = _pair(item, noise_task(float(setting), how.noise, gray, how.stored))
    return how.cut(given), how.cut(clean), replace(how.convention, clamp=False, quantise=False)


def jpeg(item: Item, files: Sequence[Item], setting: str, way: str) -> Measured:
    """Compressed input, gray; the way is the window of the SSIM."""
    convention = Convention("gray", quantise=True, window=way.removesuffix(" window"))
    return *_pair(item, task_of("jpeg", gray="matlab", quality=int(setting))), convention


def mosaic(item: Item, files: Sequence[Item], setting: str, way: str) -> Measured:
    """Mosaiced input, zero where the colour filter array has no value."""
    return *_pair(item, task_of("bayer")), Convention("rgb", quantise=True)


def pairs(item: Item, files: Sequence[Item], setting: str, way: str) -> Measured:
    """The degraded photograph of a set of pairs; the setting is the channel that is measured."""
    return *_pair(item, task_of("paired")), Convention(setting, quantise=True)


def dncnn(item: Item, files: Sequence[Item], setting: str, way: str) -> Measured:
    """DnCNN with its published weights on its toolbox's noise; the way is how a colour photograph becomes gray."""
    given, clean = _pair(item, noise_task(float(setting), DNCNN.noise, way or "matlab"))
    return restore(dncnn_network(checkpoint(files[0], "dncnn_25")), given, TILE, 2 * REACH), clean, DNCNN.convention


def super_resolution(item: Item, files: Sequence[Item], setting: str, way: str) -> Measured:
    """IMDN with its published weights on the published low-resolution file.

    Ways: measured as the study does; with `; Y not rounded` on Y of 8-bit images that is no 8-bit image.
    """
    low, weights = files
    scale = int(setting[1:])
    network = imdn_network(checkpoint(weights, f"imdn_x{scale}"), scale)
    clean = target(item, task_of("bicubic", scale=scale))
    with torch.inference_mode():
        restored = network(target(low, task_of("paired")))
    return restored, clean, Convention("y" if "not rounded" in way else "y8", scale, True)


def classical(name: str, item: Item, files: Sequence[Item], setting: str, way: str) -> Measured:
    """A classical denoiser on the noise and by the convention of DnCNN."""
    given, clean = _pair(item, noise_task(float(setting), DNCNN.noise))
    return models.build(name, sigma=float(setting))(given), clean, DNCNN.convention


_MEASURES: dict[str, Callable[[Item, Sequence[Item], str, str], Measured]] = {
    **{
        measured.__name__: measured
        for measured in (lr_files, bicubic, noise, own_noise, jpeg, mosaic, pairs, dncnn, super_resolution)
    },
    **{name: partial(classical, name) for name in ("nlm", "bm3d")},
}


def _pair(item: Item, task: Task) -> tuple[Tensor, Tensor]:
    """The degraded and the clean photograph."""
    clean = target(item, task)
    return degraded(item, task, clean), clean


def task_of(name: str, gray: str = "", **options) -> Task:
    """A task for reading and degrading images as the study's own tasks do."""
    colors, degradation = 1 if gray else 3, build(name, **options)
    return Task("published_numbers", "", degradation, Convention(), colors, (), (), (), gray or "matlab")


def noise_task(sigma: float, who: str, gray: str = "opencv", stored: bool = False) -> Task:
    """Denoising of noise that `who` drew, in 8 bit where it was `stored`; `gray` is empty for colour."""
    return task_of("gaussian_noise", gray, sigma=sigma, noise=who, quantise=stored)


def checkpoint(weights: Item, name: str) -> Path:
    """The checkpoint `name` in the folder of the set `weights`."""
    return weights.target.with_name(f"{name}.pth")


@cache
def imdn_network(weights: Path, scale: int) -> nn.Module:
    """IMDN with its published weights."""
    return official.load_file(weights, "imdn", colors=3, scale=scale)


@cache
def dncnn_network(weights: Path) -> nn.Module:
    """DnCNN with its published weights."""
    network = models.build("dncnn")
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster, and the same
    return network.eval()


def there_and_back(image: Tensor, scale: int) -> Tensor:
    """The image made `scale` times smaller and enlarged again."""
    return resize(resize(image, down=scale), scale)


def luma8(image: Tensor) -> Tensor:
    """Y of an 8-bit image, rounded, ``(1, 1, H, W)``."""
    return torch.from_numpy(Convention("y8").planes(image))[None]


# --- tables for readers -----------------------------------------------------------------------------------------------

#: metric -> digits and unit of a deviation
UNITS = {"psnr": (3, "dB"), "ssim": (4, "SSIM"), "identical": (0, "photographs")}


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
