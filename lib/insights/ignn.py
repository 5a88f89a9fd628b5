"""IGNN: the patches that its graph chose, and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.ignn import IGNN, FeatureGraph, GraphAggregation
from ..models.ignn.difference_maps import difference_maps
from ..models.ignn.embedding import embedded_by_themselves
from ..models.ignn.match_patches import match_patches
from ..models.ignn.patches import pad_to_cells


class Matches(NamedTuple):
    """The patches that cover P pixels and what they were matched with.

    i, j ``(P,)``: row and column in the grid of patches; of the patches over a pixel, the one furthest down and right
    chosen, distance ``(P, k)``: numbers of the nearest patches in the smaller image, their squared distances
    weights: edge weights ``(P, k)`` at the pixels, by the branches' names
    """

    i: Tensor
    j: Tensor
    chosen: Tensor
    distance: Tensor
    weights: dict[str, Tensor]


def matches_at(
    aggregation: GraphAggregation, embedded: Tensor, small: Tensor, rows: Tensor, columns: Tensor
) -> Matches:
    graph = match_patches(
        embedded, small, aggregation.scale, aggregation.neighbours, aggregation.window, aggregation.max_scores
    )
    difference = difference_maps(graph.difference, embedded.shape[2:])
    branches = {"lr": aggregation.edges_lr, "hr": aggregation.edges_hr}
    weights = {
        side: aggregation.weights(edges, difference)[0, :, 0, rows, columns].T
        for side, edges in branches.items()
        if aggregation.branch in ("both", side)
    }
    last_row, last_column = (count - 1 for count in graph.matches.shape[2:])
    i, j = (rows // 2).clamp(max=last_row), (columns // 2).clamp(max=last_column)
    return Matches(i, j, graph.matches[0, :, i, j].T, graph.distance[0, :, i, j].T, weights)


@torch.no_grad()
def mechanism(network: IGNN, image: Tensor, points: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """The matches of the patches that cover the pixels `points` (row, column), nearest neighbour first.

    query ``(P, 2)``: top left pixel of the 3x3 patch in the image
    son ``(P, k, 2)``: of the 3x3 patches chosen in the smaller image, in its pixels
    match ``(P, k, 2)``: of the 3s x 3s patches that they stand for, in the image's pixels
    distance ``(P, k)``: squared Euclidean, between embeddings of patches
    weight_lr, weight_hr ``(P, k)``: edge weights at the pixels, where the branch exists

    Nothing for a network without a graph.
    """
    aggregation = network.aggregation
    if aggregation is None:
        return {}
    padded, _, shallow = network.features(image)
    embedded, small = network.embedded(padded, shallow)
    found = matches_at(aggregation, embedded, small, *torch.as_tensor(points, device=image.device).unbind(1))
    across = small.shape[3] // 2  # patches side by side in the smaller image
    son = 2 * torch.stack([found.chosen // across, found.chosen % across], -1)
    return {
        "query": 2 * torch.stack([found.i, found.j], -1),
        "son": son,
        "match": aggregation.scale * son,
        "distance": found.distance,
        **{f"weight_{side}": weight for side, weight in found.weights.items()},
    }


@torch.no_grad()
def weights(
    module: FeatureGraph | GraphAggregation, x: Tensor, queries: Tensor | None = None, *embeddings: Tensor
) -> Tensor:
    """Edge weights ``(branches, Q, patches of the smaller copy)`` at the pixels `queries`; see `lib.insights.weights`.

    A weight is given to the patch that the neighbour is. embeddings: of the image and its smaller copy, where they are
    not the features themselves.
    """
    aggregation = module if isinstance(module, GraphAggregation) else module.aggregation
    if not embeddings:
        padded = pad_to_cells(x, aggregation.scale, aggregation.neighbours)
        embeddings = embedded_by_themselves(padded, aggregation.scale)
    embedded, small = embeddings
    pixels = torch.arange(x.shape[2] * x.shape[3], device=x.device) if queries is None else queries
    found = matches_at(aggregation, embedded, small, pixels // x.shape[3], pixels % x.shape[3])
    none = x.new_zeros(len(pixels), (small.shape[2] // 2) * (small.shape[3] // 2))
    return torch.stack([none.scatter_add(1, found.chosen, of.to(none.dtype)) for of in found.weights.values()])
