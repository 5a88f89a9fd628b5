"""The common trunk and plain non-local modules in reports: influence of pixels, attention weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..models.blocks import Attention, NonLocal
from . import attended
from .influence import influence


def mechanism(network: nn.Module, image: Tensor, points: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """influence: ``(points, H, W)``, how much each pixel moves what the first attention module adds at the points."""
    calls = attended(network, image)
    return {"influence": influence(*calls[0], points)} if calls else {}


@torch.no_grad()
def weights(module: Attention, x: Tensor, queries: Tensor | None = None) -> Tensor | None:
    """softmax(q k^T) of each head of a NonLocal; None for any other module whose model's file has no weights."""
    if not isinstance(module, NonLocal):
        return None
    q, k = (layer(x)[0].flatten(1).unflatten(0, (module.heads, -1)).mT for layer in (module.query, module.key))
    return ((q if queries is None else q[:, queries]) @ k.mT).softmax(2)
