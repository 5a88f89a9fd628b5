"""Non-local means, the ancestor of the networks studied here (Buades, Coll, Morel: CVPR 2005), by scikit-image.

A pixel becomes the mean of the pixels of a window, weighted by exp(-max(d - 2 sigma^2, 0) / h^2), where d is the mean
squared difference of the patches around the two pixels.

Ours: the defaults of patch, window and h, tuned at sigma 25 on the training photographs of the sample (gray: chelsea,
grass, gravel, cell; colour: chelsea), h in proportion to sigma.
"""

from __future__ import annotations

import numpy as np
import torch
from skimage.restoration import denoise_nl_means
from torch import Tensor

from .. import blocks

#: h / sigma for gray and for colour images.
STRENGTH = {1: 0.65, 3: 0.5}


class NLM(blocks.Network):
    """Denoises ``(B, colors, H, W)`` in [0, 1], any size.

    sigma: of the noise, on the 0-255 scale
    patch_size: side of a patch in pixels, odd
    patch_distance: largest distance of the compared patches in pixels, along rows and columns
    h: strength of the filter on the 0-255 scale; None takes 0.65 sigma for gray and 0.5 sigma for colour
    """

    def __init__(
        self, sigma: float = 25, patch_size: int = 7, patch_distance: int = 7, h: float | None = None, colors: int = 1
    ):
        super().__init__()
        if colors not in STRENGTH:
            raise ValueError(f"colors {colors} is not 1 or 3")
        blocks.positive(sigma=sigma, patch_size=patch_size, patch_distance=patch_distance, h=h)
        if patch_size % 2 == 0:
            raise ValueError(f"patch_size {patch_size} is not odd")
        self.sigma, self.h = sigma, STRENGTH[colors] * sigma if h is None else h
        self.patch_size, self.patch_distance = patch_size, patch_distance

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(
            [torch.from_numpy(self._denoise(image.numpy())).to(x) for image in x.detach().cpu().double()]
        )

    def _denoise(self, image: np.ndarray) -> np.ndarray:
        gray = len(image) == 1
        restored = denoise_nl_means(
            image[0] if gray else image,
            patch_size=self.patch_size,
            patch_distance=self.patch_distance,
            h=self.h / 255,
            sigma=self.sigma / 255,
            fast_mode=True,
            channel_axis=None if gray else 0,
        )
        return restored.reshape(image.shape)


network = NLM
