"""The effect of each choice of a convention, in dB.

One number of denoising and one of super-resolution are measured as their papers did, then with one choice changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .. import models
from ..images import sets
from ..images.registry import manifest_of
from ..images.sets import Item
from ..measuring.inference import restore
from ..measuring.metrics import Convention
from ..tasks.degradations import resize, to_8_bit
from ..tasks.experiment import degraded, target
from . import BASE, DRAWN
from .check import DNCNN, REACH, TILE, checkpoint, dncnn_network, luma8, noise_task, task_of, there_and_back
from .parallel import each


def vary(
    manifests: Path,
    denoised: str,
    enlarged: str,
    crop: int,
    draws: int,
    say: Callable[[str], None] = lambda line: None,
    workers: int | None = None,
) -> pd.DataFrame:
    """Restore and measure the photographs of two sets under every choice that papers make differently.

    denoised: reference of the set denoised at sigma 25, by DnCNN where its weights are there, else by non-local means;
        of each photograph the central `crop` pixels, and `draws` times with noise drawn anew
    enlarged: reference of the set enlarged four times by bicubic interpolation, whole photographs

    Returns rows number, group, choice, draw, image, psnr, ssim; the rows of BASE are what the others differ from.
    """
    weights = manifests / manifest_of("weights")
    file = checkpoint(sets.read(weights)[0], "dncnn_25") if weights.exists() else None
    asked: dict[str, tuple[str, Callable[[Item], list[dict]]]] = {
        f"{'DnCNN' if file else 'non-local means'}, {denoised}, sigma 25": (
            denoised, partial(denoising, weights=file, crop=crop, draws=draws)),
        f"bicubic, {enlarged}, x4": (enlarged, enlarging),
    }  # fmt: skip
    jobs: list[tuple[str, Item, Callable[[], list[dict]]]] = [
        (number, item, partial(vary_one, item))
        for number, (reference, vary_one) in asked.items()
        for item in sets.read(manifests / manifest_of(reference))
    ]
    rows = [
        {"number": number, "image": item.name, **row}
        for (number, item, _), found in zip(jobs, each([job for *_, job in jobs], say, workers), strict=True)
        for row in found
    ]
    return pd.DataFrame(rows)[["number", "group", "choice", "draw", "image", "psnr", "ssim"]]


def denoising(item: Item, weights: Path | None, crop: int, draws: int) -> list[dict]:
    """Rows of one photograph, see `vary`."""
    network = dncnn_network(weights) if weights else models.build("nlm", sigma=25)
    p, task, study = DNCNN.convention, noise_task(25, DNCNN.noise), noise_task(25, "study")
    clean = target(item, task, crop)
    given = degraded(item, task, clean)

    def restored(noisy: Tensor, tile: int = TILE, overlap: int = 2 * REACH, ensemble: bool = False) -> Tensor:
        return restore(network, noisy, tile, overlap, ensemble)

    output = restored(given)
    dagl = degraded(item, noise_task(25, "dagl"), clean)
    choices = {
        BASE: (output, clean, p),
        ("rounding", "output not rounded"): (output, clean, replace(p, quantise=False)),
        ("rounding", "noisy input clipped, stored in 8 bit"): (restored(to_8_bit(given)), clean, p),
        ("clipping", "noisy input clipped"): (restored(given.clamp(0, 1)), clean, p),
        ("clipping", "output neither clamped nor rounded"): (output, clean, replace(p, quantise=False, clamp=False)),
        ("border", "8 pixels left out"): (output, clean, replace(p, border=8)),
        ("channel", "gray stored as RGB, measured as Y"): (_rgb(output), _rgb(clean), replace(p, channel="y8")),
        ("SSIM window", "uniform, 8 x 8"): (output, clean, replace(p, window="uniform")),
        ("restoration", "tiles of 100 pixels, overlap 12"): (restored(given, 100, 12), clean, p),
        ("restoration", "self-ensemble x8"): (restored(given, ensemble=True), clean, p),
        ("noise", "as DAGL draws it"): (restored(dagl), clean, p),
    }
    if sets.open_image(item.target).ndim == 3:
        other = noise_task(25, DNCNN.noise, gray="matlab")
        gray = target(item, other, crop)
        choices["channel", "gray by MATLAB's rgb2gray"] = (restored(degraded(item, other, gray)), gray, p)
    found = [_row(choice, *measured) for choice, measured in choices.items()]
    for draw in range(draws):
        noisy = study.degradation.realise(clean, item.set, item.name, draw)
        found.append(_row(DRAWN, restored(noisy), clean, p) | {"draw": draw})
    return found


def enlarging(item: Item, scale: int = 4) -> list[dict]:
    """Rows of one photograph, see `vary`."""
    p, clean = Convention("y8", scale, quantise=True), target(item, task_of("bicubic", scale=scale))
    y = luma8(clean)

    def low(**options) -> Tensor:
        return degraded(item, task_of("bicubic", scale=scale, **options), clean)

    def enlarged(given: Tensor, **options) -> Tensor:
        return resize(given, scale, **{"rounding": "both", **options})

    output = enlarged(low())
    choices = {
        BASE: (output, clean, p),
        ("rounding", "Y not rounded"): (output, clean, replace(p, channel="y")),
        ("rounding", "nothing rounded but the input"): (
            enlarged(low(), rounding="none"),
            clean,
            Convention("y", scale),
        ),
        ("rounding", "input rounded once, not twice"): (enlarged(low(rounding="last")), clean, p),
        ("rounding", "input not rounded"): (enlarged(low(rounding="none")), clean, p),
        ("channel", "RGB"): (output, clean, replace(p, channel="rgb")),
        ("channel", "Y from 0 to 255"): (_full_range(output), _full_range(clean), replace(p, channel="gray")),
        ("channel", "Y first, then there and back"): (there_and_back(y, scale), y, replace(p, channel="gray")),
        ("border", "nothing left out"): (output, clean, replace(p, border=0)),
        ("border", "8 pixels left out"): (output, clean, replace(p, border=8)),
        ("border", "input made with a mirrored border"): (enlarged(low(border="mirror")), clean, p),
        ("border", "enlarged with a replicated border"): (enlarged(low(), border="replicate"), clean, p),
        ("SSIM window", "uniform, 8 x 8"): (output, clean, replace(p, window="uniform")),
        ("input", "by Pillow's bicubic"): (enlarged(_by_pillow(clean, scale)), clean, p),
        ("input", "without antialiasing"): (enlarged(_aliased(clean, scale)), clean, p),
    }
    return [_row(choice, *measured) for choice, measured in choices.items()]


def _row(choice: tuple[str, str], output: Tensor, clean: Tensor, how: Convention) -> dict:
    return {"group": choice[0], "choice": choice[1], "draw": np.nan, **how.measure(output, clean)}


def _full_range(image: Tensor) -> Tensor:
    """Y stretched to [0, 1], as JPEG has it, ``(1, 1, H, W)``."""
    return (torch.from_numpy(Convention("y", quantise=True).planes(image))[None] * 255 - 16) / 219


def _rgb(gray: Tensor) -> Tensor:
    return gray.expand(-1, 3, -1, -1)


def _by_pillow(image: Tensor, scale: int) -> Tensor:
    """Downscaled by Pillow's bicubic filter: antialiased, a = -0.5, other weights at the border, rounded in between."""
    pixels = np.moveaxis((image[0] * 255).round().byte().numpy(), 0, 2)
    small = Image.fromarray(pixels).resize(
        (pixels.shape[1] // scale, pixels.shape[0] // scale), Image.Resampling.BICUBIC
    )
    return torch.from_numpy(np.moveaxis(np.asarray(small), 2, 0).copy())[None] / 255


def _aliased(image: Tensor, scale: int) -> Tensor:
    """Downscaled by PyTorch's plain bicubic: a = -0.75, four pixels whatever the scale, rounded."""
    return to_8_bit(F.interpolate(image, scale_factor=1 / scale, mode="bicubic"))
