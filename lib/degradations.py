"""Degradations, one function of a clean image each, built by name."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

#: A source of randomness: PyTorch's generator, or NumPy's where a paper used that.
Generator = torch.Generator | np.random.RandomState


class DegradationError(ValueError):
    """A degradation was asked for by an unknown name, with an unknown option or a value out of range."""


@dataclass(frozen=True)
class Degradation:
    """``degradation(clean, generator)``: the degraded version of a batch ``(B, C, H, W)``, float32 in [0, 1].

    scale: how many times smaller the degraded image is
    fresh: whether training degrades each crop anew; otherwise the whole image is degraded once, then cropped
    multiple: sides of the clean image must be multiples of this
    """

    scale: ClassVar[int] = 1
    fresh: ClassVar[bool] = True
    multiple: ClassVar[int] = 1

    def __call__(self, clean: Tensor, generator: Generator) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class GaussianNoise(Degradation):
    """White Gaussian noise, neither clipped nor rounded.

    sigma: standard deviation on the 0-255 scale; [low, high] draws one per image of the batch, uniformly
    """

    sigma: float | Sequence[float]

    def __post_init__(self):
        sigma = self.sigma if isinstance(self.sigma, Sequence) else (self.sigma, self.sigma)
        object.__setattr__(self, "sigma", tuple(sigma) if isinstance(self.sigma, Sequence) else self.sigma)

    def __call__(self, clean: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(clean.shape, generator=generator, device=generator.device)
        return clean + noise.to(clean.device) * self.sigma / 255


DEGRADATIONS = {"gaussian_noise": GaussianNoise}


def build(name: str, **options) -> Degradation:
    """Make the degradation `name`."""
    if name not in DEGRADATIONS:
        raise DegradationError(f"unknown degradation {name!r}; known: {', '.join(sorted(DEGRADATIONS))}")
    return DEGRADATIONS[name](**options)


def noise_generator(set: str, name: str, degradation: Mapping, realisation: int = 0) -> torch.Generator:
    """Generator"""
    key = repr((set, name, sorted(degradation.items()), realisation))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1)
