"""Which pixels move the output of an attention module: one measure for all kinds of attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.blocks import Attention


def influence(module: Attention, features: Tensor, points: Sequence[tuple[int, int]], draws: int = 4) -> Tensor:
    """How much each pixel of ``(1, C, H, W)`` moves what a module adds at the `points`: maps ``(points, H, W)``.

    |d (module(x) - identity(x))_p / d x_q|, the Frobenius norm over channels; estimated by `draws` random signs of the
    output's channels (Hutchinson), the same for every module.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        signs = torch.randint(2, (draws, features.shape[1]), generator=generator).to(features) * 2 - 1
        x = features.clone().requires_grad_()
        added = module(x) - module.identity(x)
        maps = []
        for row, column in points:
            squares = [
                torch.autograd.grad(added[0, :, row, column] @ sign, x, retain_graph=True)[0].square().sum(1)[0]
                for sign in signs
            ]
            maps.append(torch.stack(squares).mean(0).sqrt())
    return torch.stack(maps)
