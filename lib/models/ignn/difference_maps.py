"""IGNN's difference maps D_t, from which the weights of the neighbours are learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..operation import operation
from .patches import fold, spread


@torch.no_grad()
def plain(difference: Tensor, size: Sequence[int]) -> Tensor:
    """Fold differences ``(B, k, m1, m2, C)``, constant on every patch, to maps ``(B, k, C, H, W)``, size H, W.

    In the s times larger result they are constant on cells of s x s pixels; they are kept at the image's resolution.
    """
    patches = difference.flatten(2, 3).transpose(1, 2)[..., None]
    return fold(patches.expand(*patches.shape[:4], 9), size)


@operation(plain)
@torch.no_grad()
def difference_maps(difference: Tensor, size: Sequence[int]) -> Tensor:
    """The mean of the patches that share a cell, a neighbour at a time."""
    maps = difference.new_empty(*difference.shape[:2], *size, difference.shape[4])
    some = len(maps[0]) if maps.is_cuda else 1  # on a GPU few operations matter more than little memory
    for patches, image in zip(difference.split(some, 1), maps.split(some, 1), strict=True):
        spread(patches.flatten(0, 1), size, out=image.flatten(0, 1))
    return maps.permute(0, 1, 4, 2, 3)
