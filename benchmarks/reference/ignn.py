"""IGNN's graph and aggregation as released: unfolded patches, all distances, an expanded copy of every match, fold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.models.ignn import SMALLEST_VARIANCE, GraphAggregation


def reference(module: GraphAggregation, x: Tensor, embedded: Tensor, small: Tensor) -> tuple[Tensor | None, ...]:
    """The outputs x_lr and x_hr of `module`; arguments and results as of its ``forward``."""
    images = [one(module, *(t[i : i + 1] for t in (x, embedded, small))) for i in range(len(x))]
    return tuple(None if parts[0] is None else torch.cat(parts) for parts in zip(*images, strict=True))


def one(module: GraphAggregation, x: Tensor, embedded: Tensor, small: Tensor) -> tuple[Tensor | None, Tensor | None]:
    pasted, difference, _ = search_and_aggregate(
        x, embedded, small, module.scale, module.neighbours, module.window, module.adapn
    )
    lr = hr = None
    if module.branch != "hr":
        pooled = F.avg_pool2d(difference[0], module.scale)[None]
        lr = (module.den(pasted[0])[None] * module.weights(module.edges_lr, pooled)).sum(1)
    if module.branch != "lr":
        hr = (pasted * module.weights(module.edges_hr, difference)).sum(1)
    return lr, hr


def search_and_aggregate(
    x: Tensor, embedded: Tensor, small: Tensor, scale: int, neighbours: int = 5, window: int = 30, adapn: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """One image: pasted features ``(1, k, C, sH, sW)``, difference maps ``(1, k, C', sH, sW)``, matches ``(m1 m2, k)``.

    x ``(1, C, H, W)``, embedded ``(1, C', H, W)``, small ``(1, C', H/s, W/s)``; H and W multiples of s.
    """
    size, (m1, m2), (n1, n2) = x.shape[2:], *(grid(t) for t in (embedded, small))
    with torch.no_grad():
        queries, sons = cut(embedded), cut(small)  # (patches, 9 C')
        distance = queries.square().sum(1)[:, None] + sons.square().sum(1) - 2 * queries @ sons.T
        distance = distance.masked_fill(~in_window(m1, m2, n1, n2, scale, window).to(x.device), torch.inf)
        index = distance.topk(neighbours, largest=False).indices  # (m1 m2, k)
        difference = (queries[:, None] - sons[index]).abs().unflatten(2, (-1, 9)).sum(3)
        difference = difference.transpose(0, 1)[..., None].expand(-1, -1, -1, 9 * scale**2)
        difference = paste(difference, size, (m1, m2), scale)
    source = cut(F.pixel_unshuffle(x, scale)).unflatten(1, (-1, scale, scale, 3, 3))  # (n, C, s, s, 3, 3)
    source = source.permute(0, 1, 4, 2, 5, 3).flatten(2)  # (n, C, 3s 3s)
    chosen = source[index]  # (m1 m2, k, C, 9 s^2)
    if adapn:
        query = cut(x).unflatten(1, (-1, 9))[:, None]  # (m1 m2, 1, C, 9)
        to_variance, to_mean = torch.var_mean(query, 3, keepdim=True)
        variance, mean = torch.var_mean(chosen, 3, keepdim=True)
        chosen = (chosen - mean) / (variance + SMALLEST_VARIANCE).sqrt()
        chosen = chosen * (to_variance + SMALLEST_VARIANCE).sqrt() + to_mean
    return paste(chosen.transpose(0, 1), size, (m1, m2), scale)[None], difference[None], index


def cut(x: Tensor) -> Tensor:
    """3x3 patches at stride 2 of ``(1, C, H, W)``, zeros below and to the right of an even number: ``(m1 m2, 9 C)``."""
    height, width = x.shape[2:]
    return F.unfold(F.pad(x, (0, (width + 1) % 2, 0, (height + 1) % 2)), 3, stride=2)[0].T


def grid(x: Tensor) -> tuple[int, int]:
    return x.shape[2] // 2, x.shape[3] // 2


def in_window(m1: int, m2: int, n1: int, n2: int, scale: int, window: int) -> Tensor:
    """Which sons ``(n1 n2)`` each query ``(m1 m2)`` may choose."""
    if window >= n1 and window >= n2:
        return torch.ones(m1 * m2, n1 * n2, dtype=torch.bool)
    side = min(window, n1, n2)
    axes = []
    for m, n in ((m1, n1), (m2, n2)):
        first = (torch.arange(m) // 2 - window // scale).clamp(0, n - side)[:, None]
        axes.append((torch.arange(n) >= first) & (torch.arange(n) < first + side))
    return (axes[0][:, None, :, None] & axes[1][None, :, None, :]).reshape(m1 * m2, n1 * n2)


def paste(patch: Tensor, size: tuple[int, int], grid: tuple[int, int], scale: int) -> Tensor:
    """Fold patches ``(k, m1 m2, C, 9 s^2)`` to ``(k, C, sH, sW)``, overlaps averaged."""
    whole = [scale * (2 * m + 1) for m in grid]
    columns = patch.permute(0, 2, 3, 1).flatten(1, 2)
    total = F.fold(columns, whole, 3 * scale, stride=2 * scale)
    count = F.fold(torch.ones_like(columns[:1, : 9 * scale**2]), whole, 3 * scale, stride=2 * scale)
    return (total / count)[:, :, : scale * size[0], : scale * size[1]]
