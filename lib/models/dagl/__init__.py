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
- A linear layer on patches is a p x p convolution of the edge features. That of the keys is the stage's most expensive
  part; its rows are convolved by `transforms`, with a third of the multiplications.
- mean_j S_ij = <Q_i, mean_j K_j>: T is known before S, and on an edge S = A + T need not be kept beside A.
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

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import MAX_SCORES, NON_LOCAL, ResBlock, Trunk, conv

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

#: Without gradients, where no head's features have to stay, images of so many pixels are restored at once on a CPU.
CPU_PIXELS = 4096

#: For `transforms`: pixels of a piece of a row; pieces and output channels that are convolved at once.
PIECE, PIECES, CHANNELS = 32, 256, 98


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


Layer = tuple[Tensor, Tensor]  # weight and bias


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
        at_once = len(x)
        if not (torch.is_grad_enabled() or x.is_cuda):
            at_once = max(1, CPU_PIXELS // x[0, 0].numel())
        return torch.cat([images + self.fuse(self.aggregate(images)) for images in x.split(at_once)])

    def aggregate(self, x: Tensor) -> Tensor:
        """What all heads gather, side by side."""
        if x.is_cuda:  # at once, in few large operations
            pasted = Aggregate.apply(*self.match_all(x), self.graph).unflatten(0, (len(x), -1)).flatten(1, 2)
        else:
            # One head after the other: without gradients only one head's features exist at a time, and on CPUs a
            # convolution without groups is faster.
            heads = [
                Aggregate.apply(*self.match(x, *own), F.conv2d(x, *node), self.graph)
                for node, *own in self.each_head(x)
            ]
            pasted = torch.cat(heads, 1)
        return pasted / self.graph.coverage(x)

    def each_head(self, x: Tensor) -> Iterator[tuple]:
        """Weights and biases of its node, edge, query and key features, and its gamma and beta, if it has them."""
        layers = [
            zip(layer.weight.chunk(self.heads), layer.bias.chunk(self.heads), strict=True)
            for layer in (self.node, self.edge, self.query, self.key)
        ]
        limits = [None] * self.heads
        if self.threshold is not None:
            padded = pad_same(x, self.graph.patch, self.graph.stride)
            limits = self.threshold(padded).unflatten(1, (2, self.heads)).transpose(0, 2)
        return zip(*layers, limits, strict=True)

    def match(
        self, x: Tensor, edge: Layer, query: Layer, key: Layer, limit: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A head's queries ``(B, rows, columns, 4 p^2)``, keys ``(B, 4 p^2, H, W)`` and T ``(B, rows, columns)``."""
        patch, stride = self.graph.patch, self.graph.stride
        features = F.conv2d(x, *edge, padding=1)
        patches = F.unfold(pad_same(features, patch, stride), patch, stride=stride).mT
        queries = F.linear(patches, query[0].flatten(1), query[1])
        del patches
        queries = queries.unflatten(1, [math.ceil(n / stride) for n in x.shape[2:]])
        return self.limited(queries, embed(features, *key), limit)

    def match_all(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """`match` and the node features of all heads, as if they were images: the first axis is ``B * heads``."""
        patch, stride, limit = self.graph.patch, self.graph.stride, None

        def images(features: Tensor) -> Tensor:
            return features.unflatten(1, (self.heads, -1)).flatten(0, 1)

        features = self.edge(x)
        queries = images(self.query(pad_same(features, patch, stride))).permute(0, 2, 3, 1)
        keys = images(F.relu(self.key(features), inplace=True))
        if self.threshold is not None:
            limits = self.threshold(pad_same(x, patch, stride))
            limit = limits.unflatten(1, (2, self.heads)).transpose(0, 1).flatten(1, 2)
        return *self.limited(queries, keys, limit), images(self.node(x))

    def limited(self, queries: Tensor, keys: Tensor, limit: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """ReLU of the queries and their factor; T, from gamma and beta ``(2, B, rows, columns)``."""
        root = math.sqrt(10) if self.graph.weights == "official" else 1.0
        queries = root * F.relu(queries, inplace=True)
        if limit is not None:
            gamma, beta = at_least_float32(*limit)
            # not .mean(), whose backward pass writes a tensor as large as the keys
            mean = keys.sum((2, 3), dtype=gamma.dtype)[:, None, None] / keys[0, 0].numel()
            limit = gamma * (queries * mean).sum(3) - root * beta
        return queries, keys, limit

    @torch.no_grad()
    def show(self, x: Tensor, points: Sequence[tuple[int, int]], head: int) -> dict[str, Tensor]:
        """`DAGL.mechanism` for the input ``(1, width, H, W)`` of this stage."""
        graph, size = self.graph, x.shape[2:]
        query, key, limit = self.match(x, *list(self.each_head(x))[head][1:])
        keys, space = key.flatten(2), Space(graph, query, size)
        kept = torch.empty(query.shape[:3], dtype=torch.long, device=x.device)
        for where in graph.blocks(query, keys.shape[2]):
            kept[where] = (edges(graph, space, query, keys, limit, where).strength > 0).sum(3)
        # centre of query n along an axis: start + n * stride
        start = torch.tensor([graph.patch // 2 - same_padding(n, graph.patch, graph.stride)[0] for n in size])
        last = torch.tensor(kept.shape[1:]) - 1
        nearest = ((torch.tensor(points) - start) / graph.stride).round().long().clamp_min(0).minimum(last)
        chosen = [
            edges(graph, space, query, keys, limit, (slice(0, 1), slice(r, r + 1), slice(c, c + 1))).weight.clone()
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


def embed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """ReLU of a convolution that keeps the size, ``(B, C, H, W)`` to ``(B, D, H, W)``."""
    patch = weight.shape[2]
    if x.is_cuda or patch < 7:  # where little is gained
        return F.relu(F.conv2d(x, weight, bias, padding=patch // 2), inplace=True)
    return Embed.apply(x, weight, bias)


@functools.cache
def transforms(outputs: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """A, B, C in float64 with which y_j = sum_t w_t x_{j+t}, for `outputs` values of j, is y = C ((A w) * (B x)).

    The real Fourier transform of n = outputs + taps - 1 values, with three real products for a complex one (Gauss).
    They are about 3 n / 2 products instead of outputs * taps: 56 instead of 224 for 32 outputs and 7 taps.
    """
    n = outputs + taps - 1
    frequency = torch.arange(n // 2 + 1, dtype=torch.float64)[:, None]
    angle = 2 * math.pi / n * frequency * torch.arange(n)
    cos, sin = angle.cos(), angle.sin()
    # X = r + i s and conj(W) = a + i b; with k = a (r + s), l = (b - a) r, m = (a + b) s their product is
    # k - m + i (k + l).
    a, b, r, s = cos[:, :taps], sin[:, :taps], cos, -sin
    both = 2 - ((frequency == 0) | (2 * frequency == n)).double()  # a frequency and its negative
    inverse = both / n * torch.stack((cos - sin, -sin, -cos))
    of_taps, of_pixels = torch.cat((a, b - a, a + b)), torch.cat((r + s, r, s))
    to_outputs = inverse.flatten(0, 1)[:, :outputs]
    used = (of_pixels.abs().amax(1) > 1e-9) & (to_outputs.abs().amax(1) > 1e-9)  # a real X or W takes one product
    return of_taps[used], of_pixels[used], to_outputs[used].T


class Rows:
    """Features ``(B, C, H, W)`` for a convolution with patches of p x p: padded by zeros, their rows cut into pieces.

    The image is worked on in strips of rows.
    """

    def __init__(self, x: Tensor, patch: int):
        self.patch, half, (self.height, self.width) = patch, patch // 2, x.shape[2:]
        self.pieces = math.ceil(self.width / PIECE)
        self.length = math.ceil(self.width / self.pieces)
        self.missing = self.pieces * self.length - self.width
        self.of_taps, self.of_pixels, self.to_outputs = (m.to(x) for m in transforms(self.length, patch))
        self.padded = F.pad(x.transpose(0, 1), (half, half + self.missing, half, half))
        self.inside = (..., slice(half, half + self.height), slice(half, half + self.width))
        step = max(1, PIECES // (len(x) * self.pieces))
        self.strips = [slice(r, min(r + step, self.height)) for r in range(0, self.height, step)]

    def kernels(self, weight: Tensor) -> Tensor:
        """Transformed rows of ``(D, C, p, p)``: ``(products, D, C p)``."""
        return for_each(self.of_taps, weight.flatten(1, 2).mT)

    def windows(self, strip: slice) -> Tensor:
        """Transformed pieces in the patches of a strip's pixels: ``(products, C p, B x rows x pieces)``."""
        rows = self.padded[:, :, strip.start : strip.stop + self.patch - 1]
        pieces = rows.unfold(3, self.of_pixels.shape[1], self.length)
        transformed = (self.of_pixels @ pieces.flatten(0, 3).T).unflatten(1, pieces.shape[:4])
        return transformed.unfold(3, self.patch, 1).permute(0, 1, 5, 2, 3, 4).flatten(3).flatten(1, 2)

    def add_windows(self, total: Tensor, windows: Tensor, strip: slice) -> None:
        """Add the transpose of `windows` to features padded as here."""
        rows = strip.stop - strip.start
        parts = windows.unflatten(2, (-1, rows, self.pieces)).unflatten(1, (-1, self.patch))
        shape = list(parts[:, :, 0].shape)
        shape[3] += self.patch - 1
        transformed = parts.new_zeros(shape)
        for k in range(self.patch):
            transformed[:, :, :, k : k + rows].add_(parts[:, :, k])
        pieces = (transformed.flatten(1).T @ self.of_pixels).unflatten(0, shape[1:])
        for k in range(self.pieces):
            into = total[:, :, strip.start : strip.stop + self.patch - 1, k * self.length :]
            into[..., : pieces.shape[4]].add_(pieces[:, :, :, k])


def for_each(matrix: Tensor, channels: Tensor) -> Tensor:
    """matrix ``(M, K)`` times each channel's ``(D, K, N)``, as ``(M, D, N)``; as one product it takes two to five times
    as long, K being small."""
    return torch.bmm(matrix.expand(len(channels), -1, -1), channels).transpose(0, 1)


class Embed(torch.autograd.Function):
    """`embed` by `transforms`, in float32 at least, under autocast too."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        given, (x, weight, bias) = (x, weight), at_least_float32(x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            rows = Rows(x, weight.shape[2])
            out = x.new_empty(len(x), len(weight), rows.height, rows.pieces * rows.length)
            for strip in rows.strips:
                windows = rows.windows(strip)
                for k in range(0, len(weight), CHANNELS):
                    of = slice(k, k + CHANNELS)
                    pieces = (rows.kernels(weight[of]) @ windows).flatten(1).T @ rows.to_outputs.T
                    into = out.transpose(0, 1)[of, :, strip]
                    torch.add(pieces.view(into.shape), bias[of, None, None, None], out=into).clamp_min_(0)
        out = out[..., : rows.width].contiguous()
        ctx.save_for_backward(*given, out)
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        if grad is None:  # no_graph_attention
            return None, None, None
        x, weight, out, grad = at_least_float32(*ctx.saved_tensors, grad)
        with torch.autocast(x.device.type, enabled=False):
            rows = Rows(x, weight.shape[2])
            grad_x, grad_weight, grad_bias = (torch.zeros_like(t) for t in (rows.padded, weight, weight[:, 0, 0, 0]))
            for strip in rows.strips:
                windows = rows.windows(strip)
                grad_windows = torch.empty_like(windows)
                for k in range(0, len(weight), CHANNELS):
                    of = slice(k, k + CHANNELS)
                    grad_of = torch.ops.aten.threshold_backward(grad[:, of, strip], out[:, of, strip], 0)
                    grad_bias[of] += grad_of.sum((0, 2, 3))
                    pieces = (
                        F.pad(grad_of.transpose(0, 1), (0, rows.missing)).unflatten(3, (-1, rows.length)).flatten(1, 3)
                    )
                    products = for_each(rows.to_outputs.T, pieces.mT)
                    grad_kernels = products @ windows.transpose(1, 2)
                    grad_weight[of] += (rows.of_taps.T @ grad_kernels.flatten(1)).T.reshape(weight[of].shape)
                    grad_windows.baddbmm_(rows.kernels(weight[of]).transpose(1, 2), products, beta=min(k, 1))
                rows.add_windows(grad_x, grad_windows, strip)
        return grad_x[rows.inside].transpose(0, 1), grad_weight, grad_bias


Block = tuple[slice, slice, slice]  # images, rows and columns of the query grid


class Graph(NamedTuple):
    """How scores become weights and how patches overlap."""

    patch: int
    stride: int
    neighbours: int  # 0: as many as the threshold leaves
    average: bool
    weights: str
    max_scores: int

    def blocks(self, query: Tensor, keys: int) -> Iterator[Block]:
        """Blocks of at most `max_scores` scores, or of one query: several images or a part of one's query grid.

        A part is about square or has all columns, for the weights of neighbouring queries are added up within blocks.
        """
        images, rows, columns, _ = query.shape
        queries = max(1, self.max_scores // keys)
        if not query.is_cuda:
            queries = min(queries, max(CPU_QUERIES, CPU_SCORES // keys))
        side = math.isqrt(queries)
        column_step = columns if columns <= 2 * side else side
        row_step = min(rows, max(1, queries // column_step))
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

    def runs(self, block: Block, size: Sequence[int]) -> tuple[list[Run], list[Run]]:
        """What the queries of a block give to an output of `size`, along rows and along columns."""
        rows, columns = (
            runs(self.patch, self.stride, q.start, q.stop, n) for q, n in zip(block[1:], size, strict=True)
        )
        return rows, columns


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

    def summed(self, weight: Tensor, axis: int) -> list[int]:
        """Shape of E along axis 0 or 1 for weights ``(images, rows, columns, key rows, key columns)``."""
        shape = list(weight.shape)
        shape[1 + axis], shape[3 + axis] = self.grid.stop - self.grid.start, self.length
        return shape

    def pairs(self, total: Tensor, weight: Tensor, axis: int) -> list[tuple[Tensor, Tensor]]:
        """Views of E and w, both ``(images, rows, columns, key rows, key columns)``, that belong together along axis 0
        or 1."""
        skip = (slice(None),)
        return [
            (total[skip + skip * axis + (u,) + skip + (at,)], weight[skip + skip * axis + (query,) + skip + (key,)])
            for (u, at), (query, key) in self.terms
        ]


@functools.lru_cache(1024)
def runs(patch: int, stride: int, start: int, stop: int, size: int) -> list[Run]:
    """Along an axis of `size` pixels, what the queries from `start` to `stop` give to the output."""
    half, grid = patch // 2, math.ceil(size / stride)
    found = []
    reached = itertools.groupby(range(stride), lambda a: (-((half - a) // stride), (half + a) // stride))
    for (low, high), same in reached:
        offsets = list(same)
        into = max(0, start - high), min(grid, stop - low)
        first, last = -offsets[-1], size - offsets[0]  # the l with a pixel l + a inside the image
        terms = []
        for t in range(low, high + 1):
            u = max(into[0], start - t), min(into[1], stop - t)
            l = max(first, -stride * t), min(last, size - stride * t)  # noqa: E741
            if u[0] < u[1] and l[0] < l[1]:
                of = slice(u[0] + t - start, u[1] + t - start), slice(l[0] + stride * t, l[1] + stride * t)
                terms.append(((slice(u[0] - into[0], u[1] - into[0]), slice(l[0] - first, l[1] - first)), of))
        if terms:
            found.append(Run(slice(*into), slice(offsets[0], offsets[-1] + 1), last - first, terms))
    return found


class Values:
    """v(l + a) of the values ``(B, 16, H, W)`` for pairs of runs."""

    def __init__(self, value: Tensor, stride: int):
        self.value, self.pad = value, stride - 1
        self.made: dict[int, Tensor] = {}  # rows, and columns shifted by a

    def __getitem__(self, runs: tuple[Run, Run]) -> list[Tensor]:
        """Per offset of the rows the values for all offsets of the columns, ``(B, 16 x offsets, l)``."""
        rows, columns = runs
        if columns.reach not in self.made:
            pad = columns.reach - 1
            windows = F.pad(self.value, (pad, pad, self.pad, self.pad)).unfold(3, columns.reach, 1)
            self.made[columns.reach] = windows.permute(0, 1, 4, 2, 3).flatten(1, 2)
        first = self.pad - (rows.reach - 1)
        made = self.made[columns.reach]
        return [made[:, :, r : r + rows.length].flatten(2) for r in range(first, self.pad + 1)]


def pixels(grad: Tensor, images: slice, rows: Run, columns: Run) -> Tensor:
    """Those s u + a of ``(B, 16, grid rows, s, grid columns, s)``, as `Values` has them: ``(images, offsets, u)``."""
    of = grad[images, :, rows.grid, rows.offsets, columns.grid, columns.offsets]
    return of.permute(0, 3, 1, 5, 2, 4).flatten(4).flatten(1, 3)


def add_shifted(total: Tensor, shifted: Tensor, rows: Run, columns: Run) -> None:
    """Add the transpose of `Values`, of all row offsets after each other, to ``(B, 16, H, W)``."""
    height, width = total.shape[2:]
    parts = shifted.unflatten(2, (rows.length, columns.length)).unflatten(1, (rows.reach, -1, columns.reach))
    for a in range(rows.reach):
        for b in range(columns.reach):
            top, left = rows.reach - 1 - a, columns.reach - 1 - b
            total += parts[:, a, :, b, top : top + height, left : left + width]


class Space:
    """Buffers by name that every block uses again, each large enough for the weights of a block and their sums."""

    def __init__(self, graph: Graph, query: Tensor, size: Sequence[int]):
        self.like = query
        images, *block = (part.stop for part in next(graph.blocks(query, math.prod(size))))
        more = (graph.patch - 1) // graph.stride  # queries that reach into the patch of another
        queries = (min(n + more, all_) for n, all_ in zip(block, query.shape[1:3], strict=True))
        self.numbers = images * math.prod(queries) * math.prod(n + graph.stride - 1 for n in size)
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        if name not in self.buffers:
            self.buffers[name] = self.like.new_empty(self.numbers)
        return self.buffers[name][: math.prod(shape)].view(shape)


class Edges(NamedTuple):
    """One block of the graph, both ``(images, rows, columns, keys)``."""

    strength: Tensor  # A
    weight: Tensor


def edges(graph: Graph, space: Space, query: Tensor, keys: Tensor, limit: Tensor | None, where: Block) -> Edges:
    """Edges and weights of the block `where`, in buffers of `space`; that of the scores is free again."""
    query, keys = query[where], keys[where[0]]
    shape = (*query.shape[:3], keys.shape[2])
    score, strength, weight = (space(name, *shape) for name in ("score", "strength", "weight"))
    torch.bmm(query.flatten(1, 2), keys, out=score.flatten(1, 2))
    if graph.neighbours:
        nearest = score.topk(min(graph.neighbours, shape[3]), dim=3)
        strength.zero_().scatter_(3, nearest.indices, nearest.values)
    else:
        torch.sub(score, limit[where][..., None], out=strength).clamp_min_(0)
    if graph.average:
        torch.gt(strength, 0, out=weight)
        return Edges(strength, weight.div_(weight.sum(3, keepdim=True).clamp_min_(1)))
    official = graph.weights == "official"
    torch.softmax(score.mul_(strength) if official else strength, 3, out=weight)
    # zero where there is no edge, in one pass
    torch.ops.aten.threshold_backward(weight, strength, 0, grad_input=weight)
    if not official:  # no edge had logit 0, less than any neighbour: the neighbours' share is at least one of all keys
        weight.div_(weight.sum(3, keepdim=True).clamp_min_(torch.finfo(weight.dtype).tiny))
    return Edges(strength, weight)


def add_up(space: Space, name: str, weight: Tensor, run: Run, axis: int) -> Tensor:
    """E of the module's docstring along one axis, in a buffer of `space`, or the weight itself."""
    if run.plain:
        return weight
    total = space(name, *run.summed(weight, axis))
    (first, w), *others = run.pairs(total, weight, axis)
    first.copy_(w)
    for dim, inside in zip((1 + axis, 3 + axis), run.terms[0][0], strict=True):
        total.narrow(dim, 0, inside.start).zero_()
        total.narrow(dim, inside.stop, total.shape[dim] - inside.stop).zero_()
    for e, w in others:
        e += w
    return total


class Aggregate(torch.autograd.Function):
    """Sum of the pasted patches P_i, ``(B, 16, H, W)``, from `MGFAM.match`'s tensors and the node features of one head,
    or from `match_all`'s of all.

    In float32 at least, under autocast too: a score's rounding is multiplied by the score itself.
    """

    @staticmethod
    def forward(ctx, query, key, limit, value, graph):
        ctx.graph = graph
        ctx.save_for_backward(query, key, limit, value)
        query, key, limit, value = at_least_float32(query, key, limit, value)
        with torch.autocast(value.device.type, enabled=False):
            keys, space, values = key.flatten(2), Space(graph, query, value.shape[2:]), Values(value, graph.stride)
            out = value.new_zeros(*value.shape[:2], query.shape[1], graph.stride, query.shape[2], graph.stride)
            for where in graph.blocks(query, keys.shape[2]):
                weight = edges(graph, space, query, keys, limit, where).weight.unflatten(3, value.shape[2:])
                images, (row_runs, column_runs) = where[0], graph.runs(where, value.shape[2:])
                for column_run in column_runs:
                    part = add_up(space, "strength", weight, column_run, 1)
                    for row_run in row_runs:
                        total = add_up(space, "score", part, row_run, 0)
                        for a, shifted in enumerate(values[row_run, column_run], row_run.offsets.start):
                            pixels = total.flatten(3).flatten(1, 2) @ shifted[images].mT
                            pixels = pixels.view(*total.shape[:3], -1, column_run.reach).permute(0, 3, 1, 2, 4)
                            out[images, :, row_run.grid, a, column_run.grid, column_run.offsets].add_(pixels)
            return out.flatten(4).flatten(2, 3)[:, :, : value.shape[2], : value.shape[3]]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        graph = ctx.graph
        query, key, limit, value, grad = at_least_float32(*ctx.saved_tensors, grad)
        official = graph.weights == "official"
        size, grid = value.shape[2:], query.shape[1:3]
        with torch.autocast(grad.device.type, enabled=False):
            keys, space, values = key.flatten(2), Space(graph, query, value.shape[2:]), Values(value, graph.stride)
            grad = F.pad(grad, (0, grid[1] * graph.stride - size[1], 0, grid[0] * graph.stride - size[0]))
            grad = grad.unflatten(3, (grid[1], graph.stride)).unflatten(2, (grid[0], graph.stride))
            grad_query, grad_key, grad_value = torch.empty_like(query), torch.empty_like(key), torch.zeros_like(value)
            grad_limit = torch.zeros_like(limit) if limit is not None and official else None
            for where in graph.blocks(query, keys.shape[2]):
                images, (row_runs, column_runs) = where[0], graph.runs(where, size)
                found = edges(graph, space, query, keys, limit, where)
                weight = found.weight.unflatten(3, size)
                # For the values by the sums E, then for the weights, which needs none of them, in the same buffers.
                for column_run in column_runs:
                    part = add_up(space, "part", weight, column_run, 1)
                    for row_run in row_runs:
                        total = add_up(space, "score", part, row_run, 0)
                        shifted = pixels(grad, images, row_run, column_run) @ total.flatten(3).flatten(1, 2)
                        add_shifted(grad_value[images], shifted, row_run, column_run)
                grad_weight = space("grad_weight", *weight.shape)
                if not column_runs[0].plain:
                    grad_weight.zero_()
                for column_run in column_runs:
                    grad_part = grad_weight if column_run.plain else space("part", *column_run.summed(weight, 1))
                    if not row_runs[0].plain:
                        grad_part.zero_()
                    for row_run in row_runs:
                        total = grad_part if row_run.plain else space("score", *row_run.summed(grad_part, 0))
                        shifted = torch.cat([v[images] for v in values[row_run, column_run]], 1)
                        of = pixels(grad, images, row_run, column_run)
                        torch.bmm(of.mT, shifted, out=total.flatten(3).flatten(1, 2))
                        if not row_run.plain:
                            for e, w in row_run.pairs(total, grad_part, 0):
                                w += e
                    if not column_run.plain:
                        for e, w in column_run.pairs(grad_part, grad_weight, 1):
                            w += e
                if graph.average:
                    continue
                # Both softmaxes: dL = w (dw - sum w dw), for being a neighbour has no gradient; then L = S A or L = A.
                # On an edge S = A + T, so that dL/dS = S + A = 2 A + T and dL/dT = -S = -(dL/dS + T) / 2.
                grad_score = grad_weight.flatten(3).mul_(found.weight)
                grad_score.addcmul_(found.weight, grad_score.sum(3, keepdim=True), value=-1)
                if official and limit is None:
                    grad_score *= found.strength.mul_(2)
                elif official:
                    bound, total = limit[where], grad_score.sum(3)
                    grad_score *= torch.add(bound[..., None], found.strength, alpha=2, out=found.strength)
                    grad_limit[where] = (grad_score.sum(3) + bound * total) / -2
                grad_score = grad_score.flatten(1, 2)
                grad_query[where] = (grad_score @ keys[images].transpose(1, 2)).view_as(grad_query[where])
                first = where[1].start == where[2].start == 0
                grad_keys = grad_key[images].flatten(2)
                grad_keys.baddbmm_(query[where].flatten(1, 2).transpose(1, 2), grad_score, beta=0 if first else 1)
        if graph.average:
            return None, None, None, grad_value, None
        return grad_query, grad_key, grad_limit, grad_value, None


def at_least_float32(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors, in float32 if they were narrower."""
    return [t if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


network = DAGL
