"""ENLCN: where its pixels look, and how far the random features are from the softmax that they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.blocks import CACHED_SCORES
from ..models.enlca import ENLCA, ENLCN, linear_attention, phi, random_features
from ..models.enlca.softmax_attention import softmax_attention
from . import attended

#: Measured by `approximation`: kinds of features, factors k, numbers m of features; numbers of draws and pixels.
KINDS = ("orthogonal", "random_signs", "gaussian")
AMPLIFICATIONS = (1, 2, 4, 6, 8, 10)
FEATURES = (16, 32, 64, 128, 256, 512, 1024)
DRAWS, PIXELS = 8, 256


@torch.no_grad()
def mechanism(network: ENLCN, image: Tensor, points: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """Where the pixels of one image ``(1, colors, H, W)`` look; one leading entry per attention module.

    features, exact: (modules, points, H, W), the weights of `points` by random features and by softmax
    entropy_features, entropy_exact: (modules, H, W), entropy of each pixel's weights in nats, from 0 (one pixel) to
        log(H W) (all alike)
    k, m: (modules,), the amplification factors and numbers of features
    further ones: see `approximation`; on at most PIXELS pixels, evenly spaced
    """
    size = image.shape[2:]
    chosen = torch.tensor([row * size[1] + column for row, column in points])
    shown = []
    for module, x in attended(network, image):
        assert isinstance(module, ENLCA)
        found = {"k": torch.tensor(module.k), "m": torch.tensor(len(module.projection_matrix))}
        for name, rows in (("features", weights_of_features), ("exact", weights)):
            found[name] = rows(module, x, chosen)[0].unflatten(1, size)
            found[f"entropy_{name}"] = torch.cat([entropy(block) for block in in_blocks(rows, module, x)]).view(size)
        shown.append(found | approximation_in(module, x))
    return {key: torch.stack([found[key] for found in shown]) for key in shown[0]}


@torch.no_grad()
def weights(module: ENLCA, x: Tensor, queries: Tensor | None = None) -> Tensor:
    """softmax(q·key), which the features stand for, ``(1, Q, HW)``; see `lib.insights.weights`."""
    q, key, _ = module.embed(x)
    return torch.softmax((q if queries is None else q[:, queries]) @ key.mT, 2)


@torch.no_grad()
def weights_of_features(module: ENLCA, x: Tensor, queries: Tensor | None = None) -> Tensor:
    """φ(q)·φ(key), each row divided by its sum, ``(1, Q, HW)``."""
    q, key, _ = module.embed(x)
    kernel = module.phi(q if queries is None else q[:, queries]) @ module.phi(key).mT
    return kernel / kernel.sum(2, keepdim=True)


def in_blocks(rows: Callable[..., Tensor], module: ENLCA, x: Tensor) -> Iterator[Tensor]:
    """The weights ``(Q, HW)`` of all pixels by `rows`, a few queries at a time."""
    pixels = x.shape[2] * x.shape[3]
    for queries in torch.arange(pixels, device=x.device).split(max(1, CACHED_SCORES // pixels)):
        yield rows(module, x, queries)[0]


def entropy(weights: Tensor) -> Tensor:
    """In nats, of each row."""
    return torch.special.entr(weights).sum(1)


@torch.no_grad()
def approximation_in(module: ENLCA, x: Tensor) -> dict[str, Tensor]:
    """`approximation` for features x ``(1, width, H, W)`` of a module."""
    q, key, v = (t[0] for t in module.embed(x))
    chosen = torch.linspace(0, len(q) - 1, min(len(q), PIXELS)).long()
    return approximation(F.normalize(q[chosen], dim=1), F.normalize(key[chosen], dim=1), v[chosen])


def approximation(q: Tensor, key: Tensor, v: Tensor) -> dict[str, Tensor]:
    """How far random features are from the softmax, for unit vectors q, key ``(N, d)`` and values v ``(N, C)``.

    For each of KINDS, a row for each amplification `at_k`, a column for each number of features `at_m`:
    error_<kind>: |y_features - y| / |y| of the attention's output y, median over pixels and draws
    log_variance_<kind>: log of the mean over draws of (φ(q)·φ(key) / exp(q·key) - 1)², median over pairs of pixels
    log_variance_expected: the same over all possible draws of plain Gaussian features, log((exp(|q + key|²) - 1) / m);
        most of it comes from rare large features, which a few draws miss

    Random signs make the rows of orthogonal features uniform in direction: a QR decomposition alone leaves the signs
    to its algorithm, which fixes that of some entries.
    """
    found = {"at_k": torch.tensor(AMPLIFICATIONS), "at_m": torch.tensor(FEATURES)}
    amplified = [(k, math.sqrt(k) * q, math.sqrt(k) * key) for k in AMPLIFICATIONS]
    for kind in KINDS:
        draws = [features_of_kind(kind, max(FEATURES), q.shape[1], draw) for draw in range(DRAWS)]
        measured = [[deviation(a, b, v, k, [rows[:m] for rows in draws]) for m in FEATURES] for k, a, b in amplified]
        found[f"error_{kind}"], variance = torch.tensor(measured).unbind(2)
        found[f"log_variance_{kind}"] = variance.log()
    strength = torch.stack([(a[:, None] + b).square().sum(2).median() for _, a, b in amplified]).double()
    found["log_variance_expected"] = (strength.expm1()[:, None] / found["at_m"]).log().float()
    return found


def features_of_kind(kind: str, features: int, inner: int, draw: int) -> Tensor:
    generator = torch.Generator().manual_seed(draw)
    rows = random_features(features, inner, kind != "gaussian", generator)
    signs = torch.randint(2, (features, 1), generator=generator) * 2 - 1
    return rows * signs if kind == "random_signs" else rows


def deviation(q: Tensor, key: Tensor, v: Tensor, k: float, draws: Sequence[Tensor]) -> tuple[float, float]:
    """Median relative error of the output, median over pairs of the kernel's mean squared relative error."""
    exact, kernel = softmax_attention(q[None], key[None], v[None])[0], torch.exp(q @ key.T)
    errors, squares = [], torch.zeros_like(kernel)
    for projection in draws:
        phi_q, phi_key = phi(q, projection, k), phi(key, projection, k)
        output = linear_attention(phi_q[None], phi_key[None], v[None])[0]
        errors.append((output - exact).norm(dim=1) / exact.norm(dim=1))
        squares += (phi_q @ phi_key.T / kernel - 1).square() / len(draws)
    return float(torch.cat(errors).median()), float(squares.median())
