"""The plain non-local module: the full score matrix of one image after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.models.blocks import NonLocal


def reference(module: NonLocal, x: Tensor) -> Tensor:
    """The output of `module` with its weights for features ``(B, width, H, W)``."""
    return torch.cat([one(module, image[None]) for image in x])


def one(module: NonLocal, x: Tensor) -> Tensor:
    """One image ``(1, width, H, W)``, all heads."""
    query, key, value = (
        layer(x)[0].flatten(1).unflatten(0, (module.heads, -1)) for layer in (module.query, module.key, module.value)
    )  # (heads, inner / heads, HW)
    weights = torch.softmax(query.transpose(1, 2) @ key, 2)
    mixed = value @ weights.transpose(1, 2)
    return x + module.out(mixed.flatten(0, 1).unflatten(1, x.shape[2:])[None])
