"""IGNN: the patches that its graph chose, and their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.ignn import IGNN, FeatureGraph, GraphAggregation, embedded_by_themselves, pad_to_cells
from ..models.ignn.match_patches import Graph, match_patches


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
    graph = graph_of(aggregation, embedded, small)
    rows, columns = torch.as_tensor(points, device=image.device).unbind(1)
    i, j = patch_over(rows, columns, graph)
    chosen = graph.matches[0, :, i, j].T
    across = small.shape[3] // 2  # patches side by side in the smaller image
    son = 2 * torch.stack([chosen // across, chosen % across], -1)
    shown = {
        "query": 2 * torch.stack([i, j], -1),
        "son": son,
        "match": aggregation.scale * son,
        "distance": graph.distance[0, :, i, j].T,
    }
    for side, edges in (("lr", aggregation.edges_lr), ("hr", aggregation.edges_hr)):
        if aggregation.branch in ("both", side):
            shown[f"weight_{side}"] = aggregation.weights(edges, graph.difference)[0, :, 0, rows, columns].T
    return shown


@torch.no_grad()
def weights(
    module: FeatureGraph | GraphAggregation, x: Tensor, queries: Tensor | None = None, *embeddings: Tensor
) -> Tensor:
    """Edge weights ``(branches, Q, patches)`` at the pixels `queries`, each given to the patch that it was learned for;
    see `lib.insights.weights`. The keys are the patches of the smaller copy; a pixel's are those of the patch whose top
    left part it lies in."""
    aggregation = module if isinstance(module, GraphAggregation) else module.aggregation
    if not embeddings:
        embeddings = embedded_by_themselves(
            pad_to_cells(x, aggregation.scale, aggregation.neighbours), aggregation.scale
        )
    embedded, small = embeddings
    graph = graph_of(aggregation, embedded, small)
    pixels = torch.arange(x.shape[2] * x.shape[3], device=x.device) if queries is None else queries
    rows, columns = pixels // x.shape[3], pixels % x.shape[3]
    i, j = patch_over(rows, columns, graph)
    found = x.new_zeros(len(pixels), (small.shape[2] // 2) * (small.shape[3] // 2))
    branches = {"lr": aggregation.edges_lr, "hr": aggregation.edges_hr}
    edges = [
        aggregation.weights(branch, graph.difference)[0, :, 0, rows, columns].T.to(found.dtype)
        for side, branch in branches.items()
        if aggregation.branch in ("both", side)
    ]
    return torch.stack([found.scatter_add(1, graph.matches[0, :, i, j].T, branch) for branch in edges])


def graph_of(aggregation: GraphAggregation, embedded: Tensor, small: Tensor) -> Graph:
    return match_patches(
        embedded, small, aggregation.scale, aggregation.neighbours, aggregation.window, aggregation.max_scores
    )


def patch_over(rows: Tensor, columns: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
    """Row and column, in the grid of patches, of the last patch that covers each pixel's cell from its top left."""
    last = [count - 1 for count in graph.matches.shape[2:]]
    return (rows // 2).clamp(max=last[0]), (columns // 2).clamp(max=last[1])
