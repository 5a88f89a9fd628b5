"""Bicubic enlargement, the anchor of super-resolution: MATLAB's imresize (kernel with a = -0.5, mirrored border)."""

from __future__ import annotations

from torch import Tensor

from ...degradations import resize
from .. import ModelError, blocks


class Bicubic(blocks.Network):
    """Enlarges ``(B, colors, H, W)`` to ``(B, colors, scale*H, scale*W)``, neither clamped nor rounded.

    Raises ModelError for a scale that is not a whole number above 1.
    """

    def __init__(self, scale: int = 2):
        super().__init__()
        if not isinstance(scale, int) or scale < 2:
            raise ModelError(f"model 'bicubic' has no scale {scale!r}; it must be a whole number above 1")
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, up=self.scale)


network = Bicubic
