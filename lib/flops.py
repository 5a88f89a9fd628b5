"""Floating-point operations of a computation, fused attention and products in place included."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count

from .measuring.inference import FUSED_ATTENTION

#: Operations that PyTorch's counter does not know: products in place, and the derivative of the CPU's fused attention.
MORE_FLOPS = {
    torch.ops.aten.addmm_: lambda total, a, b, *_, **__: 2 * math.prod(total) * a[-1],
    torch.ops.aten.baddbmm_: lambda total, a, b, *_, **__: 2 * math.prod(total) * a[-1],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}

Result = TypeVar("Result")


def flops(function: Callable[[], Result]) -> tuple[Result, int]:
    """A function's result and its floating-point operations, a multiply-add being two: those of convolutions, matrix
    products and fused attention."""
    counter = FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION | MORE_FLOPS)
    with counter:
        result = function()
    return result, counter.get_total_flops()
