"""The box sums of `block_attention` by one Triton kernel that reads nine numbers for one. Importing it needs Triton."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

#: A program computes sums for this many columns of a matrix and this many neighbouring queries.
TILE, NEIGHBOURS = 256, 8


@functools.cache
def works(device: torch.device) -> bool:
    """Whether Triton works here; it takes a C compiler and a GPU that is not too old."""
    ones, rows = torch.ones(2, 16, device=device), torch.ones(16, dtype=torch.int32, device=device)
    sums = torch.empty_like(ones)
    try:
        with torch.cuda.device_of(ones):
            _sum_boxes[1, 1, 1](ones, ones, ones, sums, rows, None, None, 1, 2, 16, 0, 0, False, 16, 2)
    except Exception as error:  # of many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"Triton does not work here, pyramid attention takes several times as long: {reason}", stacklevel=2
        )
        return False
    return sums[0, 1].item() == 2  # a pair on a diagonal


class BoxSum:
    """A `block_attention._BoxSum`. `out` is another matrix than `x`; all of it is written.

    The kernel saves the last two rows of queries for the next block, in two buffers alternately: some programs still
    read the rows before.
    """

    def __init__(self, x: Tensor, out: Tensor, tiling: Any):
        self.x, self.out, self.tiling = x, out, tiling
        self.rows_before, self.last_rows = x.new_empty(2, 2 * tiling.part_width * tiling.delay, x.shape[2])
        self.row_of_column = _row_of_column(tuple(tiling.row_lengths), tuple(tiling.counts), tiling.keys, x.device)

    def reset(self) -> None:
        self.rows_before.zero_()

    def __call__(self, factor: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        tiling = self.tiling
        grid = triton.cdiv(tiling.keys, TILE), tiling.rows, triton.cdiv(tiling.part_width, NEIGHBOURS)
        with torch.cuda.device_of(self.x):
            _sum_boxes[grid](
                *(self.x, self.rows_before, self.last_rows, self.out, self.row_of_column, factor, mask),
                *(tiling.rows, tiling.part_width, tiling.keys, tiling.delay),
                factors=0 if factor is None else factor.dim(),
                masked=mask is not None,
                tile=TILE,
                neighbours=NEIGHBOURS,
            )
        self.rows_before, self.last_rows = self.last_rows, self.rows_before
        return self.out


@functools.lru_cache(8)
def _row_of_column(row_lengths: Sequence[int], counts: Sequence[int], keys: int, device: torch.device) -> Tensor:
    """For each column, how many columns further the next row of pixels of its level is."""
    rows = torch.tensor(row_lengths).repeat_interleave(torch.tensor(counts))
    return F.pad(rows, (row_lengths[0], keys - row_lengths[0] - len(rows))).to(device, torch.int32)


@triton.jit
def _sum_boxes(
    x,
    rows_before,
    last_rows,
    out,
    row_of_column,
    factor,
    mask,
    rows,
    part_width,
    keys,
    delay: tl.constexpr,
    factors: tl.constexpr,
    masked: tl.constexpr,
    tile: tl.constexpr,
    neighbours: tl.constexpr,
):
    """A program's sums: `tile` columns for `neighbours` queries of one row, which share most of what they read."""
    column = tl.program_id(0) * tile + tl.arange(0, tile)
    row, first = tl.program_id(1), tl.program_id(2) * neighbours
    step = tl.load(row_of_column + column, mask=column < keys, other=0)
    for number in range(neighbours):
        query = first + number
        total = tl.zeros([tile], x.dtype.element_ty)
        for down in tl.static_range(-1, 2):
            source_row = row + down - delay
            block = x
            if delay:
                block = rows_before + 2 * part_width * keys if source_row < 0 else x
            for across in tl.static_range(-1, 2):
                source_query, source = query + across, column + down * step + across
                exists = (source_query >= 0) & (source_query < part_width)
                if not delay:
                    exists = exists & (source_row >= 0) & (source_row < rows)
                valid = (source >= 0) & (source < tl.where(exists, keys, 0))
                total += tl.load(block + (source_row * part_width + source_query) * keys + source, mask=valid, other=0)
        inside = column < tl.where(query < part_width, keys, 0)
        at = (row * part_width + query) * keys + column
        if factors == 1:
            total *= tl.load(factor + column, mask=inside, other=0)
        if factors == 3:
            total *= tl.load(factor + at, mask=inside, other=0)
        if masked:
            total += tl.load(mask + column, mask=inside, other=0)
        tl.store(out + at, total, mask=inside)
        if delay:
            for age in tl.static_range(2):  # the last two rows: of x, or one of them from before
                source_row = rows - 2 + age
                last = column < tl.where((row == rows - 1) & (query < part_width), keys, 0)
                block = rows_before + 2 * part_width * keys if source_row < 0 else x
                value = tl.load(block + (source_row * part_width + query) * keys + column, mask=last)
                tl.store(last_rows + (age * part_width + query) * keys + column, value, mask=last)
