"""DAGL's stage as the released code computes it: unfolded patches, one full score matrix per head and image, fold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.dagl import HEAD, MGFAM, pad_same


def reference(module: MGFAM, x: Tensor) -> Tensor:
    """The output of `module`, a stage with its weights, for features ``(B, width, H, W)``."""
    heads = [torch.cat([head(module, index, image[None]) for index in range(module.heads)], 1) for image in x]
    return x + module.fuse(torch.cat(heads))


def head(module: MGFAM, index: int, x: Tensor) -> Tensor:
    """One head on one image: ``(1, width, H, W)`` -> ``(1, 16, H, W)``."""
    p, s, size = module.graph.patch, module.graph.stride, x.shape[2:]
    own = slice(index * HEAD, (index + 1) * HEAD)
    edge = F.conv2d(x, module.edge.weight[own], module.edge.bias[own], padding=1)
    node = F.conv2d(x, module.node.weight[own], module.node.bias[own])
    queries = embed(module.query, index, F.unfold(pad_same(edge, p, s), p, stride=s)[0])  # (4 p^2, N_q)
    keys = embed(module.key, index, F.unfold(edge, p, padding=p // 2)[0])  # (4 p^2, N_k)
    values = F.unfold(node, p, padding=p // 2)[0]  # (16 p^2, N_k)
    patches = values @ weigh(module, index, x, queries.T @ keys).T  # (16 p^2, N_q)
    count = F.fold(torch.ones_like(patches)[None], size, p, padding=p // 2, stride=s)
    return F.fold(patches[None], size, p, padding=p // 2, stride=s) / count


def embed(layer: nn.Conv2d, index: int, patches: Tensor) -> Tensor:
    """A head's linear layer and ReLU on patches ``(16 p^2, N)``."""
    weight, bias = (tensor.unflatten(0, (-1, 4 * layer.kernel_size[0] ** 2))[index] for tensor in layer.parameters())
    return torch.relu(torch.addmm(bias[:, None], weight.flatten(1), patches))


def weigh(module: MGFAM, index: int, x: Tensor, scores: Tensor) -> Tensor:
    """Weights ``(N_q, N_k)`` from scores."""
    graph = module.graph
    if graph.neighbours:
        nearest = scores.topk(min(graph.neighbours, scores.shape[1]), dim=1).indices
        strength = scores * torch.zeros_like(scores).scatter(1, nearest, 1.0)
    else:
        layer, rows = module.threshold, slice(index, None, module.heads)
        padded = pad_same(x, graph.patch, graph.stride)
        limits = F.conv2d(padded, layer.weight[rows], layer.bias[rows], stride=graph.stride)
        gamma, beta = limits[0].flatten(1)[:, :, None]
        strength = torch.relu(scores - gamma * scores.mean(1, keepdim=True) + beta)
    keep = (strength != 0).to(scores)
    if graph.average:
        return keep / keep.sum(1, keepdim=True).clamp_min(1)
    if graph.weights == "official":
        return torch.softmax(10 * scores * strength, 1) * keep
    return torch.softmax(strength.masked_fill(keep == 0, -1e30), 1) * keep
