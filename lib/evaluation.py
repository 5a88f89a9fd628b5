"""Measuring an experiment on its held-out photographs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import experiment as experiments
from . import insights
from .degradations import resize
from .images import sets
from .inference import restore
from .params import Baseline, Experiment


@dataclass(frozen=True)
class Restored:
    """One photograph of the first seed, for figures: arrays (H, W[, 3]) in [0, 1] and its numbers."""

    set: str
    image: str
    clean: np.ndarray
    degraded: np.ndarray
    restored: np.ndarray
    psnr: float
    input_psnr: float


def measure(
    experiment: Experiment | Baseline,
    networks: Mapping[int, nn.Module],
    items: Sequence[sets.Item],
    say: Callable[[str], None] = lambda line: None,
) -> tuple[pd.DataFrame, list[Restored]]:
    """Restore and measure every photograph with every seed's network.

    Returns per-image rows (set, image, seed, psnr, ssim, input_psnr, input_psnr_unclamped, self_similarity, dB to
    four digits) and, by the first seed, the photographs of the smallest and of the largest gain; no others are kept.
    A super-resolution input is measured after bicubic enlargement.
    """
    task, how = experiment.task, experiment.evaluation
    device = "cuda" if torch.cuda.is_available() else "cpu"
    networks = {seed: network.to(device) for seed, network in networks.items()}
    rows, pictures = [], []
    for count, item in enumerate(items, 1):
        clean = experiments.target(item, task, how.crop)
        given = experiments.degraded(item, task, clean, how.crop)
        enlarged = enlarge(given, clean)
        before = task.convention.measure(enlarged, clean)
        unclamped = task.convention.measure(enlarged, clean, clamp=False)["psnr"]
        similar = self_similarity(clean)
        for seed, network in networks.items():
            output = restore(network, given.to(device), how.tile, how.overlap, how.self_ensemble).cpu()
            after = task.convention.measure(output, clean)
            rows.append(
                {"set": item.set, "image": item.name, "seed": seed, **after}
                | {"input_psnr": before["psnr"], "input_psnr_unclamped": unclamped, "self_similarity": similar}
            )
            if seed == next(iter(networks)):
                arrays = [_array(x) for x in (clean, enlarged, output)]
                pictures.append(Restored(item.set, item.name, *arrays, after["psnr"], before["psnr"]))
                pictures.sort(key=lambda picture: picture.psnr - picture.input_psnr)
                pictures = [pictures[0], pictures[-1]]
        say(f"{count}/{len(items)}  {item.set}/{item.name}  {rows[-1]['psnr']:.2f} dB")
    return pd.DataFrame(rows).round(4), pictures


def enlarge(given: Tensor, clean: Tensor) -> Tensor:
    """The degraded image at the size of the clean one: itself, or its bicubic enlargement as MATLAB makes it."""
    return given if given.shape == clean.shape else resize(given, up=clean.shape[2] // given.shape[2])


def self_similarity(image: Tensor, patch: int = 7, stride: int = 4) -> float:
    """How much of its detail ``(1, C, H, W)`` repeats: 1 where every patch has an exact copy, 0.4 in noise.

    1 - sum_i min_j |p_i - p_j|^2 / (2 sum_i |p_i|^2) over mean-free patches p of the gray image on a grid, j at least
    one patch away from i.
    """
    gray = image.mean(1, keepdim=True).double()
    patches = F.unfold(gray, patch, stride=stride)[0].T
    patches = patches - patches.mean(1, keepdim=True)
    columns = (image.shape[3] - patch) // stride + 1
    index = torch.arange(len(patches))
    place = torch.stack([index // columns, index % columns], 1) * stride
    energy = patches.square().sum(1)
    smallest = []
    for rows in index.split(1024):
        distance = energy[rows, None] + energy - 2 * patches[rows] @ patches.T
        near = (place[rows, None] - place).abs().amax(2) < patch
        smallest.append(distance.masked_fill(near, torch.inf).amin(1))
    total = 2 * energy.sum()
    return float(1 - torch.cat(smallest).clamp(min=0).sum() / total) if total > 0 else 1.0


def detail_points(image: Tensor, count: int = 3, margin: int = 12) -> list[tuple[int, int]]:
    """The pixels of strongest gradient of ``(1, C, H, W)``, at least a quarter of the image apart, and `margin` pixels
    off the border, in a small image a sixth of its side."""
    gray = image.mean(1)[0]
    margin = min(margin, min(gray.shape) // 6)
    strength = torch.zeros_like(gray)
    strength[1:-1, 1:-1] = (gray[2:, 1:-1] - gray[:-2, 1:-1]).abs() + (gray[1:-1, 2:] - gray[1:-1, :-2]).abs()
    strength = F.avg_pool2d(strength[None, None], 5, 1, 2)[0, 0]
    inside = torch.zeros_like(strength)
    inside[margin:-margin, margin:-margin] = 1
    strength = strength * inside
    rows, columns = (torch.arange(side) for side in gray.shape)
    points = []
    for _ in range(count):
        row, column = divmod(int(strength.argmax()), gray.shape[1])
        points.append((row, column))
        far = (rows[:, None] - row).abs().maximum((columns - column).abs()) > min(gray.shape) // 4
        strength = strength * far
    return points


def mechanism(
    experiment: Experiment | Baseline, network: nn.Module, items: Sequence[sets.Item]
) -> dict[str, np.ndarray]:
    """What the network's attention does on the most self-similar photograph, for the study's report.

    Keys: photograph (uint8), image (its name), points (on the input's grid) and what the network's `mechanism` returns,
    in half precision; empty for a network without attention. A network that shows the degradation that it subtracts
    from the untiled photograph has the photograph with it too: degraded, restored ``(1, colors, H, W)``.
    """
    task, crop = experiment.task, experiment.evaluation.crop
    chosen = max(items, key=lambda item: self_similarity(experiments.target(item, task, crop)))
    clean = experiments.target(chosen, task, crop)
    given = experiments.degraded(chosen, task, clean, crop)
    points = detail_points(given)
    with torch.inference_mode():
        shown = insights.mechanism(network, given, points)
        if "degradation" in shown:
            shown |= {"degraded": given, "restored": network(given)}
    if not shown:
        return {}
    arrays = {key: value.half().numpy() if value.is_floating_point() else value.numpy() for key, value in shown.items()}
    photograph = (_array(clean).clip(0, 1) * 255).round().astype(np.uint8)
    return {"photograph": photograph, "image": np.array(chosen.name), "points": np.array(points), **arrays}


def _array(image: Tensor) -> np.ndarray:
    planes = image[0].float().numpy()
    return planes[0] if len(planes) == 1 else np.moveaxis(planes, 0, 2)
