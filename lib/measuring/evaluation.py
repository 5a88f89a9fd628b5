"""Measuring an experiment on its held-out photographs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import insights
from ..images import sets
from ..insights import health
from ..params import Baseline, Experiment
from ..tasks import experiment as experiments
from ..tasks.degradations import resize
from .inference import restore
from .metrics import MOST_PSNR

Row = Experiment | Baseline

#: Most photographs for `acts`.
PHOTOGRAPHS = 12

#: Side of what `picture` keeps of a photograph, in target pixels.
SHOWN = 128

#: For `field_curve`: sides of the tiles, most photographs, and the largest side of their centres in input pixels, for
#: the cost of attention grows with the square of the field.
FIELDS, CURVE_PHOTOGRAPHS, CENTRE = (32, 64, 128), 4, 192


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
    experiment: Row,
    networks: Mapping[int, nn.Module],
    items: Sequence[sets.Item],
    say: Callable[[str], None] = lambda line: None,
) -> tuple[pd.DataFrame, list[Restored]]:
    """Restore and measure every photograph with every seed's network.

    Returns per-image rows (set, image, seed, psnr, ssim, input_psnr, input_psnr_unclamped, self_similarity, field, dB
    to four digits) and, by the first seed, the photographs of the smallest and of the largest gain; no others are kept.
    A super-resolution input is measured after bicubic enlargement. field: see `field_side`.
    """
    convention = experiment.task.convention
    restorers = {seed: restorer(experiment, network) for seed, network in networks.items()}
    rows, pictures = [], []
    for count, item in enumerate(items, 1):
        clean, given = _pair(experiment, item)
        enlarged = enlarge(given, clean)
        before = convention.measure(enlarged, clean)
        unclamped = convention.measure(enlarged, clean, clamp=False)["psnr"]
        similar = self_similarity(clean)
        field = field_side(given, tile_side(experiment, next(iter(networks.values()))))
        for seed, restored_by in restorers.items():
            output = restored_by(given)
            after = convention.measure(output, clean)
            rows.append(
                {"set": item.set, "image": item.name, "seed": seed, **after}
                | {"input_psnr": before["psnr"], "input_psnr_unclamped": unclamped}
                | {"self_similarity": similar, "field": field}
            )
            if seed == next(iter(networks)):
                shown = _array(clean), _array(enlarged), _array(output)
                pictures.append(Restored(item.set, item.name, *shown, psnr=after["psnr"], input_psnr=before["psnr"]))
                pictures.sort(key=lambda picture: picture.psnr - picture.input_psnr)
                pictures = [pictures[0], pictures[-1]]
        say(f"{count}/{len(items)}  {item.set}/{item.name}  {rows[-1]['psnr']:.2f} dB")
    return pd.DataFrame(rows).round(4), pictures


def tile_side(experiment: Row, network: nn.Module) -> int | None:
    """The evaluation's tiles; None, whole photographs, for a method without weights: tiles only cost it quality."""
    return experiment.evaluation.tile if any(True for _ in network.parameters()) else None


def restorer(experiment: Row, network: nn.Module, tile: int | None = None) -> Callable[[Tensor], Tensor]:
    """Restores an image as the experiment is measured, or in other tiles, on the GPU if there is one."""
    how, period = experiment.evaluation, experiment.task.degradation.period
    device = _device()
    network = network.to(device)
    tile = tile or tile_side(experiment, network)

    def restored_by(given: Tensor) -> Tensor:
        return restore(network, given.to(device), tile, how.overlap, how.self_ensemble, period).cpu()

    return restored_by


def field_side(given: Tensor, tile: int | None) -> int:
    """How far attention can look in an image ``(1, C, H, W)``: side of a square with the pixels of one tile."""
    height, width = given.shape[2:]
    if tile is not None and height * width > tile * tile:
        height, width = min(height, tile), min(width, tile)
    return round((height * width) ** 0.5)


def acts(experiment: Row, networks: Mapping[int, nn.Module], items: Sequence[sets.Item]) -> pd.DataFrame:
    """Whether the attention modules of each seed's network act, on a few photographs: see `insights.health`.

    Columns: seed, module, head, variation, effective_keys, effective_share, same_largest, psnr_lost_mean and
    psnr_lost_zero, each the mean over the photographs; no rows without attention.
    """
    tables: list[pd.DataFrame] = []
    for seed, network in networks.items():
        groups = len(health.groups(insights.attentions(network)))
        # As long as a restoration: the weights and one of the whole network, two without each module.
        chosen = few(items, 1.5 + groups, PHOTOGRAPHS) if groups else []
        restored_by, of_photographs = restorer(experiment, network), []
        for item in chosen:
            clean, given = _pair(experiment, item)
            of_photographs.append(health.measure(network, partial(restored_by, given), _psnr(experiment, clean)))
        if chosen:
            tables.append(health.over_photographs(of_photographs).assign(seed=seed))
    columns = ["seed", *health.COLUMNS]
    return (
        (pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns))
        .astype({"head": "Int64"})
        .round(4)
    )


def field_curve(experiment: Row, networks: Mapping[int, nn.Module], items: Sequence[sets.Item]) -> pd.DataFrame:
    """PSNR against the field that attention sees: the centres of a few photographs in tiles of several sides.

    Columns: seed, side (see `field_side`; the last one is of the whole centre) and psnr (dB, the mean over the
    photographs); no rows without attention.
    """
    rows, chosen = [], few(items, len(FIELDS) + 1, CURVE_PHOTOGRAPHS)
    for seed, network in networks.items():
        if not insights.attentions(network):
            continue
        pairs = [_pair(experiment, item, CENTRE * experiment.task.degradation.scale) for item in chosen]
        whole = max(max(given.shape[2:]) for _, given in pairs)
        for tile in [*(side for side in FIELDS if side < whole), whole]:
            restored_by = restorer(experiment, network, tile)
            found = [_psnr(experiment, clean)(restored_by(given)) for clean, given in pairs]
            side = round(sum(field_side(given, tile) for _, given in pairs) / len(pairs))
            rows.append({"seed": seed, "side": side, "psnr": sum(found) / len(found)})
    return pd.DataFrame(rows, columns=["seed", "side", "psnr"]).round(4)


def few(items: Sequence[sets.Item], passes: float, most: int) -> list[sets.Item]:
    """Photographs spread over the sets, for a measure that takes as long as `passes` restorations of each.

    At least 2 and at most `most`; between these, the number with which it takes a third as long as restoring all.
    """
    count = min(len(items), max(2, min(most, int(len(items) / (3 * passes)))))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _pair(experiment: Row, item: sets.Item, most: int | None = None) -> tuple[Tensor, Tensor]:
    """A photograph as the evaluation crops it, or its centre of at most `most` pixels a side, and its degraded form."""
    crop = min((side for side in (experiment.evaluation.crop, most) if side), default=None)
    clean = experiments.target(item, experiment.task, crop)
    return clean, experiments.degraded(item, experiment.task, clean, crop)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _psnr(experiment: Row, clean: Tensor) -> Callable[[Tensor], float]:
    return lambda restored: min(experiment.task.convention.measure(restored, clean)["psnr"], MOST_PSNR)


def enlarge(given: Tensor, clean: Tensor) -> Tensor:
    """The degraded image at the size of the clean one: itself, or its bicubic enlargement as MATLAB makes it."""
    return given if given.shape == clean.shape else resize(given, up=clean.shape[2] // given.shape[2])


def self_similarity(image: Tensor, patch: int = 7, stride: int = 4) -> float:
    """Share of the detail of ``(1, C, H, W)`` that repeats in it: 1 where every patch has an exact copy, 0.4 in noise.

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


def most_self_similar(items: Sequence[sets.Item], images: pd.DataFrame) -> sets.Item:
    """The photograph that every row of a task shows: where attention has most to find. images: rows of `measure`."""
    most = images.loc[images.self_similarity.idxmax()]
    return next(item for item in items if (item.set, item.name) == (most.set, most.image))


def picture(experiment: Row, network: nn.Module, item: sets.Item) -> dict[str, np.ndarray]:
    """The centre of a photograph, of at most `SHOWN` pixels a side: restored and, by a row without weights, clean, as
    8-bit arrays ``(H, W[, 3])``."""
    clean, given = _pair(experiment, item)
    shown = {"restored": restorer(experiment, network)(given)}
    if not any(True for _ in network.parameters()):
        shown["clean"] = clean
    top, left = ((side - min(side, SHOWN)) // 2 for side in clean.shape[2:])
    return {name: _pixels(image[..., top : top + SHOWN, left : left + SHOWN]) for name, image in shown.items()}


def mechanism(experiment: Row, network: nn.Module, item: sets.Item) -> dict[str, np.ndarray]:
    """The network's attention on a photograph, for the study's report.

    Keys: photograph (uint8), image (its name), points (on the input's grid) and those of `insights.mechanism`, in half
    precision; empty for a network without attention. Where `insights.mechanism` shows the degradation that a network
    subtracts, the untiled photograph comes with it: degraded, restored ``(1, colors, H, W)``.
    """
    clean, given = _pair(experiment, item)
    points = detail_points(given)
    network, given = network.to(_device()), given.to(_device())
    with torch.inference_mode():
        shown = insights.mechanism(network, given, points)
        if "degradation" in shown:
            shown |= {"degraded": given, "restored": network(given)}
    if not shown:
        return {}
    arrays = {key: (t.half() if t.is_floating_point() else t).cpu().numpy() for key, t in shown.items()}
    return {"photograph": _pixels(clean), "image": np.array(item.name), "points": np.array(points), **arrays}


def _pixels(image: Tensor) -> np.ndarray:
    return (_array(image).clip(0, 1) * 255).round().astype(np.uint8)


def _array(image: Tensor) -> np.ndarray:
    planes = image[0].float().numpy()
    return planes[0] if len(planes) == 1 else np.moveaxis(planes, 0, 2)
