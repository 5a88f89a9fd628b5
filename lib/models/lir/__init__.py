r"""LIR: lightweight image restoration.

Fan et al., "LIR: A Lightweight Baseline for Image Restoration", ACM MM 2024 (arXiv 2402.01368), and the released code
(Dongqi-Fan/LIR, 9130cf2).

A U-shaped network of five levels of LAA blocks (lightweight adaptive attention) that subtracts what it takes for the
degradation: the encoder's features minus the decoder's at the same resolution, enlarged by a transposed convolution T.
With L1..L5 the levels, lq = down(L1(h)), h the head's features and hq = L4(..),

    f = L5(up(hq)) + h - T(lq - hq)          y = PReLU(conv(f)) + x - T(lq - hq)

and every LAA block does the same on its own scale. Its parts: adaptive filters, residual blocks, patch attention, a
simple gate, channel attention.

The adaptive filter mixes eight fixed 3x3 operators K_i (zero padding), a high-pass filter (Gaussian G, reflect padding)
and the identity by learned numbers:

    AF(x) = Σ_{i<8} α_i K_i * x + α_8 (x - G * x) + β x = K * x - α_8 G * x,   K = Σ_{i<8} α_i K_i + (α_8 + β) δ

so eight convolutions and the identity are one, and the 15 x 15 Gaussian separates into a column and a row. The backward
pass needs x and dy alone: dx = K^T dy - α_8 G^T dy, and dα_8 = <dy, x - G x> has <dy, G x> = <G^T dy, x>. With its
reflected borders G is a symmetric matrix times C, which halves the outermost rows and columns (they have one mirror
image, the others two): G^T = C G C^-1 is the same blur.

Ours: the padding of any image to whole patches (by its mirror image), and the mirror image also where a map is too
small for PyTorch's reflect padding: images from 128 x 128 in multiples of 32 are computed as released. The released
merged filter differs from the trained one (it is built before the weights are loaded and orders α differently);
`LIR.merge` here is exact, borders included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..blocks import Network, conv, mirror_pad

#: The network halves its input five times (two levels, two in an LAA block, one in the attention's patches).
MULTIPLE = 32

#: Numbers that a filter takes at a time on a CPU.
PORTION = 2**19

#: Fixed operators in the order of α: Sobel x, y, Laplacian, edge, Sobel xy, yx, Roberts x, y; times 1e-3.
OPERATORS = (
    ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
    ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1)),
    ((0, 1, 2), (-1, 0, 1), (-2, -1, 0)),
    ((-2, -1, 0), (-1, 0, 1), (0, 1, 2)),
    ((1, 0, 0), (0, -1, 0), (0, 0, 0)),
    ((0, 1, 0), (-1, 0, 0), (0, 0, 0)),
)
OPERATOR_SCALE = 1e-3

#: The Gaussian of the high-pass filter: standard deviation and reach in pixels (15 x 15).
SIGMA, REACH = 5.0, 7


class LIR(Network):
    """Restoration at the input's size; any H, W >= 1, padded inside to multiples of 32.

    width: channels at every level
    blocks: LAA blocks of each of the five levels
    no_filter: adaptive filters left out
    no_patch_attention, no_gate, no_channel_attention: that part of every attention block left out
    no_degradation_subtraction: plain skips, in the network and in every LAA block
    image_skip: the published network adds the input already; this option makes it start there, by zeros in the two
        layers that write to the image: the last convolution and the degradation's. Behind a last convolution of zeros
        its PReLU is at the kink, where PyTorch's gradient is the negative slope's: the first step is a quarter as long.
    """

    def __init__(
        self,
        colors: int = 3,
        width: int = 48,
        blocks: Sequence[int] = (3, 3, 3, 3, 4),
        no_filter: bool = False,
        no_patch_attention: bool = False,
        no_gate: bool = False,
        no_channel_attention: bool = False,
        no_degradation_subtraction: bool = False,
        image_skip: bool = False,
    ):
        super().__init__()
        if len(blocks) != 5:
            raise ValueError(f"blocks {list(blocks)} must give the number of LAA blocks of each of the five levels")
        switches = {
            "no_filter": no_filter,
            "no_patch_attention": no_patch_attention,
            "no_gate": no_gate,
            "no_channel_attention": no_channel_attention,
            "no_degradation_subtraction": no_degradation_subtraction,
        }
        self.head = activated(colors, width)
        self.levels = nn.ModuleList(
            nn.Sequential(*[LAA(width, patch, ratio, **switches) for _ in range(count)])
            for count, patch, ratio in zip(blocks, (8, 8, 4, 8, 8), (16, 8, 8, 8, 16), strict=True)
        )
        self.down = nn.ModuleList(
            nn.Sequential(conv(width, width // 4, bias=False), nn.PixelUnshuffle(2)) for _ in range(2)
        )
        self.up = nn.ModuleList(nn.Sequential(conv(width, 4 * width, bias=False), nn.PixelShuffle(2)) for _ in range(2))
        self.fuse = activated(2 * width, width)
        subtracts = not no_degradation_subtraction
        self.feature_degradation = enlarging(width, width) if subtracts else None
        self.image_degradation = enlarging(width, colors) if subtracts else None
        self.tail = activated(width, colors)
        if image_skip:
            nn.init.zeros_(self.tail[0].weight)
            if subtracts:
                nn.init.zeros_(self.image_degradation.weight)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = mirror_pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        features, degradation = self._features(padded)
        y = self.tail(features) + padded
        if degradation is not None:
            y = y - self.image_degradation(degradation)
        return y[:, :, :height, :width]

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The last features at full resolution, and the degradation's at half of it: lq - hq."""
        # Channels last: layer norms then see contiguous channels, and depthwise convolutions are several times faster.
        head = self.head(x.contiguous(memory_format=torch.channels_last))
        low = self.down[0](self.levels[0](head))
        deep = self.up[1](self.levels[2](self.down[1](self.levels[1](low))))
        high = self.levels[3](self.fuse(torch.cat([deep, low], 1)))
        features = self.levels[4](self.up[0](high)) + head
        if self.feature_degradation is None:
            return features, None
        return features - self.feature_degradation(low - high), low - high

    @torch.no_grad()
    def merge(self) -> LIR:
        """Replace every adaptive filter by one convolution, for inference with fixed weights; returns the network.

        The same numbers, borders included, from a form that an exporter sees as one layer. It is no faster: 225
        multiply-adds per pixel against 39 of the trained form.
        """
        for module in self.modules():
            for name, child in module.named_children():
                if isinstance(child, AdaptiveFilter):
                    setattr(module, name, MergedFilter(child))
        return self

    @torch.no_grad()
    def mechanism(self, image: Tensor, points: Sequence[tuple[int, int]] = ()) -> dict[str, Tensor]:
        """What the network learned to filter and what it subtracts; `points` are not used.

        alpha ``(N, 9)``, beta ``(N,)``: mixtures of the N adaptive filters in the network's order (level, block,
        stage); without filters, or merged, absent
        degradation ``(1, colors, H, W)``: the image that it subtracts from the input, absent with
        no_degradation_subtraction
        """
        shown = {}
        filters = [module for module in self.modules() if isinstance(module, AdaptiveFilter)]
        if filters:
            shown["alpha"] = torch.stack([f.alpha for f in filters])
            shown["beta"] = torch.cat([f.beta for f in filters])
        if self.image_degradation is not None:
            height, width = image.shape[2:]
            padded = mirror_pad(image, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
            shown["degradation"] = self.image_degradation(self._features(padded)[1])[:, :, :height, :width]
        return shown


class LAA(nn.Module):
    """Lightweight adaptive attention: a small U of five stages over attention blocks, minus its own degradation.

    patch, ratio: of the attention blocks at this block's outer scale (inside, patches are half as wide)
    """

    def __init__(
        self,
        width: int,
        patch: int,
        ratio: int,
        no_filter: bool = False,
        no_degradation_subtraction: bool = False,
        **switches: bool,
    ):
        super().__init__()

        def adaptive_filter() -> nn.Module:
            return nn.Identity() if no_filter else AdaptiveFilter()

        def attention(channels: int, side: int) -> nn.Module:
            return AttentionBlock(channels, side, ratio, **switches)

        self.stage1 = nn.Sequential(attention(width, patch), halving(width))
        self.stage2 = nn.Sequential(adaptive_filter(), attention(width, patch // 2), halving(width))
        self.stage3 = nn.Sequential(adaptive_filter(), attention(width, patch // 2))
        self.stage4 = nn.Sequential(adaptive_filter(), attention(width, patch // 2), enlarging(width, width))
        self.stage5 = nn.Sequential(adaptive_filter(), attention(2 * width, patch), enlarging(2 * width, width))
        self.degradation = None if no_degradation_subtraction else enlarging(width, width)

    def forward(self, x: Tensor) -> Tensor:
        low = self.stage1(x)
        high = self.stage4(self.stage3(self.stage2(low)))
        y = self.stage5(torch.cat([high, low], 1)) + x
        return y if self.degradation is None else y - self.degradation(low - high)


class AdaptiveFilter(nn.Module):
    """Learned mixture of eight fixed 3x3 operators, a Gaussian high-pass filter and the identity (see the file's top).

    ``(B, C, H, W)`` to the same shape, every channel alike. Starts as the high-pass filter (α = 1, β = 0; the operators
    carry a factor of 1e-3).
    """

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(9))
        self.beta = nn.Parameter(torch.zeros(1))
        identity = torch.zeros(1, 3, 3)
        identity[0, 1, 1] = 1
        operators = torch.cat([OPERATOR_SCALE * torch.tensor(OPERATORS), identity])
        offset = torch.arange(-REACH, REACH + 1)
        gaussian = torch.exp(-(offset**2) / (2 * SIGMA**2))
        self.register_buffer("operators", operators, persistent=False)
        self.register_buffer("gaussian", gaussian / gaussian.sum(), persistent=False)

    def kernel(self) -> Tensor:
        """K, the 3x3 kernel of everything but the Gaussian."""
        mixture = torch.cat([self.alpha[:8], self.alpha[8:] + self.beta])
        return torch.einsum("i,ijk->jk", mixture, self.operators)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            kernel, weight, gaussian = (t.to(x.dtype) for t in (self.kernel(), self.alpha[8], self.gaussian))
            return Filter.apply(x, kernel, weight, gaussian)


class Filter(torch.autograd.Function):
    """K * x - weight G * x for ``(B, C, H, W)``, a 3x3 kernel K, and the separable Gaussian's line; keeps x alone.

    On a CPU a few images at a time, for its memory.
    """

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor, weight: Tensor, gaussian: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel, weight, gaussian)
        y = torch.empty_like(x)
        for images, out in portions(x, y):
            blurred = blur(images, gaussian)
            torch.addcmul(depthwise(images, kernel, padding=1), blurred, -weight, out=out)
            del blurred  # before the next one is made
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, weight, gaussian = ctx.saved_tensors
        kernels = kernel.expand(x.shape[1], 1, 3, 3)
        d_x = torch.empty_like(x)
        d_kernel, d_weight = torch.zeros_like(kernel), torch.zeros_like(weight)
        for images, d_y, out in portions(x, grad, d_x):
            blurred = scale_edges_(blur(scale_edges_(d_y.clone(), 2), gaussian), 0.5)
            d_weight -= (blurred * images).sum()
            d_images, d_kernels, _ = torch.ops.aten.convolution_backward(
                d_y, images, kernels, None, [1, 1], [1, 1], [1, 1], False, [0, 0], x.shape[1], [True, True, False]
            )
            torch.addcmul(d_images, blurred, -weight, out=out)
            d_kernel += d_kernels.sum((0, 1))
        return d_x, d_kernel, d_weight, None


def portions(*batches: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same images of each batch: all of them on a card, else as many as make up PORTION numbers, or one."""
    first = batches[0]
    count = len(first) if first.is_cuda else max(1, PORTION // first[0].numel())
    return zip(*(batch.split(count) for batch in batches), strict=True)


def blur(x: Tensor, line: Tensor) -> Tensor:
    """Convolve with the outer product of `line` with itself, the image continued by reflection."""
    down = depthwise(mirror_pad(x, (len(line) // 2,) * 4), line[:, None])
    return depthwise(down, line[None, :])


def scale_edges_(x: Tensor, factor: float) -> Tensor:
    """Multiply the outermost rows and the outermost columns, in place."""
    for edge in (x[:, :, :1], x[:, :, -1:], x[..., :1], x[..., -1:]):
        edge.mul_(factor)
    return x


class MergedFilter(nn.Module):
    """An adaptive filter with fixed weights as one 15 x 15 kernel on the mirrored image.

    The trained form pads its 3x3 operators with zeros, the Gaussian by reflection. So the outermost rows and columns
    lose again what the 3x3 kernel takes from the mirrored ring of pixels around the image.
    """

    def __init__(self, source: AdaptiveFilter):
        super().__init__()
        inner = source.kernel()
        kernel = -source.alpha[8] * torch.outer(source.gaussian, source.gaussian)
        kernel[REACH - 1 : REACH + 2, REACH - 1 : REACH + 2] += inner
        self.register_buffer("kernel", kernel)
        self.register_buffer("inner", inner)

    def forward(self, x: Tensor) -> Tensor:
        padded = mirror_pad(x, (REACH,) * 4)
        y = depthwise(padded, self.kernel)
        edge = REACH - 1
        ring = padded[:, :, edge:-edge, edge:-edge]
        y[:, :, :1] -= depthwise(ring[:, :, :1], self.inner[:1])
        y[:, :, -1:] -= depthwise(ring[:, :, -1:], self.inner[2:])
        sides = F.pad(ring[:, :, 1:-1], (0, 0, 1, 1))  # the corners are in the rows above already
        y[:, :, :, :1] -= depthwise(sides[:, :, :, :1], self.inner[:, :1])
        y[:, :, :, -1:] -= depthwise(sides[:, :, :, -1:], self.inner[:, 2:])
        return y


def depthwise(x: Tensor, kernel: Tensor, padding: int = 0) -> Tensor:
    """Every channel of `x` convolved with the one 2-d `kernel`; `padding` zeros around."""
    channels = x.shape[1]
    return F.conv2d(x, kernel.expand(channels, 1, *kernel.shape), padding=padding, groups=channels)


class AttentionBlock(nn.Sequential):
    """Residual block, patch attention, gate, residual block with channel attention; a part can be left out."""

    def __init__(
        self,
        width: int,
        patch: int,
        ratio: int,
        no_patch_attention: bool = False,
        no_gate: bool = False,
        no_channel_attention: bool = False,
    ):
        super().__init__()
        self.block = Residual(width)
        self.patch_attention = nn.Identity() if no_patch_attention else PatchAttention(width, patch, ratio)
        self.gate = nn.Identity() if no_gate else SimpleGate(width)
        self.channel_block = Residual(width, channel_attention=not no_channel_attention)


class LayerNorm(nn.Module):
    """Layer norm over the channels of each pixel."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class Residual(nn.Module):
    """x + α reduce(GELU(LN(depthwise(expand(x))))), if asked for with channel attention; α starts at zero."""

    def __init__(self, width: int, channel_attention: bool = False):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.expand = conv(width, 2 * width, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width, bias=False)
        self.norm = LayerNorm(2 * width)
        self.reduce = conv(2 * width, width, 1, bias=False)
        self.attention = ChannelAttention(width) if channel_attention else nn.Identity()

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
        self.norm = LayerNorm(width)
        self.conv = conv(width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.conv(self.norm(x)).chunk(2, 1)
        return x + self.gamma * u * v


def activated(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, bias=False), nn.PReLU())


def halving(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)


def enlarging(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)


network = LIR
