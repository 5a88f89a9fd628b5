"""A linear layer on the p x p patches of features, which is a convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..operation import operation


def plain(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0, *, heads: int = 1) -> Tensor:
    """The layer on every patch of every head, ``(B, heads * D, rows, columns)``.

    x: ``(B, heads * C, H, W)``; patches lie `stride` apart and `padding` beyond the border
    weight, bias: ``(heads * D, C, p, p)`` and ``(heads * D)``, head after head
    """
    patch = weight.shape[2]
    rows = (x.shape[2] + 2 * padding - patch) // stride + 1
    images = []
    for image in x:
        embedded = []
        for features, w, b in zip(image.chunk(heads), weight.chunk(heads), bias.chunk(heads), strict=True):
            patches = F.unfold(features, patch, padding=padding, stride=stride)  # (C p^2, rows * columns)
            embedded.append(F.linear(patches.T, w.flatten(1), b).T)
        images.append(torch.cat(embedded).unflatten(1, (rows, -1)))
    return torch.stack(images)


@operation(plain)
def embed_patches(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0, *, heads: int = 1
) -> Tensor:
    """`plain`, without unfolded features."""
    return F.conv2d(x, weight, bias, stride, padding, groups=heads)
