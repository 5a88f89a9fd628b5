"""Patches of 3 x 3 cells at every second cell: cut out of a map, and folded to a map with overlaps averaged.

A cell is a pixel of the image or, in the s times larger result, s x s pixels. A map of an even number of cells gets
zeros below and to its right, so that H x W cells have H // 2 x W // 2 patches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import mirror_pad


def pad_to_cells(x: Tensor, scale: int, neighbours: int) -> Tensor:
    """Continue a map by its mirror image to multiples of `scale`, with at least `neighbours` patches to choose from."""
    smallest = 2 * scale * math.ceil(math.sqrt(neighbours))
    height, width = (max(-(-size // scale) * scale, smallest) for size in x.shape[2:])
    return mirror_pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))


# -- as the definitions need them: PyTorch's own functions


def unfold(x: Tensor, scale: int = 1) -> Tensor:
    """Patches ``(B, M, C, 9 s²)`` of ``(B, C, sH, sW)``."""
    missing = [scale * (side // scale % 2 == 0) for side in x.shape[2:]]
    columns = F.unfold(F.pad(x, (0, missing[1], 0, missing[0])), 3 * scale, stride=2 * scale)
    return columns.unflatten(1, (x.shape[1], -1)).permute(0, 3, 1, 2)


def fold(patches: Tensor, size: Sequence[int], scale: int = 1) -> Tensor:
    """Maps ``(B, k, C, sH, sW)``, size H, W, of patches ``(B, M, k, C, 9 s²)``."""
    whole = (scale * (2 * (size[0] // 2) + 1), scale * (2 * (size[1] // 2) + 1))
    columns = patches.flatten(2).mT
    covering = torch.ones_like(columns[:1, : patches.shape[4]])
    total, count = (F.fold(t, whole, 3 * scale, stride=2 * scale) for t in (columns, covering))
    return (total / count)[:, :, : scale * size[0], : scale * size[1]].unflatten(1, patches.shape[2:4])


# -- as the fast forms need them


def to_rows(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` as a contiguous ``(B, H, W, C)``, in float32 at least: distances and deviations need it."""
    return x.permute(0, 2, 3, 1).to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def cut(x: Tensor, scale: int) -> Tensor:
    """Patches by the place of a cell in its patch, row by row: ``(9, B, H // 2, W // 2, s, s, C)``, contiguous.

    x ``(B, sH, sW, C)``
    """
    x = F.pad(x, (0, 0, 0, scale * (x.shape[2] // scale % 2 == 0), 0, scale * (x.shape[1] // scale % 2 == 0)))
    x = x.unflatten(2, (-1, scale)).unflatten(1, (-1, scale)).permute(0, 1, 3, 2, 4, 5)  # (B, rows, columns, s, s, C)
    last = [cells - 2 for cells in x.shape[1:3]]
    return torch.stack([x[:, u : last[0] + u : 2, v : last[1] + v : 2] for u in range(3) for v in range(3)])


def spread(x: Tensor, size: Sequence[int], out: Tensor | None = None) -> Tensor:
    """Fold patches that are constant: ``(B, H // 2, W // 2, C)`` to cells ``(B, H, W, C)``, size H, W.

    Odd cells belong to one patch, even ones lie between two and get their mean, the outermost belong to one again.
    """
    for dim, into in ((1, None), (2, out)):
        count = x.shape[dim]
        cells = torch.index_select(x, dim, first_patches(size[dim - 1], x.device), out=into)
        between = cells.movedim(dim, 0)[2 : 2 * count : 2]
        between.add_(x.movedim(dim, 0)[1:]).div_(2)
        x = cells
    return x


@functools.lru_cache(64)
def first_patches(cells: int, device: torch.device) -> Tensor:
    """The first patch over each cell along an axis, made once, to save a GPU the start of operations."""
    with torch.inference_mode(False):  # may serve a training later
        return ((torch.arange(cells, device=device) - 1) // 2).clamp(min=0)


def gather(rows: Tensor, index: Tensor) -> Tensor:
    """``rows[index]`` for an index of any shape, as a copy of whole rows."""
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape)


def across_images(index: Tensor, count: int) -> Tensor:
    """Numbers ``(B, ..)`` of patches within each image as numbers within the batch; `count` patches per image."""
    return index + count * torch.arange(len(index), device=index.device).view(-1, *[1] * (index.ndim - 1))
