r"""How much two positions of an image say about each other: mutual information, estimated from samples.

Mutual information does not change if either variable is transformed monotonically. So each variable's samples are
replaced by the normal quantiles of their ranks, and the two are then taken as jointly normal (the Gaussian copula: Ince
et al., Human Brain Mapping 2017), with correlation ρ:

    I = -1/2 log(1 - ρ²)    nats

As the number of samples n grows it is exact for every pair that monotone transformations make jointly normal, and a
lower bound for all others: a dependence without correlation of ranks, such as y = x², is not seen. Between independent
variables it finds about 1 / (2 n).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Largest square of a correlation; that of a position with itself is one.
LARGEST = 1 - 1e-6


def normal_scores(samples: Tensor) -> Tensor:
    """Samples ``(..., n)`` of a variable each -> the normal quantiles of their ranks, of mean square 1.

    Equal samples get theirs in any order.
    """
    n = samples.shape[-1]
    quantiles = torch.special.ndtri((torch.arange(n, dtype=torch.float64, device=samples.device) + 0.5) / n)
    quantiles = (quantiles / quantiles.square().mean().sqrt()).to(samples)
    return torch.empty_like(samples).scatter_(-1, samples.argsort(-1), quantiles.expand(samples.shape))


def mutual_information(first: Tensor, second: Tensor) -> Tensor:
    """Nats between all pairs of variables, ``(..., P, n)`` and ``(..., Q, n)`` normal scores -> ``(..., P, Q)``."""
    square = (first @ second.mT / first.shape[-1]).square_().clamp_max_(LARGEST)
    return square.neg_().log1p_().mul_(-0.5)
