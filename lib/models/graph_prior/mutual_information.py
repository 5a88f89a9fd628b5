r"""How much two positions of an image say about each other: mutual information, estimated from their features.

The samples of a position are its features and those of the image moved by up to a pixel, each channel standardised over
the image: else any two positions would be alike in that some channels are larger than others everywhere. Mutual
information does not change under strictly monotone maps of either variable. So samples are replaced by the normal
quantiles of their ranks, and the two variables are then taken as jointly normal (the Gaussian copula: Ince et al.,
Human Brain Mapping 2017), with correlation ρ:

    I = -1/2 log(1 - ρ²)    nats

As the number of independent samples n grows it is exact for every pair that monotone maps make jointly normal, and a
lower bound for all others: a dependence without correlation of ranks, such as y = x², is not seen. With few it is too
large, by about 1 / (2 n). Neighbouring shifts share most of what they see, so that n is far below channels x shifts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Largest square of a correlation; that of a position with itself is one.
LARGEST = 1 - 1e-6


def scores_of_positions(x: Tensor) -> Tensor:
    """The normal scores of every position of features ``(B, width, H, W)``: ``(B, HW, 9 width)``.

    Convolutions move with the image, so that the features of a moved image are the neighbours' features; at the border,
    where they are not, the features are continued.
    """
    x = x - x.mean((2, 3), keepdim=True)
    x = x / x.square().mean((2, 3), keepdim=True).sqrt().clamp_min(torch.finfo(x.dtype).tiny)
    return normal_scores(F.unfold(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3).mT)


def normal_scores(samples: Tensor) -> Tensor:
    """Samples ``(..., n)`` of a variable each -> the normal quantiles of their ranks, of mean square 1.

    Of equal samples the first has the lower rank.
    """
    n = samples.shape[-1]
    quantiles = torch.special.ndtri((torch.arange(n, dtype=torch.float64, device=samples.device) + 0.5) / n)
    quantiles = (quantiles / quantiles.square().mean().sqrt()).to(samples)
    order = samples.argsort(dim=-1, stable=True)
    return torch.empty_like(samples).scatter_(-1, order, quantiles.expand(samples.shape))


def mutual_information(first: Tensor, second: Tensor) -> Tensor:
    """Nats between all pairs of variables, ``(..., P, n)`` and ``(..., Q, n)`` normal scores -> ``(..., P, Q)``."""
    square = (first @ second.mT / first.shape[-1]).square_().clamp_max_(LARGEST)
    return square.neg_().log1p_().mul_(-0.5)
