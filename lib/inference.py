"""Restoring whole images: tiles where attention would not fit, the mean over flips and rotations, and what it costs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile  # torch.profiler's loads the compiler first
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

#: PyTorch's counter knows the fused attention of CUDA only.
FUSED_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, out_shape=None, **__: (
        sdpa_flop_count(q, k, v)
    )
}


@torch.inference_mode()
def restore(network: nn.Module, image: Tensor, tile: int, overlap: int, self_ensemble: bool = False) -> Tensor:
    """Restore ``(1, C, H, W)`` in [0, 1]; the result is ``(1, C', s*H, s*W)``, not clamped.

    An image of more than tile x tile pixels is cut into equal tiles of at most that side which overlap by at least
    `overlap`; every output pixel comes from the tile in which it lies deepest. With `self_ensemble` the result is the
    mean over the eight flips and rotations, each undone.
    """

    def whole(x: Tensor) -> Tensor:
        return _tiled(network, x, tile, overlap)

    return _ensemble(whole, image) if self_ensemble else whole(image)


def _tiled(network: nn.Module, image: Tensor, tile: int, overlap: int) -> Tensor:
    height, width = image.shape[2:]
    if height * width <= tile * tile:
        return network(image)
    out = None
    for top, bottom, first_row, last_row in _spans(height, tile, overlap):
        for left, right, first_column, last_column in _spans(width, tile, overlap):
            part = network(image[:, :, top:bottom, left:right])
            scale = part.shape[2] // (bottom - top)
            if out is None:
                out = part.new_empty(*part.shape[:2], height * scale, width * scale)
            kept = part[
                :,
                :,
                (first_row - top) * scale : (last_row - top) * scale,
                (first_column - left) * scale : (last_column - left) * scale,
            ]
            out[:, :, first_row * scale : last_row * scale, first_column * scale : last_column * scale] = kept
    return out


def _spans(size: int, tile: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Tiles along one side as (start, stop, first kept, last kept + 1); neighbours meet amid their overlap."""
    if overlap >= tile:
        raise ValueError(f"overlap {overlap} must be smaller than tile {tile}")
    side = min(size, tile)
    count = 1 if size <= tile else -(-(size - overlap) // (tile - overlap))
    starts = [round(i * (size - side) / max(count - 1, 1)) for i in range(count)]
    cuts = [0, *((a + side + b) // 2 for a, b in pairwise(starts)), size]
    return [(start, start + side, cuts[i], cuts[i + 1]) for i, start in enumerate(starts)]


def _ensemble(whole: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    total = None
    for transposed in (False, True):
        for flips in ((), (2,), (3,), (2, 3)):
            x = torch.flip(image.transpose(2, 3) if transposed else image, flips)
            y = torch.flip(whole(x), flips)
            y = y.transpose(2, 3) if transposed else y
            total = y if total is None else total + y
    return total / 8


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
