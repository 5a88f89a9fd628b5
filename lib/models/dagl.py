"""DAGL: dynamic attentive graph learning.

Mou, Zhang, Wu, "Dynamic Attentive Graph Learning for Image Restoration", ICCV 2021 (arXiv 2109.06620), and the released
code (jianzhangcs/DAGL, 7ebfe6c) where it differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import MAX_SCORES, NonLocal, ResBlock, Trunk, conv

#: Channels of a head's edge and node features.
HEAD = 16

#: Names (parts of) of the released checkpoints' tensors that no computation reads; kept for the parameter count, frozen.
UNUSED = ("add_mean", "unused")

#: Neighbours per query when `no_threshold` is True.
NEIGHBOURS = 16


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros (before, after) one axis so that a convolution gives ceil(size / stride) outputs (TensorFlow's "same")."""
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """`same_padding` of the last two axes."""
    return F.pad(x, (*same_padding(x.shape[3], kernel, stride), *same_padding(x.shape[2], kernel, stride)))


class Graph(NamedTuple):
    """How scores become weights, and which query patches overlap which rows."""

    patch: int
    stride: int
    neighbours: int  # 0: dynamic threshold
    average: bool
    weights: str
    max_scores: int

    @property
    def plain(self):
        return self.stride > self.patch // 2


class Aggregate(torch.autograd.Function):
    """Patches of `value`, mixed for every query by the graph's weights and pasted (summed where they overlap)."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, query, key, value, gamma, beta, graph):
        ctx.graph = graph
        ctx.save_for_backward(query, key, value, gamma, beta)
        keys, values = key.flatten(2), unfold_columns(value, graph.patch)
        strips = value.new_empty(value.shape[0], values.shape[1], query.shape[1], value.shape[2])
        space = Space(query)
        for items, columns in blocks(graph, query, keys):
            weight = edges(
                graph, space, query[items, columns], keys[items], *limits(gamma, beta, items, columns)
            ).weight
            for phase in range(min(graph.stride, value.shape[2])):
                mixed = mix(graph, space, weight, phase, value.shape[2:])
                product = values[items] @ mixed.flatten(1, 2).transpose(1, 2)
                strips[items, :, columns, phase :: graph.stride] = product.unflatten(2, mixed.shape[1:3])
        return fold_columns(strips, value.shape[2:], graph)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        graph = ctx.graph
        query, key, value, gamma, beta = ctx.saved_tensors
        keys, values = key.flatten(2), unfold_columns(value, graph.patch)
        grad_strips = cut_columns(grad, graph)
        grad_query, grad_keys, grad_values = torch.zeros_like(query), torch.zeros_like(keys), torch.zeros_like(values)
        grad_gamma, grad_beta = (None, None) if gamma is None else (torch.zeros_like(gamma), torch.zeros_like(beta))
        space = Space(query)
        for items, columns in blocks(graph, query, keys):
            q, k = query[items, columns], keys[items]
            found = edges(graph, space, q, k, *limits(gamma, beta, items, columns))
            grad_weight = space.take("grad_weight", found.weight.shape)
            if not graph.plain:
                grad_weight.zero_()
            for phase in range(min(graph.stride, value.shape[2])):
                mixed = mix(graph, space, found.weight, phase, value.shape[2:])
                strip = grad_strips[items, :, columns, phase :: graph.stride].flatten(2)
                grad_values[items].baddbmm_(strip, mixed.flatten(1, 2))
                if phase == 0 and graph.plain:
                    torch.bmm(strip.transpose(1, 2), values[items], out=grad_weight.flatten(1, 2))
                    continue
                grad_mixed = torch.bmm(strip.transpose(1, 2), values[items], out=mixed.flatten(1, 2)).view_as(mixed)
                for mine, theirs in overlaps(graph, phase, found.weight.shape[2], value.shape[2:]):
                    grad_weight[theirs] += grad_mixed[mine]
            if graph.average:
                continue
            grad_logits = grad_weight.mul_(found.weight)
            grad_logits.addcmul_(found.weight, grad_logits.sum(3, keepdim=True), value=-1)
            if graph.weights == "official":
                if gamma is not None:
                    grad_limit = (
                        torch.mul(grad_logits, found.score, out=mixed if mixed.shape == found.score.shape else None)
                        .sum(3, keepdim=True)
                        .neg_()
                    )
                grad_score = grad_logits.mul_(found.score.add_(found.edge))
                if gamma is not None:
                    mean = found.mean
                    grad_gamma[items, columns] = (grad_limit * mean).squeeze(3)
                    grad_beta[items, columns] = -grad_limit.squeeze(3)
                    grad_score += grad_limit * gamma[items, columns, :, None] / keys.shape[2]
            else:
                grad_score = grad_logits
            grad_score = grad_score.flatten(1, 2)
            grad_query[items, columns] = (grad_score @ k.transpose(1, 2)).view_as(q)
            grad_keys[items].baddbmm_(q.flatten(1, 2).transpose(1, 2), grad_score)
        grad_value = F.fold(grad_values, value.shape[2:], (1, graph.patch), padding=(0, graph.patch // 2))
        return grad_query, grad_keys.view_as(key), grad_value, grad_gamma, grad_beta, None


class Space:
    """Block-sized buffers that are used again for every block."""

    def __init__(self, like):
        self.like, self.buffers = like, {}

    def take(self, name, shape):
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = self.like.new_empty(size)
        return self.buffers[name][:size].view(shape)


def blocks(graph, query, keys):
    n, wq, hq, _ = query.shape
    one = hq * keys.shape[2]
    if wq * one <= graph.max_scores:
        step = max(1, graph.max_scores // (wq * one))
        for i in range(0, n, step):
            yield slice(i, i + step), slice(0, wq)
    else:
        step = max(1, graph.max_scores // one)
        for i in range(n):
            for c in range(0, wq, step):
                yield slice(i, i + 1), slice(c, c + step)


def limits(gamma, beta, items, columns):
    return (None, None) if gamma is None else (gamma[items, columns], beta[items, columns])


def unfold_columns(value, patch):
    return F.unfold(value, (1, patch), padding=(0, patch // 2))


def fold_columns(strips, size, graph):
    """(B, 16 p, Wq, H) -> (B, 16, H, W)"""
    p, s = graph.patch, graph.stride
    return F.fold(strips.flatten(2), (size[1], size[0]), (p, 1), padding=(p // 2, 0), stride=(s, 1)).transpose(2, 3)


def cut_columns(grad, graph):
    p, s = graph.patch, graph.stride
    return F.unfold(grad.transpose(2, 3), (p, 1), padding=(p // 2, 0), stride=(s, 1)).unflatten(2, (-1, grad.shape[2]))


class Edges(NamedTuple):
    weight: Tensor
    edge: Tensor
    score: Tensor
    mean: Tensor | None


def edges(graph, space, query, keys, gamma, beta):
    n, c, hq, d = query.shape
    shape = (n, c, hq, keys.shape[2])
    score, edge, weight = (space.take(name, shape) for name in ("score", "edge", "weight"))
    torch.bmm(query.flatten(1, 2), keys, out=score.flatten(1, 2))
    mean = None
    if graph.neighbours:
        top = score.topk(min(graph.neighbours, score.shape[3]), dim=3)
        edge.zero_().scatter_(3, top.indices, top.values)
    else:
        mean = query @ keys.mean(2)[:, None, :, None]
        limit = gamma[..., None] * mean - beta[..., None]
        torch.sub(score, limit, out=edge).clamp_min_(0)
    if graph.average:
        torch.gt(edge, 0, out=weight)
        weight /= weight.sum(3, keepdim=True).clamp_min_(1)
        return Edges(weight, edge, score, mean)
    logits = torch.mul(score, edge, out=weight) if graph.weights == "official" else edge
    torch.softmax(logits, 3, out=weight)
    torch.ops.aten.threshold_backward(weight, edge, 0, grad_input=weight)
    if graph.weights == "paper":
        weight /= weight.sum(3, keepdim=True).clamp_min_(1e-30)
    return Edges(weight, edge, score, mean)


def overlaps(graph, phase, rows, size):
    """Output rows of a phase, key rows -> query rows."""
    p, s, (height, width) = graph.patch // 2, graph.stride, size
    count = len(range(phase, height, s))
    whole = height * width
    for step in range(-((p - phase) // s), (phase + p) // s + 1):
        shift = (phase - s * step) * width
        first, last = max(0, -step), min(count, rows - step)
        if first < last and abs(shift) < whole:
            mine = (..., slice(first, last), slice(max(0, shift), whole + min(0, shift)))
            theirs = (..., slice(first + step, last + step), slice(max(0, -shift), whole + min(0, -shift)))
            yield mine, theirs


def mix(graph, space, weight, phase, size):
    if phase == 0 and graph.plain:
        return weight
    mixed = space.take("mixed", (*weight.shape[:2], len(range(phase, size[0], graph.stride)), weight.shape[3])).zero_()
    for mine, theirs in overlaps(graph, phase, weight.shape[2], size):
        mixed[mine] += weight[theirs]
    return mixed


class MGFAM(nn.Module):
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
        if patch % 2 == 0 or not 1 <= stride <= patch // 2 + 1:
            raise ValueError(
                f"patch {patch} must be odd and stride {stride} in 1..{patch // 2 + 1}, else pixels get no patch"
            )
        if weights not in ("official", "paper"):
            raise ValueError(f"weights {weights!r} is not one of official, paper")
        self.heads, self.patch, self.stride = heads, patch, stride
        self.neighbours = NEIGHBOURS if no_threshold is True else no_threshold or 0
        self.average, self.weights, self.max_scores = no_graph_attention, weights, max_scores
        inner, embedded = heads * HEAD, heads * 4 * patch**2
        self.edge = conv(width, inner, 3)
        self.node = conv(width, inner, 1)
        self.query = nn.Conv2d(inner, embedded, patch, stride, groups=heads)
        self.key = nn.Conv2d(inner, embedded, patch, padding=patch // 2, groups=heads)
        self.threshold = None if self.neighbours else nn.Conv2d(width, 2 * heads, patch, stride)
        self.fuse = conv(inner, width, 1)
        self.unused = conv(HEAD, heads * width, 1).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        p, s = self.patch, self.stride
        graph = Graph(p, s, self.neighbours, self.average, self.weights, self.max_scores)
        edge, node = self.edge(x).chunk(self.heads, 1), self.node(x).chunk(self.heads, 1)
        gamma = beta = [None] * self.heads
        if self.threshold is not None:
            gamma, beta = self.threshold(pad_same(x, p, s)).transpose(2, 3).unflatten(1, (2, -1)).unbind(1)
            gamma, beta = gamma.unbind(1), beta.mul(10**0.5 if self.weights == "official" else 1).unbind(1)
        wq, wk = self.query.weight.chunk(self.heads), self.key.weight.chunk(self.heads)
        bq, bk = self.query.bias.chunk(self.heads), self.key.bias.chunk(self.heads)
        out = []
        root = 10**0.5 if self.weights == "official" else 1
        for h in range(self.heads):
            query = (
                F.relu(F.conv2d(pad_same(edge[h], p, s), wq[h], bq[h], stride=s))
                .mul(root)
                .permute(0, 3, 2, 1)
                .contiguous()
            )
            key = F.relu(F.conv2d(edge[h], wk[h], bk[h], padding=p // 2))
            out.append(Aggregate.apply(query, key, node[h].contiguous(), gamma[h], beta[h], graph))
        ones = x.new_ones(1, p * p, query.shape[1] * query.shape[2])
        count = F.fold(ones, x.shape[2:], p, padding=p // 2, stride=s)
        return x + self.fuse(torch.cat(out, 1) / count)


class CES(nn.Module):
    """Stages of attention with residual blocks between them, each with its own PReLU."""

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


class DAGL(Trunk):
    """The network."""

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
        makers = {
            "graph": lambda: MGFAM(width, heads, patch, stride, no_threshold, no_graph_attention, weights, max_scores),
            "nl": lambda: NonLocal(width),
            "mhnl": lambda: NonLocal(width, heads=4),
        }
        if attention not in makers:
            raise ValueError(f"attention {attention!r} is not one of {', '.join(makers)}")
        super().__init__(
            colors,
            width,
            blocks,
            activation=nn.PReLU,
            tie_activation=True,
            attention=lambda width: CES(width, [makers[attention]() for _ in range(stages)], stage_blocks),
            positions=(blocks // 2,),
            feature_skip=False,
            image_residual=True,
            image_skip=image_skip,
        )
        self.add_mean = nn.Conv2d(3, 3, 1).requires_grad_(False)


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
    """One M-GFAM stage for the common trunk."""
    return MGFAM(width, heads, patch, stride, no_threshold, no_graph_attention, weights, max_scores)
