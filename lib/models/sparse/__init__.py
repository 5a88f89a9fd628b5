"""Non-local attention to a part of the pixels, in EDSR's trunk: to the best matches, or to the pixel's own window.

Both are plain non-local attention (`blocks.NonLocal`) with fewer keys per query, so that the number and the choice of
keys alone differ: the `neighbours` keys of the largest scores, or those of the query's block of `window` x `window`
pixels. The first chooses by similarity as DAGL's and IGNN's graphs do, over the whole image; the second by place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import MAX_SCORES, CommonTrunk, NonLocal, positive


class SparseNonLocal(NonLocal):
    """Non-local attention ``(B, width, H, W)`` -> the same shape, to some keys per query; any H, W >= 1.

    neighbours: to so many keys of the largest scores, all where the image has no more; of equal ones, any
    window: to the pixels of the query's own block of window x window, cut at the lower and right borders
    inner, heads: as in NonLocal

    Raises ValueError unless one of `neighbours` and `window` is given.
    """

    def __init__(
        self, width: int, neighbours: int | None = None, window: int | None = None, inner: int = 64, heads: int = 1
    ):
        super().__init__(width, inner, heads)
        positive(neighbours=neighbours, window=window)
        if (neighbours is None) == (window is None):
            raise ValueError(f"neighbours {neighbours} and window {window}: give one of them")
        self.neighbours, self.window = neighbours, window

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(1, (self.heads, -1)) for layer in (self.query, self.key, self.value))
        mixed = in_windows(q, k, v, self.window) if self.window else to_neighbours(q, k, v, self.neighbours or 1)
        return x + self.out(mixed.flatten(1, 2))


class SparseTrunk(CommonTrunk):
    """EDSR's trunk with a `SparseNonLocal` in its middle."""

    options_of = SparseNonLocal

    def __init__(
        self,
        colors: int = 3,
        scale: int = 1,
        width: int = 64,
        blocks: int = 16,
        image_skip: bool = False,
        **attention,
    ):
        attention = attention if {"neighbours", "window"} & {*attention} else {"neighbours": 16, **attention}
        super().__init__(
            colors, scale, width, blocks, attention=lambda width: SparseNonLocal(width, **attention),
            image_skip=image_skip,
        )  # fmt: skip


def to_neighbours(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    """Means of values ``(B, heads, C, H, W)`` over the `count` best keys of each query, weighted by softmax.

    Scores are float32, for they decide ranks, and held for some queries at a time (MAX_SCORES).
    """
    size = q.shape[3:]
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (t.to(torch.promote_types(t.dtype, torch.float32)).flatten(3).mT for t in (q, k, v))
        rows = max(1, MAX_SCORES // k.shape[:3].numel())
        first = torch.arange(k.shape[:2].numel(), device=k.device).view(*k.shape[:2], 1, 1) * k.shape[2]
        mixed = []
        for queries in q.split(rows, 2):
            scores, chosen = (queries @ k.mT).topk(min(count, k.shape[2]), sorted=False)
            bags, weights = ((chosen + first).flatten(0, 2), scores.softmax(3).flatten(0, 2))
            found = F.embedding_bag(bags, v.flatten(0, 2), per_sample_weights=weights, mode="sum")
            mixed.append(found.view(queries.shape))
    return torch.cat(mixed, 2).mT.unflatten(3, size)


def in_windows(q: Tensor, k: Tensor, v: Tensor, side: int) -> Tensor:
    """Means of values ``(B, heads, C, H, W)`` over the keys in each query's block of side x side."""
    height, width = q.shape[3:]
    pad = (0, -width % side, 0, -height % side)
    q, k, v = (_blocks(F.pad(t, pad), side) for t in (q, k, v))
    inside = _blocks(F.pad(q.new_zeros(1, 1, 1, height, width), pad, value=float("-inf")), side).mT
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=inside.expand(-1, -1, -1, side**2, -1), scale=1.0)
    rows, columns = (height + pad[3]) // side, (width + pad[1]) // side
    image = mixed.mT.unflatten(2, (rows, columns)).unflatten(5, (side, side))
    image = image.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
    return image[..., :height, :width]


def _blocks(t: Tensor, side: int) -> Tensor:
    """``(B, heads, C, H, W)`` -> ``(B, heads, blocks, side², C)``."""
    t = t.unflatten(4, (-1, side)).unflatten(3, (-1, side))  # B heads C rows side columns side
    return t.permute(0, 1, 3, 5, 4, 6, 2).flatten(4, 5).flatten(2, 3)


network, attention = SparseTrunk, SparseNonLocal
