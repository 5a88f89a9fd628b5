r"""IGNN: cross-scale internal graph neural network.

Zhou et al., "Cross-Scale Internal Graph Neural Network for Image Super-Resolution", NeurIPS 2020 (arXiv 2006.16673),
and the released code (sczhou/IGNN, 32bfa71).

Every 3x3 patch q of the image I (stride 2) is matched with its k nearest patches n_1..n_k of the image made s times
smaller, I↓s: nearest by the squared Euclidean distance of their embeddings E. Where n_t came from, I itself shows the
same content s times larger: the 3s x 3s patch N_t of I's features x. These are pasted where q lies in the s times
larger result, N_t adapted to q's mean and deviation (AdaPN), overlaps averaged,

    P_t = fold_q( (N_t - μ_N) σ_q / σ_N + μ_q )              D_t = fold_q( Σ_positions |E_q - E_n| )

and the k pasted images are mixed by learned functions (ECN) of the difference maps D_t, at both resolutions:

    x_hr = Σ_t softmax_t(ECN_hr(D_t)) P_t                    x_lr = Σ_t softmax_t(ECN_lr(D_t)) DEN(P_t)

Nothing is differentiated through the embedding and the choice of neighbours.

Fast and exact. In cells of s x s pixels a pasted patch is 3 x 3 cells at stride 2, so (i) a map that is constant on
every patch (D_t, μ_q) is constant on cells, and folding it is averaging the patches that share a cell: it is kept at
the small resolution, where ECN, made of 1x1 convolutions, gives the same numbers; (ii) AdaPN's factor
separates, σ_q / σ_N: the few patches that can be chosen are normalised once, (N - μ_N) / σ_N, not each chosen copy;
(iii) cells are then copied straight to their place, for one of the nine positions at a time, and the backward pass
reads them again: no expanded copy of the chosen patches is ever held. Distances ‖n‖² - 2 q·n (+ ‖q‖²) are computed for
tiles of queries against the part of I↓s that their windows cover.

Ours: I↓s is made inside; an image is continued by its mirror image to whole cells; with `neighbours` 0, or a branch
left out, the fusing layers see the trunk's features alone; the module for the common trunk (see `attention`). The
released code switches windowing off for good after the first small image; here it depends on the image alone.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...degradations import resize
from ..blocks import DIV2K_MEAN, MAX_SCORES, Network, ResBlock, Upsampler, conv, enlarge, mirror_pad

#: Mean and standard deviation of ImageNet's colours, which VGG19 was trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: The first digits of a file's sha256 in its name, as torchvision's weights have them.
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth$")

#: Added to a variance under its root, from the released code.
SMALLEST_VARIANCE = 1e-5

#: Numbers that are copied at a time when patches are pasted on a CPU, 2 MiB of float32.
COPIED = 2**19

#: Queries of a tile along one side where windows are used: their windows then overlap by more than half.
TILE = 16

#: Parts that are never trained.
FROZEN = ("embedding",)

#: Tensors of GraphAggregation without effect or gradient: they add one number to the scores of all neighbours, and the
#: softmax takes it away again.
INERT = ("edges_lr.1.body.2.bias", "edges_lr.2.bias", "edges_hr.1.body.2.bias", "edges_hr.2.bias")


class IGNN(Network):
    """Super-resolution by 2, 3 or 4; the graph spans a factor of 2, 3 and 2.

    width, blocks: features, residual blocks (half before the graph, half after it)
    neighbours: k; 0 leaves the graph out
    window: side of the search window in patches of the smaller image; an image of no more patches is searched whole
    adapn, edge_weights ("learned" by ECN or "uniform"), branch ("both", "lr" or "hr"): see GraphAggregation
    embedding: what patches are compared by; "vgg19", "random": VGG19's first two convolutions, as published or as they
        were initialised (what training the released code from scratch uses); "own": the trunk's features
    vgg19_weights: file of a state dict with torchvision's names, ``features.0.weight`` and so on; None leaves the
        embedding to a state dict that is loaded later
    image_skip: the study's option for short trainings: add the input's bicubic enlargement to a last convolution that
        starts at zero
    max_scores: largest number of distances held at a time

    Any H, W >= 1: to multiples of the graph's factor s, and to 2 s ceil(sqrt(k)) at least, an image is padded inside.
    """

    def __init__(
        self,
        colors: int = 3,
        scale: int = 2,
        width: int = 256,
        blocks: int = 32,
        neighbours: int = 5,
        window: int = 30,
        adapn: bool = True,
        edge_weights: str = "learned",
        branch: str = "both",
        embedding: str = "vgg19",
        vgg19_weights: str | Path | None = None,
        image_skip: bool = False,
        max_scores: int = MAX_SCORES,
    ):
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"scale {scale} is not one of 2, 3, 4")
        check("embedding", embedding, ("vgg19", "random", "own"))
        self.scale, self.image_skip = scale, image_skip
        self.graph_scale = 3 if scale == 3 else 2
        mean = torch.tensor(DIV2K_MEAN if colors == 3 else [0.0] * colors)
        self.register_buffer("mean", mean.view(1, colors, 1, 1), persistent=False)

        self.head = conv(colors, width)
        self.body1 = nn.Sequential(*[residual(width) for _ in range(blocks // 2)])
        self.embedding = self.aggregation = None
        if neighbours:
            self.embedding = None if embedding == "own" else Embedding()
            self.aggregation = GraphAggregation(
                width,
                width if embedding == "own" else Embedding.width,
                self.graph_scale,
                neighbours,
                window,
                adapn,
                edge_weights,
                branch,
                max_scores,
            )
        lr, hr = (neighbours > 0 and branch in ("both", side) for side in ("lr", "hr"))
        self.fuse_lr = nn.Sequential(conv(width * (1 + lr), width), nn.ReLU(), conv(width, width))
        self.body2 = nn.Sequential(*[residual(width) for _ in range(blocks - blocks // 2)], conv(width, width))
        self.upsampler = Upsampler(width, self.graph_scale)
        self.fuse_hr = nn.Sequential(conv(width * (1 + hr), width), nn.ReLU(), conv(width, width), nn.ReLU())
        self.tail = nn.Sequential(*Upsampler(width, scale // self.graph_scale), conv(width, colors))

        self.apply(initialise)
        if image_skip:
            nn.init.zeros_(self.tail[-1].weight)
        if self.embedding is not None and embedding == "vgg19":
            self.embedding.load(vgg19_weights)

    def forward(self, x: Tensor) -> Tensor:
        height, width = (self.scale * side for side in x.shape[2:])
        padded = self._pad(x)
        head, shallow = self._features(padded)
        lr = hr = None
        if self.aggregation is not None:
            lr, hr = self.aggregation(shallow, *self._embedded(padded, shallow))
        deep = self.body2(self.fuse_lr(joined(shallow, lr))) + head
        y = self.tail(self.fuse_hr(joined(self.upsampler(deep), hr)))[:, :, :height, :width] / 255
        return y + (enlarge(x, self.scale) if self.image_skip else self.mean)

    def _pad(self, x: Tensor) -> Tensor:
        return pad_to_cells(x, self.graph_scale, self.aggregation.neighbours if self.aggregation else 1)

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the head, and those before the graph."""
        head = self.head(255 * (x - self.mean))
        return head, self.body1(head)

    @torch.no_grad()
    def _embedded(self, x: Tensor, shallow: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the image and of its smaller version."""
        if self.embedding is None:
            return embedded_by_themselves(shallow, self.graph_scale)
        with torch.autocast(x.device.type, enabled=False):
            return self.embedding(x), self.embedding(resize(x, down=self.graph_scale).clamp(0, 1))

    @torch.no_grad()
    def mechanism(self, image: Tensor, points: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """The matches of the patches at `points`; see GraphAggregation.mechanism. Without a graph, nothing."""
        if self.aggregation is None:
            return {}
        padded = self._pad(image)
        return self.aggregation.mechanism(*self._embedded(padded, self._features(padded)[1]), points)


def attention(
    width: int,
    neighbours: int = 5,
    window: int = 30,
    adapn: bool = True,
    edge_weights: str = "learned",
    graph_scale: int = 2,
    max_scores: int = MAX_SCORES,
) -> nn.Module:
    """The graph for the common trunk, ours: x + x_lr, embedded by the features x themselves (see FeatureGraph)."""
    return FeatureGraph(width, neighbours, window, adapn, edge_weights, graph_scale, max_scores)


class FeatureGraph(nn.Module):
    """The low-resolution branch of IGNN's graph on features alone: ``(B, width, H, W)`` to the same shape, x + x_lr.

    Patches are compared by the features, the smaller copy is their bicubic downscaling. Any H, W >= 1, as in IGNN.
    """

    def __init__(
        self,
        width: int,
        neighbours: int = 5,
        window: int = 30,
        adapn: bool = True,
        edge_weights: str = "learned",
        graph_scale: int = 2,
        max_scores: int = MAX_SCORES,
    ):
        super().__init__()
        self.aggregation = GraphAggregation(
            width, width, graph_scale, neighbours, window, adapn, edge_weights, "lr", max_scores
        )
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        padded = pad_to_cells(x, self.aggregation.scale, self.aggregation.neighbours)
        added = self.aggregation(padded, *embedded_by_themselves(padded, self.aggregation.scale))[0]
        return x + added[:, :, : x.shape[2], : x.shape[3]]

    @torch.no_grad()
    def mechanism(self, x: Tensor, points: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """The matches of the patches at `points` of the features ``(1, width, H, W)``; see GraphAggregation."""
        padded = pad_to_cells(x, self.aggregation.scale, self.aggregation.neighbours)
        return self.aggregation.mechanism(*embedded_by_themselves(padded, self.aggregation.scale), points)


class GraphAggregation(nn.Module):
    """The graph and its aggregation (GraphAgg of the paper).

    width, embedded: channels of the features and of the embeddings
    scale: the factor s that the graph spans
    adapn: adapt a pasted patch to the mean and deviation of the patch it was chosen for
    edge_weights: "learned" (ECN) or "uniform", 1/k each; one neighbour needs none
    branch: "lr", "hr" or "both" resolutions
    """

    def __init__(
        self,
        width: int,
        embedded: int,
        scale: int = 2,
        neighbours: int = 5,
        window: int = 30,
        adapn: bool = True,
        edge_weights: str = "learned",
        branch: str = "both",
        max_scores: int = MAX_SCORES,
    ):
        super().__init__()
        check("edge_weights", edge_weights, ("learned", "uniform"))
        check("branch", branch, ("both", "lr", "hr"))
        if neighbours < 1 or window**2 < neighbours:
            raise ValueError(f"neighbours {neighbours} must lie in 1..{window**2}, the patches of a window")
        self.scale, self.neighbours, self.window = scale, neighbours, window
        self.adapn, self.branch, self.max_scores = adapn, branch, max_scores
        learned = edge_weights == "learned" and neighbours > 1
        lr, hr = branch != "hr", branch != "lr"
        self.den = patch_downsampling(width, scale) if lr else None
        self.edges_lr = edge_network(embedded) if lr and learned else None
        self.edges_hr = edge_network(embedded) if hr and learned else None

    def forward(self, x: Tensor, embedded: Tensor, small: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Features ``(B, width, H, W)``, embeddings of the image ``(B, embedded, H, W)`` and of its smaller version.

        H and W are multiples of s. Returns x_lr ``(B, width, H, W)`` and x_hr ``(B, width, sH, sW)``, None without it.
        """
        graph = build_graph(embedded, small, self.scale, self.neighbours, self.window, self.max_scores)
        pasted = aggregate(x, graph.index, self.scale, self.adapn)
        difference = self.fold(graph.difference, x.shape[2:])
        lr = hr = None
        if self.branch != "hr":
            down = self.den(pasted.flatten(0, 1)).unflatten(0, pasted.shape[:2])
            lr = (down * self.weights(self.edges_lr, difference)).sum(1)
        if self.branch != "lr":
            weights = F.interpolate(self.weights(self.edges_hr, difference)[:, :, 0], scale_factor=self.scale)
            hr = sum(image * weight for image, weight in zip(pasted.unbind(1), weights.split(1, 1), strict=True))
        return lr, hr

    def fold(self, difference: Tensor, size: Sequence[int]) -> Tensor:
        """Difference maps ``(B, k, embedded, H, W)`` of a graph."""
        maps = difference.new_empty(*difference.shape[:2], *size, difference.shape[4])
        for patch, image in zip(few(difference), few(maps), strict=True):
            spread(patch.flatten(0, 1), size, out=image.flatten(0, 1))
        return maps.permute(0, 1, 4, 2, 3)

    def weights(self, edges: nn.Module | None, difference: Tensor) -> Tensor:
        """Weights ``(B, k, 1, H, W)`` of the neighbours, from the difference maps."""
        if edges is None:
            return torch.full_like(difference[:, :, :1], 1 / self.neighbours)
        return edges(difference.flatten(0, 1)).unflatten(0, difference.shape[:2]).softmax(1)

    def mechanism(self, embedded: Tensor, small: Tensor, points: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """The matches of the patches that cover the pixels `points` (row, column), nearest neighbour first.

        query ``(P, 2)``: top left pixel of the 3x3 patch in the image
        son ``(P, k, 2)``: of the 3x3 patches chosen in the smaller image, in its pixels
        match ``(P, k, 2)``: of the 3s x 3s patches that they stand for, in the image's pixels
        distance ``(P, k)``: squared Euclidean, between embeddings of patches
        weight_lr, weight_hr ``(P, k)``: edge weights at the pixels, where the branch exists
        """
        graph = build_graph(embedded, small, self.scale, self.neighbours, self.window, self.max_scores)
        difference = self.fold(graph.difference, embedded.shape[2:])
        rows, columns = torch.as_tensor(points, device=embedded.device).unbind(1)
        i = (rows // 2).clamp(max=graph.index.shape[2] - 1)
        j = (columns // 2).clamp(max=graph.index.shape[3] - 1)
        chosen = graph.index[0, :, i, j].T
        across = small.shape[3] // 2  # patches side by side in the smaller image
        son = 2 * torch.stack([chosen // across, chosen % across], -1)
        shown = {
            "query": 2 * torch.stack([i, j], -1),
            "son": son,
            "match": self.scale * son,
            "distance": graph.distance[0, :, i, j].T,
        }
        if self.branch != "hr":
            shown["weight_lr"] = self.weights(self.edges_lr, difference)[0, :, 0, rows, columns].T
        if self.branch != "lr":
            shown["weight_hr"] = self.weights(self.edges_hr, difference)[0, :, 0, rows, columns].T
        return shown


class Graph(NamedTuple):
    """For every query patch its k nearest patches of the smaller image, nearest first.

    index ``(B, k, m1, m2)``: number of the patch in the smaller image's grid, row by row
    distance ``(B, k, m1, m2)``: squared Euclidean distance of the embeddings
    difference ``(B, k, m1, m2, C)``: absolute differences of the embeddings, summed over a patch's positions
    """

    index: Tensor
    distance: Tensor
    difference: Tensor


@torch.no_grad()
def build_graph(
    embedded: Tensor, small: Tensor, scale: int, neighbours: int = 5, window: int = 30, max_scores: int = MAX_SCORES
) -> Graph:
    """Match the 3x3 patches of `embedded` ``(B, C, H, W)`` with those of `small` ``(B, C, H/s, W/s)``."""
    with torch.autocast(embedded.device.type, enabled=False):
        queries, sons = (patches(to_rows(t), 1).flatten(4).movedim(0, 3).contiguous() for t in (embedded, small))
        distance, index = search(queries.flatten(3), sons.flatten(3), scale, neighbours, window, max_scores)
        rows, flat = sons.flatten(0, 2), across_images(index, sons.shape[1] * sons.shape[2])
        difference = [take(rows, chosen).sub_(queries[:, None]).abs_().sum(4) for chosen in few(flat)]
    return Graph(index, distance, torch.cat(difference, 1))


def few(of_neighbours: Tensor) -> Sequence[Tensor]:
    """``(B, k, ..)`` as k of ``(B, 1, ..)``, for a CPU's memory, or whole: a GPU would rather have few operations."""
    return [of_neighbours] if of_neighbours.is_cuda else of_neighbours.split(1, 1)


def search(
    queries: Tensor, sons: Tensor, scale: int, neighbours: int, window: int, max_scores: int
) -> tuple[Tensor, Tensor]:
    """Squared distances and numbers ``(B, k, m1, m2)`` of the sons nearest to the queries within their windows.

    queries ``(B, m1, m2, F)``, sons ``(B, n1, n2, F)``.
    """
    batch, m1, m2, _ = queries.shape
    n1, n2 = sons.shape[1:3]
    whole = window >= n1 and window >= n2
    height, width = (n1, n2) if whole else [min(window, n1, n2)] * 2
    # As released: the window is centred on half the query's position, whatever s is.
    tops = (torch.arange(m1) // 2 - window // scale).clamp(0, n1 - height)
    lefts = (torch.arange(m2) // 2 - window // scale).clamp(0, n2 - width)
    squares = sons.square().sum(3)
    distance = queries.new_empty(batch, neighbours, m1, m2)
    index = torch.empty(distance.shape, dtype=torch.long, device=queries.device)
    side = tile_side(batch, (m1, m2), (n1, n2), (height, width), max_scores)
    for i, j in tiles(m1, m2, side):
        rows, columns = covered(tops[i], height), covered(lefts[j], width)
        query = queries[:, i, j].flatten(1, 2)
        scores = torch.baddbmm(
            squares[:, rows, columns].flatten(1)[:, None],
            query,
            sons[:, rows, columns].flatten(1, 2).transpose(1, 2),
            alpha=-2,
        )  # (B, queries, sons)
        if not whole:
            outside = beyond(rows, tops[i], height)[:, None, :, None] | beyond(columns, lefts[j], width)[:, None]
            scores.masked_fill_(outside.flatten(2).flatten(0, 1).to(scores.device), torch.inf)
        nearest, chosen = scores.topk(neighbours, largest=False)
        nearest += query.square().sum(2, keepdim=True)
        across = columns.stop - columns.start
        chosen = (rows.start + chosen // across) * n2 + columns.start + chosen % across
        shape = distance[:, :, i, j].shape
        distance[:, :, i, j] = nearest.transpose(1, 2).reshape(shape)
        index[:, :, i, j] = chosen.transpose(1, 2).reshape(shape)
    return distance.clamp_(min=0), index


def tile_side(batch: int, queries: Sequence[int], sons: Sequence[int], window: Sequence[int], max_scores: int) -> int:
    """Side of square tiles of queries that need no more than `max_scores` distances, halved until they do."""
    side = max(queries) if tuple(window) == tuple(sons) else TILE

    def scores() -> int:
        axes = zip(queries, sons, window, strict=True)
        return batch * math.prod(min(side, m) * min(w + (side + 1) // 2, n) for m, n, w in axes)

    while side > 1 and scores() > max_scores:
        side = -(-side // 2)
    return side


def tiles(rows: int, columns: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Cut a grid into tiles of at most side x side."""
    for i in range(0, rows, side):
        for j in range(0, columns, side):
            yield slice(i, min(i + side, rows)), slice(j, min(j + side, columns))


def covered(first: Tensor, side: int) -> slice:
    """What windows of `side` that begin at `first`, ascending, cover together."""
    return slice(int(first[0]), int(first[-1]) + side)


def beyond(part: slice, first: Tensor, side: int) -> Tensor:
    """Which positions of `part` (columns) each window does not cover (rows)."""
    position = torch.arange(part.start, part.stop)
    return (position < first[:, None]) | (position >= first[:, None] + side)


def to_rows(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` as a contiguous ``(B, H, W, C)``, in float32 at least: distances and deviations need it."""
    return x.permute(0, 2, 3, 1).to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def patches(x: Tensor, scale: int) -> Tensor:
    """Patches of 3 x 3 cells of s x s pixels, at every second cell: ``(9, B, m1, m2, s, s, C)``, contiguous.

    x ``(B, H, W, C)``, H and W multiples of s; a last row or column of zeros makes up an even number of cells. The nine
    places of a cell in its patch come first, row by row.
    """
    x = F.pad(x, (0, 0, 0, scale * (x.shape[2] // scale % 2 == 0), 0, scale * (x.shape[1] // scale % 2 == 0)))
    x = x.unflatten(2, (-1, scale)).unflatten(1, (-1, scale)).permute(0, 1, 3, 2, 4, 5)  # (B, rows, columns, s, s, C)
    last = [cells - 2 for cells in x.shape[1:3]]
    return torch.stack([x[:, u : last[0] + u : 2, v : last[1] + v : 2] for u in range(3) for v in range(3)])


def across_images(index: Tensor, count: int) -> Tensor:
    """Numbers of patches within each image as numbers within the batch; `count` patches per image."""
    return index + count * torch.arange(len(index), device=index.device).view(-1, 1, 1, 1)


def spread(x: Tensor, size: Sequence[int], out: Tensor | None = None) -> Tensor:
    """Fold patches that are constant: ``(B, m1, m2, C)`` to cells ``(B, *size, C)``, overlaps averaged.

    Odd cells belong to one patch, even ones lie between two and get their mean, the outermost belong to one again.
    """
    for dim, into in ((1, None), (2, out)):
        count = x.shape[dim]
        cells = torch.index_select(x, dim, first_patches(size[dim - 1], x.device), out=into)
        between = cells.movedim(dim, 0)[2 : 2 * count : 2]
        between.add_(x.movedim(dim, 0)[1:]).div_(2)
        x = cells
    return x


@functools.lru_cache(64)
def first_patches(cells: int, device: torch.device) -> Tensor:
    """The first patch over each cell along an axis, made once: a GPU waits for every operation to be started."""
    with torch.inference_mode(False):  # may serve a training later
        return ((torch.arange(cells, device=device) - 1) // 2).clamp(min=0)


def aggregate(x: Tensor, index: Tensor, scale: int, adapn: bool = True) -> Tensor:
    """Paste the features' patches that `index` ``(B, k, m1, m2)`` names: ``(B, k, C, sH, sW)``.

    x ``(B, C, H, W)``: gradients flow to it as source and, with `adapn`, through the queries' mean and deviation.
    """
    size, features = x.shape[2:], to_rows(x)
    base = deviation = None
    if adapn:
        mean, deviation = statistics(patches(features, 1))[:2]
        base, deviation = spread(mean, size).to(x.dtype), deviation.to(x.dtype)
    table = son_table(features, scale, adapn).to(x.dtype)
    del features
    index = across_images(index, table.shape[1] // len(x))
    pasted = Paste.apply(table, deviation, base, index, tuple(size))
    return pasted.flatten(4, 5).flatten(2, 3).permute(0, 1, 4, 2, 3)


def son_table(features: Tensor, scale: int, normalised: bool) -> Tensor:
    """The patches that can be chosen, of all images: ``(9, N, s, s, C)``."""
    table = patches(features, scale)
    if normalised:
        _, deviation, centred = statistics(table)
        table = centred * deviation.reciprocal()[..., None, None, :]  # a quotient's backward pass holds twice as much
    return table.flatten(1, 3)


def statistics(patch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means and deviations ``(B, m1, m2, C)`` of patches ``(9, B, m1, m2, s, s, C)``; the patches less their means."""
    count = patch.shape[0] * patch.shape[4] * patch.shape[5]
    mean = patch.sum(0).flatten(3, 4).sum(3) / count
    centred = patch - mean[..., None, None, :]
    variance = centred.square().sum(0).flatten(3, 4).sum(3) / (count - 1)
    return mean, (variance + SMALLEST_VARIANCE).sqrt(), centred


class Paste(torch.autograd.Function):
    """base + the fold of (deviation of the query) x (row of the table), overlaps averaged.

    table ``(9, N, s, s, C)``: the cells of N patches, by their place in the patch
    deviation ``(B, m1, m2, C)``, base ``(B, H, W, C)``: of the queries, of the cells; both or neither
    index ``(B, k, m1, m2)``: rows of the table; cells: (H, W)
    Returns ``(B, k, H, s, W, s, C)``. Keeps its inputs alone: the backward pass reads the chosen rows again.
    """

    @staticmethod
    def forward(
        ctx, table: Tensor, deviation: Tensor | None, base: Tensor | None, index: Tensor, cells: tuple[int, int]
    ):
        ctx.save_for_backward(table, deviation, index)
        scale, channels = table.shape[2], table.shape[4]
        shape = (*index.shape[:2], cells[0], scale, cells[1], scale, channels)
        if base is None:
            pasted = table.new_zeros(shape)
        else:
            pasted = base[:, None, :, None, :, None].expand(shape).clone(memory_format=torch.contiguous_format)
        for place, own, there, share in places(index.shape[2:], cells, table.device, table.dtype):
            factor = factor_of(share, deviation, own, table)
            for numbers, target in portions(index, pasted):
                cells_of(target, there).addcmul_(take(table[place], numbers[:, :, *own]), factor)
        return pasted

    @staticmethod
    def backward(ctx, grad: Tensor):
        table, deviation, index = ctx.saved_tensors
        d_table, d_base, d_deviation = torch.zeros_like(table), None, None
        if deviation is not None:
            d_base = sum(image.sum(4).sum(2) for image in grad.unbind(1))  # no sum of all is ever held
            d_deviation = torch.zeros_like(deviation)
        for place, own, there, share in places(index.shape[2:], grad.shape[2:6:2], table.device, table.dtype):
            factor = factor_of(share, deviation, own, table)
            for numbers, target in portions(index, grad):
                chosen, part = numbers[:, :, *own], cells_of(target, there).contiguous()
                if deviation is not None:
                    product = take(table[place], chosen).mul_(part).sum(1)
                    d_deviation[:, *own] += product.flatten(3, 4).sum(3) * share
                d_table[place].index_add_(0, chosen.flatten(), part.mul_(factor).flatten(0, 3))
        return d_table, d_deviation, d_base, None, None


def portions(index: Tensor, pasted: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Index and map of a few neighbours at a time: what is copied of them for one place stays in a CPU's cache."""
    neighbours = index.shape[1]
    if pasted.is_cuda:
        return [(index, pasted)]
    few = max(1, neighbours * 4 * COPIED // pasted.numel())  # a place has a quarter of a map's cells
    return zip(index.split(few, 1), pasted.split(few, 1), strict=True)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """``rows[index]`` for an index of any shape, as a copy of whole rows."""
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape)


def factor_of(share: Tensor, deviation: Tensor | None, own: Sequence[slice], table: Tensor) -> Tensor:
    """share x deviation, for ``(B, k, rows, columns, s, s, C)``; written out along one s, which vectorises."""
    factor = share if deviation is None else share * deviation[:, None, *own]
    return factor[..., None, None, :].expand(*factor.shape[:-1], 1, *table.shape[3:]).contiguous()


@functools.lru_cache(4)
def places(
    grid: tuple[int, int], cells: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> tuple[tuple, ...]:
    """The nine places of a cell in a patch, made once, too.

    Gives the number, the patches (of the grid m1 x m2) that have a cell there on the map, these cells (of H x W), and
    these patches' share in them ``(rows, columns, 1)``.
    """
    axes = ([along_axis(n, count, size) for n in range(3)] for count, size in zip(grid, cells, strict=True))
    found = []
    for place, ((rows, map_rows, down), (columns, map_columns, across)) in enumerate(itertools.product(*axes)):
        down, across = (torch.tensor(share, dtype=dtype, device=device) for share in (down, across))
        found.append((place, (rows, columns), (map_rows, map_columns), (down[:, None] * across)[:, :, None]))
    return tuple(found)


def along_axis(place: int, count: int, cells: int) -> tuple[slice, slice, list[float]]:
    """`places` along one axis: half of a patch's outer cells is its neighbour's, except at the ends of the map."""
    share = [1.0 if place == 1 else 0.5] * count
    if place != 1:
        share[0 if place == 0 else -1] = 1.0
    present = min(count, len(range(place, cells, 2)))
    return slice(present), slice(place, place + 2 * present - 1, 2), share[:present]


def cells_of(pasted: Tensor, there: Sequence[slice]) -> Tensor:
    """Cells ``(B, k, rows, columns, s, s, C)`` of ``(B, k, H, s, W, s, C)``, a view."""
    return pasted[:, :, there[0], :, there[1]].transpose(3, 4)


class Embedding(nn.Module):
    """VGG19's first two convolutions with their ReLUs (relu1_2), frozen: ``(B, 1 or 3, H, W)`` to ``(B, 64, H, W)``."""

    width = 64

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = conv(3, self.width), conv(self.width, self.width)
        self.requires_grad_(False)
        self.loaded = True  # False while the weights are still to come
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def load(self, path: str | Path | None) -> None:
        """Take torchvision's VGG19 weights from a file; None leaves NaN, to be replaced by ``load_state_dict``.

        Raises ValueError, naming the file, where it is missing, holds other tensors, or has another sha256 than the
        digits that torchvision puts into the name: ``vgg19-dcbb9e9d.pth``.
        """
        if path is None:
            self.loaded = False
            for parameter in self.parameters():
                nn.init.constant_(parameter, math.nan)
            return
        if not Path(path).is_file():
            raise ValueError(
                f"vgg19_weights {path}: no such file; get torchvision's vgg19 weights or another embedding"
            )
        digits = HASH_IN_NAME.search(Path(path).name)
        if digits and not (found := sha256(path)).startswith(digits[1]):
            raise ValueError(f"vgg19_weights {path}: its sha256 begins with {found[:8]}; damaged, download it again")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for number, layer in ((0, self.conv1), (2, self.conv2)):
                layer.load_state_dict({key: state[f"features.{number}.{key}"] for key in ("weight", "bias")})
        except Exception as error:  # torch raises half a dozen kinds for a foreign or damaged file
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"vgg19_weights {path}: not a state dict of torchvision's vgg19 ({reason})") from None

    def forward(self, x: Tensor) -> Tensor:
        if not self.loaded and self.conv1.weight.isnan().any():
            raise RuntimeError("embedding vgg19 has no weights: set vgg19_weights, or load a state dict")
        self.loaded = True
        x = (x - self.mean) / self.deviation
        return F.relu(self.conv2(F.relu(self.conv1(x))))


def sha256(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def edge_network(inputs: int, width: int = 64) -> nn.Sequential:
    """ECN: difference maps to one score per cell."""
    block = ResBlock(width, nn.ReLU(), res_scale=0.1)
    block.body[0], block.body[2] = conv(width, width, 1), conv(width, width, 1)
    return nn.Sequential(conv(inputs, width, 1), block, conv(width, 1, 1))


def patch_downsampling(width: int, scale: int) -> nn.Sequential:
    """DEN: pasted images to the resolution of the features."""
    first = nn.Conv2d(width, width, 5, stride=scale, padding=2)
    return nn.Sequential(first, nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))


def residual(width: int) -> ResBlock:
    return ResBlock(width, nn.ReLU(), res_scale=0.1)


def joined(x: Tensor, other: Tensor | None) -> Tensor:
    return x if other is None else torch.cat([x, other], 1)


def initialise(module: nn.Module) -> None:
    """As released: Kaiming's normal distribution (fan in) times 0.1, zero biases; the frozen embedding too."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        with torch.no_grad():
            module.weight.mul_(0.1)
        nn.init.zeros_(module.bias)


def pad_to_cells(x: Tensor, scale: int, neighbours: int) -> Tensor:
    """Continue a map by its mirror image to multiples of `scale`, with at least `neighbours` patches to choose from."""
    smallest = 2 * scale * math.ceil(math.sqrt(neighbours))
    height, width = (max(-(-size // scale) * scale, smallest) for size in x.shape[2:])
    return mirror_pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))


@torch.no_grad()
def embedded_by_themselves(x: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Features as their own embedding, and their smaller version, in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x, resize(x, down=scale)


def check(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{option} {value!r} is not one of {', '.join(known)}")


network = IGNN
