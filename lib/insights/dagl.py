"""The graphs that DAGL's stages build: which patches are neighbours, and with which weights.

Queries are numbered row by row on the stage's grid, keys row by row over all pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..models.blocks import MAX_SCORES
from ..models.dagl import DAGL, MGFAM, same_padding
from ..models.dagl.graph_attention import edges
from . import attended


@torch.no_grad()
def weights(module: MGFAM, x: Tensor, queries: Tensor | None = None) -> Tensor:
    """w_ij ``(heads, Q, H W)`` of these queries, or of all, on features ``(1, width, H, W)``; zero without an edge."""
    return torch.stack([weight for _, weight in _graphs(module, x, queries)])


def query_count(module: MGFAM, x: Tensor) -> int:
    """Number of queries on features ``(1, width, H, W)``."""
    return math.prod(math.ceil(n / module.stride) for n in x.shape[2:])


@torch.no_grad()
def neighbours(module: MGFAM, x: Tensor) -> Tensor:
    """The number of neighbours that each query of each head keeps, ``(heads, rows, columns)``."""
    rows, columns = (math.ceil(n / module.stride) for n in x.shape[2:])
    step = max(1, (module.max_scores or MAX_SCORES) // x[0, 0].numel())
    parts = torch.arange(rows * columns, device=x.device).split(step)
    kept = [torch.stack([(strength > 0).sum(1) for strength, _ in _graphs(module, x, part)]) for part in parts]
    return torch.cat(kept, 1).unflatten(1, (rows, columns))


def nearest_queries(module: MGFAM, size: Sequence[int], points: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """The queries whose patches are centred nearest to the points: flat indices, and (row, column) of the centres."""
    grid = torch.tensor([math.ceil(n / module.stride) for n in size])
    first = torch.tensor([module.patch // 2 - same_padding(n, module.patch, module.stride)[0] for n in size])
    nearest = ((torch.tensor(points) - first) / module.stride).round().long().clamp_min(0).minimum(grid - 1)
    return nearest[:, 0] * grid[1] + nearest[:, 1], first + nearest * module.stride


def mechanism(
    network: DAGL, image: Tensor, points: Sequence[tuple[int, int]], stage: int = 0, head: int = 0
) -> dict[str, Tensor]:
    """The graph of one head of one stage; nothing for the non-local forms.

    queries: (points, 2), row and column of the centre of the query patch nearest to each point
    weights: (points, H, W), its weights, zero where there is no edge
    kept: (N_q rows, N_q columns), the number of neighbours of every query
    """
    module, x = attended(network, image)[stage]
    if not isinstance(module, MGFAM):
        return {}
    queries, centres = nearest_queries(module, x.shape[2:], points)
    shown = weights(module, x, queries.to(x.device))[head].unflatten(1, x.shape[2:])
    return {"queries": centres, "weights": shown, "kept": neighbours(module, x)[head]}


def _graphs(module: MGFAM, x: Tensor, queries: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """A and w of each head, ``(Q, H W)``."""
    chosen = slice(None) if queries is None else queries
    for layers in module.layers(x, module.heads):
        query, key, _, limits = module.match(x, *layers)
        limits = None if limits is None else limits[:, 0].flatten(1)[:, chosen]
        yield edges(query[0].flatten(0, 1)[chosen], key[0].flatten(1), limits, module.neighbours, module.weights)
