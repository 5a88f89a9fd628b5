"""Bicubic interpolation, the anchor of super-resolution: MATLAB's imresize with factor `scale`."""

from __future__ import annotations

from torch import Tensor

from . import ModelError, blocks
from ..degradations import resize


class Bicubic(blocks.Network):
    """Enlarges ``(B, colors, H, W)`` to ``(B, colors, scale*H, scale*W)``, neither clamped nor rounded."""

    def __init__(self, scale: int = 2):
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, self.scale)
