"""DAGL's graph attention: every query patch of a grid chooses its neighbours among the patches around all pixels.

    S_ij = <Q_i, K_j>
    T_i  = gamma_i mean_j S_ij - beta_i
    A_ij = ReLU(S_ij - T_i)             an edge where A_ij > 0: queries differ in their number of neighbours
    P_i  = sum_j w_ij V_j               V_j: the p x p patch of the values around pixel j

The P_i are pasted back on the grid and divided by the number of patches that cover a pixel. Weights:

    official    w_ij = [A_ij > 0] exp(10 S_ij A_ij) / sum_l exp(10 S_il A_il), l over all keys, neighbours or not
    paper       w_ij = [A_ij > 0] exp(A_ij) / sum_l [A_il > 0] exp(A_il), l over the neighbours alone
    equal       w_ij = [A_ij > 0] / (number of neighbours)

With a fixed number of neighbours, T = 0 for the keys with the largest S and no other key is a neighbour; a score of
zero is no edge. A query without neighbours gives a patch of zeros. Choosing neighbours has no gradient.

The fast form is exact and never holds all scores or an unfolded image:

- mean_j S_ij = <Q_i, mean_j K_j>: T is known before S, and on an edge S = A + T need not be kept beside A.
- 10 S ReLU(S - T) = S' ReLU(S' - T') with S' = sqrt(10) S and T' = sqrt(10) T: the factor goes into Q and beta.
- Pixel s u + a (per axis, stride s, 0 <= a < s) lies in the patches of the queries u + t with |a - s t| <= p // 2:

      sum_t sum_j w_{u+t}(j) v(j + a - s t) = sum_l E(l) v(l + a),    E(l) = sum_t w_{u+t}(l + s t).

  E is the same for all offsets a that the same t reach: for p = 7, s = 4 it is w_u itself for a = 0 and
  w_u(l) + w_{u+1}(l + 4) for a = 1, 2, 3. Adding up the shifted weights first, along both axes, takes s^2 instead of
  p^2 multiply-adds per score and channel and gives pixels: nothing is left to paste. The gradients of the weights and
  of the values have the same form.
- Scores are computed block by block, and again in the backward pass.

On a GPU, where starting an operation takes as long as computing many scores, the definition takes the place of the fast
form as long as its scores have room. On an H100 a training step of DAGL with 8 crops of 48 pixels then takes 39 ms and
2.1 GiB, before 57 ms and 1.0 GiB.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import CACHED_SCORES, GPU_SCORES, MAX_SCORES
from ..operation import operation

#: Kinds of weights.
WEIGHTS = ("official", "paper", "equal")

#: Queries of a block that keep a CPU's matrix products efficient, even if their scores leave its cache.
CPU_QUERIES = 128


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    limits: Tensor | None,
    *,
    patch: int,
    stride: int,
    neighbours: int = 0,
    weights: str = "official",
    max_scores: int | None = None,
) -> Tensor:
    """The patches P_i of all queries, pasted and averaged, ``(B, C, H, W)``; in float32 at least, under autocast too.

    query: ``(B, rows, columns, D)``, not negative; that of row r and column c is pasted around pixel (s r, s c)
    key: ``(B, D, H, W)``, not negative
    value: ``(B, C, H, W)``
    limits: gamma and beta, ``(2, B, rows, columns)``; None with a fixed number of `neighbours`
    neighbours: the fixed number, or 0 for as many as the threshold leaves
    weights: one of `WEIGHTS`
    max_scores: the largest number of scores that the fast form holds at a time; None is MAX_SCORES, on a GPU GPU_SCORES
    """
    with torch.autocast(value.device.type, enabled=False):
        of_queries = None if limits is None else limits.flatten(2)
        _, weight = edges(query.flatten(1, 2), key.flatten(2), of_queries, neighbours, weights)
        patches = F.unfold(at_least_float32(value), patch, padding=patch // 2)
        pasted = F.fold(patches @ weight.mT, value.shape[2:], patch, padding=patch // 2, stride=stride)
        return pasted / coverage(value, patch, stride)


def edges(query: Tensor, key: Tensor, limits: Tensor | None, neighbours: int, weights: str) -> tuple[Tensor, Tensor]:
    """A and w, both ``(..., Q, keys)``, of queries ``(..., Q, D)``, gammas and betas ``(2, ..., Q)`` and keys
    ``(..., D, keys)``."""
    score = at_least_float32(query) @ at_least_float32(key)
    if limits is None:
        nearest = score.topk(min(neighbours, score.shape[-1]))
        strength = torch.zeros_like(score).scatter(-1, nearest.indices, nearest.values)
    else:
        gamma, beta = limits
        threshold = gamma * score.mean(-1) - beta
        strength = torch.relu(score - threshold[..., None])
    edge = (strength > 0).to(score)
    if weights == "equal":
        return strength, edge / edge.sum(-1, keepdim=True).clamp_min(1)
    if weights == "paper":
        return strength, torch.softmax(strength.masked_fill(edge == 0, -1e30), -1) * edge
    return strength, torch.softmax(10 * score * strength, -1) * edge


def coverage(x: Tensor, patch: int, stride: int) -> Tensor:
    """Number of patches over each pixel of ``x``, ``(1, 1, H, W)``."""
    size = x.shape[2:]
    queries = math.prod(math.ceil(n / stride) for n in size)
    return F.fold(x.new_ones(1, patch**2, queries), size, patch, padding=patch // 2, stride=stride)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, in float32 if it was narrower."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@operation(plain)
def graph_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    limits: Tensor | None,
    *,
    patch: int,
    stride: int,
    neighbours: int = 0,
    weights: str = "official",
    max_scores: int | None = None,
) -> Tensor:
    """`plain`, the same result from blocks of at most `max_scores` scores, or of one query."""
    max_scores = max_scores or (GPU_SCORES if value.is_cuda else MAX_SCORES)
    if value.is_cuda and query[..., 0].numel() * key[0, 0].numel() <= max_scores:
        return plain(query, key, value, limits, patch=patch, stride=stride, neighbours=neighbours, weights=weights)
    root = math.sqrt(10) if weights == "official" else 1.0
    query = root * at_least_float32(query)
    threshold = None
    if limits is not None:
        gamma, beta = at_least_float32(limits)
        # not .mean(), whose backward pass writes a tensor as large as the keys
        mean = key.sum((2, 3), dtype=query.dtype)[:, None, None] / key[0, 0].numel()
        threshold = gamma * (query * mean).sum(3) - root * beta
    form = Form(patch, stride, neighbours, weights, max_scores)
    return _GraphAttention.apply(query, key, value, threshold, form) / coverage(value, patch, stride)


Block = tuple[slice, slice, slice]  # images, rows and columns of the query grid


class Form(NamedTuple):
    """How scores become weights, and how patches overlap."""

    patch: int
    stride: int
    neighbours: int
    weights: str
    max_scores: int

    def blocks(self, query: Tensor, keys: int) -> Iterator[Block]:
        """Blocks of several images, or of a part of one's query grid.

        A part is about square or has all columns, for the weights of adjacent queries are added up within blocks.
        """
        images, rows, columns, _ = query.shape
        queries = max(1, self.max_scores // keys)
        if not query.is_cuda:
            queries = min(queries, max(CPU_QUERIES, CACHED_SCORES // keys))
        side = math.isqrt(queries)
        column_step = columns if columns <= 2 * side else side
        row_step = min(rows, max(1, queries // column_step))
        image_step = max(1, queries // (rows * columns))
        return itertools.product(_slices(images, image_step), _slices(rows, row_step), _slices(columns, column_step))

    def offsets(self, block: Block, size: Sequence[int]) -> tuple[list[Offsets], list[Offsets]]:
        """Which pixels of an output of `size` the queries of a block reach, along rows and along columns."""
        rows, columns = (
            reached(self.patch, self.stride, q.start, q.stop, n) for q, n in zip(block[1:], size, strict=True)
        )
        return rows, columns


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


@dataclass(frozen=True)
class Offsets:
    """Along an axis, the offsets a whose pixels s u + a lie in the patches of the same queries u + t."""

    grid: slice  # u
    offsets: slice  # a
    length: int  # number of l
    terms: list[tuple[tuple[slice, slice], tuple[slice, slice]]]  # E[u, l] += w[query, key] for these indices

    @property
    def sums_nothing(self) -> bool:
        """Whether E is the weight itself."""
        return self.offsets == slice(0, 1) and len(self.terms) == 1

    @property
    def count(self) -> int:
        """Number of offsets."""
        return self.offsets.stop - self.offsets.start

    def shape_of_sum(self, weight: Tensor, axis: int) -> list[int]:
        """Shape of E along axis 0 or 1 for weights ``(images, rows, columns, key rows, key columns)``."""
        shape = list(weight.shape)
        shape[1 + axis], shape[3 + axis] = self.grid.stop - self.grid.start, self.length
        return shape

    def views(self, total: Tensor, weight: Tensor, axis: int) -> list[tuple[Tensor, Tensor]]:
        """For each t the part of E and the part of w that is added to it, ``(images, rows, columns, key rows, key
        columns)``."""
        skip = (slice(None),)
        return [
            (total[skip + skip * axis + (u,) + skip + (at,)], weight[skip + skip * axis + (query,) + skip + (key,)])
            for (u, at), (query, key) in self.terms
        ]


@functools.lru_cache(1024)
def reached(patch: int, stride: int, start: int, stop: int, size: int) -> list[Offsets]:
    """The pixels of an axis of `size` that lie in the patches of the queries from `start` to `stop`."""
    half, grid = patch // 2, math.ceil(size / stride)
    found = []
    by_queries = itertools.groupby(range(stride), lambda a: (-((half - a) // stride), (half + a) // stride))
    for (low, high), same in by_queries:  # t from low to high
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
            found.append(Offsets(slice(*into), slice(offsets[0], offsets[-1] + 1), last - first, terms))
    return found


class ShiftedValues:
    """v(l + a) of the values ``(B, C, H, W)``."""

    def __init__(self, value: Tensor, stride: int):
        self.value, self.pad = value, stride - 1
        self.by_columns: dict[int, Tensor] = {}  # number of column offsets -> values shifted by each of them

    def at(self, rows: Offsets, columns: Offsets) -> list[Tensor]:
        """For each row offset the values at all column offsets, ``(B, C x offsets, l)``."""
        if columns.count not in self.by_columns:
            pad = columns.count - 1
            windows = F.pad(self.value, (pad, pad, self.pad, self.pad)).unfold(3, columns.count, 1)
            self.by_columns[columns.count] = windows.permute(0, 1, 4, 2, 3).flatten(1, 2)
        first, shifted = self.pad - (rows.count - 1), self.by_columns[columns.count]
        return [shifted[:, :, r : r + rows.length].flatten(2) for r in range(first, self.pad + 1)]


def add_shifted_back(total: Tensor, shifted: Tensor, rows: Offsets, columns: Offsets) -> None:
    """Add to ``(B, C, H, W)`` the transpose of `ShiftedValues.at`, all row offsets after each other."""
    height, width = total.shape[2:]
    parts = shifted.unflatten(2, (rows.length, columns.length)).unflatten(1, (rows.count, -1, columns.count))
    for a in range(rows.count):
        for b in range(columns.count):
            top, left = rows.count - 1 - a, columns.count - 1 - b
            total += parts[:, a, :, b, top : top + height, left : left + width]


def pixels(grad: Tensor, images: slice, rows: Offsets, columns: Offsets) -> Tensor:
    """Pixels s u + a of ``(B, C, grid rows, s, grid columns, s)``: ``(B, C x offsets, u)``, as in `ShiftedValues`."""
    of = grad[images, :, rows.grid, rows.offsets, columns.grid, columns.offsets]
    return of.permute(0, 3, 1, 5, 2, 4).flatten(4).flatten(1, 3)


class Buffers:
    """Memory by name that every block uses again, enough for the weights of a block or their sums E."""

    def __init__(self, form: Form, query: Tensor, size: Sequence[int]):
        self.like = query
        images, *block = (part.stop for part in next(form.blocks(query, math.prod(size))))
        more = (form.patch - 1) // form.stride  # queries that reach into the patch of another
        queries = (min(n + more, all_) for n, all_ in zip(block, query.shape[1:3], strict=True))
        self.numbers = images * math.prod(queries) * math.prod(n + form.stride - 1 for n in size)
        self.held: dict[str, Tensor] = {}

    def view(self, name: str, *shape: int) -> Tensor:
        if name not in self.held:
            self.held[name] = self.like.new_empty(self.numbers)
        return self.held[name][: math.prod(shape)].view(shape)


def edges_of_block(
    form: Form, buffers: Buffers, query: Tensor, keys: Tensor, threshold: Tensor | None, block: Block
) -> tuple[Tensor, Tensor]:
    """A and w ``(images, rows, columns, keys)`` in the buffers of these names; the buffer "score" is free again."""
    query, keys = query[block], keys[block[0]]
    shape = (*query.shape[:3], keys.shape[2])
    score, strength, weight = (buffers.view(name, *shape) for name in ("score", "strength", "weight"))
    torch.bmm(query.flatten(1, 2), keys, out=score.flatten(1, 2))
    if threshold is None:
        nearest = score.topk(min(form.neighbours, shape[3]), dim=3)
        strength.zero_().scatter_(3, nearest.indices, nearest.values)
    else:
        torch.sub(score, threshold[block][..., None], out=strength).clamp_min_(0)
    if form.weights == "equal":
        torch.gt(strength, 0, out=weight)
        return strength, weight.div_(weight.sum(3, keepdim=True).clamp_min_(1))
    torch.softmax(score.mul_(strength) if form.weights == "official" else strength, 3, out=weight)
    # zero where there is no edge, in one pass
    torch.ops.aten.threshold_backward(weight, strength, 0, grad_input=weight)
    if (
        form.weights == "paper"
    ):  # A of no edge is 0, less than any neighbour's: the neighbours' share is at least one key's
        weight.div_(weight.sum(3, keepdim=True).clamp_min_(torch.finfo(weight.dtype).tiny))
    return strength, weight


def sum_along(buffers: Buffers, name: str, weight: Tensor, offsets: Offsets, axis: int) -> Tensor:
    """E along one axis, in the named buffer, or the weight itself."""
    if offsets.sums_nothing:
        return weight
    total = buffers.view(name, *offsets.shape_of_sum(weight, axis))
    (first, w), *others = offsets.views(total, weight, axis)
    first.copy_(w)
    for dim, inside in zip((1 + axis, 3 + axis), offsets.terms[0][0], strict=True):
        total.narrow(dim, 0, inside.start).zero_()
        total.narrow(dim, inside.stop, total.shape[dim] - inside.stop).zero_()
    for e, w in others:
        e += w
    return total


class _GraphAttention(torch.autograd.Function):
    """Sum of the pasted patches, ``(B, C, H, W)``; query and threshold hold the factor of the official weights.

    In float32 at least, under autocast too: the official weights multiply a score's rounding by the score itself.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, threshold: Tensor | None, form: Form) -> Tensor:
        ctx.form = form
        ctx.save_for_backward(query, key, value, threshold)
        key, value = at_least_float32(key), at_least_float32(value)
        (rows, columns), size, stride = query.shape[1:3], value.shape[2:], form.stride
        with torch.autocast(value.device.type, enabled=False):
            keys, buffers, values = key.flatten(2), Buffers(form, query, size), ShiftedValues(value, stride)
            out = value.new_zeros(*value.shape[:2], rows, stride, columns, stride)
            for block in form.blocks(query, keys.shape[2]):
                _, weight = edges_of_block(form, buffers, query, keys, threshold, block)
                _add_pixels(out[block[0]], weight.unflatten(3, size), block, form, buffers, values)
        return out.flatten(4).flatten(2, 3)[:, :, : size[0], : size[1]]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        form, (query, key, value, threshold) = ctx.form, ctx.saved_tensors
        key, value = at_least_float32(key), at_least_float32(value)
        (rows, columns), size, stride = query.shape[1:3], value.shape[2:], form.stride
        grad_query, grad_value = torch.empty_like(query), torch.zeros_like(value)
        grad_threshold = torch.zeros_like(threshold) if threshold is not None and form.weights == "official" else None
        with torch.autocast(grad.device.type, enabled=False):
            keys, buffers, values = key.flatten(2), Buffers(form, query, size), ShiftedValues(value, stride)
            grad_keys = keys.new_empty(keys.shape)
            grad = F.pad(grad, (0, columns * stride - size[1], 0, rows * stride - size[0]))
            grad = grad.unflatten(3, (columns, stride)).unflatten(2, (rows, stride))
            for block in form.blocks(query, keys.shape[2]):
                images = block[0]
                strength, weight = edges_of_block(form, buffers, query, keys, threshold, block)
                _add_value_gradient(grad_value[images], grad, weight.unflatten(3, size), block, form, buffers)
                if form.weights == "equal":
                    continue
                # Both softmaxes: dL = w (dw - sum w dw), for being a neighbour has no gradient; then L = S A or L = A.
                # On an edge S = A + T, so that dL/dS = S + A = 2 A + T and dL/dT = -S = -(dL/dS + T) / 2.
                grad_weight = _weight_gradient(grad, weight.unflatten(3, size), block, form, buffers, values)
                grad_score = grad_weight.flatten(3).mul_(weight)
                grad_score.addcmul_(weight, grad_score.sum(3, keepdim=True), value=-1)
                if grad_threshold is not None:
                    bound, total = threshold[block], grad_score.sum(3)
                    grad_score *= torch.add(bound[..., None], strength, alpha=2, out=strength)
                    grad_threshold[block] = (grad_score.sum(3) + bound * total) / -2
                elif form.weights == "official":
                    grad_score *= strength.mul_(2)
                grad_score = grad_score.flatten(1, 2)
                grad_query[block] = (grad_score @ keys[images].transpose(1, 2)).view_as(grad_query[block])
                first = block[1].start == block[2].start == 0
                queries = query[block].flatten(1, 2).transpose(1, 2)
                grad_keys[images].baddbmm_(queries, grad_score, beta=0 if first else 1)
        if form.weights == "equal":
            return None, None, grad_value, None, None
        return grad_query, grad_keys.view(key.shape), grad_value, grad_threshold, None


def _add_pixels(out: Tensor, weight: Tensor, block: Block, form: Form, buffers: Buffers, values: ShiftedValues) -> None:
    """Add sum_l E(l) v(l + a) to the images' ``(images, C, grid rows, s, grid columns, s)``."""
    all_rows, all_columns = form.offsets(block, weight.shape[3:])
    for columns in all_columns:
        part = sum_along(buffers, "strength", weight, columns, 1)
        for rows in all_rows:
            total = sum_along(buffers, "score", part, rows, 0)
            for a, shifted in enumerate(values.at(rows, columns), rows.offsets.start):
                found = total.flatten(3).flatten(1, 2) @ shifted[block[0]].mT
                found = found.view(*total.shape[:3], -1, columns.count).permute(0, 3, 1, 2, 4)
                out[:, :, rows.grid, a, columns.grid, columns.offsets].add_(found)


def _add_value_gradient(
    grad_value: Tensor, grad: Tensor, weight: Tensor, block: Block, form: Form, buffers: Buffers
) -> None:
    """Add the gradient of the images' values, by the sums E of the forward pass."""
    all_rows, all_columns = form.offsets(block, weight.shape[3:])
    for columns in all_columns:
        part = sum_along(buffers, "part", weight, columns, 1)
        for rows in all_rows:
            total = sum_along(buffers, "score", part, rows, 0)
            shifted = pixels(grad, block[0], rows, columns) @ total.flatten(3).flatten(1, 2)
            add_shifted_back(grad_value, shifted, rows, columns)


def _weight_gradient(
    grad: Tensor, weight: Tensor, block: Block, form: Form, buffers: Buffers, values: ShiftedValues
) -> Tensor:
    """Gradient of the block's weights, by the gradients of E, in the buffers of `_add_value_gradient`."""
    all_rows, all_columns = form.offsets(block, weight.shape[3:])
    grad_weight = buffers.view("grad_weight", *weight.shape)
    if not all_columns[0].sums_nothing:
        grad_weight.zero_()
    for columns in all_columns:
        grad_part = grad_weight
        if not columns.sums_nothing:
            grad_part = buffers.view("part", *columns.shape_of_sum(weight, 1))
        if not all_rows[0].sums_nothing:
            grad_part.zero_()
        for rows in all_rows:
            total = grad_part if rows.sums_nothing else buffers.view("score", *rows.shape_of_sum(grad_part, 0))
            shifted = torch.cat([v[block[0]] for v in values.at(rows, columns)], 1)
            of = pixels(grad, block[0], rows, columns)
            torch.bmm(of.mT, shifted, out=total.flatten(3).flatten(1, 2))
            if not rows.sums_nothing:
                for e, w in rows.views(total, grad_part, 0):
                    w += e
        if not columns.sums_nothing:
            for e, w in columns.views(grad_part, grad_weight, 1):
                w += e
    return grad_weight
