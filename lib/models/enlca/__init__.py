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
n1 = 2 %, n2 = 8 % in the paper ("paper"; that the negatives are as many as the positives is our reading).

Ours: the loss needs neither the sorted nor the stored matrix. The scores of a block of rows are made, their top ranks
selected (exp keeps the order, so scores are compared), and only the selected ones remembered; the gradient goes through
these alone. Where an image has too few pixels for the ranks, see `ranks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..blocks import CACHED_SCORES, Network, Trunk, conv

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

#: What `approximation` measures: kinds of features, factors k, numbers m of features; from how many draws and pixels.
KINDS = ("orthogonal", "random_signs", "gaussian")
AMPLIFICATIONS = (1, 2, 4, 6, 8, 10)
FEATURES = (16, 32, 64, 128, 256, 512, 1024)
DRAWS, PIXELS = 8, 256

#: Scores of a block on a GPU: many, for it waits for every operation to be started.
GPU_SCORES = 2**25

#: "paper": share of the pixels that are positive (n1), share that come before the negative ones (n2).
FRACTIONS = (0.02, 0.08)


class ENLCN(Trunk):
    """EDSR's large trunk with an attention module before the first and after every 8th residual block.

    every: residual blocks between two modules (8; the last comes after the last full group)
    the other options: see blocks.Trunk and ENLCA

    Any H, W >= 1.
    """

    def __init__(
        self,
        colors: int = 3,
        scale: int = 4,
        width: int = 256,
        blocks: int = 32,
        res_scale: float = 0.1,
        every: int = 8,
        k: float = 6.0,
        features: int = 128,
        orthogonal: bool = True,
        redraw: float | None = REDRAW,
        exact: bool = False,
        contrastive: bool = True,
        contrastive_ranks: str = "official",
        contrastive_weight: float = 1e-3,
        contrastive_start: float = CONTRASTIVE_START,
        margin: float = 1.0,
        image_skip: bool = False,
        max_scores: int | None = None,
    ):
        super().__init__(
            colors,
            width,
            blocks,
            scale=scale,
            res_scale=res_scale,
            attention=lambda width: ENLCA(
                width,
                k=k,
                features=features,
                orthogonal=orthogonal,
                redraw=redraw,
                exact=exact,
                contrastive=contrastive,
                contrastive_ranks=contrastive_ranks,
                contrastive_weight=contrastive_weight,
                contrastive_start=contrastive_start,
                margin=margin,
                branch_scale=res_scale,
                max_scores=max_scores,
            ),
            positions=range(0, blocks + 1, every),
            image_skip=image_skip,
            mean_shift=True,
        )
        self.sub_mean, self.add_mean = (nn.Conv2d(3, 3, 1).requires_grad_(False) for _ in range(2))

    @torch.no_grad()
    def mechanism(self, image: Tensor, points: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """What the pixels of one image ``(1, colors, H, W)`` attend to; one leading entry per attention module.

        features, exact: (modules, points, H, W), the weights of `points` by random features and by softmax
        entropy_features, entropy_exact: (modules, H, W), entropy of each pixel's weights in nats, from 0 (one pixel) to
            log(H W) (all alike)
        k, m: (modules,), the amplification factors and numbers of features
        further ones: see `approximation`; on at most PIXELS pixels, evenly spaced
        """
        seen = [
            {"k": torch.tensor(module.k), "m": torch.tensor(len(module.projection_matrix))}
            | module.weights(features, points)
            | module.approximation(features)
            for module, features in self.attended(image)
        ]
        return {key: torch.stack([shown[key] for shown in seen]) for key in seen[0]}


class ENLCA(Network):
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
    max_scores: largest number of scores that the loss and a report hold at a time (at least one row: all pixels); None
        is CACHED_SCORES, on a GPU GPU_SCORES

    F is the buffer ``projection_matrix`` (m, width / 4): a part of the state dict, as test time uses the features of
    training. Raises ValueError for an unknown name of ranks.
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
        contrastive_ranks: str = "official",
        contrastive_weight: float = 1e-3,
        contrastive_start: float = CONTRASTIVE_START,
        margin: float = 1.0,
        branch_scale: float = 0.1,
        max_scores: int | None = None,
    ):
        super().__init__()
        if contrastive_ranks not in ("official", "paper"):
            raise ValueError(f"contrastive_ranks {contrastive_ranks!r} is not one of 'official', 'paper'")
        inner = width // 4
        self.theta, self.g, self.f = conv(width, inner, 1), conv(width, inner, 1), conv(width, width, 1)
        self.k, self.orthogonal, self.redraw, self.exact, self.branch_scale = k, orthogonal, redraw, exact, branch_scale
        self.contrastive, self.contrastive_ranks, self.margin = contrastive, contrastive_ranks, margin
        self.contrastive_weight, self.contrastive_start = contrastive_weight, contrastive_start
        self.max_scores = max_scores
        # Draw number i of this module is a function of (seed, i): a run that resumes finds the same features.
        self.seed, self.drawn = int(torch.randint(2**62, (), device="cpu")), 0
        self.register_buffer("projection_matrix", random_features(features, inner, orthogonal, self._generator()))
        self.contrasts = contrastive and contrastive_start <= 0
        self.loss: Tensor | float = 0.0

    def start_step(self, progress: float, generator: torch.Generator) -> None:
        self.contrasts = self.contrastive and progress >= self.contrastive_start
        number = int(progress / self.redraw) if self.redraw else 0
        if number != self.drawn:
            self.drawn = number
            self.projection_matrix.copy_(
                random_features(*self.projection_matrix.shape, self.orthogonal, self._generator())
            )

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + self.drawn)

    def auxiliary_loss(self) -> Tensor | float:
        return self.loss

    def forward(self, x: Tensor) -> Tensor:
        q, key, v = self.embed(x)
        self.loss = self.contrastive_weight * self.contrastive_loss(q, key) if self.training and self.contrasts else 0.0
        mixed = _softmax_attention(q, key, v) if self.exact else self.linear_attention(q, key, v)
        return x + self.branch_scale * mixed.mT.unflatten(2, x.shape[2:])

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key ``(B, HW, width / 4)`` of length √k and value ``(B, HW, width)``."""
        q, key, v = (layer(x).flatten(2).mT for layer in (self.theta, self.g, self.f))
        amplified = (math.sqrt(self.k) * F.normalize(t, dim=2, eps=SMALLEST_NORM) for t in (q, key))
        return *amplified, v

    def phi(self, u: Tensor) -> Tensor:
        """Random features ``(B, N, m)`` of vectors ``(B, N, d)`` of length √k."""
        return _phi(u, self.projection_matrix, self.k)

    def linear_attention(self, q: Tensor, key: Tensor, v: Tensor) -> Tensor:
        return _linear_attention(self.phi(q), self.phi(key), v)

    def _most_scores(self, x: Tensor) -> int:
        return self.max_scores or (GPU_SCORES if x.is_cuda else CACHED_SCORES)

    def contrastive_loss(self, q: Tensor, key: Tensor) -> Tensor:
        positive, negative = ranks(self.contrastive_ranks, q.shape[1])
        scores = _RankedScores.apply(q, key, len(positive), negative.start, self._most_scores(q))
        related, unrelated = scores.exp().chunk(2, 2)
        return F.relu(self.margin - torch.log(related.mean(2) / (unrelated.mean(2) + 1e-6))).mean()

    @torch.no_grad()
    def weights(self, x: Tensor, points: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """As ENLCN.mechanism, for features x ``(1, width, H, W)`` of this module."""
        q, key, _ = (t[0] for t in self.embed(x))
        phi_key = self.phi(key)
        kernels = {"features": lambda u: self.phi(u) @ phi_key.T, "exact": lambda u: torch.exp(u @ key.T)}
        chosen = torch.tensor([row * x.shape[3] + column for row, column in points])
        shown = {}
        for name, kernel in kernels.items():
            blocks = [_shares(kernel(block)) for block in q.split(max(1, self._most_scores(q) // len(q)))]
            shown[name] = _shares(kernel(q[chosen])).unflatten(1, x.shape[2:])
            shown[f"entropy_{name}"] = torch.cat([torch.special.entr(w).sum(1) for w in blocks]).view(x.shape[2:])
        return shown

    @torch.no_grad()
    def approximation(self, x: Tensor) -> dict[str, Tensor]:
        """As the function of that name, for features x ``(1, width, H, W)`` of this module."""
        q, key, v = (t[0] for t in self.embed(x))
        chosen = torch.linspace(0, len(q) - 1, min(len(q), PIXELS)).long()
        return approximation(*(F.normalize(t[chosen], dim=1) for t in (q, key)), v[chosen])


#: Makes the module for the common trunk.
attention = ENLCA


def _shares(scores: Tensor) -> Tensor:
    return scores / scores.sum(1, keepdim=True)


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


def approximation(q: Tensor, key: Tensor, v: Tensor) -> dict[str, Tensor]:
    """How far random features are from the softmax, for unit vectors q, key ``(N, d)`` and values v ``(N, C)``.

    For each of KINDS, a row for each amplification `at_k`, a column for each number of features `at_m`:
    error_<kind>: |y_features - y| / |y| of the attention's output y, median over pixels and draws
    log_variance_<kind>: log of the mean over draws of (φ(q)·φ(key) / exp(q·key) - 1)², median over pairs of pixels
    log_variance_expected: what the last is over all draws of plain Gaussian features that there could be,
        log((exp(|q + key|²) - 1) / m). A few draws miss the rare large features that it consists of.

    Random signs make the rows of orthogonal features uniform in direction: a QR decomposition alone leaves the signs
    to its algorithm, which fixes that of some entries.
    """
    found = {"at_k": torch.tensor(AMPLIFICATIONS), "at_m": torch.tensor(FEATURES)}
    amplified = [(k, *(math.sqrt(k) * t for t in (q, key))) for k in AMPLIFICATIONS]
    for kind in KINDS:
        draws = [_features_of_kind(kind, max(FEATURES), q.shape[1], draw) for draw in range(DRAWS)]
        measured = [[_deviation(a, b, v, k, [rows[:m] for rows in draws]) for m in FEATURES] for k, a, b in amplified]
        found[f"error_{kind}"], variance = torch.tensor(measured).unbind(2)
        found[f"log_variance_{kind}"] = variance.log()
    strength = torch.stack([(a[:, None] + b).square().sum(2).median() for _, a, b in amplified]).double()
    found["log_variance_expected"] = (strength.expm1()[:, None] / found["at_m"]).log().float()
    return found


def _features_of_kind(kind: str, features: int, inner: int, draw: int) -> Tensor:
    generator = torch.Generator().manual_seed(draw)
    rows = random_features(features, inner, kind != "gaussian", generator)
    signs = torch.randint(2, (features, 1), generator=generator) * 2 - 1
    return rows * signs if kind == "random_signs" else rows


def _deviation(q: Tensor, key: Tensor, v: Tensor, k: float, draws: Sequence[Tensor]) -> tuple[float, float]:
    """Median relative error of the output, median over pairs of the kernel's mean squared relative error."""
    exact, kernel = _softmax_attention(q[None], key[None], v[None])[0], torch.exp(q @ key.T)
    errors, squares = [], torch.zeros_like(kernel)
    for projection in draws:
        phi_q, phi_key = _phi(q, projection, k), _phi(key, projection, k)
        output = _linear_attention(phi_q[None], phi_key[None], v[None])[0]
        errors.append((output - exact).norm(dim=1) / exact.norm(dim=1))
        squares += (phi_q @ phi_key.T / kernel - 1).square() / len(draws)
    return float(torch.cat(errors).median()), float(squares.median())


def _phi(u: Tensor, projection: Tensor, k: float) -> Tensor:
    return (torch.exp(u @ projection.T - k / 2) + OFFSET) / math.sqrt(len(projection))


def _linear_attention(phi_q: Tensor, phi_key: Tensor, v: Tensor) -> Tensor:
    mixed = phi_q @ (phi_key.mT @ v)
    return mixed / (phi_q @ phi_key.sum(1)[:, :, None])


def _softmax_attention(q: Tensor, key: Tensor, v: Tensor) -> Tensor:
    # The fused kernel takes contiguous tensors of one number of channels; zeros change no score.
    missing = v.shape[2] - q.shape[2]
    q, key, v = (t.contiguous()[:, None] for t in (F.pad(q, (0, missing)), F.pad(key, (0, missing)), v))
    return F.scaled_dot_product_attention(q, key, v, scale=1.0)[:, 0]


class _RankedScores(torch.autograd.Function):
    """Scores q key^T of every row, without the matrix: of ranks 0 to count - 1 and from `start`, as many, in descending
    order; ``(B, N, 2 count)`` for q, key ``(B, N, d)``. The gradient goes to the pairs that were selected.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, q, key, count, start, max_scores):
        pixels = key.shape[1]
        images = max(1, max_scores // pixels**2)
        rows = max(1, max_scores // (images * pixels))
        ranked = []
        for some, keys in zip(q.split(images), key.split(images), strict=True):
            for block in some.split(rows, 1):
                largest = _largest((block @ keys.mT).flatten(0, 1), start + count)
                ranked.append([torch.cat([t[:, :count], t[:, start:]], 1) for t in largest])
        values, chosen = (torch.cat(parts).unflatten(0, q.shape[:2]) for parts in zip(*ranked, strict=True))
        ctx.save_for_backward(q, key, chosen)
        ctx.max_scores = max_scores
        return values

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    @once_differentiable
    def backward(ctx, grad):
        q, key, chosen = ctx.saved_tensors
        images, pixels, _ = q.shape
        q, key, grad = (t.flatten(0, 1) for t in (q, key, grad))
        picked = (chosen + pixels * torch.arange(images, device=q.device)[:, None, None]).flatten(0, 1)
        to_q, to_key = (torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (q, key))
        rows = max(1, ctx.max_scores // (picked.shape[1] * q.shape[1]))
        for first in range(0, len(q), rows):
            some = slice(first, first + rows)
            to_q[some] = (grad[some, None] @ key[picked[some]])[:, 0]
            to_key.index_add_(0, picked[some].flatten(), (grad[some, :, None] * q[some, None]).flatten(0, 1))
        return to_q.unflatten(0, (images, pixels)), to_key.unflatten(0, (images, pixels)), None, None, None


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row, in descending order, and their columns.

    They lie in the `count` groups of columns with the largest maxima (a maximum is cheap, a CPU's selection is not);
    columns left over by the grouping are always looked at.
    """
    total = scores.shape[1]
    size = math.isqrt(total // count)
    if size < 2 or scores.is_cuda:
        return scores.topk(count, 1)
    groups = total // size
    maxima = scores[:, : groups * size].unflatten(1, (size, groups)).amax(1)
    chosen = maxima.topk(count, 1, sorted=False).indices
    members = chosen[:, None] + groups * torch.arange(size, device=scores.device)[:, None]
    others = torch.arange(groups * size, total, device=scores.device).expand(len(scores), -1)
    columns = torch.cat([members.flatten(1), others], 1)
    top = scores.gather(1, columns).topk(count, 1)
    return top.values, columns.gather(1, top.indices)


network = ENLCN
