"""EDSR: a residual trunk without normalisation, the host and the baseline of every attention module here.

Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017.
"""

from __future__ import annotations

from ..blocks import CommonTrunk


class EDSR(CommonTrunk):
    """EDSR for super-resolution (`scale` > 1) or, with `scale` 1, restoration at the input's size.

    Baseline: 64 channels, 16 blocks, res_scale 1; large: 256, 32, 0.1. Any H, W >= 1.
    """


network = EDSR
