"""Do our conventions give published numbers back? They are those of numbers.csv, a row each:

    check             what is measured, a key of CHECKS
    images            references of the registry: the photographs first, then what else is needed (low-resolution files;
                      `weights`, DnCNN's checkpoint)
    setting           scale, sigma, quality, or what is measured
    way               the convention, where there is more than one; the function of a check explains its ways
    metric            psnr (dB), ssim, or identical (number of images that equal the published file)
    value, tolerance  what it must be; without a tolerance the value only stands beside ours
    source            where the value is from

What each choice of a convention is worth is measured in `sensitivity`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .. import models
from ..degradations import build, resize
from ..experiment import degraded, target
from ..images import sets
from ..images.registry import manifest_of
from ..images.sets import Item
from ..inference import restore
from ..metrics import Convention, PaperConvention, psnr, published, ssim
from ..tasks import Task
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
    "nlm": "non-local means beside BM3D",
    "bm3d": "BM3D",
}

#: How DnCNN's numbers were made, and for fairness those of the classical denoisers here.
DNCNN = published("dncnn", "gray_denoise")

#: DnCNN's 17 convolutions see this many pixels to each side; tiles that overlap by twice that restore like the whole.
REACH = 17
TILE = 1024

#: way -> metrics asked for, and (way, metric) -> value
Ways = dict[str, list[str]]
Found = dict[tuple[str, str], float]


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
    """Measure every image of every number in `table` that can be.

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
        ways = {way: list(of_way.metric) for way, of_way in rows.groupby("way", sort=False)}
        photographs, *others = (sets.read(manifests / manifest_of(reference)) for reference in images.split())
        for item in photographs:
            # beside a photograph lies the file of its name, or the only one there is
            beside = [next((o for o in other if o.name == item.name), other[0]) for other in others]
            jobs.append(partial(_MEASURES[check], item, beside, setting, ways))
            keys.append((*key, item.name))
    rows = [
        (check, images, setting, way, metric, name, value)
        for (check, images, setting, name), found in zip(keys, each(jobs, say, workers), strict=True)
        for (way, metric), value in found.items()
    ]
    return pd.DataFrame(rows, columns=["check", "images", "setting", "way", "metric", "image", "value"])


def compare(table: pd.DataFrame, images: pd.DataFrame, references: Iterable[str]) -> pd.DataFrame:
    """`table` with what was measured.

    New columns: measured (mean over the images, for `identical` their number), photographs, deviation, verdict (AGREES,
    DIFFERS, REPORTED, NOT_RUN) and why it was not run.
    """
    references = set(references)
    key = ["check", "images", "setting", "way", "metric"]
    found = images.groupby(key, sort=False).value.agg(["mean", "sum", "count"]).reset_index()
    rows = table.merge(found, "left", key)
    rows["measured"] = rows["sum"].where(rows.metric == "identical", rows["mean"])
    rows["photographs"] = rows["count"].fillna(0).astype(int)
    rows["deviation"] = rows.measured - rows.value
    rows["why"] = [absent(row.check, row.images, references) for row in rows.itertuples()]
    within = rows.deviation.abs().round(6) <= rows.tolerance
    rows["verdict"] = np.select(
        [rows.measured.isna(), rows.value.isna() | rows.tolerance.isna(), within], [NOT_RUN, REPORTED, AGREES], DIFFERS
    )
    return rows.drop(columns=["mean", "sum", "count"])


def lr_files(item: Item, others: Sequence[Item], setting: str, ways: Ways) -> Found:
    """Whether our low-resolution image is the published one, for each way "border, rounding" of downscaling."""
    scale, low, found = int(setting[1:]), target(others[0], task_of("paired")), {}
    for way in ways:
        border, rounding = way.split(", ")
        task = task_of("bicubic", scale=scale, border=border, rounding=rounding)
        ours = degraded(item, task, target(item, task))
        found[way, "identical"] = float(torch.equal((ours * 255).round(), (low * 255).round()))
    return found


def bicubic(item: Item, others: Sequence[Item], setting: str, ways: Ways) -> Found:
    """Bicubic enlargement.

    Ways: `8-bit images` enlarges the low-resolution file (ours where there is none) to 8 bit and takes Y of that; `Y
    first` takes Y, rounded, there and back without rounding, as the published rows do; `Y first; <image> full range`
    leaves that gray image at 0 to 255, as it is published, where Y of three equal channels has 16 to 235.
    """
    scale, found = int(setting[1:]), {}
    task = task_of("bicubic", scale=scale)
    clean = target(item, task)
    for way, metrics in ways.items():
        if way == "8-bit images":
            low = target(others[0], task_of("paired")) if others else degraded(item, task, clean)
            found |= _values(way, metrics, resize(low, scale, rounding="both"), clean, Convention("y8", scale, True))
        else:
            gray = clean[:, :1].double() if way == f"Y first; {item.name} full range" else luma8(clean)
            found |= _values(way, metrics, there_and_back(gray, scale), gray, Convention("gray", scale, True))
    return found


def noise(item: Item, others: Sequence[Item], setting: str, ways: Ways) -> Found:
    """Noisy input, gray, by the study's noise. Ways: `clamped`, `not clamped`."""
    found, task = {}, noise_task(float(setting), "study")
    clean = target(item, task)
    given = degraded(item, task, clean)
    for way, metrics in ways.items():
        found |= _values(way, metrics, given, clean, Convention("gray", clamp=way == "clamped"))
    return found


def own_noise(item: Item, others: Sequence[Item], setting: str, ways: Ways) -> Found:
    """Noisy input as papers draw, store and cut it, see `metrics.CONVENTIONS`; the way is "paper kind"."""
    found = {}
    for way, metrics in ways.items():
        how = published(*way.split())
        task = noise_task(float(setting), how.noise, "opencv" if how.convention.channel == "gray" else "", how.stored)
        clean = target(item, task)
        given, clean = (how.cut(image) for image in (degraded(item, task, clean), clean))
        found |= _values(way, metrics, given, clean, replace(how.convention, clamp=False, quantise=False))
    return found


def jpeg(item: Item, others: Sequence[Item], setting: str, ways: Ways) -> Found:
    """Compressed input, gray; the way is the window of the SSIM."""
    task, found = task_of("jpeg", gray="matlab", quality=int(setting)), {}
    clean = target(item, task)
    given = degraded(item, task, clean)
    for way, metrics in ways.items():
        convention = Convention("gray", quantise=True, window=way.removesuffix(" window"))
        found |= _values(way, metrics, given, clean, convention)
    return found


def mosaic(item: Item, others: Sequence[Item], setting: str, ways: Ways) -> Found:
    """Mosaiced input, zero where the colour filter array has no value."""
    clean = target(item, task_of("bayer"))
    given = degraded(item, task_of("bayer"), clean)
    return _values("", ways[""], given, clean, Convention("rgb", quantise=True))


def pairs(item: Item, others: Sequence[Item], setting: str, ways: Ways) -> Found:
    """The degraded photograph of a set of pairs; the setting is what is measured."""
    clean = target(item, task_of("paired"))
    given = degraded(item, task_of("paired"), clean)
    return _values("", ways[""], given, clean, Convention(setting, quantise=True))


def dncnn(item: Item, others: Sequence[Item], setting: str, ways: Ways) -> Found:
    """DnCNN with its published weights on its toolbox's noise; the way is how a colour photograph becomes gray."""
    network, found, before = dncnn_network(others[0].target), {}, None
    for way, metrics in ways.items():
        task = noise_task(float(setting), DNCNN.noise, way or "matlab")
        clean = target(item, task)
        given = degraded(item, task, clean)
        restored = _renewed(network, given, *before) if before else restore(network, given, TILE, 2 * REACH)
        before = given, restored
        found |= _values(way, metrics, restored, clean, DNCNN.convention)
    return found


def classical(name: str, item: Item, others: Sequence[Item], setting: str, ways: Ways) -> Found:
    """A classical denoiser on the noise and by the convention of DnCNN."""
    task = noise_task(float(setting), DNCNN.noise)
    clean = target(item, task)
    restored = models.build(name, sigma=float(setting))(degraded(item, task, clean))
    return _values("", ways[""], restored, clean, DNCNN.convention)


#: check -> its measurement of one image: (photograph, what lies beside it, setting, ways) -> {(way, metric): value}
_MEASURES = {
    "lr_files": lr_files,
    "bicubic": bicubic,
    "noise": noise,
    "own_noise": own_noise,
    "jpeg": jpeg,
    "mosaic": mosaic,
    "pairs": pairs,
    "dncnn": dncnn,
    "nlm": partial(classical, "nlm"),
    "bm3d": partial(classical, "bm3d"),
}


# --- tables -------------------------------------------------------------------------------------------------------


#: Digits of a deviation.
DIGITS = {"psnr": 3, "ssim": 4, "identical": 0}


def set_name(images: str) -> str:
    """Of the photographs of a number: `set5/HR set5/LR_x2` -> `set5`."""
    return images.split()[0].split("/")[0]


def summary(compared: pd.DataFrame) -> pd.DataFrame:
    """A row per check for readers: sets, numbers, how many agree, largest deviation, what was not run and why."""
    rows = {}
    for check, mine in compared.groupby("check", sort=False):
        run, not_run = mine[mine.verdict != NOT_RUN], mine[mine.verdict == NOT_RUN]
        judged = run[run.verdict != REPORTED]
        worst = judged.loc[judged.deviation.abs().groupby(judged.metric, sort=False).idxmax()]
        rows[CHECKS[check]] = {
            "sets": ", ".join(dict.fromkeys(map(set_name, run["images"]))),
            "numbers": str(len(run)),
            "agree": f"{(judged.verdict == AGREES).sum()} of {len(judged)}" if len(judged) else "",
            "largest deviation": "; ".join(_signed(row.deviation, row.metric) for row in worst.itertuples()),
            "tolerance": "; ".join(f"{row.tolerance:g}" for row in worst.itertuples()),
            NOT_RUN: f"{len(not_run)}, {_reasons(not_run.why)}" if len(not_run) else "",
        }
    return pd.DataFrame(rows).T.rename_axis("check")


def held(compared: pd.DataFrame) -> pd.DataFrame:
    """What `plots.deviations` draws: PSNR and SSIM that have a tolerance, labelled by check, set and way."""
    rows = compared[compared.verdict.isin([AGREES, DIFFERS]) & compared.metric.isin(["psnr", "ssim"])]
    parts = zip(rows.check, rows["images"].map(set_name), rows.way, strict=True)
    label = [
        ", ".join(filter(None, (CHECKS[check].partition(",")[0], name, way.replace("_", " "))))
        for check, name, way in parts
    ]
    return rows.assign(label=label, agrees=rows.verdict == AGREES)


def wide(compared: pd.DataFrame, digits: int) -> pd.DataFrame:
    """For readers: a row per way and set, a column per setting, each cell "measured (reference)"."""
    texts = [
        NOT_RUN if row.verdict == NOT_RUN else f"{row.measured:.{digits}f}{_reference(row, digits)}"
        for row in compared.itertuples()
    ]
    rows = compared.assign(text=texts, set=compared["images"].map(set_name))
    order = {key: list(dict.fromkeys(rows[key])) for key in ("way", "set", "setting")}
    table = rows.pivot(index=["way", "set"], columns="setting", values="text")
    index = [pair for pair in ((w, s) for w in order["way"] for s in order["set"]) if pair in table.index]
    return table.reindex(index=index, columns=order["setting"]).fillna("")


def beside(compared: pd.DataFrame) -> pd.DataFrame:
    """For readers: a row per number with what it must be, where that is from, and the verdict."""
    rows = compared[compared.verdict != NOT_RUN]
    deviation = [_signed(row.deviation, row.metric) if pd.notna(row.deviation) else "" for row in rows.itertuples()]
    digits = rows.metric.map(DIGITS)
    return pd.DataFrame(
        {
            "check": rows.check.map(CHECKS),
            "set": rows["images"].map(set_name),
            "setting": rows.setting,
            "way": rows.way,
            "measured": [f"{value:.{d}f}" for value, d in zip(rows.measured, digits, strict=True)],
            "reference": [_reference(row, 4 if row.metric == "ssim" else 2)[2:-1] for row in rows.itertuples()],
            "deviation": deviation,
            "verdict": rows.verdict,
            "source": rows.source,
        }
    ).set_index("check")


def finding(compared: pd.DataFrame) -> str:
    """How many numbers agree, which do not and what cures it, and how many could not be measured."""
    judged = compared[compared.verdict.isin([AGREES, DIFFERS])]
    judged = judged.assign(name=[f"{CHECKS[row.check].partition(',')[0]} of {set_name(row.images)}" for row in
                                 judged.itertuples()])  # fmt: skip
    sentences = [f"{(judged.verdict == AGREES).sum()} of {len(judged)} numbers agree with their reference."]
    differing = judged[judged.verdict == DIFFERS]
    for (name, way, metric), rows in differing.groupby(["name", "way", "metric"], sort=False):
        worst = rows.deviation[rows.deviation.abs().idxmax()]
        # a way "<way>; <exception>" that agrees explains the difference
        cures = judged[(judged.name == name) & (judged.metric == metric) & judged.way.str.startswith(f"{way}; ")]
        cured = len(cures) > 0 and (cures.verdict == AGREES).all()
        sentences.append(
            f"{name[0].upper()}{name[1:]}{f' ({way})' if way else ''} differs by up to {_signed(worst, metric)}"
            f"{'; with ' + cures.way.iloc[0].partition('; ')[2] + ' it agrees' if cured else ''}."
        )
    not_run = (compared.verdict == NOT_RUN).sum()
    return " ".join(sentences + ([f"{not_run} numbers were not run."] if not_run else []))


def _reasons(why: Iterable[str]) -> str:
    """Reasons "what: names" in one line, the names of equal ones together."""
    found: dict[str, dict] = {}
    for reason in why:
        what, _, names = reason.partition(": ")
        found.setdefault(what, {}).update(dict.fromkeys(filter(None, names.split(", "))))
    return "; ".join(f"{what}: {', '.join(names)}" if names else what for what, names in found.items())


def _signed(value: float, metric: str) -> str:
    """A deviation with its unit."""
    unit = {"psnr": "dB", "ssim": "SSIM", "identical": "photographs"}[metric]
    rounded = round(value, DIGITS[metric])
    return f"{rounded:+.{DIGITS[metric]}f} {unit}" if rounded else f"0 {unit}"


def _reference(row: tuple, digits: int) -> str:
    return f" ({row.value:.{digits}f})" if pd.notna(row.value) else ""


# --- one image ----------------------------------------------------------------------------------------------------


def task_of(name: str, gray: str = "", **options) -> Task:
    """A task for reading and degrading images as the study's own tasks do."""
    colors, degradation = 1 if gray else 3, build(name, **options)
    return Task("published_numbers", "", degradation, Convention(), colors, (), (), (), gray or "matlab")


def noise_task(sigma: float, who: str, gray: str = "opencv", stored: bool = False) -> Task:
    """Denoising of noise that `who` drew, in 8 bit where it was `stored`; `gray` is empty for colour."""
    return task_of("gaussian_noise", gray, sigma=sigma, noise=who, quantise=stored)


def _values(way: str, metrics: Sequence[str], restored: Tensor, clean: Tensor, how: Convention) -> Found:
    """The metrics asked for and no more: the SSIM of a large image takes half a second."""
    a, b = how.planes(restored), how.planes(clean)
    return {(way, m): psnr(a, b) if m == "psnr" else ssim(a, b, how.window) for m in metrics}


@cache
def dncnn_network(weights: Path) -> nn.Module:
    network = models.build("dncnn")
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval().to(memory_format=torch.channels_last)  # a fifth faster, and the same


@torch.inference_mode()
def _renewed(network: nn.Module, given: Tensor, before: Tensor, restored: Tensor) -> Tensor:
    """What the network makes of `given`, from what it made of `before`, which differs from it in few pixels.

    Exact, as the network sees no further than REACH.
    """
    pixels, out, sides = torch.nonzero((given != before)[0, 0]), restored.clone(), given.shape[2:]
    for block in (pixels // REACH).unique(dim=0):
        near = pixels[(pixels // REACH == block).all(1)]
        box = zip(near.amin(0).tolist(), near.amax(0).tolist(), sides, strict=True)
        (a, b, height), (c, d, width) = ((max(low - REACH, 0), min(high + REACH + 1, n), n) for low, high, n in box)
        top, left = max(a - REACH, 0), max(c - REACH, 0)
        part = network(given[:, :, top : min(b + REACH, height), left : min(d + REACH, width)])
        out[:, :, a:b, c:d] = part[:, :, a - top : b - top, c - left : d - left]
    return out


def there_and_back(image: Tensor, scale: int) -> Tensor:
    return resize(resize(image, down=scale), scale)


def luma8(image: Tensor) -> Tensor:
    """Y of an 8-bit image, rounded, ``(1, 1, H, W)``."""
    return torch.from_numpy(Convention("y8").planes(image))[None]


def describe(how: PaperConvention) -> str:
    """One line for the head of a table; self-ensemble and tiles belong to the name of a number."""
    ensemble = "self-ensemble x8" if how.self_ensemble else "no self-ensemble"
    tiles = f"tiles of less than {how.tile:,} pixels" if how.tile else "no tiles"
    return f"{how.convention.describe()}, {ensemble}, {tiles}"
