"""DAGL: dynamic attentive graph learning.

Mou, Zhang, Wu, "Dynamic Attentive Graph Learning for Image Restoration", ICCV 2021 (arXiv 2109.06620), and the released
code (jianzhangcs/DAGL, 7ebfe6c) where it differs.

A head turns its input x into edge features (3x3 convolution) and node features (1x1 convolution) of 16 channels.
Queries i are p x p patches on a grid of the given stride, neighbours j are the patches around every pixel:

    S_ij = <Q_i, K_j>                       Q, K = ReLU(linear(patches of the edge features)), 16 p^2 -> 4 p^2
    T_i  = gamma_i mean_j S_ij - beta_i     gamma, beta: p x p convolutions of x with the grid's stride
    A_ij = ReLU(S_ij - T_i)                 an edge where A_ij > 0: the number of neighbours is each query's own
    P_i  = sum_j w_ij V_j                   V: patches of the node features

and the P_i are pasted back and divided by the number of patches that cover a pixel. The weights have two forms:

    official    w_ij = [A_ij > 0] exp(10 S_ij A_ij) / sum_l exp(10 S_il A_il), l over all keys, neighbours or not
    paper       w_ij = [A_ij > 0] exp(A_ij) / sum_l [A_il > 0] exp(A_il), l over the neighbours alone

A query without neighbours gives a patch of zeros. As in the released code, beta is subtracted, gamma and beta see x
itself and not the edge features, queries are cut with one padding (`same_padding`) and pasted with another (p // 2), so
that they move by up to two pixels, and one slope is shared by the activations of the trunk.

Ours, where the paper is silent:
- `no_threshold` k: T = 0 for the k keys with the largest S, no edge elsewhere; a score of zero is no edge.
- `no_graph_attention`: w = 1 / (number of neighbours). Choosing neighbours has no gradient, so all that serves the
  matching (edge features, Q, K, gamma, beta) keeps its initial values.
- `weights="paper"`: a softmax over the neighbours alone does not see T, so gamma and beta keep their initial values.

How it is computed, exactly and without ever holding an unfolded 16 p^2-channel image or all scores:
- A linear layer on patches is a p x p convolution of the edge features.
- mean_j S_ij = <Q_i, mean_j K_j>: T is known before S.
- 10 S ReLU(S - T) = S' ReLU(S' - T') with S' = sqrt(10) S and T' = sqrt(10) T: the factor goes into Q and beta.
- Pixel s u + a (per axis, 0 <= a < s) lies in the patches of the queries u + t with |a - s t| <= p // 2, and gets

      sum_t sum_j w_{u+t}(j) v(j + a - s t) = sum_l E(l) v(l + a),    E(l) = sum_t w_{u+t}(l + s t).

  E is the same for all a with the same t: for p = 7, s = 4 it is w_u itself for a = 0 and w_u(l) + w_{u+1}(l + 4) for
  a = 1, 2, 3. Adding up the shifted weights of the queries first, along both axes, takes s^2 instead of p^2
  multiply-adds per score and channel (16 instead of 49) and gives pixels: nothing is left to paste. The derivatives for
  the weights and the values have the same form.
- Scores are made block by block, and again in the backward pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import MAX_SCORES, NON_LOCAL, ResBlock, Trunk, conv

#: Channels of a head's edge and node features.
HEAD = 16

#: Neighbours per query for `no_threshold=True`; ours.
NEIGHBOURS = 16

#: Modules of the released network that no computation reads: in the checkpoints and the parameter count, never trained.
UNUSED = ("add_mean", "unused")

#: Modules of a stage that an option leaves without a gradient.
UNTRAINED = {"no_graph_attention": ("edge", "query", "key", "threshold"), "paper": ("threshold",)}

#: A block of so many scores, or queries, suits the caches and matrix products of a CPU; `max_scores` is the bound.
CPU_SCORES, CPU_QUERIES = 2**20, 128


class DAGL(Trunk):
    """DAGL for denoising, demosaicing and compression artefacts, at the input's size; any H, W >= 1.

    Published: 64 channels, 16 residual blocks (32 for demosaicing), and after half of them three stages of four heads
    with four residual blocks between consecutive stages. `attention` is "graph" or, for Table 5, "nl" or "mhnl":
    non-local modules with one head of 64 or four of 16 channels in place of the stages. `no_threshold` is the number of
    neighbours (Table 5, "w/o THD"), `no_graph_attention` is its "w/o GAT". With `image_skip` every stage starts as
    the identity.

    Raises ValueError for options that contradict each other or lie outside their range.
    """

    def __init__(
        self,
        colors: int = 1,
        width: int = 64,
        blocks: int = 16,
        heads: int = 4,
        stages: int = 3,
        stage_blocks: int = 4,
        patch: int = 7,
        stride: int = 4,
        attention: str = "graph",
        no_threshold: int | bool | None = None,
        no_graph_attention: bool = False,
        weights: str = "official",
        image_skip: bool = False,
        max_scores: int = MAX_SCORES,
    ):
        makers: dict[str, Callable[[int], nn.Module]] = {
            "graph": lambda width: MGFAM(
                width, heads, patch, stride, no_threshold, no_graph_attention, weights, max_scores
            ),
            **NON_LOCAL,
        }
        if attention not in makers:
            raise ValueError(f"attention {attention!r} is not one of {', '.join(makers)}")
        if attention != "graph" and (no_threshold or no_graph_attention):
            raise ValueError(f"no_threshold and no_graph_attention belong to attention 'graph', not to {attention!r}")
        if stages < 1:
            raise ValueError(f"stages {stages} is not at least 1")
        super().__init__(
            colors,
            width,
            blocks,
            activation=nn.PReLU,
            tie_activation=True,
            attention=lambda width: CES(width, [makers[attention](width) for _ in range(stages)], stage_blocks),
            positions=(blocks // 2,),
            feature_skip=False,
            image_residual=True,
            image_skip=image_skip,
        )
        self.add_mean = nn.Conv2d(3, 3, 1).requires_grad_(False)
        if image_skip:
            for stage in self.modules():
                if isinstance(stage, MGFAM):
                    nn.init.zeros_(stage.fuse.weight)
                    nn.init.zeros_(stage.fuse.bias)

    @torch.no_grad()
    def mechanism(
        self, image: Tensor, points: Sequence[tuple[int, int]], stage: int = 0, head: int = 0
    ) -> dict[str, Tensor]:
        """The graph of one head of one stage; nothing for the non-local forms.

        queries: (points, 2), row and column of the centre of the query patch nearest to each point
        weights: (points, H, W), its weights, zero where there is no edge
        kept: (N_q rows, N_q columns), the number of neighbours of every query
        """
        module = next(part for part in self.body if isinstance(part, CES)).stages[stage]
        if not isinstance(module, MGFAM):
            return {}
        inputs: list[Tensor] = []
        hook = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        try:
            self(image)
        finally:
            hook.remove()
        return module.show(inputs[0], points, head)


def attention(
    width: int,
    heads: int = 4,
    patch: int = 7,
    stride: int = 4,
    no_threshold: int | bool | None = None,
    no_graph_attention: bool = False,
    weights: str = "official",
    max_scores: int = MAX_SCORES,
) -> nn.Module:
    """One stage for the common trunk; its options as in `DAGL`."""
    return MGFAM(width, heads, patch, stride, no_threshold, no_graph_attention, weights, max_scores)


class CES(nn.Module):
    """The stages with residual blocks between consecutive ones, each block with its own slope."""

    def __init__(self, width: int, stages: Sequence[nn.Module], stage_blocks: int):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.blocks = nn.ModuleList(
            nn.Sequential(*[ResBlock(width, nn.PReLU()) for _ in range(stage_blocks)]) for _ in stages[1:]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages[0](x)
        for blocks, stage in zip(self.blocks, self.stages[1:], strict=True):
            x = stage(blocks(x))
        return x


class MGFAM(nn.Module):
    """A stage (multi-head graph feature aggregation): x + fuse(all heads), ``(B, width, H, W)`` to the same.

    The tensors of the heads are stacked along the output channels, head after head; `threshold` has the gammas of all
    heads, then the betas. Row d of a head's linear layer is output channel d of its part of `query` or `key`.

    Raises ValueError for a patch that is even, a stride that leaves pixels uncovered and an unknown form of weights.
    """

    def __init__(
        self,
        width: int = 64,
        heads: int = 4,
        patch: int = 7,
        stride: int = 4,
        no_threshold: int | bool | None = None,
        no_graph_attention: bool = False,
        weights: str = "official",
        max_scores: int = MAX_SCORES,
    ):
        super().__init__()
        neighbours = NEIGHBOURS if no_threshold is True else int(no_threshold or 0)
        if patch % 2 == 0:
            raise ValueError(f"patch {patch} is not odd")
        if not 1 <= stride <= patch // 2 + 1:
            raise ValueError(
                f"stride {stride} is not in 1..{patch // 2 + 1}, where patches of {patch} cover every pixel"
            )
        if weights not in ("official", "paper"):
            raise ValueError(f"weights {weights!r} is not one of official, paper")
        if neighbours < 0 or max_scores < 1:
            raise ValueError(f"no_threshold {no_threshold} or max_scores {max_scores} is negative")
        self.heads = heads
        self.graph = Graph(patch, stride, neighbours, no_graph_attention, weights, max_scores)
        inner, embedded = heads * HEAD, heads * 4 * patch**2
        self.edge = conv(width, inner, 3)
        self.node = conv(width, inner, 1)
        self.query = nn.Conv2d(inner, embedded, patch, stride, groups=heads)
        self.key = nn.Conv2d(inner, embedded, patch, padding=patch // 2, groups=heads)
        self.threshold = None if neighbours else nn.Conv2d(width, 2 * heads, patch, stride)
        self.fuse = conv(inner, width, 1)
        self.unused = conv(HEAD, heads * width, 1).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        # One head after the other: without gradients only one head's keys exist at a time, and on CPUs a convolution
        # without groups is faster.
        nodes = self.node(x).chunk(self.heads, 1)
        pasted = [Aggregate.apply(*match, node, self.graph) for match, node in zip(self.match(x), nodes, strict=True)]
        return x + self.fuse(torch.cat(pasted, 1) / self.graph.coverage(x))

    def match(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
        """Per head: queries ``(B, rows, columns, 4 p^2)``, keys ``(B, 4 p^2, H, W)``, gamma and beta as the queries."""
        patch, stride = self.graph.patch, self.graph.stride
        root = math.sqrt(10) if self.graph.weights == "official" else 1.0
        gammas = betas = (None,) * self.heads
        if self.threshold is not None:
            limits = self.threshold(pad_same(x, patch, stride)).unflatten(1, (2, self.heads))
            gammas, betas = limits[:, 0].unbind(1), (root * limits[:, 1]).unbind(1)
        layers = [tensor.chunk(self.heads) for layer in (self.query, self.key) for tensor in (layer.weight, layer.bias)]
        for edge, gamma, beta, wq, bq, wk, bk in zip(
            self.edge(x).chunk(self.heads, 1), gammas, betas, *layers, strict=True
        ):
            query = F.relu(F.conv2d(pad_same(edge, patch, stride), wq, bq, stride=stride), inplace=True)
            key = F.relu(F.conv2d(edge, wk, bk, padding=patch // 2), inplace=True)
            yield (root * query).permute(0, 2, 3, 1).contiguous(), key, gamma, beta

    @torch.no_grad()
    def show(self, x: Tensor, points: Sequence[tuple[int, int]], head: int) -> dict[str, Tensor]:
        """`DAGL.mechanism` for the input ``(1, width, H, W)`` of this stage."""
        graph, size = self.graph, x.shape[2:]
        query, key, gamma, beta = list(self.match(x))[head]
        keys, space = key.flatten(2), Space(query)
        kept = torch.empty(query.shape[:3], dtype=torch.long, device=x.device)
        for where in graph.blocks(query, keys):
            kept[where] = (edges(graph, space, query, keys, gamma, beta, where).strength > 0).sum(3)
        # centre of query n along an axis: start + n * stride
        start = torch.tensor([graph.patch // 2 - same_padding(n, graph.patch, graph.stride)[0] for n in size])
        last = torch.tensor(kept.shape[1:]) - 1
        nearest = ((torch.tensor(points) - start) / graph.stride).round().long().clamp_min(0).minimum(last)
        chosen = [
            edges(
                graph, space, query, keys, gamma, beta, (slice(0, 1), slice(r, r + 1), slice(c, c + 1))
            ).weight.clone()
            for r, c in nearest.tolist()
        ]
        weights = torch.cat(chosen).view(-1, *size)
        return {"queries": start + nearest * graph.stride, "weights": weights, "kept": kept[0]}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros (before, after) an axis so that a convolution gives ceil(size / stride) outputs (TensorFlow's "same")."""
    total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """`same_padding` of the last two axes."""
    return F.pad(x, (*same_padding(x.shape[3], kernel, stride), *same_padding(x.shape[2], kernel, stride)))


Block = tuple[slice, slice, slice]  # images, rows and columns of the query grid


class Graph(NamedTuple):
    """How scores become weights and how patches overlap."""

    patch: int
    stride: int
    neighbours: int  # 0: as many as the threshold leaves
    average: bool
    weights: str
    max_scores: int

    def blocks(self, query: Tensor, keys: Tensor) -> Iterator[Block]:
        """Blocks of at most `max_scores` scores, or of one query: several images or a part of one's query grid.

        A part is about square, for the weights of neighbouring queries are added up within blocks.
        """
        images, rows, columns, _ = query.shape
        queries = max(1, self.max_scores // keys.shape[2])
        if not query.is_cuda:
            queries = min(queries, max(CPU_QUERIES, CPU_SCORES // keys.shape[2]))
        row_step = min(rows, max(math.isqrt(queries), queries // columns))
        column_step = min(columns, queries // row_step)
        image_step = max(1, queries // (rows * columns))
        for i in range(0, images, image_step):
            for r in range(0, rows, row_step):
                for c in range(0, columns, column_step):
                    yield (
                        slice(i, min(i + image_step, images)),
                        slice(r, min(r + row_step, rows)),
                        slice(c, min(c + column_step, columns)),
                    )

    def coverage(self, x: Tensor) -> Tensor:
        """Number of patches over each pixel of ``x``, ``(1, 1, H, W)``."""
        size, patch, stride = x.shape[2:], self.patch, self.stride
        queries = math.prod(math.ceil(n / stride) for n in size)
        return F.fold(x.new_ones(1, patch**2, queries), size, patch, padding=patch // 2, stride=stride)

    def runs(self, queries: slice, size: int) -> list[Run]:
        """Along an axis of `size` pixels, what the given queries give to the output."""
        half, stride, grid = self.patch // 2, self.stride, math.ceil(size / self.stride)
        runs = []
        for (low, high), same in itertools.groupby(
            range(stride), lambda a: (-((half - a) // stride), (half + a) // stride)
        ):
            offsets = list(same)
            start, stop = max(0, queries.start - high), min(grid, queries.stop - low)
            first, last = -offsets[-1], size - offsets[0]  # the l with a pixel l + a inside the image
            terms = []
            for t in range(low, high + 1):
                u = (max(start, queries.start - t), min(stop, queries.stop - t))
                l = (max(first, -stride * t), min(last, size - stride * t))  # noqa: E741
                if u[0] < u[1] and l[0] < l[1]:
                    into = (slice(u[0] - start, u[1] - start), slice(l[0] - first, l[1] - first))
                    of = (
                        slice(u[0] + t - queries.start, u[1] + t - queries.start),
                        slice(l[0] + stride * t, l[1] + stride * t),
                    )
                    terms.append((into, of))
            runs.append(Run(slice(start, stop), slice(offsets[0], offsets[-1] + 1), last - first, terms))
        return runs


class Run(NamedTuple):
    """Offsets a whose pixels s u + a lie, along an axis, in the patches of the same queries u + t."""

    grid: slice  # u
    offsets: slice  # a
    length: int  # number of l
    terms: list[tuple[tuple[slice, slice], tuple[slice, slice]]]  # E[u, l] += w[query, key] for these indices

    @property
    def plain(self) -> bool:
        """Whether E is the weight itself."""
        return self.offsets == slice(0, 1) and len(self.terms) == 1

    @property
    def reach(self) -> int:
        return self.offsets.stop - self.offsets.start

    def add(self, into: Tensor, of: Tensor, axis: int, transpose: bool = False) -> None:
        """E += w, both ``(images, rows, columns, key rows, key columns)``, along the axis 0 or 1; or w += E."""
        skip = (slice(None),)
        for (u, l), (query, key) in self.terms:  # noqa: E741
            e = into[skip + skip * axis + (u,) + skip + (l,)]
            w = of[skip + skip * axis + (query,) + skip + (key,)]
            if transpose:
                w += e
            else:
                e += w


def shifted(value: Tensor, rows: Run, columns: Run) -> Tensor:
    """v(l + a) for all l and a: ``(B, 16, H, W)`` to ``(B, 16 x offsets, l)``."""
    pad = rows.reach - 1, columns.reach - 1
    windows = F.pad(value, (pad[1], pad[1], pad[0], pad[0])).unfold(2, rows.reach, 1).unfold(3, columns.reach, 1)
    return windows.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)


def add_shifted(total: Tensor, shifted: Tensor, rows: Run, columns: Run) -> None:
    """Add the transpose of `shifted` to ``(B, 16, H, W)``."""
    pad = rows.reach - 1, columns.reach - 1
    height, width = total.shape[2:]
    parts = shifted.unflatten(2, (rows.length, columns.length)).unflatten(1, (-1, rows.reach, columns.reach))
    for a in range(rows.reach):
        for b in range(columns.reach):
            top, left = pad[0] - a, pad[1] - b
            total += parts[:, :, a, b, top : top + height, left : left + width]


class Space:
    """Buffers by name that every block uses again."""

    def __init__(self, like: Tensor):
        self.like = like
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = self.like.new_empty(size)
        return self.buffers[name][:size].view(shape)


class Edges(NamedTuple):
    """One block of the graph, all ``(images, columns, rows, keys)``; `mean` of the scores has one key."""

    score: Tensor
    strength: Tensor  # A
    weight: Tensor
    mean: Tensor | None


def edges(
    graph: Graph, space: Space, query: Tensor, keys: Tensor, gamma: Tensor | None, beta: Tensor | None, where: Block
) -> Edges:
    """Scores, edges and weights of the block `where`, in buffers of `space`."""
    query, keys = query[where], keys[where[0]]
    shape = (*query.shape[:3], keys.shape[2])
    score, strength, weight = (space(name, *shape) for name in ("score", "strength", "weight"))
    torch.bmm(query.flatten(1, 2), keys, out=score.flatten(1, 2))
    mean = None
    if graph.neighbours:
        nearest = score.topk(min(graph.neighbours, shape[3]), dim=3)
        strength.zero_().scatter_(3, nearest.indices, nearest.values)
    else:
        mean = query @ keys.mean(2)[:, None, :, None]
        torch.sub(score, gamma[where][..., None] * mean - beta[where][..., None], out=strength).clamp_min_(0)
    if graph.average:
        torch.gt(strength, 0, out=weight)
        return Edges(score, strength, weight.div_(weight.sum(3, keepdim=True).clamp_min_(1)), mean)
    official = graph.weights == "official"
    torch.softmax(torch.mul(score, strength, out=space("sum", *shape)) if official else strength, 3, out=weight)
    torch.ops.aten.threshold_backward(
        weight, strength, 0, grad_input=weight
    )  # zero where there is no edge, in one pass
    if not official:  # no edge had logit 0, less than any neighbour: the neighbours' share is at least one of all keys
        weight.div_(weight.sum(3, keepdim=True).clamp_min_(torch.finfo(weight.dtype).tiny))
    return Edges(score, strength, weight, mean)


def add_up(space: Space, name: str, weight: Tensor, run: Run, axis: int) -> Tensor:
    """E of the module's docstring along one axis, in a buffer of `space`, or the weight itself."""
    if run.plain:
        return weight
    shape = list(weight.shape)
    shape[1 + axis], shape[3 + axis] = run.grid.stop - run.grid.start, run.length
    total = space(name, *shape).zero_()
    run.add(total, weight, axis)
    return total


class Aggregate(torch.autograd.Function):
    """Sum of the pasted patches P_i for one head: ``(B, 16, H, W)`` from `MGFAM.match`'s tensors and the node features.

    In float32 at least, under autocast too: a score's rounding is multiplied by the score itself.
    """

    @staticmethod
    def forward(ctx, query, key, gamma, beta, value, graph):
        ctx.graph = graph
        ctx.save_for_backward(query, key, gamma, beta, value)
        query, key, gamma, beta, value = at_least_float32(query, key, gamma, beta, value)
        with torch.autocast(value.device.type, enabled=False):
            keys, space, values = key.flatten(2), Space(query), Values(graph, value)
            out = value.new_zeros(*value.shape[:2], query.shape[1], graph.stride, query.shape[2], graph.stride)
            for where in graph.blocks(query, keys):
                weight = edges(graph, space, query, keys, gamma, beta, where).weight.unflatten(3, value.shape[2:])
                images, row_runs, column_runs = where[0], *map(graph.runs, where[1:], value.shape[2:])
                for column_run in column_runs:
                    part = add_up(space, "part", weight, column_run, 1)
                    for row_run in row_runs:
                        total = add_up(space, "sum", part, row_run, 0)
                        pixels = values[row_run, column_run][images] @ total.flatten(3).flatten(1, 2).transpose(1, 2)
                        pixels = pixels.view(len(total), -1, row_run.reach, column_run.reach, *total.shape[1:3])
                        of = (images, slice(None), row_run.grid, row_run.offsets, column_run.grid, column_run.offsets)
                        out[of] += pixels.permute(0, 1, 4, 2, 5, 3)
            return out.flatten(4).flatten(2, 3)[:, :, : value.shape[2], : value.shape[3]]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        graph = ctx.graph
        query, key, gamma, beta, value, grad = at_least_float32(*ctx.saved_tensors, grad)
        threshold = gamma is not None and graph.weights == "official"
        size, grid = value.shape[2:], query.shape[1:3]
        with torch.autocast(grad.device.type, enabled=False):
            keys, space, values = key.flatten(2), Space(query), Values(graph, value)
            grad = F.pad(grad, (0, grid[1] * graph.stride - size[1], 0, grid[0] * graph.stride - size[0]))
            grad = grad.unflatten(3, (grid[1], graph.stride)).unflatten(2, (grid[0], graph.stride))
            grad_query, grad_keys, grad_value = (torch.zeros_like(t) for t in (query, keys, value))
            grad_gamma, grad_beta = (torch.zeros_like(gamma), torch.zeros_like(beta)) if threshold else (None, None)
            for where in graph.blocks(query, keys):
                images, row_runs, column_runs = where[0], *map(graph.runs, where[1:], size)
                found = edges(graph, space, query, keys, gamma, beta, where)
                weight = found.weight.unflatten(3, size)
                grad_weight = space("grad_weight", *weight.shape).zero_()
                for column_run in column_runs:
                    part = add_up(space, "part", weight, column_run, 1)
                    grad_part = grad_weight if column_run.plain else space("grad_part", *part.shape).zero_()
                    for row_run in row_runs:
                        total = add_up(space, "sum", part, row_run, 0)
                        of = (images, slice(None), row_run.grid, row_run.offsets, column_run.grid, column_run.offsets)
                        pixels = grad[of].permute(0, 1, 3, 5, 2, 4).flatten(4).flatten(1, 3)
                        add_shifted(grad_value[images], pixels @ total.flatten(3).flatten(1, 2), row_run, column_run)
                        product = pixels.transpose(1, 2), values[row_run, column_run][images]
                        if row_run.plain:
                            grad_part.flatten(3).flatten(1, 2).baddbmm_(*product)
                        else:
                            torch.bmm(*product, out=total.flatten(3).flatten(1, 2))
                            row_run.add(total, grad_part, 0, transpose=True)
                    if not column_run.plain:
                        column_run.add(grad_part, grad_weight, 1, transpose=True)
                if graph.average:
                    continue
                # Both softmaxes: dL = w (dw - sum w dw), for being a neighbour has no gradient; then L = S A or L = A.
                grad_score = grad_weight.flatten(3).mul_(found.weight)
                grad_score.addcmul_(found.weight, grad_score.sum(3, keepdim=True), value=-1)
                if threshold:  # dL/dT = -S
                    product = torch.mul(grad_score, found.score, out=space("sum", *found.score.shape))
                    grad_limit = -product.sum(3, keepdim=True)
                if graph.weights == "official":  # dL/dS = A + S
                    grad_score *= found.score.add_(found.strength)
                if threshold:
                    grad_gamma[where] = (grad_limit * found.mean)[..., 0]
                    grad_beta[where] = -grad_limit[..., 0]
                    grad_score += grad_limit * gamma[where][..., None] / keys.shape[2]
                grad_score = grad_score.flatten(1, 2)
                grad_query[where] = (grad_score @ keys[images].transpose(1, 2)).view_as(grad_query[where])
                grad_keys[images].baddbmm_(query[where].flatten(1, 2).transpose(1, 2), grad_score)
        if graph.average:
            return None, None, None, None, grad_value, None
        return grad_query, grad_keys.view_as(key), grad_gamma, grad_beta, grad_value, None


class Values:
    """`shifted` values for pairs of runs, made when first asked for."""

    def __init__(self, graph: Graph, value: Tensor):
        self.value = value
        self.made: dict[tuple[int, int], Tensor] = {}

    def __getitem__(self, runs: tuple[Run, Run]) -> Tensor:
        key = tuple(run.reach for run in runs)
        if key not in self.made:
            self.made[key] = shifted(self.value, *runs)
        return self.made[key]


def at_least_float32(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors, in float32 if they were narrower."""
    return [t if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]
