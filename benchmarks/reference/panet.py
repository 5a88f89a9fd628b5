"""Pyramid attention as the released code computes it: unfolded blocks, one full score matrix per image, fold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.models.panet import SMALLEST_NORM, PyramidAttention


def reference(module: PyramidAttention, x: Tensor) -> Tensor:
    """The output of `module` with its weights for features ``(B, width, H, W)``."""
    return torch.cat([one(module, image[None]) for image in x])


def one(module: PyramidAttention, x: Tensor) -> Tensor:
    """One image ``(1, width, H, W)``."""
    patch, padding = module.patch, module.patch // 2
    levels = [x if s == 1 else F.interpolate(x, scale_factor=s, mode="bicubic") for s in module.scales]
    keys = torch.cat([F.unfold(module.g(z), patch, padding=padding)[0] for z in levels], 1)  # (c p^2, L)
    values = torch.cat([F.unfold(module.f(z), patch, padding=padding)[0] for z in levels], 1)  # (C p^2, L)
    queries = F.unfold(module.theta(x), patch, padding=padding)[0]  # (c p^2, HW)
    keys = keys * (module.softmax_scale / keys.norm(dim=0, keepdim=True).clamp_min(SMALLEST_NORM))
    weights = torch.softmax(queries.T @ keys, 1)  # (HW, L)
    pasted = F.fold((values @ weights.T)[None], x.shape[2:], patch, padding=padding)
    return pasted / (4 if patch == 3 else 1) + module.identity_scale * x
