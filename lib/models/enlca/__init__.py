r"""ENLCN: efficient non-local contrastive attention for super-resolution.

Xia et al., "Efficient Non-Local Contrastive Attention for Image Super-Resolution", AAAI 2022, arXiv 2201.03794.

Efficient non-local attention (ENLA) of every pixel to every pixel, with unit vectors amplified by k (the larger k, the
fewer pixels get a share), and the softmax's kernel replaced by m positive random features:

    q = √k θ(x)/|θ(x)|,  key = √k g(x)/|g(x)|,  v = f(x)                                 (1x1 convolutions, q·key in ±k)
    exp(q·key) ≈ φ(q)·φ(key),  φ(u) = m^(-1/2) (exp(F u - |u|²/2) + 1e-4)
    y_p = x_p + 0.1 φ(q_p)·(Σ_j φ(key_j) v_j^T) / (φ(q_p)·Σ_j φ(key_j))

so that time and memory are linear in the number of pixels. F (m x d) stacks blocks of orthonormal rows, each row scaled
by the length of another Gaussian vector. The contrastive loss (ENLCA) separates related from unrelated pixels. With row
i of exp(q·key) sorted in descending order, T_i:

    L_cl = mean_i max(0, margin - log( mean(T_i[positive ranks]) / (mean(T_i[negative ranks]) + 1e-6) ))

Ranks: 0-14 and 50-64 in the released code ("official"); the fractions [0, n1) and [n2, n1 + n2) of all pixels with
n1 = 2 %, n2 = 8 % in the paper ("paper"; as many negatives as positives is our reading). Where an image has too few
pixels for the ranks, see `ranks`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import Attention, Trunk, conv, positive
from .ranked_scores import ranked_scores
from .softmax_attention import softmax_attention

#: Tensors of the released checkpoints that no computation reads, frozen: a mean shift as two convolutions, whose
#: constants blocks.Trunk holds. Kept for the count of the parameters.
UNUSED = ("sub_mean", "add_mean")

#: Smallest length of a vector before it is normalised, and the features' offset; both from the released code.
SMALLEST_NORM = 5e-5
OFFSET = 1e-4

#: The released code draws new features every 640 of 1,000,000 iterations.
REDRAW = 640 / 1_000_000

#: Contrastive loss: released from epoch 100 of 1000 on.
CONTRASTIVE_START = 0.1

#: "paper": share of the pixels that are positive (n1), share that come before the negative ones (n2).
FRACTIONS = (0.02, 0.08)


class ENLCA(Attention):
    """Efficient non-local contrastive attention ``(B, width, H, W)`` -> the same shape, identity included.

    k: amplification factor, q·key is in [-k, k]
    features: number m of random features
    orthogonal: rows of F orthonormal in blocks before they are scaled; False: plain Gaussian features
    redraw: fraction of the run after which F is drawn anew; None: F stays as it was made
    exact: softmax(q key^T) v itself, which the features approximate
    contrastive: whether there is a contrastive loss; computed in training mode only
    contrastive_ranks: "official" or "paper" (top of this file)
    contrastive_weight, margin: weight and margin of the loss
    contrastive_start: finished fraction of the run at which the loss begins
    branch_scale: factor of the attention branch
    max_scores: largest number of scores that the loss holds at a time; see `ranked_scores`

    F is the buffer ``projection_matrix`` (m, width / 4): a part of the state dict, as test time uses the features of
    training.
    """

    def __init__(
        self,
        width: int,
        k: float = 6.0,
        features: int = 128,
        orthogonal: bool = True,
        redraw: float | None = REDRAW,
        exact: bool = False,
        contrastive: bool = True,
        contrastive_ranks: Literal["official", "paper"] = "official",
        contrastive_weight: float = 1e-3,
        contrastive_start: float = CONTRASTIVE_START,
        margin: float = 1.0,
        branch_scale: float = 0.1,
        max_scores: int | None = None,
    ):
        super().__init__()
        positive(k=k, features=features, redraw=redraw, branch_scale=branch_scale, max_scores=max_scores)
        if not 0 <= contrastive_start <= 1:
            raise ValueError(f"contrastive_start {contrastive_start} does not lie in 0..1, the fraction of a run")
        inner = width // 4
        self.theta, self.g, self.f = conv(width, inner, 1), conv(width, inner, 1), conv(width, width, 1)
        self.k, self.orthogonal, self.redraw, self.exact, self.branch_scale = k, orthogonal, redraw, exact, branch_scale
        self.contrastive, self.contrastive_ranks, self.margin = contrastive, contrastive_ranks, margin
        self.contrastive_weight, self.contrastive_start = contrastive_weight, contrastive_start
        self.max_scores = max_scores
        # Draw number i of this module is a function of (seed, i): a run that resumes finds the same features.
        self.seed, self.drawn = int(torch.randint(2**62, (), device="cpu")), 0
        self.projection_matrix: Tensor
        self.register_buffer("projection_matrix", random_features(features, inner, orthogonal, self._generator()))
        self.contrasts = contrastive and contrastive_start <= 0
        self.loss: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        q, key, v = self.embed(x)
        self.loss = self.contrastive_weight * self.contrastive_loss(q, key) if self.training and self.contrasts else 0.0
        mixed = softmax_attention(q, key, v) if self.exact else linear_attention(self.phi(q), self.phi(key), v)
        return x + self.branch_scale * mixed.mT.unflatten(2, x.shape[2:])

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key ``(B, HW, width / 4)`` of length √k and value ``(B, HW, width)``."""
        q, key, v = (layer(x).flatten(2).mT for layer in (self.theta, self.g, self.f))
        amplified = (math.sqrt(self.k) * F.normalize(t, dim=2, eps=SMALLEST_NORM) for t in (q, key))
        return *amplified, v

    def phi(self, u: Tensor) -> Tensor:
        """Random features ``(B, N, m)`` of vectors ``(B, N, d)`` of length √k."""
        return phi(u, self.projection_matrix, self.k)

    def contrastive_loss(self, q: Tensor, key: Tensor) -> Tensor:
        positive, negative = ranks(self.contrastive_ranks, q.shape[1])
        with torch.autocast(q.device.type, enabled=False):  # ranks are decided by differences
            q, key = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (q, key))
            related, unrelated = (t.mean(2) for t in ranked_scores(q, key, positive, negative, self.max_scores))
            return F.relu(self.margin - torch.log(related / (unrelated + 1e-6))).mean()

    def auxiliary_loss(self) -> Tensor | float:
        return self.loss

    def start_step(self, progress: float, generator: torch.Generator) -> None:
        self.contrasts = self.contrastive and progress >= self.contrastive_start
        number = int(progress / self.redraw) if self.redraw else 0
        if number != self.drawn:
            self.drawn = number
            features, inner = self.projection_matrix.shape
            self.projection_matrix.copy_(random_features(features, inner, self.orthogonal, self._generator()))

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + self.drawn)


class ENLCN(Trunk):
    """EDSR's large trunk with an attention module before the first and after every 8th residual block.

    every: residual blocks between two modules (8; the last comes after the last full group)
    res_scale: of the residual blocks and, unless `branch_scale` says otherwise, of the attention
    the other options: see blocks.Trunk and ENLCA

    Any H, W >= 1.
    """

    options_of = ENLCA

    def __init__(
        self,
        colors: int = 3,
        scale: int = 4,
        width: int = 256,
        blocks: int = 32,
        res_scale: float = 0.1,
        every: int = 8,
        image_skip: bool = False,
        **attention,
    ):
        attention = {"branch_scale": res_scale, **attention}
        positive(every=every)
        super().__init__(
            colors,
            width,
            blocks,
            scale=scale,
            res_scale=res_scale,
            attention=lambda width: ENLCA(width, **attention),
            positions=range(0, blocks + 1, every),
            image_skip=image_skip,
            mean_shift=True,
        )
        self.sub_mean, self.add_mean = (nn.Conv2d(3, 3, 1).requires_grad_(False) for _ in range(2))


def phi(u: Tensor, projection: Tensor, k: float) -> Tensor:
    """Features ``(.., m)`` of vectors ``(.., d)`` of length √k, positive and so that exp(q·key) ≈ φ(q)·φ(key)."""
    return (torch.exp(u @ projection.T - k / 2) + OFFSET) / math.sqrt(len(projection))


def linear_attention(phi_q: Tensor, phi_key: Tensor, v: Tensor) -> Tensor:
    """Means of the values ``(B, N, C)``, weighted by φ(q)·φ(key), in an order that is linear in N."""
    mixed = phi_q @ (phi_key.mT @ v)
    return mixed / (phi_q @ phi_key.sum(1)[:, :, None])


def random_features(features: int, inner: int, orthogonal: bool, generator: torch.Generator) -> Tensor:
    """F ``(features, inner)``: Gaussian rows, or blocks of up to `inner` orthonormal rows scaled by the lengths of
    other Gaussian rows."""
    gaussian = torch.randn(features, inner, generator=generator, device="cpu")
    if not orthogonal:
        return gaussian
    blocks = torch.randn(math.ceil(features / inner), inner, inner, generator=generator, device="cpu")
    rows = torch.linalg.qr(blocks).Q.mT.flatten(0, 1)[:features]
    return rows * gaussian.norm(dim=1, keepdim=True)


def ranks(rule: str, pixels: int) -> tuple[range, range]:
    """Ranks of the positive and of the negative scores among `pixels`, each at least one.

    Where an image has too few pixels, the negative ranks are moved down to the last ones and both are cut to at most
    half of the pixels, so that they never overlap; a single pixel is both.
    """
    if rule == "official":
        count, start = 15, 50
    else:
        count, start = (max(1, round(share * pixels)) for share in FRACTIONS)
    count = max(1, min(count, pixels // 2))
    start = min(start, pixels - count)
    return range(count), range(start, start + count)


network = ENLCN
attention = ENLCA
