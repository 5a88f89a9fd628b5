"""The released tensors of LIR."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ..released import State, System, count, from_one, size
from .mixed_filter import OPERATORS


def lir_options(state: State) -> dict:
    return {
        "colors": size(state, ("Conv_head.conv.weight", 1), ("Conv_tail.conv.weight", 0), ("transpose2.weight", 1)),
        "width": size(state, ("Conv_head.conv.weight", 0), ("Conv_tail.conv.weight", 1), ("transpose2.weight", 0)),
        "blocks": tuple(count(state, f"EAA{level}.") for level in range(1, 6)),
    }


#: Names of LIR's fixed operators.
OPERATOR_NAMES = ("Sobel_x", "Sobel_y", "Laplacian", "Edge", "Sobel_xy", "Sobel_yx", "Roberts_x", "Roberts_y")


def is_fixed_operator(name: str, tensor: Tensor, options: dict) -> bool:
    """Whether a tensor is a fixed operator of an adaptive filter, which files written on a CPU hold for each channel.

    Known by the operators' names, or, under another name, by an operator's values up to their scale.
    """
    place = re.fullmatch(r"EAA[1-5]\.\d+\.stage([2-5])\.0\.(\w+)", name)
    if not place or tuple(tensor.shape) != (options["width"] * (2 if place[1] == "5" else 1), 1, 3, 3):
        return False
    kernels = [torch.tensor(operator, dtype=torch.float32) for operator in OPERATORS]
    scaled = tensor.float() / tensor.abs().max()
    return place[2] in OPERATOR_NAMES or any(
        torch.allclose(scaled, (kernel / kernel.abs().max()).expand_as(scaled), atol=1e-6) for kernel in kernels
    )


SYSTEMS = {
    "lir": System(
        scales=(1,),
        options=lir_options,
        names=(
            (r"^down\.(\d)\.", from_one("downsample%.")),
            (r"^up\.(\d)\.", from_one("upsample%.")),
            (r"^levels\.(\d)\.", from_one("EAA%.")),
            (r"^(head|tail)\.", r"Conv_\1."),
            (r"^fuse\.", "down."),
            (r"^(Conv_head|Conv_tail|down)\.0\.", r"\1.conv."),
            (r"^(Conv_head|Conv_tail|down)\.1\.", r"\1.act."),
            (r"^feature_degradation\.", "transpose1."),
            (r"^image_degradation\.", "transpose2."),
            (r"\.degradation\.", ".transpose."),
            (r"block\.norm\.", "block.layernorm."),
            (r"\.block\.", ".resblock."),
            (r"\.channel_block\.", ".rescablock."),
            (r"\.expand\.", ".conv_1."),
            (r"\.depthwise\.", ".conv_2."),
            (r"\.reduce\.", ".conv_3."),
            (r"\.attention\.squeeze\.", ".ca.attention.1."),
            (r"\.attention\.excite\.", ".ca.attention.3."),
            (r"\.patch_attention\.", ".pa."),
            (r"\.gate\.", ".sg."),
        ),
        optional=is_fixed_operator,
    ),
}
