"""The scores that the contrastive loss compares: each query's at two ranges of ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..blocks import CACHED_SCORES, GPU_SCORES
from ..operation import operation


def plain(
    q: Tensor, key: Tensor, positive: range, negative: range, max_scores: int | None = None
) -> tuple[Tensor, ...]:
    """exp(q·key) at the positive ranks ``(B, N, len(positive))`` and at the negative ones, for q, key ``(B, N, d)``.

    positive: begins at 0, the largest score of a row
    max_scores: largest number of scores that the fast form holds at a time, at least one row (N); None is CACHED_SCORES
        on a CPU, GPU_SCORES on a GPU
    """
    ordered = torch.exp(q @ key.mT).sort(dim=2, descending=True).values
    return ordered[:, :, : positive.stop], ordered[:, :, negative.start : negative.stop]


@operation(plain)
def ranked_scores(
    q: Tensor, key: Tensor, positive: range, negative: range, max_scores: int | None = None
) -> tuple[Tensor, ...]:
    """Neither sorted nor stored: of a block of rows at a time the largest q·key are selected; exp keeps the order."""
    max_scores = max_scores or (GPU_SCORES if q.is_cuda else CACHED_SCORES)
    if q.is_cuda and len(q) * q.shape[1] ** 2 <= max_scores:  # fewer operations to start than below
        top = (q @ key.mT).topk(negative.stop, 2).values
        return top[:, :, : positive.stop].exp(), top[:, :, negative.start :].exp()
    top = _RankedScores.apply(q, key, positive.stop, negative.start, negative.stop, max_scores)
    return top.exp().split([len(positive), len(negative)], 2)


class _RankedScores(torch.autograd.Function):
    """q·key of ranks 0 to `first` and `start` to `stop`, ends left out: ``(B, N, first + stop - start)``.

    The columns of the selected pairs are remembered, and the gradient goes to these pairs alone.
    """

    @staticmethod
    def forward(ctx, q, key, first, start, stop, max_scores):
        pixels = key.shape[1]
        images = max(1, max_scores // pixels**2)
        rows = max(1, max_scores // (images * pixels))
        ranked = []
        for some, keys in zip(q.split(images), key.split(images), strict=True):
            for block in some.split(rows, 1):
                found = largest((block @ keys.mT).flatten(0, 1), stop)
                ranked.append([torch.cat([t[:, :first], t[:, start:]], 1) for t in found])
        values, chosen = (torch.cat(parts).unflatten(0, q.shape[:2]) for parts in zip(*ranked, strict=True))
        ctx.save_for_backward(q, key, chosen)
        ctx.max_scores = max_scores
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, key, chosen = ctx.saved_tensors
        images, pixels, _ = q.shape
        q, key, grad = (t.flatten(0, 1) for t in (q, key, grad))
        picked = (chosen + pixels * torch.arange(images, device=q.device)[:, None, None]).flatten(0, 1)
        to_q, to_key = (torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (q, key))
        rows = max(1, ctx.max_scores // (picked.shape[1] * q.shape[1]))
        for first in range(0, len(q), rows):
            some = slice(first, first + rows)
            to_q[some] = (grad[some, None] @ key[picked[some]])[:, 0]
            to_key.index_add_(0, picked[some].flatten(), (grad[some, :, None] * q[some, None]).flatten(0, 1))
        return to_q.unflatten(0, (images, pixels)), to_key.unflatten(0, (images, pixels)), None, None, None, None


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row, in descending order, and their columns.

    They lie in the `count` groups of columns with the largest maxima (a maximum is cheap, a CPU's selection is not);
    columns left over by the grouping are always looked at.
    """
    total = scores.shape[1]
    size = math.isqrt(total // count)
    if size < 2 or scores.is_cuda:
        return scores.topk(count, 1)
    groups = total // size
    maxima = scores[:, : groups * size].unflatten(1, (size, groups)).amax(1)
    chosen = maxima.topk(count, 1, sorted=False).indices
    members = chosen[:, None] + groups * torch.arange(size, device=scores.device)[:, None]
    others = torch.arange(groups * size, total, device=scores.device).expand(len(scores), -1)
    columns = torch.cat([members.flatten(1), others], 1)
    top = scores.gather(1, columns).topk(count, 1)
    return top.values, columns.gather(1, top.indices)
