"""DnCNN: Zhang et al., Beyond a Gaussian Denoiser (TIP 2017), the plain convolutional baseline of gray denoising.

    noise = conv(ReLU(... conv(ReLU(conv(y))))),   x = y - noise

Ours: no batch normalisation. The published weights have theirs merged into the convolutions, which is the same network.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from .. import blocks


class DnCNN(blocks.Network):
    """`depth` 3x3 convolutions of `width` channels that predict the noise of ``(B, colors, H, W)`` in [0, 1].

    State dict as the published one: ``model.N.weight``, ``model.N.bias`` with N = 0, 2, ..., 2 (depth - 1).
    image_skip: the study's option for short trainings, off in the published network: the last convolution starts at
        zero, so that the output starts as the input
    """

    def __init__(self, colors: int = 1, width: int = 64, depth: int = 17, image_skip: bool = False):
        super().__init__()
        blocks.positive(width=width)
        if depth < 2:
            raise ValueError(f"depth {depth} is not at least 2, the first and the last convolution")
        sides = [colors, *[width] * (depth - 1), colors]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sides):
            layers += [blocks.conv(inputs, outputs), nn.ReLU(inplace=True)]
        self.model = nn.Sequential(*layers[:-1])
        if image_skip:
            for tensor in self.model[-1].parameters():
                nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.model(x)


network = DnCNN
