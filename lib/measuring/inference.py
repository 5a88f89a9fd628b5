"""Restoring whole images: in tiles where attention would not fit, as the mean over flips and rotations; its cost."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile  # torch.profiler's loads the compiler first
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..models.blocks import mirror_pad

#: PyTorch's counter knows the fused attention of CUDA only.
FUSED_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, out_shape=None, **__: (
        sdpa_flop_count(q, k, v)
    )
}


@torch.inference_mode()
def restore(
    network: nn.Module, image: Tensor, tile: int | None, overlap: int, self_ensemble: bool = False, period: int = 1
) -> Tensor:
    """Restore ``(1, C, H, W)`` in [0, 1]; the result is ``(1, C', s*H, s*W)``, not clamped.

    tile, overlap: an image of more than tile x tile pixels is cut into equal tiles of at most that side which overlap
        by at least `overlap`; every output pixel comes from the tile in which it lies deepest. None: never cut
    self_ensemble: the mean over the eight flips and rotations, each undone
    period: of the degradation's pattern, 1 or 2 pixels: tiles begin where the pattern begins (a Bayer mosaic on even
        rows and columns), and a flipped image is shifted so that it does too
    """

    def whole(x: Tensor) -> Tensor:
        return _tiled(network, x, tile, overlap, period)

    return _ensemble(whole, image, period) if self_ensemble else whole(image)


def _tiled(network: nn.Module, image: Tensor, tile: int | None, overlap: int, period: int) -> Tensor:
    height, width = image.shape[2:]
    if tile is None or height * width <= tile * tile:
        return network(image)
    out = image.new_empty(0)
    for top, bottom, first_row, last_row in _spans(height, tile, overlap, period):
        for left, right, first_column, last_column in _spans(width, tile, overlap, period):
            part = network(image[:, :, top:bottom, left:right])
            scale = part.shape[2] // (bottom - top)
            if not out.numel():
                out = part.new_empty(*part.shape[:2], height * scale, width * scale)
            kept = part[
                :,
                :,
                (first_row - top) * scale : (last_row - top) * scale,
                (first_column - left) * scale : (last_column - left) * scale,
            ]
            out[:, :, first_row * scale : last_row * scale, first_column * scale : last_column * scale] = kept
    return out


def _spans(size: int, tile: int, overlap: int, period: int = 1) -> list[tuple[int, int, int, int]]:
    """Tiles along one side as (start, stop, first kept, last kept + 1); neighbours meet amid their overlap.

    Starts are multiples of `period`; the last tile also has the pixels of a side that is no multiple.
    """
    periods, side, shared = size // period, tile // period, -(-overlap // period)
    if shared >= side:
        within = f", in whole periods of {period}," if period > 1 else ""
        raise ValueError(f"overlap {overlap} must{within} be smaller than tile {tile}")
    if size <= tile:
        return [(0, size, 0, size)]
    count = -(-(periods - shared) // (side - shared))
    starts = [period * round(i * (periods - side) / max(count - 1, 1)) for i in range(count)]
    stops = [*(start + side * period for start in starts[:-1]), size]
    cuts = [0, *((stop + start) // 2 for stop, start in zip(stops, starts[1:], strict=False)), size]
    return [(start, stop, *kept) for start, stop, kept in zip(starts, stops, itertools.pairwise(cuts), strict=True)]


def _ensemble(whole: Callable[[Tensor], Tensor], image: Tensor, period: int) -> Tensor:
    def undone(transposed: bool, flips: tuple[int, ...]) -> Tensor:
        x = image.transpose(2, 3) if transposed else image
        height, width = x.shape[2:]
        # A side of a whole number of periods and one pixel begins and ends alike: flipping leaves the pattern.
        below, right = ((1 - x.shape[side]) % period if side in flips else 0 for side in (2, 3))
        x = mirror_pad(x, (0, right, 0, below)) if below or right else x
        y = torch.flip(whole(torch.flip(x, flips)), flips)
        scale = y.shape[2] // x.shape[2]
        y = y[:, :, : height * scale, : width * scale]
        return y.transpose(2, 3) if transposed else y

    cases = itertools.product((False, True), ((), (2,), (3,), (2, 3)))
    return functools.reduce(operator.add, itertools.starmap(undone, cases)) / 8


def cost(network: nn.Module, colors: int, side: int) -> dict[str, int]:
    """What one image ``(1, colors, side, side)`` costs on the CPU.

    parameters: distinct trainable values; multiply_adds: half the FLOPs that PyTorch's counter sees in convolutions,
    matrix products and fused attention; peak_bytes: the most that the forward pass holds of the allocator at a time.
    """
    image = torch.rand(1, colors, side, side, generator=torch.Generator().manual_seed(0))
    network = network.cpu().eval()
    with torch.inference_mode():
        with FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as counter:
            network(image)
        with _quiet(), profile(use_kineto=True, profile_memory=True) as recorded:
            network(image)
    live = peak = 0
    for event in sorted(recorded.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return {
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "multiply_adds": counter.get_total_flops() // 2,
        "peak_bytes": peak,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler's own messages, which carry the time, out of notebooks."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
