r"""PANet: pyramid attention for image restoration.

Mei et al., "Pyramid Attention Networks for Image Restoration", arXiv 2004.13824 (IJCV 2023).

Every pixel p of the features x attends to every pixel j of a pyramid z_s = resize(x, s), s = 1, .9, .8, .7, .6:

    y_p = 1/4 Σ_d Σ_j w_{p+d, j+d} f(z)_j + identity_scale x_p,      d in {-1, 0, 1}²
    w_p = softmax over all pixels j of all levels of  10 S_pj / ‖K_j‖
    S_pj = Σ_d θ(x)_{p+d} · g(z)_{j+d},      ‖K_j‖² = Σ_d |g(z)_{j+d}|²

θ, g, f are 1x1 convolutions with a PReLU each: 3x3 blocks are compared, and 3x3 blocks are pasted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..blocks import Attention, ImageError, Trunk, conv, positive
from .block_attention import block_attention
from .resize import resize

#: Tensors of the released checkpoints that no computation reads, frozen: a mean shift as two convolutions, whose
#: constants blocks.Trunk holds. Kept for the number of parameters.
UNUSED = ("sub_mean", "add_mean")


class PyramidAttention(Attention):
    """Pyramid attention ``(B, width, H, W)`` -> the same shape, identity included (equations: top of this file).

    reduction: width / channels of queries and keys
    scales: sizes of the pyramid's levels, floor(H s) x floor(W s), in (0, 1]; [1] is non-local attention on one level
    patch: side of the blocks that are compared and pasted: 3, or 1 for pixels. Pasted blocks overlap; their sum is
        divided by 4 for patch 3 (the released code's number; nine of them overlap) and not at all for patch 1.
    softmax_scale: factor of the scores in the softmax
    identity_scale: factor of the identity
    max_scores: see block_attention; bounds the memory and changes no result

    The smallest input has ceil(1 / min(scales)) pixels on each side (2 x 2 for the published scales).

    Raises ValueError for an option outside its range, and ImageError for a smaller input.
    """

    def __init__(
        self,
        width: int,
        reduction: int = 2,
        scales: Sequence[float] = (1, 0.9, 0.8, 0.7, 0.6),
        patch: int = 3,
        softmax_scale: float = 10.0,
        identity_scale: float = 1.0,
        max_scores: int | None = None,
    ):
        super().__init__()
        if patch not in (1, 3):
            raise ValueError(f"patch {patch} is not one of 1, 3")
        if not scales or not all(0 < s <= 1 for s in scales):
            raise ValueError(f"scales {list(scales)} do not all lie in (0, 1]")
        if len({*scales}) < len(scales):
            raise ValueError(f"scales {list(scales)} name a level twice")
        positive(reduction=reduction, softmax_scale=softmax_scale, max_scores=max_scores)
        if reduction > width:
            raise ValueError(f"reduction {reduction} leaves no channel of {width}")
        self.theta = _embedding(width, width // reduction)
        self.g = _embedding(width, width // reduction)
        self.f = _embedding(width, width)
        self.scales = tuple(scales)
        self.patch = patch
        self.softmax_scale = softmax_scale
        self.identity_scale = identity_scale
        self.max_scores = max_scores

    def forward(self, x: Tensor) -> Tensor:
        pyramid = self.pyramid(x)
        # Lazy iterators: the keys and values of each level are freed as soon as they are consumed.
        keys, values = map(self.g, pyramid), map(self.f, pyramid)
        pasted = block_attention(self.theta(x), keys, values, self.patch, self.softmax_scale, self.max_scores)
        return pasted + self.identity(x)

    def identity(self, x: Tensor) -> Tensor:
        return self.identity_scale * x

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """x at every scale: bicubic, not antialiased, as in the released code."""
        height, width = x.shape[2:]
        smallest = min(self.scales)
        if min(height, width) * smallest < 1:
            raise ImageError(
                f"pyramid attention on {height} x {width} pixels: its smallest scale, {smallest:g}, "
                f"needs at least {math.ceil(1 / smallest)} on each side"
            )
        return [x if s == 1 else resize(x, s) for s in self.scales]


class PANet(Trunk):
    """PANet (`scale` 1) and PA-EDSR (`scale` 2, 3, 4) of the released code.

    scale 1: 80 blocks of 64 channels with one PReLU for all of them, no image residual, no mean shift
    scale > 1: EDSR's trunk, 32 blocks of 256 channels with ReLU and res_scale 0.1, mean shift; in the attention,
        reduction 8 and identity_scale 0.1 (the identity is scaled, not the branch)
    width, blocks: None takes the numbers above
    positions: where the attention modules are: "pre", "mid" (released) or "post", a list of these, or the number of
        modules, which then cut the residual blocks into equal parts
    attention: options of PyramidAttention

    Raises ValueError for unknown positions, and as PyramidAttention.
    """

    options_of = PyramidAttention

    def __init__(
        self,
        colors: int = 3,
        scale: int = 1,
        width: int | None = None,
        blocks: int | None = None,
        positions: str | Sequence[str] | int = "mid",
        image_skip: bool = False,
        **attention: Any,
    ):
        enlarges = scale > 1
        width = (256 if enlarges else 64) if width is None else width
        blocks = (32 if enlarges else 80) if blocks is None else blocks
        if enlarges:
            attention = {"reduction": 8, "identity_scale": 0.1, **attention}
        super().__init__(
            colors,
            width,
            blocks,
            scale=scale,
            activation=nn.ReLU if enlarges else nn.PReLU,
            tie_activation=not enlarges,
            res_scale=0.1 if enlarges else 1.0,
            attention=lambda width: PyramidAttention(width, **attention),
            positions=_positions(positions, blocks),
            image_skip=image_skip,
            mean_shift=enlarges,
        )
        self.sub_mean, self.add_mean = (nn.Conv2d(3, 3, 1).requires_grad_(False) for _ in range(2))


def _embedding(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, 1), nn.PReLU())


def _positions(positions: str | Sequence[str] | int, blocks: int) -> list[int]:
    """Numbers of residual blocks before each attention module."""
    if isinstance(positions, int):
        if positions > blocks + 1:
            raise ValueError(f"positions {positions} are more than the {blocks + 1} places between {blocks} blocks")
        return [round(blocks * (i + 1) / (positions + 1)) for i in range(positions)]
    places = {"pre": 0, "mid": blocks // 2, "post": blocks}
    names = [positions] if isinstance(positions, str) else list(positions)
    if not set(names) <= set(places):
        raise ValueError(f"positions {names} are not all among {', '.join(places)}")
    return sorted(places[name] for name in names)


network, attention = PANet, PyramidAttention
