"""NLSN: where its pixels look, over all rounds of hashing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.nlsa import NLSA


@torch.no_grad()
def weights(module: NLSA, x: Tensor, queries: Tensor | None = None) -> Tensor:
    """The weights ``(1, Q, HW)``: the definition, with a mask of the pixels in and beside a query's bucket."""
    q, key, _ = module.embed(x)
    pixels, size = q.shape[1], module.size(q)
    queries = torch.arange(pixels, device=x.device) if queries is None else queries
    scores, rounds, strengths = q[0, queries] @ key[0].mT, [], []
    for order in module.order(q)[0]:
        counted = copies(order, queries, size).log()  # a pixel that fills the last bucket counts twice there
        strengths.append((scores + counted).logsumexp(1))
        rounds.append((scores + counted).softmax(1))
    return (torch.stack(rounds, 2) * torch.stack(strengths, 1).softmax(1)[:, None]).sum(2)[None]


def copies(order: Tensor, queries: Tensor, size: int) -> Tensor:
    """How often each pixel is a key of each query, ``(Q, HW)``."""
    pixels = len(order)
    filled = torch.cat([order, order[pixels - -pixels % size :]]).view(-1, size)
    found = torch.zeros(len(filled), pixels, device=order.device)
    for beside in (-1, 0, 1):
        keys = filled.roll(beside, 0)
        found.scatter_add_(1, keys, torch.ones_like(keys, dtype=found.dtype))
    return found[order.argsort()[queries] // size]
