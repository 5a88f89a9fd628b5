r"""NLSN: non-local sparse attention, which chooses keys by locality-sensitive hashing.

Mei, Fan, Zhou, "Image Super-Resolution with Non-Local Sparse Attention", CVPR 2021.

Pixels p of the features x get a hash, the nearest of m directions on the sphere, after a random rotation R:

    h(p) = argmax [ R θ(x)_p ; -R θ(x)_p ]

They are sorted by it and cut into buckets of equal size b; a pixel attends to its own bucket and the two beside it, in
the sorted order, which closes to a ring. Of several rounds with rotations of their own each counts as much as the
scores that it found, as in the Reformer (Kitaev et al., ICLR 2020):

    y_p = x_p + c Σ_r s_r Σ_j softmax_j(S_pj) g(x)_j,    S_pj = θ(x)_p · θ(x)_j / |θ(x)_j|
    s = softmax_r( logsumexp_j S_pj )

θ is a 3x3 convolution to width / 4 channels, g a 1x1 one. From the paper: hashing on the sphere, buckets of 144 with
their neighbours, 4 rounds, modules after every 8th of 32 residual blocks. Ours, where the paper leaves it open: one θ
for queries and keys, unit keys, m (at most MOST_HASHES, about as many as buckets), rotations that are drawn once and
kept, so that an image is restored alike every time, the last bucket filled by its last pixels once more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import Attention, Trunk, conv, positive

#: Most directions of a hash.
MOST_HASHES = 128

#: Smallest length of a vector before it is normalised.
SMALLEST_NORM = 5e-5


class NLSA(Attention):
    """Non-local sparse attention ``(B, width, H, W)`` -> the same shape, identity included (equations: top of this
    file); any H, W >= 1.

    reduction: width / channels of queries and keys
    rounds: hashes with rotations of their own
    bucket: pixels of one bucket
    branch_scale: factor c of the attention branch

    The rotations are the buffer ``rotations`` (rounds, width / reduction, MOST_HASHES / 2).
    """

    rotations: Tensor

    def __init__(self, width: int, reduction: int = 4, rounds: int = 4, bucket: int = 144, branch_scale: float = 1.0):
        super().__init__()
        positive(reduction=reduction, rounds=rounds, bucket=bucket, branch_scale=branch_scale)
        if reduction > width:
            raise ValueError(f"reduction {reduction} leaves no channel of {width}")
        inner = width // reduction
        self.theta, self.g = conv(width, inner), conv(width, width, 1)
        self.bucket, self.branch_scale = bucket, branch_scale
        self.register_buffer("rotations", torch.randn(rounds, inner, MOST_HASHES // 2, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        q, key, v = self.embed(x)
        order = self.order(q)
        with torch.autocast(x.device.type, enabled=False):
            rounds = [in_buckets(q, key, v, one, self.size(q)) for one in order.unbind(1)]
            shares = torch.stack([strength for _, strength in rounds], 2).softmax(2)
            mixed = (torch.stack([means for means, _ in rounds], 2) * shares[..., None]).sum(2)
        return x + self.branch_scale * mixed.mT.unflatten(2, x.shape[2:])

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, unit key ``(B, HW, inner)`` and value ``(B, HW, width)``, float32 or better: they decide ranks."""
        exact = torch.promote_types(x.dtype, torch.float32)
        q, v = (layer(x).flatten(2).mT.to(exact) for layer in (self.theta, self.g))
        return q, F.normalize(q, dim=2, eps=SMALLEST_NORM), v

    def size(self, q: Tensor) -> int:
        """Pixels of a bucket: those of the image where it has no more."""
        return min(self.bucket, q.shape[1])

    def order(self, q: Tensor) -> Tensor:
        """The pixels ``(B, rounds, HW)`` in the order of their hashes, those of one hash in the image's."""
        directions = max(1, min(MOST_HASHES // 2, -(-q.shape[1] // self.size(q)) // 2))
        with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
            turned = q[:, None] @ self.rotations[:, :, :directions].to(q.dtype)
            return torch.cat([turned, -turned], 3).argmax(3).argsort(dim=2, stable=True)


def in_buckets(q: Tensor, key: Tensor, v: Tensor, order: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Means of values ``(B, N, C)`` over each query's bucket and the two beside it, and the logsumexp ``(B, N)`` of its
    scores; buckets are `size` successive pixels of `order` ``(B, N)``."""
    pixels = order.shape[1]
    missing = -pixels % size
    filled = torch.cat([order, order[:, pixels - missing :]], 1)  # the last bucket, by its last pixels once more
    q, key, v = (torch.take_along_dim(t, filled[..., None], 1).unflatten(1, (-1, size)) for t in (q, key, v))
    key, v = (torch.cat([t.roll(1, 1), t, t.roll(-1, 1)], 2) for t in (key, v))
    scores = q @ key.mT
    strength = scores.logsumexp(3)
    mixed = torch.exp(scores - strength[..., None]) @ v
    back = order.argsort(1)
    mixed, strength = mixed.flatten(1, 2)[:, :pixels], strength.flatten(1, 2)[:, :pixels]
    return torch.take_along_dim(mixed, back[..., None], 1), torch.take_along_dim(strength, back, 1)


class NLSN(Trunk):
    """EDSR's large trunk with a module before the first and after every 8th residual block.

    every: residual blocks between two modules; the other options: see blocks.Trunk and NLSA
    """

    options_of = NLSA

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
            attention=lambda width: NLSA(width, **attention),
            positions=range(0, blocks + 1, every),
            image_skip=image_skip,
            mean_shift=True,
        )


network, attention = NLSN, NLSA
