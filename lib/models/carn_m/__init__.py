"""CARN-M: a small network for super-resolution, a baseline with its authors' weights.

Ahn et al., "Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual Network", ECCV 2018, and the
released code (nmhkahn/CARN-pytorch, 40d3514). A cascade hands the results of all steps so far to every next one,

    o_0 = c_0 = x    c_k = (c_{k-1}, B_k(o_{k-1}))    o_k = ReLU(1x1(c_k)),

and is used twice: over three blocks, and inside a block over three passes through one residual unit with grouped
convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import DIV2K_MEAN, Network, conv


class Cascade(nn.Module):
    """The last o_k, of as many steps as there are `steps`; one module given several times is used several times."""

    def __init__(self, width: int, steps: Sequence[nn.Module]):
        super().__init__()
        self.steps = nn.ModuleList(dict.fromkeys(steps))
        self.mix = nn.ModuleList(conv((k + 1) * width, width, 1) for k in range(1, len(steps) + 1))

    def forward(self, x: Tensor) -> Tensor:
        output = gathered = x
        for k, mix in enumerate(self.mix):
            gathered = torch.cat([gathered, self.steps[k % len(self.steps)](output)], 1)
            output = F.relu(mix(gathered))
        return output


class Unit(nn.Module):
    """ReLU(x + 1x1(ReLU(conv(ReLU(conv(x)))))), the 3x3 convolutions in groups."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=groups), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=groups), nn.ReLU(),
            conv(width, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class CARNM(Network):
    """Super-resolution of colour images, any H, W >= 1.

    scale: 2, 3 or 4; x4 is x2 twice
    width: channels of the features, a multiple of `groups`
    groups: of the 3x3 convolutions between the first and the last
    """

    mean: Tensor

    def __init__(self, scale: int = 2, width: int = 64, groups: int = 4):
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"scale {scale} is not one of 2, 3, 4")
        if groups < 1 or width < groups or width % groups:
            raise ValueError(f"width {width} is not a multiple of groups {groups}")
        self.register_buffer("mean", torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1), persistent=False)
        self.scale = scale
        self.head = conv(3, width)
        self.body = Cascade(width, [Cascade(width, 3 * [Unit(width, groups)]) for _ in range(3)])
        upsampler = nn.Sequential()
        for factor in {2: (2,), 3: (3,), 4: (2, 2)}[scale]:
            wider = nn.Conv2d(width, factor**2 * width, 3, padding=1, groups=groups)
            upsampler.extend([wider, nn.ReLU(), nn.PixelShuffle(factor)])
        self.upsampler = nn.ModuleDict({str(scale): upsampler})  # by scale: the released file has those of all three
        self.tail = conv(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.upsampler[str(self.scale)](self.body(self.head(x - self.mean)))) + self.mean


network = CARNM
