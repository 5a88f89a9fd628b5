"""Shared by training and evaluation: an experiment's network, and its images as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import models
from ..images import sets
from ..models.blocks import Network
from ..params import ROOT, Baseline, Experiment
from ..training import Crops, Validation
from . import Task


def network(row: Experiment | Baseline, seed: int = 0) -> Network:
    """The row's network, initialised from `seed`: built for the task's channels and scale.

    With a `checkpoint` it is the network that the file describes, whatever the profile's options. Raises OfficialError
    for a checkpoint of another network or task, ModelError for an option or a scale that the model does not know.
    """
    colors, scale = row.task.colors, row.task.degradation.scale
    if isinstance(row, Baseline) and row.checkpoint:
        from .. import official  # knows every model, which training must not depend on

        return official.load_file(ROOT / row.checkpoint, row.model, colors, scale)
    known = models.known_options(row.model, row.options.get("common_trunk") is True)
    if scale != 1 and "scale" not in known:
        raise models.ModelError(f"model {row.model!r} has no option 'scale', but {row.task.name} is x{scale}")
    of_task = {"colors": colors, "scale": scale}
    options = {**row.options, **{key: value for key, value in of_task.items() if key in known}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build(row.model, **options)


def target(item: sets.Item, task: Task, crop: int | None = None) -> Tensor:
    """The photograph as the task sees it: float32 ``(1, colors, H, W)`` in [0, 1], its central crop of side `crop`.

    Gray tasks turn colour into gray by the task's rule; sides are cut to the multiple that the degradation needs.
    """
    return _tensor(_planes(item, task, crop))


def degraded(item: sets.Item, task: Task, clean: Tensor, crop: int | None = None) -> Tensor:
    """The degraded photograph that belongs to `clean`, the `target` with the same `crop`: the set's own where it has
    one, else one fixed realisation."""
    if item.input is not None:
        side = crop and crop // task.degradation.scale
        return _tensor(_central(_channels(sets.open_image(item.input), task), side, 1, task.degradation.period))
    return task.degradation.realise(clean, item.set, item.name)


def crops(task: Task, items: Sequence[sets.Item], side: int, device: str) -> Crops:
    """The training images of a task in memory, ready to be cropped; pairs keep the degraded photograph they came with.

    Raises SetError for an image smaller than a crop, and where only some of the images are pairs although the task
    degrades every crop anew.
    """
    paired = [item.input is not None for item in items]
    if task.degradation.fresh and any(paired) and not all(paired):
        single = items[paired.index(False)]
        raise sets.SetError(f"task {task.name}: set {single.set} has no degraded photographs, other training sets do; "
                            "train on pairs alone or on photographs alone")  # fmt: skip

    def pixels(item: sets.Item) -> Tensor:
        image = torch.from_numpy(_planes(item, task).copy())
        if min(image.shape[1:]) < side:
            height, width = image.shape[1:]
            raise sets.SetError(f"set {item.set}: {item.name} has {height} x {width} pixels (rows x columns), fewer "
                                f"than the training crop of {task.name}, {side}; leave it out")  # fmt: skip
        return image

    def given(item: sets.Item) -> Tensor:
        image = degraded(item, task, target(item, task))[0]
        return (image * 255).round().byte() if eight_bit else image

    eight_bit = all(paired) or task.degradation.eight_bit
    anew = task.degradation.fresh and not any(paired)
    inputs = None if anew else map(given, items)
    return Crops(map(pixels, items), inputs, task.degradation, side, device)


#: Side of the central crop of a validation photograph, in pixels of the target: a multiple of every scale.
VALIDATION_SIDE = 96


def validation(task: Task, items: Sequence[sets.Item]) -> Validation | None:
    """The validation photographs of a task, each degraded once; None where it has none."""
    if not items:
        return None
    clean = [target(item, task, VALIDATION_SIDE) for item in items]
    given = [degraded(item, task, image, VALIDATION_SIDE) for item, image in zip(items, clean, strict=True)]
    return Validation(torch.cat(given), torch.cat(clean))


def weights_file(folder: Path, seed: int) -> Path:
    """Where a seed's averaged weights lie in an experiment's weights folder."""
    return folder / f"seed_{seed}.safetensors"


def trained(row: Experiment | Baseline, folder: Path) -> dict[int, Network]:
    """The row's networks by seed, ready to restore, those of an experiment with their trained weights from `folder`."""
    networks = {}
    for seed in row.seeds:
        made = network(row, seed)
        if isinstance(row, Experiment):
            made.load_state_dict(load_file(weights_file(folder, seed)))
        networks[seed] = made.eval()
    return networks


def _planes(item: sets.Item, task: Task, crop: int | None = None) -> np.ndarray:
    """The photograph of `target` as 8-bit pixels, (colors, rows, columns)."""
    whole = task.degradation.scale * task.degradation.period  # a crop of a pair begins where one of its input's begins
    grid = whole if item.input is not None else 1
    return _central(_channels(sets.open_image(item.target), task), crop, task.degradation.multiple, grid)


def _channels(pixels: np.ndarray, task: Task) -> np.ndarray:
    """The image with the task's channels, which come first."""
    if task.colors == 1 and pixels.ndim == 3:
        pixels = sets.to_gray(pixels, task.gray)
    if pixels.ndim == 2:
        return np.repeat(pixels[None], task.colors, axis=0)
    return np.moveaxis(pixels, 2, 0)


def _central(pixels: np.ndarray, crop: int | None, multiple: int, grid: int = 1) -> np.ndarray:
    """Central crop of side `crop` where one is asked for, with sides that are multiples of `multiple`, from a multiple
    of `grid` on."""
    height, width = (min(side, crop or side) // multiple * multiple for side in pixels.shape[1:])
    if crop is None:
        return pixels[:, :height, :width]
    top, left = (
        (side - kept) // 2 // grid * grid for side, kept in zip(pixels.shape[1:], (height, width), strict=True)
    )
    return pixels[:, top : top + height, left : left + width]


def _tensor(planes: np.ndarray) -> Tensor:
    return torch.from_numpy(planes.astype(np.float32))[None] / 255
