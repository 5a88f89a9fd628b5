"""Our numbers: every image of every number of numbers.csv, measured in each way that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from .. import models, official
from ..images import sets
from ..images.registry import manifest_of
from ..images.sets import Item
from ..measuring.inference import restore
from ..measuring.metrics import Convention, psnr, published, ssim
from ..tasks import Task
from ..tasks.degradations import build, resize
from ..tasks.experiment import degraded, target
from . import KEY, absent
from .parallel import each

#: How DnCNN's numbers were made, and for fairness those of the classical denoisers here.
DNCNN = published("dncnn", "gray_denoise")

#: DnCNN's 17 convolutions see this many pixels to each side; tiles that overlap by twice that restore like the whole.
REACH = 17
TILE = 1024


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
