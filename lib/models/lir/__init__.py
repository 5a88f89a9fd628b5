r"""LIR: lightweight image restoration.

Fan et al., "LIR: A Lightweight Baseline for Image Restoration", ACM MM 2024 (arXiv 2402.01368), and the released code
(Dongqi-Fan/LIR, 9130cf2).

A U-shaped network of five levels of LAA blocks (lightweight adaptive attention) that subtracts its estimate of the
degradation: the encoder's features minus the decoder's at the same resolution, enlarged by a transposed convolution T.
With L1..L5 the levels, lq = down(L1(h)), h the head's features and hq = L4(..),

    f = L5(up(hq)) + h - T(lq - hq)          y = PReLU(conv(f)) + x - T(lq - hq)

and every LAA block does the same on its own scale. Its parts: adaptive filters, residual blocks, patch attention, a
simple gate, channel attention. Here the parts come first, the network last.

Ours: the padding of any image to whole patches (by its mirror image), and the mirror image also where a map is too
small for PyTorch's reflect padding: images from 128 x 128 in multiples of 32 are computed as released.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..blocks import Attention, Network, conv, mirror_pad
from .mixed_filter import OPERATOR_SCALE, OPERATORS, REACH, SIGMA, mixed_filter

#: The network halves its input five times (two levels, two in an LAA block, one in the attention's patches).
MULTIPLE = 32


class AdaptiveFilter(nn.Module):
    """Learned mixture of the fixed operators, a Gaussian high-pass filter and the identity, every channel alike.

    ``(B, C, H, W)`` to the same shape. Starts as the high-pass filter (α = 1, β = 0; the operators carry a factor of
    1e-3).
    """

    operators: Tensor
    gaussian: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(9))
        self.beta = nn.Parameter(torch.zeros(1))
        gaussian = torch.exp(-(torch.arange(-REACH, REACH + 1) ** 2) / (2 * SIGMA**2))
        self.register_buffer("operators", OPERATOR_SCALE * torch.tensor(OPERATORS), persistent=False)
        self.register_buffer("gaussian", gaussian / gaussian.sum(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return mixed_filter(x, self.alpha, self.beta, self.operators, self.gaussian)


class Residual(nn.Module):
    """x + α a(reduce(GELU(LN(depthwise(expand(x)))))), a the channel attention or nothing; α starts at zero."""

    def __init__(self, width: int, channel_attention: bool = False):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.expand = conv(width, 2 * width, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width, bias=False)
        self.norm = LayerNorm(2 * width, eps=1e-6)
        self.reduce = conv(2 * width, width, 1, bias=False)
        self.attention: nn.Module = ChannelAttention(width) if channel_attention else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * self.attention(self.reduce(F.gelu(self.norm(self.depthwise(self.expand(x))))))


class ChannelAttention(nn.Module):
    """Channels times a number in (0, 1) each, from their means over the image (RCAN, ECCV 2018)."""

    def __init__(self, width: int):
        super().__init__()
        inner = max(width // 16, 1)
        self.squeeze = conv(width, inner, 1)
        self.excite = conv(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class PatchAttention(nn.Module):
    """x (s + β): a learned number s for every token of patch x patch pixels, β per channel, starting at zero.

    The pixels of token (a, b) are those at rows a, a + H/p, a + 2 H/p, .. and columns b, b + W/p, ..: a coarse grid
    over the whole image, so that every token sees all of it.
    """

    def __init__(self, width: int, patch: int, ratio: int):
        super().__init__()
        inner, pixels = max(width // ratio, 1), patch**2
        self.patch = patch
        self.beta = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.down = conv(width, inner, 1, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(inner * pixels, pixels), nn.LayerNorm(pixels), nn.GELU(), nn.Linear(pixels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        p = self.patch
        tokens = rearrange(self.down(x), "b c (i h) (j w) -> b h w (c i j)", i=p, j=p)
        weights = rearrange(self.mlp(tokens), "b h w 1 -> b 1 h w").tile(1, 1, p, p)
        return x * (weights + self.beta)


class SimpleGate(nn.Module):
    """x + γ u v with (u, v) = conv(LN(x)); γ starts at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.norm = LayerNorm(width, eps=1e-6)
        self.conv = conv(width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.conv(self.norm(x)).chunk(2, 1)
        return x + self.gamma * u * v


class AttentionBlock(nn.Sequential):
    """Residual block, patch attention, gate, residual block with channel attention; a part can be left out."""

    def __init__(
        self,
        width: int,
        patch: int,
        ratio: int,
        *,
        no_patch_attention: bool = False,
        no_gate: bool = False,
        no_channel_attention: bool = False,
    ):
        super().__init__()
        self.block = Residual(width)
        self.patch_attention: nn.Module = PatchAttention(width, patch, ratio)
        self.gate: nn.Module = SimpleGate(width)
        self.channel_block = Residual(width, channel_attention=True)
        # Removed only now, so that at one seed all other layers start from the same weights with and without a part.
        if no_patch_attention:
            self.patch_attention = nn.Identity()
        if no_gate:
            self.gate = nn.Identity()
        if no_channel_attention:
            self.channel_block.attention = nn.Identity()


class LAA(Attention):
    """Lightweight adaptive attention: a small U of five stages over attention blocks, minus its own degradation.

    patch, ratio: of the attention blocks at this block's outer scale (inside, patches are half as wide)
    """

    options_of = AttentionBlock

    def __init__(
        self,
        width: int,
        patch: int,
        ratio: int,
        *,
        no_filter: bool = False,
        no_degradation_subtraction: bool = False,
        **left_out: bool,
    ):
        super().__init__()

        def adaptive_filter() -> nn.Module:
            return nn.Identity() if no_filter else AdaptiveFilter()

        def attention(channels: int, side: int) -> nn.Module:
            return AttentionBlock(channels, side, ratio, **left_out)

        self.stage1 = nn.Sequential(attention(width, patch), halving(width))
        self.stage2 = nn.Sequential(adaptive_filter(), attention(width, patch // 2), halving(width))
        self.stage3 = nn.Sequential(adaptive_filter(), attention(width, patch // 2))
        self.stage4 = nn.Sequential(adaptive_filter(), attention(width, patch // 2), enlarging(width, width))
        self.stage5 = nn.Sequential(adaptive_filter(), attention(2 * width, patch), enlarging(2 * width, width))
        self.degradation: nn.Module | None = enlarging(width, width)
        if no_degradation_subtraction:
            self.degradation = None

    def forward(self, x: Tensor) -> Tensor:
        low = self.stage1(x)
        high = self.stage4(self.stage3(self.stage2(low)))
        y = self.stage5(torch.cat([high, low], 1)) + x
        return y if self.degradation is None else y - self.degradation(low - high)


class LIR(Network):
    """Restoration at the input's size; any H, W >= 1, padded inside to multiples of 32.

    width: channels at every level, a multiple of 4
    blocks: LAA blocks of each of the five levels
    image_skip: the published network adds the input already; this option makes it start there, by zeros in the two
        layers that write to the image: the last convolution and the degradation's. Behind a last convolution of zeros
        its PReLU is at the kink, where PyTorch's gradient is the negative slope's: the first step is a quarter as long.
    no_degradation_subtraction: plain skips, in the network and in every LAA block
    no_filter: adaptive filters left out
    no_patch_attention, no_gate, no_channel_attention: that part of every attention block left out
    """

    options_of = LAA

    def __init__(
        self,
        colors: int = 3,
        width: int = 48,
        blocks: Sequence[int] = (3, 3, 3, 3, 4),
        image_skip: bool = False,
        **left_out: bool,
    ):
        super().__init__()
        if len(blocks) != 5 or min(blocks) < 0 or not any(blocks):
            raise ValueError(f"blocks {list(blocks)} must give the number of LAA blocks of each of the five levels")
        if width < 4 or width % 4:
            raise ValueError(f"width {width} is not a multiple of 4")
        self.head = activated(colors, width)
        self.levels = nn.ModuleList(
            nn.Sequential(*[LAA(width, patch, ratio, **left_out) for _ in range(count)])
            for count, patch, ratio in zip(blocks, (8, 8, 4, 8, 8), (16, 8, 8, 8, 16), strict=True)
        )
        self.down = nn.ModuleList(
            nn.Sequential(conv(width, width // 4, bias=False), nn.PixelUnshuffle(2)) for _ in range(2)
        )
        self.up = nn.ModuleList(nn.Sequential(conv(width, 4 * width, bias=False), nn.PixelShuffle(2)) for _ in range(2))
        self.fuse = activated(2 * width, width)
        self.feature_degradation: nn.Module | None = enlarging(width, width)
        self.image_degradation: nn.Module | None = enlarging(width, colors)
        self.tail = activated(width, colors)
        if image_skip:
            for weight in (*self.tail[0].parameters(), *self.image_degradation.parameters()):
                nn.init.zeros_(weight)
        if left_out.get("no_degradation_subtraction"):
            self.feature_degradation = self.image_degradation = None

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = mirror_pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        # Channels last: layer norms then see contiguous channels, and depthwise convolutions are several times faster.
        head = self.head(padded.contiguous(memory_format=torch.channels_last))
        low = self.down[0](self.levels[0](head))
        deep = self.up[1](self.levels[2](self.down[1](self.levels[1](low))))
        high = self.levels[3](self.fuse(torch.cat([deep, low], 1)))
        features = self.levels[4](self.up[0](high)) + head
        if self.feature_degradation is not None:
            features = features - self.feature_degradation(low - high)
        y = self.tail(features) + padded
        if self.image_degradation is not None:
            y = y - self.image_degradation(low - high)
        return y[:, :, :height, :width]


class LayerNorm(nn.LayerNorm):
    """Over the channels of each pixel of ``(B, width, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def activated(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, bias=False), nn.PReLU())


def halving(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)


def enlarging(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)


network = LIR
