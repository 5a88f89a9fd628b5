"""IMDN: a small network for super-resolution, a baseline with its authors' weights.

Hui et al., "Lightweight Image Super-Resolution with Information Multi-distillation Network", ACM MM 2019, and the
released code (Zheng222/IMDN, 8f158e6). Six blocks, each of which sets a quarter of its features aside after every
convolution and refines the rest:

    f_0 = conv(x)    f_k = IMDB_k(f_{k-1})    y = PixelShuffle(conv(f_0 + conv(LeakyReLU(1x1(f_1, .., f_6)))))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..blocks import Network, conv, positive


class IMDB(nn.Module):
    """Information multi-distillation block, ``(B, width, H, W)`` to the same."""

    def __init__(self, width: int):
        super().__init__()
        self.aside = width // 4
        rest = width - self.aside
        self.distil = nn.ModuleList([conv(width, width), conv(rest, width), conv(rest, width)])
        self.last = conv(rest, self.aside)
        self.contrast = nn.Sequential(conv(width, width // 16, 1), nn.ReLU(), conv(width // 16, width, 1), nn.Sigmoid())
        self.fuse = conv(width, width, 1)
        self.activation = nn.LeakyReLU(0.05)

    def forward(self, x: Tensor) -> Tensor:
        kept, rest = [], x
        for layer in self.distil:
            aside, rest = self.activation(layer(rest)).tensor_split([self.aside], 1)
            kept.append(aside)
        features = torch.cat([*kept, self.last(rest)], 1)
        deviation, mean = torch.std_mean(features, (2, 3), correction=0, keepdim=True)
        return x + self.fuse(features * self.contrast(mean + deviation))


class IMDN(Network):
    """Super-resolution of colour images, any H, W >= 1.

    scale: 2, 3 or 4
    width: channels of the features, a multiple of 16
    """

    def __init__(self, scale: int = 2, width: int = 64, blocks: int = 6):
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"scale {scale} is not one of 2, 3, 4")
        if width < 16 or width % 16:
            raise ValueError(f"width {width} is not a multiple of 16")
        positive(blocks=blocks)
        self.head = conv(3, width)
        self.blocks = nn.ModuleList(IMDB(width) for _ in range(blocks))
        self.fuse = nn.Sequential(conv(blocks * width, width, 1), nn.LeakyReLU(0.05), conv(width, width))
        self.tail = nn.Sequential(conv(width, 3 * scale**2), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.head(x)]
        for block in self.blocks:
            outputs.append(block(outputs[-1]))
        return self.tail(self.fuse(torch.cat(outputs[1:], 1)) + outputs[0])


network = IMDN
