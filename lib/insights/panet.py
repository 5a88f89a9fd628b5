"""Pyramid attention in reports: its weights on the grids of the levels, and the share of each level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..models.panet import PyramidAttention
from ..models.panet.block_attention import attention_weights, unfold
from . import attended

#: Largest number of pixels that the share of the levels is averaged over, and how many are computed at a time.
PIXELS, AT_A_TIME = 1024, 128


@torch.no_grad()
def weights(module: PyramidAttention, x: Tensor, queries: Tensor | None = None) -> Tensor:
    """Attention ``(1, Q, keys)`` of flat query indices (None: all) on features x ``(1, width, H, W)``.

    The keys are the pixels of all levels in the order of `module.scales`; each row sums to 1.
    """
    own = unfold([module.theta(x)], module.patch)[0]
    keys = unfold(map(module.g, module.pyramid(x)), module.patch)[0]
    return attention_weights(own if queries is None else own[:, queries], keys, module.softmax_scale)[None]


def mass_per_level(module: PyramidAttention, x: Tensor) -> Tensor:
    """The share of the attention that each level gets ``(levels,)``, averaged over the pixels of features x
    ``(1, width, H, W)``, at most PIXELS of them, evenly spaced."""
    pixels = x.shape[2] * x.shape[3]
    some = torch.linspace(0, pixels - 1, min(pixels, PIXELS)).long()
    per_key = torch.stack([weights(module, x, chunk)[0].sum(0) for chunk in some.split(AT_A_TIME)]).sum(0)
    sizes = [z.shape[2] * z.shape[3] for z in module.pyramid(x)]
    return torch.stack([level.sum() for level in per_key.split(sizes)]) / len(some)


@torch.no_grad()
def mechanism(network: nn.Module, image: Tensor, points: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """The attention of the pixels `points` of one image ``(1, colors, H, W)``; one leading entry per attention module.

    mass: (modules, levels), see `mass_per_level`
    map_<s> for each scale s: (modules, points, h_s, w_s), the weights of each point on the grid of level s; over all
        levels they sum to 1. The grid covers the image: pixel (i, j) is at ((i + .5) H / h_s, (j + .5) W / w_s)
    """
    chosen = torch.tensor([row * image.shape[3] + column for row, column in points])
    shown: dict[str, list[Tensor]] = {}
    for module, x in attended(network, image):
        assert isinstance(module, PyramidAttention)
        shown.setdefault("mass", []).append(mass_per_level(module, x))
        sizes = [z.shape[2:] for z in module.pyramid(x)]
        levels = weights(module, x, chosen)[0].split([size.numel() for size in sizes], 1)
        for scale, size, level in zip(module.scales, sizes, levels, strict=True):
            shown.setdefault(f"map_{scale:g}", []).append(level.unflatten(1, size))
    return {key: torch.stack(found) for key, found in shown.items()}
