"""EDSR: a residual trunk without normalisation, the host and the baseline of every attention module here.

Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .blocks import NON_LOCAL, Trunk, influence


class EDSR(Trunk):
    """EDSR for super-resolution (`scale` > 1) or, with `scale` 1, restoration at the input's size.

    Baseline: 64 channels, 16 blocks, res_scale 1; large: 256, 32, 0.1. As the common trunk of the study it carries one
    attention module in its middle: `attention` is "nl" or "mhnl" (non-local with one or four heads) or a function from
    the width to a module. Any H, W >= 1.
    """

    def __init__(
        self,
        colors: int = 3,
        scale: int = 1,
        width: int = 64,
        blocks: int = 16,
        res_scale: float = 1.0,
        attention: str | Callable[[int], nn.Module] | None = None,
        image_skip: bool = False,
    ):
        if isinstance(attention, str) and attention not in NON_LOCAL:
            raise ValueError(f"attention {attention!r} is not one of {', '.join(NON_LOCAL)}")
        super().__init__(
            colors,
            width,
            blocks,
            scale=scale,
            res_scale=res_scale,
            attention=NON_LOCAL[attention] if isinstance(attention, str) else attention,
            positions=(blocks // 2,),
            image_skip=image_skip,
            mean_shift=True,
        )

    def mechanism(self, image: Tensor, points: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """influence: (points, H, W), how much each pixel moves what the attention module adds at the points."""
        with torch.no_grad():
            inserted = self.attended(image)
        return {"influence": influence(*inserted[0], points)} if inserted else {}
