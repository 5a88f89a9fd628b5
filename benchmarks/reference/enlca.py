"""ENLCA as the released code computes it: the whole score matrix, exponentiated and sorted, for the loss."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.models.enlca import ENLCA, OFFSET, SMALLEST_NORM, ranks


def reference(module: ENLCA, x: Tensor, contrast: bool = True) -> tuple[Tensor, Tensor | None]:
    """Output and, with `contrast`, unweighted contrastive loss of `module` with its weights for features
    ``(B, width, H, W)``."""
    q, key, v = (layer(x).flatten(2).mT for layer in (module.theta, module.g, module.f))
    q, key = (math.sqrt(module.k) * F.normalize(t, dim=2, eps=SMALLEST_NORM) for t in (q, key))
    mixed = torch.softmax(q @ key.mT, 2) @ v if module.exact else linear_attention(module, q, key, v)
    return x + module.branch_scale * mixed.mT.unflatten(2, x.shape[2:]), contrastive_loss(
        module, q, key
    ) if contrast else None


def linear_attention(module: ENLCA, q: Tensor, key: Tensor, v: Tensor) -> Tensor:
    features = module.projection_matrix
    phi_q, phi_key = (
        (torch.exp(u @ features.T - u.square().sum(2, keepdim=True) / 2) + OFFSET) / math.sqrt(len(features))
        for u in (q, key)
    )
    return phi_q @ (phi_key.mT @ v) / (phi_q @ phi_key.sum(1)[:, :, None])


def contrastive_loss(module: ENLCA, q: Tensor, key: Tensor) -> Tensor:
    positive, negative = ranks(module.contrastive_ranks, q.shape[1])
    ordered = torch.exp(q @ key.mT).sort(dim=2, descending=True).values
    related, unrelated = (ordered[:, :, r.start : r.stop].mean(2) for r in (positive, negative))
    return F.relu(module.margin - torch.log(related / (unrelated + 1e-6))).mean()
