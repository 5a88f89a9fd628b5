r"""Attention between the patch x patch blocks around pixels: `plain` is the definition, `block_attention` computes it.

For 3x3 blocks the fast form needs the products of pixels alone, G_pj = q_p · k_j, because comparing blocks and pasting
blocks are the same operator,

    boxsum(X)_pj = Σ_d X_{p+d, j+d},  d in {-1, 0, 1}²:      scores = boxsum(G),      output = boxsum(weights) v / 4,

which is its own transpose (d runs over a symmetric set) and separates into three terms along the columns and three
along the rows. So scores cost c multiply-adds per pair instead of 9 c, the paste C instead of 9 C, and the backward
pass consists of the same pieces: dweights = boxsum(dy v^T) / 4 and dG = boxsum(dscores).

Ours: the memory is bounded. The matrices exist for a few rows of queries at a time, with all keys; a backward pass
computes them again.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..blocks import CACHED_SCORES, GPU_SCORES, MAX_SCORES
from ..operation import operation

#: Smallest norm of a key block, from the released code.
SMALLEST_NORM = 1e-4

#: Overlapping 3x3 blocks are divided by this number, from the released code.
OVERLAP = 4

#: Queries of a CPU's block where its cache holds no more: two rows of a strip. In narrower strips too many columns are
#: computed twice, and the keys are read too often.
CPU_QUERIES = 132

#: A narrower strip has blocks of one row; a wider one has at least two, whose sums are shared. No thread's part of a
#: strip is narrower.
NARROW = 16

#: The rows of score matrices are a multiple of this many numbers long, so that each begins with a line of the cache.
ALIGNED = 16

#: A tensor for each level of the pyramid.
Levels = Iterable[Tensor]

#: Rows and columns of a tensor.
Index = tuple[slice, slice]


def plain(
    query: Tensor, keys: Levels, values: Levels, patch: int = 3, scale: float = 10.0, max_scores: int | None = None
) -> Tensor:
    """Every block of the query gathers the blocks of all levels, which are pasted where it lies.

    query: (B, c, H, W)
    keys, values: for each level (B, c, h, w) and (B, C, h, w)
    patch: side of the blocks, 3 or 1; pasted blocks of side 3 overlap, and their sum is divided by OVERLAP
    scale: factor of the scores
    max_scores: largest number of scores in each of the few matrices that the fast form holds (at least 3 per key);
        None is MAX_SCORES, on a GPU GPU_SCORES. The definition ignores it, as does the fast form of patch 1.

    Returns (B, C, H, W).
    """
    pasted = []
    for q, k, v in zip(unfold([query], patch), unfold(keys, patch), unfold(values, patch), strict=True):
        gathered = v @ attention_weights(q, k, scale).T
        pasted.append(F.fold(gathered, query.shape[2:], patch, padding=patch // 2))
    return torch.stack(pasted) / (OVERLAP if patch == 3 else 1)


def unfold(levels: Levels, patch: int) -> Tensor:
    """The blocks around the pixels of all levels: (B, C, h, w) each -> (B, C patch², pixels)."""
    return torch.cat([F.unfold(z, patch, padding=patch // 2) for z in levels], 2)


def attention_weights(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """The softmax over all keys, whose norms are divided out: (n, Q), (n, K) -> (Q, K)."""
    keys = keys * (scale / keys.norm(dim=0, keepdim=True).clamp_min(SMALLEST_NORM))
    return torch.softmax(queries.T @ keys, 1)


@operation(plain)
def block_attention(
    query: Tensor, keys: Levels, values: Levels, patch: int = 3, scale: float = 10.0, max_scores: int | None = None
) -> Tensor:
    if patch == 1:
        return _attend_pixels(query, keys, values, scale)
    return _attend_blocks(query, keys, values, scale, max_scores) / OVERLAP


def _attend_pixels(query: Tensor, keys: Levels, values: Levels, scale: float) -> Tensor:
    """By PyTorch's fused attention, which bounds its memory itself. It wants contiguous tensors and as many channels of
    keys as of values: zeros, which change no score."""
    q, k, v = (torch.cat([z.flatten(2) for z in part], 2).mT.contiguous() for part in ([query], keys, values))
    k = k / k.norm(dim=2, keepdim=True).clamp_min(SMALLEST_NORM)
    q, k = (F.pad(t, (0, v.shape[2] - t.shape[2])) for t in (q, k))
    mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=scale)
    return mixed[:, 0].mT.unflatten(2, query.shape[2:])


def _attend_blocks(query: Tensor, keys: Levels, values: Levels, scale: float, max_scores: int | None) -> Tensor:
    """The pixels of all levels become the columns of one matrix, widest level first: a row of zeros, then each level
    with a column of zeros on its right and a row of zeros below. A shift beyond the border of a level finds zeros, and
    a shift to the next pixel is one column everywhere."""
    keys, values = (sorted(levels, key=lambda z: -z.shape[3]) for levels in (keys, values))
    squares = [F.avg_pool2d(z.square().sum(1, keepdim=True), 3, 1, 1, divisor_override=1) for z in keys]
    tiling = _Tiling(query, [z.shape[2:] for z in keys], max_scores)
    mask = _lay_out([torch.zeros(1, 1, *z.shape[2:], dtype=query.dtype) for z in keys], -1e30).to(query.device)
    all_keys, all_values = _lay_out(keys, 0.0), _lay_out(values, 0.0)
    factor = scale * _lay_out(squares, 1.0)[:, 0].clamp_min(SMALLEST_NORM**2).rsqrt()
    del keys, values, squares
    tf32 = query.is_cuda and torch.finfo(query.dtype).bits < 32
    return _BlockAttention.apply(query, all_keys, factor, all_values, mask[0, 0], tiling, tf32)


def _lay_out(levels: Sequence[Tensor], around: float) -> Tensor:
    """(B, C, h, w) for every level -> (B, C, M), with the number `around` in the columns around the levels."""
    columns = torch.cat([F.pad(z, (0, 1, 0, 1), value=around).flatten(2) for z in levels], 2)
    before = levels[0].shape[3] + 1
    return F.pad(columns, (before, -(before + columns.shape[2]) % ALIGNED), value=around)


class _BlockAttention(torch.autograd.Function):
    """y = boxsum(softmax(factor boxsum(q k) + mask)) v for each image, in blocks of rows of queries.

    query (B, c, H, W), keys (B, c, M), factor (B, M), values (B, C, M), mask (M,) -> (B, C, H, W), M columns for the
    pixels of all levels. The mask takes every weight from the columns around the levels. In float32; `tf32` lets a
    GPU's matrix products round their factors to TF32, which has no fewer digits than the types of autocast.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx: Any, query, keys, factor, values, mask, tiling: _Tiling, tf32: bool) -> Tensor:
        ctx.save_for_backward(query, keys, factor, values, mask)
        ctx.tiling, ctx.tf32 = tiling, tf32
        q, v = tiling.pad(query), values.mT.contiguous()
        y = q.new_zeros(*q.shape[:3], values.shape[1])
        work = _Workspace(tiling, query)
        paste = work.box_sum(work.weights, work.place_of_sums(work.weights))
        with _allow_tf32(tf32):
            for left, i in itertools.product(range(0, tiling.width, tiling.columns), range(len(q))):
                for _, done in work.blocks(left, q[i], keys[i], factor[i], mask, [paste]):
                    pasted = paste()
                    if done[0].stop > tiling.rows_above:  # some of them are in the image
                        work.add(torch.bmm(pasted, v[i].expand(tiling.parts, -1, -1)), y[i][done])
        return tiling.crop(y)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, factor, values, mask = ctx.saved_tensors
        tiling = ctx.tiling
        q, dy = tiling.pad(query), tiling.pad(gradients[0])
        dq = torch.zeros_like(q)
        dkeys, dfactor, dvalues = (torch.zeros_like(t) for t in (keys, factor, values))
        work = _Workspace(tiling, query, keep_logits=True)
        logits, w, scratch = work.logits, work.weights, work.matrix().zero_()
        sums = work.place_of_sums(scratch)
        paste, unpaste, uncompare = work.box_sum(w, scratch), work.box_sum(scratch, sums), work.box_sum(sums, scratch)
        with _allow_tf32(ctx.tf32):
            for left, i in itertools.product(range(0, tiling.width, tiling.columns), range(len(q))):
                v, k = (t[i].expand(tiling.parts, -1, -1) for t in (values, keys.mT))
                dv, dk, df = (q.new_zeros(tiling.parts, *t.shape[1:]) for t in (values, keys, factor))
                for new, done in work.blocks(left, q[i], keys[i], factor[i], mask, [paste, unpaste, uncompare]):
                    dv.baddbmm_(work.cut(dy[i][done]).mT, paste())
                    torch.bmm(work.cut(dy[i][new]), v, out=scratch)
                    w_dw = unpaste(w)
                    dlogits = w_dw.addcmul_(w, w_dw.sum(2, keepdim=True), value=-1)  # of the softmax
                    df.add_(logits.mul_(dlogits).sum(1))
                    dlogits.mul_(factor[i])
                    dproducts = uncompare()
                    dk.baddbmm_(work.cut(q[i][done]).mT, dproducts)
                    work.add(torch.bmm(dproducts, k), dq[i][done])
                for total, of_parts in ((dvalues, dv), (dkeys, dk), (dfactor, df)):
                    total[i] += of_parts.sum(0)
        return tiling.crop(dq), dkeys, dfactor / factor, dvalues, None, None, None


@contextlib.contextmanager
def _allow_tf32(allowed: bool) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, matmul.allow_tf32 or allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = before


class _Tiling:
    """How the queries of an image are cut: into strips of columns (one, if a row is not too long), and every strip into
    blocks of rows, one after the other.

    On a CPU each thread has a part of a block to itself, some columns of all its rows, through all operations: `parts`
    is the first axis of all matrices. No thread reads what another has written, except at the parts' borders.

    A strip that is narrower than the image overlaps its neighbours by `margin`, a column on each side. The box sums of
    a strip of several blocks come `delay`, one row, after their inputs, and its output two rows after the products: by
    these the images are padded.
    """

    def __init__(self, query: Tensor, sizes: Sequence[Sequence[int]], max_scores: int | None):
        self.height, self.width = query.shape[2:]
        self.row_lengths = [width + 1 for _, width in sizes]  # from a pixel of a level to the one below it
        self.counts = [(height + 1) * (width + 1) for height, width in sizes]
        keys = self.row_lengths[0] + sum(self.counts)
        self.keys = keys + -keys % ALIGNED  # M
        self.kernel = kernel_for(query.device)
        queries, threads = (max_scores or (GPU_SCORES if query.is_cuda else MAX_SCORES)) // self.keys, 1
        if not (query.is_cuda or self.kernel):
            queries = min(queries, max(CACHED_SCORES // self.keys, CPU_QUERIES))
            threads = torch.get_num_threads()
        across = queries // 2 if queries >= 2 * NARROW else queries
        self.parts = max(1, min(threads, min(across, self.width) // NARROW))
        across -= self.parts - 1  # the parts' width is rounded up
        self.margin = int(across < self.width)
        self.columns = _even(self.width, across - 2) if self.margin else self.width
        self.part_width = max(2, math.ceil((self.columns + 2 * self.margin) / self.parts))
        rows = queries // (self.parts * self.part_width)
        self.delay = int(rows < self.height)
        self.rows_above = 2 * self.delay
        self.rows = _even(self.height + self.rows_above, rows)
        self.blocks = math.ceil((self.height + self.rows_above) / self.rows)

    def pad(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, rows, columns, C)."""
        right = self.parts * self.part_width - (self.margin or self.width)  # for the last strip, or the only one
        below = self.blocks * self.rows - self.height
        return F.pad(images.permute(0, 2, 3, 1), (0, 0, self.margin, right, self.rows_above, below))

    def crop(self, padded: Tensor) -> Tensor:
        rows = slice(self.rows_above, self.rows_above + self.height)
        return padded[:, rows, self.margin : self.margin + self.width].permute(0, 3, 1, 2)


def kernel_for(device: torch.device) -> ModuleType | None:
    """`box_kernel`, if Triton is installed and works on the device."""
    if device.type != "cuda":
        return None
    try:
        from . import box_kernel
    except ImportError:
        return None
    return box_kernel if box_kernel.works(device) else None


def _even(total: int, largest: int) -> int:
    """Size of parts of `total` that are about equal and not larger than `largest`, or than 1."""
    parts = math.ceil(total / max(1, largest))
    return math.ceil(total / parts)


class _Workspace:
    """The matrices of one block: products, logits and weights, (parts, queries, M).

    Each overwrites the one before, unless the logits are kept or the kernel makes them, which cannot work in place: one
    matrix less in the cache.
    """

    def __init__(self, tiling: _Tiling, like: Tensor, keep_logits: bool = False):
        self.tiling, self.like = tiling, like
        self.products = self.matrix()
        self.logits = self.matrix() if tiling.kernel else self.products
        self.weights = self.matrix() if keep_logits else self.logits
        self.lines: Tensor | None = None
        self.compare = self.box_sum(self.products, self.logits)

    def matrix(self) -> Tensor:
        return self.like.new_empty(self.tiling.parts, self.tiling.rows * self.tiling.part_width, self.tiling.keys)

    def box_sum(self, x: Tensor, out: Tensor) -> _BoxSum:
        tiling = self.tiling
        if tiling.kernel:
            return tiling.kernel.BoxSum(x, out, tiling)
        if self.lines is None or tiling.delay:  # a single block leaves nothing in them for the next
            self.lines = x.new_empty(tiling.parts, tiling.rows + 2, tiling.part_width, tiling.keys)
        return _BoxSum(x, out, self.lines, tiling)

    def place_of_sums(self, x: Tensor) -> Tensor:
        """Where the box sums of x may go: to its own place; by the kernel, to that of the products, which are used."""
        return self.products if self.tiling.kernel else x

    def cut(self, pixels: Tensor) -> Tensor:
        """(rows, columns, C) -> (parts, queries, C)."""
        return pixels.unflatten(1, (self.tiling.parts, -1)).transpose(0, 1).flatten(1, 2)

    def add(self, parts: Tensor, pixels: Tensor) -> None:
        """Add (parts, queries, C) to (rows, columns, C)."""
        pixels.unflatten(1, (self.tiling.parts, -1)).transpose(0, 1).add_(parts.unflatten(1, (self.tiling.rows, -1)))

    def blocks(
        self, left: int, query: Tensor, keys: Tensor, factor: Tensor, mask: Tensor, box_sums: Sequence[_BoxSum]
    ) -> Iterator[tuple[Index, Index]]:
        """Compute the logits and weights of the strip from column `left` of one image, block after block.

        A weight outside the strip's own pixels is 0. Yields two indices into the padded image: of the pixels whose
        products are new, and of those that are done after one more box sum. `box_sums` are the caller's; all forget
        the strip before.
        """
        tiling, rows = self.tiling, self.tiling.rows
        width, own = tiling.parts * tiling.part_width, min(tiling.columns, tiling.width - left)
        grid = self.weights.unflatten(1, (rows, -1))
        outside = [*range(tiling.margin), *range(tiling.margin + own, width)]
        weights_outside = [grid[column // tiling.part_width, :, column % tiling.part_width] for column in outside]
        keys = keys.expand(tiling.parts, -1, -1)
        for box_sum in (self.compare, *box_sums):
            box_sum.reset()
        for top in range(0, tiling.blocks * rows, rows):
            new, done = ((slice(y, y + rows), slice(left, left + width)) for y in (top + tiling.rows_above, top))
            if top < tiling.height:
                torch.bmm(self.cut(query[new]), keys, out=self.products)
            else:
                self.products.zero_()
            self.compare(factor, mask)
            torch.softmax(self.logits, 2, out=self.weights)
            rows_outside = [row for row in range(rows) if not 0 <= top - tiling.delay + row < tiling.height]
            for weights in (*weights_outside, *(grid[:, row] for row in rows_outside)):
                weights.zero_()
            yield new, done


Additions = list[tuple[Tensor, Tensor, Tensor]]


class _BoxSum:
    """boxsum(X)_pj = Σ_d X_{p+d, j+d} for a matrix (parts, queries, M) whose queries come in blocks of rows.

    A call takes the block in `x` and gives, in `out` (which may be `x`), the sums of the queries that lie
    `tiling.delay` rows before it. What it leaves in the columns around the levels is undefined.

    Neighbours share the sum of two terms: x_1 + (x_2 + x_3) and (x_2 + x_3) + x_4 are three additions. The sums along
    the columns are in `lines` (parts, rows + 2, part_width, M), one line per row of queries: the block's after the last
    two before it or, if there is only one block, between two lines of zeros.
    """

    def __init__(self, x: Tensor, out: Tensor, lines: Tensor, tiling: _Tiling):
        rows = tiling.rows
        x, self.out, out = x.unflatten(1, (rows, -1)), out, out.unflatten(1, (rows, -1))
        lines[..., 0] = lines[..., -1] = 0  # no sum is written there
        self.last_lines, starts = None, range(1)
        if not tiling.delay:
            self.lines_before = lines[:, :: rows + 1]
        elif rows > 2:  # the last two lines are copied to the front
            self.last_lines = lines[:, :2], lines[:, rows:]
            self.lines_before = lines[:, rows:]
        else:  # the new lines overwrite the oldest
            self.lines_before, starts = lines, range(0, rows + 2, rows)
        additions = []
        for start in starts:
            first, second, third = (lines[:, (start + i) % (rows + 2) :] for i in range(3))
            new = third if tiling.delay else second
            four = first[:, :rows:2], second[:, :rows:2], third[:, :rows:2], third[:, 1:rows:2]
            additions.append(self._along_columns(x, new[:, :rows]) + self._along_rows(four, out, tiling))
        self.additions = itertools.cycle(additions)

    @staticmethod
    def _along_columns(x: Tensor, sums: Tensor) -> Additions:
        """The next query of a row is one row, its key one column further in the matrix."""
        last = x.shape[2] - 1
        pairs, followed = last // 2, (last - 1) // 2  # pairs (1, 2), (3, 4), ..., and those that a query follows
        odd, even = sums[:, :, 1 : 2 * pairs : 2], sums[:, :, 2 : 2 * followed + 1 : 2]
        additions = [
            (x[:, :, 1 : 2 * pairs : 2, :-1], x[:, :, 2 : 2 * pairs + 1 : 2, 1:], odd[..., :-1]),
            (odd[:, :, :followed, :-2], x[:, :, 3 : 2 * followed + 2 : 2, 2:], even[..., 1:-1]),
            (x[:, :, 0 : 2 * pairs : 2, :-2], odd[..., 1:-1], odd[..., 1:-1]),
            # The outermost queries of a part, and their neighbours in the parts next to it.
            (x[:, :, 0, :-1], x[:, :, 1, 1:], sums[:, :, 0, :-1]),
            (x[:, :, last - 1, :-1], x[:, :, last, 1:], sums[:, :, last, 1:]),
            (x[:-1, :, last, :-1], sums[1:, :, 0, 1:], sums[1:, :, 0, 1:]),
            (sums[:-1, :, last, :-1], x[1:, :, 0, 1:], sums[:-1, :, last, :-1]),
        ]
        return [terms for terms in additions if terms[2].numel()]

    @staticmethod
    def _along_rows(lines: Sequence[Tensor], out: Tensor, tiling: _Tiling) -> Additions:
        """The next row of queries is one line, its key the length of a level's row further. Every other row of `out`
        is the sum of the lines a, b and c, the row after it that of b, c and d."""
        additions: Additions = []
        start = tiling.row_lengths[0]
        for row, count in zip(tiling.row_lengths, tiling.counts, strict=True):
            # With the row of zeros before the level; another one is its last.
            a, b, c, d, even, odd = (t[..., start - row : start + count] for t in (*lines, out[:, 0::2], out[:, 1::2]))
            start += count
            additions += [
                (b[..., :-row], c[..., row:], even[..., :-row]),
                (even[:, : odd.shape[1], :, : -2 * row], d[..., 2 * row :], odd[..., row:-row]),
                (a[..., : -2 * row], even[..., row:-row], even[..., row:-row]),
            ]
        return additions

    def reset(self) -> None:
        """Forget the rows before."""
        self.lines_before.zero_()

    def __call__(self, factor: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The box sums, times `factor` (of their shape or (M,)), plus `mask` (M,)."""
        if self.last_lines:
            self.last_lines[0].copy_(self.last_lines[1])
        for first, second, total in next(self.additions):
            torch.add(first, second, out=total)
        if factor is not None and mask is not None:
            torch.addcmul(mask, self.out, factor, out=self.out)
        elif factor is not None:
            self.out.mul_(factor)
        return self.out
