"""IGNN's graph: every 3 x 3 patch of the image and its nearest patches of the smaller image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..blocks import MAX_SCORES
from ..operation import operation
from .patches import across_images, cut, gather, to_rows, unfold

#: Queries of a tile along one side where windows are used: their windows then overlap by more than half.
TILE = 16


class Graph(NamedTuple):
    """For every query patch its k nearest patches of the smaller image, nearest first.

    matches ``(B, k, m1, m2)``: numbers of the patches in the smaller image's grid, row by row
    distance ``(B, k, m1, m2)``: squared Euclidean distance of the embeddings
    difference ``(B, k, m1, m2, C)``: absolute differences of the embeddings, summed over a patch's positions
    """

    matches: Tensor
    distance: Tensor
    difference: Tensor


@torch.no_grad()
def plain(
    embedded: Tensor, small: Tensor, scale: int, neighbours: int = 5, window: int = 30, max_scores: int = MAX_SCORES
) -> Graph:
    """The graph between the image's embedding ``(B, C, H, W)`` and the smaller image's ``(B, C, H/s, W/s)``.

    scale: s; H and W are multiples of it
    neighbours: k
    window: side, in patches, of the part of the smaller image that a query may choose from; a smaller image of no more
        patches is searched whole
    max_scores: largest number of distances that the fast form holds at a time, at least one query's
    """
    grid, candidates = ([side // 2 for side in t.shape[2:]] for t in (embedded, small))
    queries, sons = unfold(embedded), unfold(small)  # (B, M, C, 9), (B, N, C, 9)
    q, n = queries.flatten(2), sons.flatten(2)
    distance = q.square().sum(2)[:, :, None] + n.square().sum(2)[:, None] - 2 * q @ n.mT
    windows = windows_of(grid, candidates, scale, window)
    outside = outside_windows([slice(0, count) for count in candidates], windows).to(distance.device)
    nearest, index = distance.masked_fill(outside, torch.inf).topk(neighbours, largest=False)  # (B, M, k)
    chosen = gather(sons.flatten(0, 1), across_images(index, sons.shape[1]))  # (B, M, k, C, 9)
    difference = (queries[:, :, None] - chosen).abs().sum(4).transpose(1, 2)
    return Graph(*(t.unflatten(2, grid) for t in (index.mT, nearest.mT.clamp(min=0), difference)))


@operation(plain)
@torch.no_grad()
def match_patches(
    embedded: Tensor, small: Tensor, scale: int, neighbours: int = 5, window: int = 30, max_scores: int = MAX_SCORES
) -> Graph:
    """Distances ‖n‖² - 2 q·n (+ ‖q‖²) of a tile of queries at a time, to the part of the smaller image that their
    windows cover; differences of a neighbour at a time."""
    with torch.autocast(embedded.device.type, enabled=False):
        queries, sons = (cut(to_rows(t), 1).flatten(4).movedim(0, 3).contiguous() for t in (embedded, small))
        distance, index = search(queries.flatten(3), sons.flatten(3), scale, neighbours, window, max_scores)
        rows, flat = sons.flatten(0, 2), across_images(index, sons.shape[1] * sons.shape[2])
        some = neighbours if flat.is_cuda else 1  # on a GPU few operations matter more than little memory
        difference = [gather(rows, part).sub_(queries[:, None]).abs_().sum(4) for part in flat.split(some, 1)]
    return Graph(index, distance, torch.cat(difference, 1))


class Windows(NamedTuple):
    """The patches of the smaller image that each query may choose from, along one axis: `side` patches from `first`."""

    first: Tensor
    side: int


def windows_of(queries: Sequence[int], sons: Sequence[int], scale: int, window: int) -> list[Windows]:
    """Windows along both axes, for grids of m1 x m2 queries and n1 x n2 sons."""
    sides = sons if window >= max(sons) else [min(window, *sons)] * 2
    # As released: a window is centred on half the query's position, whatever s is.
    first = [
        (torch.arange(m) // 2 - window // scale).clamp(0, n - w) for m, n, w in zip(queries, sons, sides, strict=True)
    ]
    return [Windows(*axis) for axis in zip(first, sides, strict=True)]


def outside_windows(part: Sequence[slice], windows: Sequence[Windows]) -> Tensor:
    """Which sons of a part of the smaller image lie outside each query's window, ``(queries, sons)``."""
    axes = []
    for span, (first, side) in zip(part, windows, strict=True):
        position = torch.arange(span.start, span.stop)
        axes.append((position < first[:, None]) | (position >= first[:, None] + side))
    return (axes[0][:, None, :, None] | axes[1][:, None]).flatten(2).flatten(0, 1)


def search(
    queries: Tensor, sons: Tensor, scale: int, neighbours: int, window: int, max_scores: int
) -> tuple[Tensor, Tensor]:
    """Squared distances and numbers ``(B, k, m1, m2)`` of the sons nearest to the queries within their windows.

    queries ``(B, m1, m2, F)``, sons ``(B, n1, n2, F)``.
    """
    batch, *grid, _ = queries.shape
    candidates = sons.shape[1:3]
    windows = windows_of(grid, candidates, scale, window)
    sides = [side for _, side in windows]
    squares = sons.square().sum(3)
    distance = queries.new_empty(batch, neighbours, *grid)
    index = torch.empty(distance.shape, dtype=torch.long, device=queries.device)
    for i, j in tiles(grid, tile_side(batch, grid, candidates, sides, max_scores)):
        of_tile = [Windows(first[part], side) for (first, side), part in zip(windows, (i, j), strict=True)]
        rows, columns = (slice(int(first[0]), int(first[-1]) + side) for first, side in of_tile)  # covered together
        query = queries[:, i, j].flatten(1, 2)
        scores = torch.baddbmm(
            squares[:, rows, columns].flatten(1)[:, None],
            query,
            sons[:, rows, columns].flatten(1, 2).transpose(1, 2),
            alpha=-2,
        )  # (B, queries, sons)
        if sides != list(candidates):
            scores.masked_fill_(outside_windows((rows, columns), of_tile).to(scores.device), torch.inf)
        nearest, chosen = scores.topk(neighbours, largest=False)
        nearest += query.square().sum(2, keepdim=True)
        across = columns.stop - columns.start
        chosen = (rows.start + chosen // across) * candidates[1] + columns.start + chosen % across
        shape = distance[:, :, i, j].shape
        distance[:, :, i, j] = nearest.transpose(1, 2).reshape(shape)
        index[:, :, i, j] = chosen.transpose(1, 2).reshape(shape)
    return distance.clamp_(min=0), index


def tile_side(batch: int, queries: Sequence[int], sons: Sequence[int], sides: Sequence[int], max_scores: int) -> int:
    """Side of square tiles of queries that need no more than `max_scores` distances, halved until they do."""
    side = max(queries) if list(sides) == list(sons) else TILE

    def scores() -> int:
        axes = zip(queries, sons, sides, strict=True)
        return batch * math.prod(min(side, m) * min(w + (side + 1) // 2, n) for m, n, w in axes)

    while side > 1 and scores() > max_scores:
        side = -(-side // 2)
    return side


def tiles(grid: Sequence[int], side: int) -> Iterator[tuple[slice, slice]]:
    """Cut a grid into tiles of at most side x side."""
    for i in range(0, grid[0], side):
        for j in range(0, grid[1], side):
            yield slice(i, min(i + side, grid[0])), slice(j, min(j + side, grid[1]))
