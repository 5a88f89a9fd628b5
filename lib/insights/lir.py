"""LIR's learned filters and its estimate of the degradation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.lir import LIR, AdaptiveFilter


@torch.no_grad()
def mechanism(network: LIR, image: Tensor, points: Sequence[tuple[int, int]] = ()) -> dict[str, Tensor]:
    """The filters of the network and the image that it subtracts; `points` are not used.

    alpha ``(N, 9)``, beta ``(N,)``: mixtures of the N adaptive filters in the network's order (level, block, stage);
    absent with no_filter
    degradation ``(1, colors, H, W)``: the image that it subtracts from the input, absent with
    no_degradation_subtraction
    """
    shown = {}
    filters = [module for module in network.modules() if isinstance(module, AdaptiveFilter)]
    if filters:
        shown["alpha"] = torch.stack([f.alpha for f in filters])
        shown["beta"] = torch.cat([f.beta for f in filters])
    if network.image_degradation is not None:
        subtracted: list[Tensor] = []
        hook = network.image_degradation.register_forward_hook(lambda module, args, output: subtracted.append(output))
        try:
            network(image)
        finally:
            hook.remove()
        height, width = image.shape[2:]
        shown["degradation"] = subtracted[0][:, :, :height, :width]
    return shown
