"""Attention itself, which ENLCA's random features approximate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..operation import operation


def plain(q: Tensor, key: Tensor, v: Tensor) -> Tensor:
    """softmax(q key^T) v, ``(B, N, C)`` for q, key ``(B, N, d)`` and v ``(B, N, C)``, d <= C."""
    return torch.softmax(q @ key.mT, 2) @ v


@operation(plain)
def softmax_attention(q: Tensor, key: Tensor, v: Tensor) -> Tensor:
    """PyTorch's fused kernel, which stores no scores: it takes contiguous tensors of one number of channels, and the
    zeros that fill them up change no score."""
    missing = v.shape[2] - q.shape[2]
    q, key, v = (t.contiguous()[:, None] for t in (F.pad(q, (0, missing)), F.pad(key, (0, missing)), v))
    return F.scaled_dot_product_attention(q, key, v, scale=1.0)[:, 0]
