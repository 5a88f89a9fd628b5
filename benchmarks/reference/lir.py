"""LIR's adaptive filter as the released code computes it: ten operators, one after the other, each times its number."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.models.blocks import mirror_pad
from lib.models.lir import OPERATOR_SCALE, OPERATORS, REACH, SIGMA, AdaptiveFilter


def reference(module: AdaptiveFilter, x: Tensor, separable: bool = False) -> Tensor:
    """The output of `module` for ``(B, C, H, W)``; `separable` gives the reference a Gaussian in two passes."""
    y = module.beta * x
    for alpha, operator in zip(module.alpha, OPERATORS, strict=False):
        kernel = OPERATOR_SCALE * x.new_tensor(operator)
        y = y + alpha * depthwise(x, kernel, padding=1)
    line = torch.exp(-(torch.arange(-REACH, REACH + 1).to(x) ** 2) / (2 * SIGMA**2))
    line = line / line.sum()
    padded = mirror_pad(x, (REACH,) * 4)
    if separable:
        blurred = depthwise(depthwise(padded, line[:, None]), line[None, :])
    else:
        blurred = depthwise(padded, torch.outer(line, line))
    return y + module.alpha[8] * (x - blurred)


def depthwise(x: Tensor, kernel: Tensor, padding: int = 0) -> Tensor:
    channels = x.shape[1]
    return F.conv2d(x, kernel.expand(channels, 1, *kernel.shape), padding=padding, groups=channels)
