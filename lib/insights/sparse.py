"""Sparse non-local attention: its weights over all pixels, zero where a query does not look."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.sparse import SparseNonLocal


@torch.no_grad()
def weights(module: SparseNonLocal, x: Tensor, queries: Tensor | None = None) -> Tensor:
    """The definition: a softmax over the scores of all pixels, of which those that are not chosen are left out."""
    q, k = (layer(x)[0].flatten(1).unflatten(0, (module.heads, -1)).mT for layer in (module.query, module.key))
    pixels = torch.arange(x.shape[2] * x.shape[3], device=x.device)
    queries = pixels if queries is None else queries
    scores = q[:, queries] @ k.mT
    if module.window:
        block = pixels // x.shape[3] // module.window * x.shape[3] + pixels % x.shape[3] // module.window
        chosen = (block[queries][:, None] == block).expand_as(scores)
    else:
        best = scores.topk(min(module.neighbours or 1, scores.shape[2])).indices
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(2, best, True)
    return scores.masked_fill(~chosen, float("-inf")).softmax(2)
