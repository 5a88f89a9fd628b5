r"""PANet: pyramid attention for image restoration.

Mei et al., "Pyramid Attention Networks for Image Restoration", arXiv 2004.13824 (IJCV 2023).

Every pixel of the features x attends to every pixel of a pyramid z_s = resize(x, s), s = 1, .9, .8, .7, .6:

    y_p = 1/4 Σ_d Σ_j w_{p+d, j+d} f(z)_j + identity_scale x_p
    w_p = softmax over all pixels j of all levels of  10 S_pj / ‖K_j‖
    S_pj = Σ_d q_{p+d} · g(z)_{j+d},      ‖K_j‖² = Σ_d |g(z)_{j+d}|²,      d in {-1, 0, 1}²

with q = θ(x); θ, g, f are 1x1 convolutions with a PReLU each. 3x3 blocks are compared and 3x3 blocks are pasted. The
released code compares and pastes unfolded blocks; the sums above are the same numbers from the pixel-wise products
G_pj = q_p · k_j, because both the comparison and the paste are one operator,

    box(X)_pj = Σ_d X_{p+d, j+d},      S = box(G),      y = box(w) f / 4,

which is its own transpose (d runs over a symmetric set) and separates into three terms along the columns and three
along the rows. So scores cost C/r multiply-adds per pair instead of 9 C/r, the paste C instead of 9 C, and the backward
pass consists of the same pieces: dw = box(dy f^T) / 4 and dG = box(dS).

Ours: the memory is bounded. The matrices exist for a few rows of queries at a time, with all keys; a backward pass
computes them again. A CPU sums boxes by additions that share what they can (`_Box`), a GPU by one kernel that reads
nine numbers for one (`_FusedBox`).
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..blocks import CACHED_SCORES, MAX_SCORES, Trunk, conv

try:  # comes with PyTorch where that can use a GPU on Linux
    import triton
    import triton.language as tl
except ImportError:
    triton = None

#: Tensors of the released checkpoints that no computation reads, frozen: a mean shift as two convolutions, whose
#: constants blocks.Trunk holds. Kept for the count of the parameters.
UNUSED = ("sub_mean", "add_mean")

#: Smallest norm of a key block, from the released code.
SMALLEST_NORM = 1e-4

SCALES = (1, 0.9, 0.8, 0.7, 0.6)

#: Rows of scores are a multiple of this many numbers long: they then begin with a line of the cache.
ALIGNED = 16

#: Pixels of a CPU's block, two rows of them, where its cache does not hold more: in narrower strips too many columns
#: are computed twice, and the keys are read too often.
CPU_PIXELS = 132

#: A strip narrower than this has blocks of one row, a wider one of at least two, whose sums are shared. No processor's
#: part of a strip is narrower.
NARROW = 16

#: Scores of a block on a GPU: many, for it waits for every operation to be started.
GPU_SCORES = 2**25

#: On a GPU a program sums boxes for so many columns of a matrix, and so many neighbouring pixels.
TILE, NEIGHBOURS = 256, 8

#: How many pixels the share of the levels is averaged over.
PIXELS = 1024

#: A tensor for each level.
Levels = Iterable[Tensor]


class PANet(Trunk):
    """PANet (`scale` 1) and PA-EDSR (`scale` 2, 3, 4) of the released code.

    scale 1: 80 blocks of 64 channels with one PReLU for all of them, no image residual, no mean shift; the embedding of
        the attention has width / 2 channels.
    scale > 1: EDSR's trunk, 32 blocks of 256 channels with ReLU and res_scale 0.1, mean shift; the embedding has
        width / 8 channels, and the attention adds 0.1 times its input (the identity is scaled, not the branch).
    width, blocks, reduction: None takes the numbers above
    positions: where the attention modules are: "pre", "mid" (released) or "post", a list of these, or the number of
        modules, which then cut the residual blocks into equal parts
    scales, patch, softmax_scale, max_scores: see PyramidAttention

    The smallest input has ceil(1 / min(scales)) pixels on each side (2 x 2 for the published scales).
    """

    def __init__(
        self,
        colors: int = 3,
        scale: int = 1,
        width: int | None = None,
        blocks: int | None = None,
        scales: Sequence[float] = SCALES,
        patch: int = 3,
        positions: str | Sequence[str] | int = "mid",
        softmax_scale: float = 10.0,
        reduction: int | None = None,
        image_skip: bool = False,
        max_scores: int | None = None,
    ):
        enlarges = scale > 1
        width = width or (256 if enlarges else 64)
        blocks = blocks or (32 if enlarges else 80)
        identity = 0.1 if enlarges else 1.0
        reduction = reduction or (8 if enlarges else 2)
        super().__init__(
            colors,
            width,
            blocks,
            scale=scale,
            activation=nn.ReLU if enlarges else nn.PReLU,
            tie_activation=not enlarges,
            res_scale=0.1 if enlarges else 1.0,
            attention=lambda width: PyramidAttention(
                width, reduction, scales, patch, softmax_scale, identity, max_scores=max_scores
            ),
            positions=_positions(positions, blocks),
            image_skip=image_skip,
            mean_shift=enlarges,
        )
        self.scales = tuple(scales)
        self.sub_mean, self.add_mean = (nn.Conv2d(3, 3, 1).requires_grad_(False) for _ in range(2))

    @torch.no_grad()
    def mechanism(self, image: Tensor, points: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """What `points` attend to, of one image ``(1, colors, H, W)``; one leading entry per attention module.

        mass: (modules, levels), the share of the attention that each level gets, averaged over the image's pixels, at
            most PIXELS, evenly spaced
        map_<s> for each scale s: (modules, points, h_s, w_s), the weights of each point on the grid of level s; over
            all levels they sum to 1. The grid covers the image: pixel (i, j) is at ((i + .5) H / h_s, (j + .5) W / w_s)
        """
        seen = [module.weights(features, points) for module, features in self.attended(image)]
        maps = {
            f"map_{scale:g}": torch.stack([shown[level] for _, shown in seen])
            for level, scale in enumerate(self.scales)
        }
        return {"mass": torch.stack([mass for mass, _ in seen]), **maps}


class PyramidAttention(nn.Module):
    """Pyramid attention ``(B, width, H, W)`` -> the same shape, identity included (equations: top of this file).

    reduction: width / channels of query and keys
    scales: sizes of the pyramid's levels, floor(H s) x floor(W s), in (0, 1]; [1] is plain non-local attention
    patch: side of the blocks that are compared and pasted: 3, or 1 for pixels. Pasted blocks overlap; their sum is
        divided by 4 for patch 3 (the released code's number; nine of them overlap) and not at all for patch 1.
    softmax_scale: factor of the scores in the softmax
    identity_scale: factor of the identity
    max_scores: largest number of scores in one of the few matrices held at a time (at least 3 for each key); None is
        MAX_SCORES, on a GPU GPU_SCORES

    Raises ValueError for a patch other than 1 or 3 and for a scale outside (0, 1].
    """

    def __init__(
        self,
        width: int,
        reduction: int = 2,
        scales: Sequence[float] = SCALES,
        patch: int = 3,
        softmax_scale: float = 10.0,
        identity_scale: float = 1.0,
        max_scores: int | None = None,
    ):
        super().__init__()
        if patch not in (1, 3):
            raise ValueError(f"patch {patch} is not one of 1, 3")
        if not scales or not all(0 < s <= 1 for s in scales):
            raise ValueError(f"scales {list(scales)} do not all lie in (0, 1]")
        self.theta = _embedding(width, width // reduction)
        self.g = _embedding(width, width // reduction)
        self.f = _embedding(width, width)
        self.scales, self.patch, self.softmax_scale, self.identity_scale = (
            tuple(scales),
            patch,
            softmax_scale,
            identity_scale,
        )
        self.max_scores = max_scores

    def forward(self, x: Tensor) -> Tensor:
        levels = self.pyramid(x)
        # Nobody but who consumes them holds what the iterators make.
        query, keys, values = self.theta(x), map(self.g, levels), map(self.f, levels)
        if self.patch == 1:
            pasted = _attend_pixels(query, keys, values, self.softmax_scale)
        else:
            pasted = _attend_blocks(query, keys, values, self.softmax_scale, self._most_scores(x)) / 4
        return pasted + self.identity_scale * x

    def _most_scores(self, x: Tensor) -> int:
        return self.max_scores or (GPU_SCORES if x.is_cuda else MAX_SCORES)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """x at every scale: bicubic, not antialiased, as in the released code."""
        return [x if s == 1 else _resize(x, s) for s in self.scales]

    @torch.no_grad()
    def weights(self, x: Tensor, points: Sequence[tuple[int, int]]) -> tuple[Tensor, list[Tensor]]:
        """Attention on features x ``(1, width, H, W)``: the share of each level ``(levels,)``, averaged over pixels,
        and the weights of `points` on each level's grid, a list of ``(points, h_s, w_s)``."""
        levels = self.pyramid(x)
        blocks = [F.unfold(self.g(z), self.patch, padding=self.patch // 2)[0] for z in levels]
        keys = torch.cat(blocks, 1)
        keys = self.softmax_scale * keys / keys.norm(dim=0).clamp_min(SMALLEST_NORM)
        queries = F.unfold(self.theta(x), self.patch, padding=self.patch // 2)[0].T
        counts = [block.shape[1] for block in blocks]
        some = queries[torch.linspace(0, len(queries) - 1, min(len(queries), PIXELS)).long()]
        mass = torch.stack(
            [
                torch.stack([part.sum() for part in (chunk @ keys).softmax(1).split(counts, 1)])
                for chunk in some.split(max(1, self._most_scores(x) // keys.shape[1]))
            ]
        )
        chosen = (queries[[row * x.shape[3] + column for row, column in points]] @ keys).softmax(1).split(counts, 1)
        return mass.sum(0) / len(some), [w.unflatten(1, z.shape[2:]) for w, z in zip(chosen, levels, strict=True)]


#: Makes the module for the common trunk.
attention = PyramidAttention


def _embedding(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, 1), nn.PReLU())


def _positions(positions: str | Sequence[str] | int, blocks: int) -> list[int]:
    if isinstance(positions, int):
        return [round(blocks * (i + 1) / (positions + 1)) for i in range(positions)]
    places = {"pre": 0, "mid": blocks // 2, "post": blocks}
    names = [positions] if isinstance(positions, str) else list(positions)
    if not set(names) <= set(places):
        raise ValueError(f"positions {names} are not all among {', '.join(places)}")
    return sorted(places[name] for name in names)


def _resize(x: Tensor, scale: float) -> Tensor:
    """Bicubic; on a GPU by products with matrices of weights, whose backward pass is many times faster there."""
    if not x.is_cuda:
        return F.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False)
    with torch.autocast("cuda", enabled=False):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        down, across = (_resizing(size, scale, wide.dtype, x.device) for size in x.shape[2:])
        return (down @ wide @ across.T).to(x.dtype)


@functools.lru_cache(64)
@torch.inference_mode(False)
def _resizing(size: int, scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What bicubic interpolation makes of each of `size` pixels in a line: ``(floor(scale size), size)``."""
    pixels = torch.eye(size, dtype=dtype)[None, None]
    weights = F.interpolate(pixels, scale_factor=(scale, 1.0), mode="bicubic", align_corners=False)
    return weights[0, 0].to(device)


def _attend_pixels(query: Tensor, keys: Levels, values: Levels, scale: float) -> Tensor:
    """patch 1: softmax attention with normalised keys, by PyTorch's fused kernel, which bounds its memory itself and
    takes contiguous tensors alone."""
    q, k, v = (torch.cat([part.flatten(2) for part in parts], 2).mT.contiguous() for parts in ([query], keys, values))
    k = k / k.norm(dim=2, keepdim=True).clamp_min(SMALLEST_NORM)
    missing = v.shape[2] - q.shape[2]  # the fused kernel wants one number of channels; zeros change no score
    mixed = F.scaled_dot_product_attention(*(F.pad(t, (0, missing))[:, None] for t in (q, k)), v[:, None], scale=scale)
    return mixed[:, 0].mT.unflatten(2, query.shape[2:])


def _attend_blocks(query: Tensor, keys: Levels, values: Levels, scale: float, max_scores: int) -> Tensor:
    """patch 3. All levels' pixels in one list, widest level first: a row of zeros, then each level with a column of
    zeros on its right and a row below. What a shift takes from beyond a level's border is then 0, and a shift by a
    column is one step in the list everywhere."""
    keys, values = (sorted(levels, key=lambda z: -z.shape[3]) for levels in (keys, values))
    squares = [F.avg_pool2d(z.square().sum(1, keepdim=True), 3, 1, 1, divisor_override=1) for z in keys]
    sizes = [(z.shape[2] + 1, z.shape[3] + 1) for z in keys]
    mask = _listed([torch.zeros(1, 1, *z.shape[2:], dtype=query.dtype) for z in keys], -1e30).to(query.device)
    keys, values, squares = map(_listed, (keys, values, squares), (0.0, 0.0, 1.0))
    factor = scale * squares[:, 0].clamp_min(SMALLEST_NORM**2).rsqrt()
    narrow = query.is_cuda and torch.finfo(query.dtype).bits < 32
    return _BlockAttention.apply(query, keys, factor, values, mask[0, 0], sizes, max_scores, narrow)


def _listed(levels: Sequence[Tensor], beyond: float) -> Tensor:
    """(B, C, h, w) for every level -> (B, C, M), with the number `beyond` in what lies around them."""
    listed = torch.cat([F.pad(z, (0, 1, 0, 1), value=beyond).flatten(2) for z in levels], 2)
    before = levels[0].shape[3] + 1
    return F.pad(listed, (before, -(before + listed.shape[2]) % ALIGNED), value=beyond)


class _BlockAttention(torch.autograd.Function):
    """y = box(softmax(factor box(q k) + mask)) v for each image, by blocks of rows of queries.

    query (B, c, H, W), keys (B, c, M), factor (B, M), values (B, C, M), mask (M,) -> (B, C, H, W), for M listed pixels
    of levels with the given sizes. The mask takes every weight from what lies between two levels. In float32; `narrow`
    lets a GPU's matrix products round their factors to TF32, which has no fewer digits than what autocast gives.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, query, keys, factor, values, mask, sizes, max_scores, narrow):
        ctx.save_for_backward(query, keys, factor, values, mask)
        ctx.sweep = sweep = _Sweep(query, sizes, max_scores)
        ctx.narrow = narrow
        q, v = sweep.pad(query), values.mT.contiguous()
        y = q.new_zeros(*q.shape[:3], values.shape[1])
        with _tf32(narrow):
            for strip in sweep.strips(query):
                paste = strip.box(strip.weights, strip.beside(strip.weights))
                for i in range(len(q)):
                    for _, behind in strip.run(q[i], keys[i], factor[i], mask, [paste]):
                        weights = paste()
                        if behind[0].stop > sweep.above:  # some in the image
                            strip.put(torch.bmm(weights, strip.for_each(v[i])), y[i][behind])
                del strip, paste, weights  # before the next one is made
        return sweep.crop(y)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    @once_differentiable
    def backward(ctx, grad):
        query, keys, factor, values, mask = ctx.saved_tensors
        sweep = ctx.sweep
        q, dy = sweep.pad(query), sweep.pad(grad)
        dq = torch.zeros_like(q)
        dkeys, dfactor, dvalues = (torch.zeros_like(t) for t in (keys, factor, values))
        with _tf32(ctx.narrow):
            for strip in sweep.strips(query, keeps_logits=True):
                logits, w, tile = strip.logits, strip.weights, strip.matrix().zero_()
                other = strip.beside(tile)
                paste, unpaste = strip.box(w, tile), strip.box(tile, other)
                alike = other is tile and not sweep.late  # nothing is kept in it
                unscore = unpaste if alike else strip.box(other, tile)
                for i in range(len(q)):
                    v, k = strip.for_each(values[i]), strip.for_each(keys[i].T)
                    dv, dk, df = (q.new_zeros(sweep.parts, *t.shape[1:]) for t in (values, keys, factor))
                    for ahead, behind in strip.run(q[i], keys[i], factor[i], mask, [paste, unpaste, unscore]):
                        dv.baddbmm_(strip.cut(dy[i][behind]).mT, paste())
                        torch.bmm(strip.cut(dy[i][ahead]), v, out=tile)
                        # Softmax: dlogits = w (dw - sum w dw).
                        w_dw = unpaste(w)
                        dlogits = w_dw.addcmul_(w, w_dw.sum(2, keepdim=True), value=-1)
                        df.add_(logits.mul_(dlogits).sum(1))
                        dlogits.mul_(factor[i])
                        dproducts = unscore()
                        dk.baddbmm_(strip.cut(q[i][behind]).mT, dproducts)
                        strip.put(torch.bmm(dproducts, k), dq[i][behind])
                    for total, of_parts in ((dvalues, dv), (dkeys, dk), (dfactor, df)):
                        total[i] += of_parts.sum(0)
                del strip, logits, w, tile, other, w_dw, dlogits, dproducts  # before the next one is made
                del paste, unpaste, unscore
        return sweep.crop(dq), dkeys, dfactor / factor, dvalues, None, None, None, None


class _Sweep:
    """How the queries of an image are cut: into strips of columns (one, if a row is not too long) and blocks of rows.

    On a CPU every thread has a part of a block to itself, some columns of all its rows, whatever is computed: the first
    axis of all matrices. What one thread has written, no other reads, where they may have no cache in common.

    A strip needs a column more on each side, one that is as wide as the image none. An image is padded by these columns
    and, if it is cut into blocks, by two rows above: a box is then known one row later than its input.
    """

    def __init__(self, query: Tensor, sizes: Sequence[tuple[int, int]], max_scores: int):
        self.height, self.width = query.shape[2:]
        self.steps, self.counts = [w for _, w in sizes], [h * w for h, w in sizes]
        self.listed = self.steps[0] + sum(self.counts)
        self.listed += -self.listed % ALIGNED
        self.fused = _fuses(query)
        if self.fused:
            step = torch.tensor(self.steps).repeat_interleave(torch.tensor(self.counts))
            ends = self.steps[0], self.listed - self.steps[0] - len(step)
            self.step_of_column = F.pad(step, ends).to(query.device, torch.int32)
        pixels, threads = max_scores // self.listed, 1
        if not (query.is_cuda or self.fused):
            pixels = min(pixels, max(CACHED_SCORES // self.listed, CPU_PIXELS))
            threads = torch.get_num_threads()
        across = pixels // 2 if pixels >= 2 * NARROW else pixels
        self.parts = max(1, min(threads, min(across, self.width) // NARROW))
        across -= self.parts - 1  # the parts' width is rounded up
        self.halo = int(across < self.width)
        self.columns = _even(self.width, across - 2) if self.halo else self.width
        self.side = max(2, math.ceil((self.columns + 2 * self.halo) / self.parts))
        rows = pixels // (self.parts * self.side)
        self.late = int(rows < self.height)
        self.above = 2 * self.late
        self.rows = _even(self.height + self.above, rows)
        self.blocks = math.ceil((self.height + self.above) / self.rows)

    def pad(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, rows, columns, C)."""
        right = self.parts * self.side - (self.halo or self.width)  # for the last strip, or the only one
        below = self.blocks * self.rows - self.height
        return F.pad(images.permute(0, 2, 3, 1), (0, 0, self.halo, right, self.above, below))

    def crop(self, padded: Tensor) -> Tensor:
        rows, columns = slice(self.above, self.above + self.height), slice(self.halo, self.halo + self.width)
        return padded[:, rows, columns].permute(0, 3, 1, 2)

    def levels(self, *matrices: Tensor) -> Iterator[tuple[int | Tensor, ...]]:
        """For each level the step to the next row of its pixels, and views of them in matrices (..., M), with a row of
        zeros before and one after."""
        start = self.steps[0]
        for step, count in zip(self.steps, self.counts, strict=True):
            yield step, *[matrix[..., start - step : start + count] for matrix in matrices]
            start += count

    def strips(self, like: Tensor, keeps_logits: bool = False) -> Iterator[_Strip]:
        for start in range(0, self.width, self.columns):
            yield _Strip(self, start, min(self.columns, self.width - start), like, keeps_logits)


def _even(total: int, largest: int) -> int:
    """Size of parts of `total` that are about equal and not larger than `largest`, or than 1."""
    parts = math.ceil(total / max(1, largest))
    return math.ceil(total / parts)


class _Strip:
    """Products, logits and weights of a strip's block, (parts, queries, M).

    Each takes the place of the one before, unless boxes cannot (`_FusedBox`) or the logits are kept: one matrix less in
    the cache.
    """

    def __init__(self, sweep: _Sweep, start: int, own: int, like: Tensor, keeps_logits: bool):
        self.sweep, self.like = sweep, like
        self.columns = slice(start, start + sweep.parts * sweep.side)
        self.products = self.matrix()
        self.logits = self.matrix() if sweep.fused else self.products
        self.weights = self.matrix() if keeps_logits else self.logits
        self.score = self.box(self.products, self.logits)
        self.grid = grid = self.weights.unflatten(1, (sweep.rows, sweep.side))
        beyond = [*range(sweep.halo), *range(sweep.halo + own, sweep.parts * sweep.side)]
        self.beyond = [grid[column // sweep.side, :, column % sweep.side] for column in beyond]

    def matrix(self) -> Tensor:
        return self.like.new_empty(self.sweep.parts, self.sweep.rows * self.sweep.side, self.sweep.listed)

    def box(self, x: Tensor, out: Tensor) -> _Box | _FusedBox:
        return (_FusedBox if self.sweep.fused else _Box)(x, out, self.sweep)

    def beside(self, x: Tensor) -> Tensor:
        """Where boxes of x go: to its own place, or to that of the products, which only the scores need."""
        return self.products if self.sweep.fused else x

    def for_each(self, shared: Tensor) -> Tensor:
        """The same for each part."""
        return shared.expand(self.sweep.parts, *shared.shape)

    def cut(self, pixels: Tensor) -> Tensor:
        """(rows, columns, C) -> (parts, queries, C)."""
        return pixels.unflatten(1, (self.sweep.parts, -1)).transpose(0, 1).flatten(1, 2)

    def put(self, parts: Tensor, pixels: Tensor) -> None:
        """Add (parts, queries, C) to (rows, columns, C)."""
        pixels.unflatten(1, (self.sweep.parts, -1)).transpose(0, 1).add_(parts.unflatten(1, (self.sweep.rows, -1)))

    def run(self, query: Tensor, keys: Tensor, factor: Tensor, mask: Tensor, boxes: Sequence[_Box]) -> Iterator:
        """Leave the logits and weights of one block after the other, of one image, in the matrices of that name.

        A weight outside the strip's own pixels is 0. Yields indices into the padded image: of the pixels whose products
        have been made, and, two boxes later, of those that are done. The caller's `boxes` forget the image before.
        """
        sweep, rows, keys = self.sweep, self.sweep.rows, self.for_each(keys)
        for box in (self.score, *boxes):
            box.reset()
        for y in range(0, sweep.blocks * rows, rows):
            ahead, behind = ((slice(top, top + rows), self.columns) for top in (y + sweep.above, y))
            if y < sweep.height:
                torch.bmm(self.cut(query[ahead]), keys, out=self.products)
            else:
                self.products.zero_()
            self.score(factor, mask)
            torch.softmax(self.logits, 2, out=self.weights)
            outside = [row for row in range(rows) if not 0 <= y - sweep.late + row < sweep.height]
            for weights in (*self.beyond, *(self.grid[:, row] for row in outside)):
                weights.zero_()
            yield ahead, behind


class _Box:
    """box(X)_pj = Σ_d X_{p+d, j+d} for a matrix (parts, queries, M) whose pixels come in blocks of rows: takes the
    block in `x` and gives, in `out` (which may be the same), the boxes of the pixels that are one row before it; of the
    same pixels, if the image is one block. What lies around the levels is left as it is.

    Two neighbours' sums of three share the sum of two: x_1 + (x_2 + x_3) and (x_2 + x_3) + x_4 are three additions.
    Sums along the columns are kept in lines, one per row of pixels: the block's, and the last two before it, or one of
    zeros on each side.
    """

    def __init__(self, x: Tensor, out: Tensor, sweep: _Sweep):
        rows = sweep.rows
        x, self.out, out = x.unflatten(1, (rows, -1)), out, out.unflatten(1, (rows, -1))
        lines = x.new_empty(sweep.parts, rows + 2, *x.shape[2:])
        lines[..., 0] = lines[..., -1] = 0  # no sum is written there
        self.kept, starts = None, [0]
        if not sweep.late:
            self.before = lines[:, :: rows + 1]
        elif rows > 2:  # the last two lines are copied
            self.before = lines[:, rows:]
            self.kept = lines[:, :2], self.before
        else:  # one or two new lines change places with old ones
            self.before, starts = lines, range(0, rows + 2, rows)
        self.turns = []
        for start in starts:
            first, second, third = (lines[:, (start + i) % (rows + 2) :] for i in range(3))
            four = first[:, :rows:2], second[:, :rows:2], third[:, :rows:2], third[:, 1:rows:2]
            new = third if sweep.late else second
            self.turns.append(self._along_columns(x, new[:, :rows]) + self._along_rows(four, out, sweep))

    @staticmethod
    def _along_columns(x: Tensor, new: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The next pixel of the queries is one row, that of the keys one column further in the matrix."""
        last = x.shape[2] - 1
        pairs, full = last // 2, (last - 1) // 2  # (1, 2), (3, 4), ..; a pixel follows all of them, or all but one
        first, second = new[:, :, 1 : 2 * pairs : 2], new[:, :, 2 : 2 * full + 1 : 2]
        sums = [
            (x[:, :, 1 : 2 * pairs : 2, :-1], x[:, :, 2 : 2 * pairs + 1 : 2, 1:], first[..., :-1]),
            (first[:, :, :full, :-2], x[:, :, 3 : 2 * full + 2 : 2, 2:], second[..., 1:-1]),
            (x[:, :, 0 : 2 * pairs : 2, :-2], first[..., 1:-1], first[..., 1:-1]),
            # The outermost pixels of a part, and their neighbours in the parts beside it.
            (x[:, :, 0, :-1], x[:, :, 1, 1:], new[:, :, 0, :-1]),
            (x[:, :, last - 1, :-1], x[:, :, last, 1:], new[:, :, last, 1:]),
            (x[:-1, :, last, :-1], new[1:, :, 0, 1:], new[1:, :, 0, 1:]),
            (new[:-1, :, last, :-1], x[1:, :, 0, 1:], new[:-1, :, last, :-1]),
        ]
        return [terms for terms in sums if terms[2].numel()]

    @staticmethod
    def _along_rows(lines: Sequence[Tensor], out: Tensor, sweep: _Sweep) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The next row of pixels is one line and, in its level, `step` columns further. Every other row of `out` is the
        sum of the lines a, b and c, the row after it that of b, c and d."""
        sums = []
        for step, a, b, c, d, even, odd in sweep.levels(*lines, out[:, 0::2], out[:, 1::2]):
            sums += [
                (b[..., :-step], c[..., step:], even[..., :-step]),
                (even[:, : odd.shape[1], :, : -2 * step], d[..., 2 * step :], odd[..., step:-step]),
                (a[..., : -2 * step], even[..., step:-step], even[..., step:-step]),
            ]
        return sums

    def reset(self) -> None:
        self.before.zero_()

    def __call__(self, factor: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The boxes, times `factor` (of their shape or (M,)), plus `mask` (M,)."""
        if self.kept:
            self.kept[0].copy_(self.kept[1])
        self.turns.append(sums := self.turns.pop(0))
        for first, second, both in sums:
            torch.add(first, second, out=both)
        if mask is not None:
            torch.addcmul(mask, self.out, factor, out=self.out)
        elif factor is not None:
            self.out.mul_(factor)
        return self.out


class _FusedBox:
    """`_Box` by one kernel, on a GPU. `out` is another matrix than `x`; all of it is written.

    The kernel keeps the last two rows of pixels for the next block, in turns, for programs still read the two before.
    """

    def __init__(self, x: Tensor, out: Tensor, sweep: _Sweep):
        self.x, self.out, self.sweep = x, out, sweep
        self.kept = list(x.new_empty(2, 2 * sweep.side * sweep.late, x.shape[2]))

    def reset(self) -> None:
        self.kept[0].zero_()

    def __call__(self, factor: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        sweep = self.sweep
        grid = triton.cdiv(sweep.listed, TILE), sweep.rows, triton.cdiv(sweep.side, NEIGHBOURS)
        with torch.cuda.device_of(self.x):
            _sum_boxes[grid](
                *(self.x, *self.kept, self.out, sweep.step_of_column, factor, mask),
                *(sweep.rows, sweep.side, sweep.listed, sweep.late),
                factors=0 if factor is None else factor.dim(),
                masked=mask is not None,
                tile=TILE,
                neighbours=NEIGHBOURS,
            )
        self.kept.reverse()
        return self.out


def _fuses(query: Tensor) -> bool:
    return query.is_cuda and _runs_kernels(query.device)


@functools.cache
def _runs_kernels(device: torch.device) -> bool:
    """Whether Triton is there and works, which takes a C compiler and a card that is not too old."""
    if triton is None:
        return False
    ones, steps = torch.ones(2, 16, device=device), torch.ones(16, dtype=torch.int32, device=device)
    boxes = torch.empty_like(ones)
    try:
        with torch.cuda.device_of(ones):
            _sum_boxes[1, 1, 1](ones, ones, ones, boxes, steps, None, None, 1, 2, 16, 0, 0, False, 16, 2)
    except Exception as error:  # of many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"Triton does not work here, pyramid attention takes several times as long: {reason}", stacklevel=2
        )
        return False
    return boxes[0, 1].item() == 2  # a pair on a diagonal


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Let matrix products on a GPU take TF32."""
    options = torch.backends.cuda.matmul
    before, options.allow_tf32 = options.allow_tf32, options.allow_tf32 or allowed
    try:
        yield
    finally:
        options.allow_tf32 = before


if triton:

    @triton.jit
    def _sum_boxes(
        x,
        kept,
        keep,
        out,
        step_of_column,
        factor,
        mask,
        rows,
        side,
        listed,
        late: tl.constexpr,
        factors: tl.constexpr,
        masked: tl.constexpr,
        tile: tl.constexpr,
        neighbours: tl.constexpr,
    ):
        """A program's boxes: `tile` columns for `neighbours` pixels of one row, which share most of what they read."""
        column = tl.program_id(0) * tile + tl.arange(0, tile)
        row, first = tl.program_id(1), tl.program_id(2) * neighbours
        step = tl.load(step_of_column + column, mask=column < listed, other=0)
        for number in range(neighbours):
            pixel = first + number
            total = tl.zeros([tile], x.dtype.element_ty)
            for down in tl.static_range(-1, 2):
                source_row = row + down - late
                old = source_row < 0
                block = x
                if late:
                    block = kept + 2 * side * listed if old else x
                for across in tl.static_range(-1, 2):
                    source_pixel, source = pixel + across, column + down * step + across
                    exists = (source_pixel >= 0) & (source_pixel < side)
                    if not late:
                        exists = exists & (source_row >= 0) & (source_row < rows)
                    valid = (source >= 0) & (source < tl.where(exists, listed, 0))
                    total += tl.load(block + (source_row * side + source_pixel) * listed + source, mask=valid, other=0)
            inside = column < tl.where(pixel < side, listed, 0)
            at = (row * side + pixel) * listed + column
            if factors == 1:
                total *= tl.load(factor + column, mask=inside, other=0)
            if factors == 3:
                total *= tl.load(factor + at, mask=inside, other=0)
            if masked:
                total += tl.load(mask + column, mask=inside, other=0)
            tl.store(out + at, total, mask=inside)
            if late:
                for age in tl.static_range(2):  # the last two rows: of x, or one of them kept before
                    source_row = rows - 2 + age
                    old = source_row < 0
                    last = column < tl.where((row == rows - 1) & (pixel < side), listed, 0)
                    block = kept + 2 * side * listed if old else x
                    value = tl.load(block + (source_row * side + pixel) * listed + column, mask=last)
                    tl.store(keep + (age * side + pixel) * listed + column, value, mask=last)


network = PANet
