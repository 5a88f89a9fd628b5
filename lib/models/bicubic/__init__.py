"""Bicubic enlargement, the baseline of super-resolution: MATLAB's imresize (kernel with a = -0.5, mirrored border)."""

from __future__ import annotations

from torch import Tensor

from ...tasks.degradations import resize
from .. import blocks


class Bicubic(blocks.Network):
    """Enlarges ``(B, colors, H, W)`` to ``(B, colors, scale*H, scale*W)``, neither clamped nor rounded.

    Raises ValueError for a scale of 1 or less.
    """

    def __init__(self, scale: int = 2):
        super().__init__()
        if scale < 2:
            raise ValueError(f"scale {scale} is not a whole number above 1")
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, up=self.scale)


network = Bicubic
