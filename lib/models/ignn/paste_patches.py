"""Patch aggregation of IGNN's graph: the larger patches that the neighbours stand for, adapted and pasted."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..operation import operation
from .patches import across_images, cut, fold, gather, spread, to_rows, unfold

#: Added to a variance under its root, from the released code.
SMALLEST_VARIANCE = 1e-5

#: Numbers that are copied at a time when patches are pasted on a CPU, 2 MiB of float32.
COPIED = 2**19

#: Pasted maps of at most this many numbers are made by the definition on a GPU, where starting the many operations
#: of the fast form takes longer; larger maps by the fast form, because the definition takes six times the memory.
PLAIN_ON_GPU = 2**24


def plain(x: Tensor, index: Tensor, scale: int, adapn: bool = True) -> Tensor:
    """The k pasted images P_t ``(B, k, C, sH, sW)`` of features x ``(B, C, H, W)``, overlaps averaged.

    index ``(B, k, m1, m2)``: for every patch q, the numbers of the 3s x 3s patches N_t of x that take its place
    scale: s; H and W are multiples of it
    adapn: paste (N_t - μ_N) σ_q / σ_N + μ_q, mean and deviation channel by channel, instead of N_t itself
    """
    features = x.to(torch.promote_types(x.dtype, torch.float32))
    large = unfold(features, scale)  # (B, N, C, 9 s²)
    chosen = gather(large.flatten(0, 1), across_images(index.flatten(2).mT, large.shape[1]))  # (B, M, k, C, 9 s²)
    if adapn:
        variance_q, mean_q = torch.var_mean(unfold(features)[:, :, None], 4, keepdim=True)
        variance_n, mean_n = torch.var_mean(chosen, 4, keepdim=True)
        chosen = (chosen - mean_n) / (variance_n + SMALLEST_VARIANCE).sqrt()
        chosen = chosen * (variance_q + SMALLEST_VARIANCE).sqrt() + mean_q
    return fold(chosen, x.shape[2:], scale).to(x.dtype)


@operation(plain)
def paste_patches(x: Tensor, index: Tensor, scale: int, adapn: bool = True) -> Tensor:
    """In cells of s x s pixels a patch is 3 x 3 cells at every second cell. So

    - μ_q is constant on cells: folding it is averaging the patches that share a cell;
    - AdaPN's factor separates: the few patches that can be chosen are normalised once, (N - μ_N) / σ_N, not each copy;
    - cells are copied straight to their place, for one of the nine positions at a time, and the backward pass reads
      them again: no expanded copy of the chosen patches is ever held.
    """
    if x.is_cuda and index.shape[1] * x.numel() * scale**2 <= PLAIN_ON_GPU:
        return plain(x, index, scale, adapn)
    size, features = x.shape[2:], to_rows(x)
    base = deviation = None
    if adapn:
        mean, deviation = statistics(cut(features, 1))[:2]
        base, deviation = spread(mean, size).to(x.dtype), deviation.to(x.dtype)
    table = candidates(features, scale, adapn).to(x.dtype)
    del features
    pasted = Paste.apply(table, deviation, base, across_images(index, table.shape[1] // len(x)), tuple(size))
    return pasted.flatten(4, 5).flatten(2, 3).permute(0, 1, 4, 2, 3)


def candidates(features: Tensor, scale: int, normalised: bool) -> Tensor:
    """The patches that can be chosen, of all images: ``(9, N, s, s, C)``."""
    table = cut(features, scale)
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
                cells_of(target, there).addcmul_(gather(table[place], numbers[:, :, *own]), factor)
        return pasted

    @staticmethod
    def backward(ctx, grad: Tensor):
        table, deviation, index = ctx.saved_tensors
        d_table = torch.zeros_like(table)
        d_deviation = None if deviation is None else torch.zeros_like(deviation)
        d_base = None
        if deviation is not None:
            d_base = sum(image.sum(4).sum(2) for image in grad.unbind(1))  # no sum of all is ever held
        for place, own, there, share in places(index.shape[2:], grad.shape[2:6:2], table.device, table.dtype):
            factor = factor_of(share, deviation, own, table)
            for numbers, target in portions(index, grad):
                chosen, part = numbers[:, :, *own], cells_of(target, there).contiguous()
                if d_deviation is not None:
                    product = gather(table[place], chosen).mul_(part).sum(1)
                    d_deviation[:, *own] += product.flatten(3, 4).sum(3) * share
                d_table[place].index_add_(0, chosen.flatten(), part.mul_(factor).flatten(0, 3))
        return d_table, d_deviation, d_base, None, None


def portions(index: Tensor, pasted: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Index and map of a few neighbours at a time: their copies for one place stay in a CPU's cache."""
    neighbours = index.shape[1]
    if pasted.is_cuda:
        return [(index, pasted)]
    some = max(1, neighbours * 4 * COPIED // pasted.numel())  # a place has a quarter of a map's cells
    return zip(index.split(some, 1), pasted.split(some, 1), strict=True)


def factor_of(share: Tensor, deviation: Tensor | None, own: Sequence[slice], table: Tensor) -> Tensor:
    """share x deviation, for ``(B, k, rows, columns, s, s, C)``; written out along one s, which vectorises."""
    factor = share if deviation is None else share * deviation[:, None, *own]
    return factor[..., None, None, :].expand(*factor.shape[:-1], 1, *table.shape[3:]).contiguous()


class Place(NamedTuple):
    """One of the nine places of a cell in a patch.

    number: from 0 to 8, row by row
    own: the patches that have a cell there on the map
    there: these cells
    share: of these patches in them, ``(rows, columns, 1)``
    """

    number: int
    own: tuple[slice, slice]
    there: tuple[slice, slice]
    share: Tensor


@functools.lru_cache(4)
def places(
    grid: tuple[int, int], cells: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> tuple[Place, ...]:
    """The nine places of a cell in a patch of the grid m1 x m2, on a map of H x W cells; made once."""
    axes = ([along_axis(n, count, size) for n in range(3)] for count, size in zip(grid, cells, strict=True))
    found = []
    for place, ((rows, map_rows, down), (columns, map_columns, across)) in enumerate(itertools.product(*axes)):
        vertical, horizontal = (torch.tensor(share, dtype=dtype, device=device) for share in (down, across))
        shares = (vertical[:, None] * horizontal)[:, :, None]
        found.append(Place(place, (rows, columns), (map_rows, map_columns), shares))
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
