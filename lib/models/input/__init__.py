"""No restoration: the degraded input as it is, the lowest baseline."""

from __future__ import annotations

from torch import Tensor

from .. import blocks


class Input(blocks.Network):
    """Returns its input, ``(B, colors, H, W)`` -> the same.

    Raises ValueError for a scale other than 1: an enlarged input is `bicubic`.
    """

    def __init__(self, scale: int = 1):
        super().__init__()
        if scale != 1:
            raise ValueError(f"scale {scale} is not 1: name model 'bicubic' for super-resolution")

    def forward(self, x: Tensor) -> Tensor:
        return x


network = Input
