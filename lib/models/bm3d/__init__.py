"""BM3D (Dabov et al.: TIP 2007), by the authors' package `bm3d`, which is free for non-commercial use only.

An optional extra for that reason: the study never installs it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import ModelError, blocks


class NotInstalledError(ModelError, ImportError):
    """An optional package is not installed."""


class BM3D(blocks.Network):
    """Denoises ``(B, colors, H, W)`` in [0, 1], colour in the opponent space; `sigma` is on the 0-255 scale.

    Raises NotInstalledError where the package is not installed.
    """

    def __init__(self, sigma: float = 25):
        super().__init__()
        try:
            import bm3d
        except ImportError:
            raise NotInstalledError(
                "model 'bm3d' needs the package bm3d (non-commercial licence): pip install bm3d==4.0.3"
            ) from None
        blocks.positive(sigma=sigma)
        self.sigma, self._package = sigma, bm3d

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(
            [torch.from_numpy(self._denoise(image.numpy())).to(x) for image in x.detach().cpu().double()]
        )

    def _denoise(self, image: np.ndarray) -> np.ndarray:
        if len(image) == 1:
            return self._package.bm3d(image[0], self.sigma / 255).reshape(image.shape)
        return np.moveaxis(self._package.bm3d_rgb(np.moveaxis(image, 0, 2), self.sigma / 255), 2, 0)


network = BM3D
