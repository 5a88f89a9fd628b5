"""The modules that are compared: each as ours, as its reference and as the best short PyTorch form of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models import blocks, dagl, enlca, ignn, lir, panet, plain
from lib.models.dagl.graph_attention import coverage
from lib.models.panet.block_attention import SMALLEST_NORM, unfold

from .reference import nonlocal_ as nonlocal_reference

Outputs = tuple[Tensor, ...]
Function = Callable[..., Outputs]


@dataclass(frozen=True)
class Case:
    """One module with its weights.

    forms: "ours", "reference" and, where there is one, "short"; each computes the same outputs from the module and
        its inputs
    shape: of the first input ``(B, C, H, W)``, the one that gets a gradient
    bars: smallest ratios reference / ours of the time of a forward pass, of forward and backward, and of the memory
    """

    make: Callable[[], nn.Module]
    forms: dict[str, Function]
    shape: tuple[int, int, int, int]
    bars: tuple[float, float, float]
    others: Callable[[Tensor], Outputs] = lambda x: ()

    def module(self, device: str = "cpu") -> nn.Module:
        """The module in training mode; what starts at zero is filled, so that forms can be told apart by results."""
        torch.manual_seed(0)
        module = self.make().train()
        for tensor in module.parameters():
            if not tensor.any():
                nn.init.normal_(tensor, std=0.1)
        return module.to(device)

    def inputs(self, side: int | None = None, batch: int | None = None, device: str = "cpu") -> Outputs:
        """Inputs of the case's own size or of another side and batch."""
        images, channels, height, width = self.shape
        shape = (batch or images, channels, side or height, side or width)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        return tuple(t.to(device) for t in (x, *self.others(x)))


def by_definition(function: Function) -> Function:
    """A form that computes every operation by its definition."""

    def run(*inputs):
        with plain():
            return function(*inputs)

    return run


def _output(function: Callable[..., Tensor]) -> Function:
    return lambda module, x: (function(module, x),)


def pyramid_short(module: panet.PyramidAttention, x: Tensor) -> Tensor:
    """Unfolded blocks, all images at once, through fused attention."""
    pyramid = module.pyramid(x)
    embedded = [module.theta(x)], map(module.g, pyramid), map(module.f, pyramid)
    queries, keys, values = (unfold(levels, module.patch).mT for levels in embedded)
    keys = keys / keys.norm(dim=2, keepdim=True).clamp_min(SMALLEST_NORM)
    missing = values.shape[2] - keys.shape[2]  # fused attention wants one number of channels
    queries, keys = (F.pad(t, (0, missing)) for t in (queries, keys))
    pasted = attend(queries, keys, values, module.softmax_scale).mT
    return F.fold(pasted, x.shape[2:], 3, padding=1) / 4 + module.identity_scale * x


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(*(t[:, None] for t in (query, key, value)), scale=scale)[:, 0]


def nonlocal_short(module: blocks.NonLocal, x: Tensor) -> Tensor:
    layers = (module.query, module.key, module.value)
    query, key, value = (layer(x).flatten(2).unflatten(1, (module.heads, -1)).mT for layer in layers)
    mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    return x + module.out(mixed.mT.flatten(1, 2).unflatten(2, x.shape[2:]))


def dagl_short(module: dagl.MGFAM, x: Tensor) -> Tensor:
    """Whole score matrices of all heads and images at once; queries and keys by convolutions (no fused attention has
    DAGL's weights)."""
    patch, stride, size, heads = module.patch, module.stride, x.shape[2:], module.heads
    edge = module.edge(x)
    query = F.relu(module.query(dagl.pad_same(edge, patch, stride))).flatten(2).unflatten(1, (heads, -1))
    key = F.relu(module.key(edge)).flatten(2).unflatten(1, (heads, -1))
    value = F.unfold(module.node(x), patch, padding=patch // 2).unflatten(1, (heads, -1))
    limits = module.threshold(dagl.pad_same(x, patch, stride)).flatten(2).unflatten(1, (2, heads))
    gamma, beta = limits[..., None].unbind(1)
    score = query.mT @ key
    strength = F.relu(score - gamma * score.mean(3, keepdim=True) + beta)
    weight = torch.softmax(10 * score * strength, 3) * (strength > 0)
    pasted = F.fold((value @ weight.mT).flatten(1, 2), size, patch, padding=patch // 2, stride=stride)
    return x + module.fuse(pasted / coverage(x, patch, stride))


def contrasting() -> enlca.ENLCA:
    return enlca.ENLCA(64, contrastive_start=0)


def enlca_ours(module: enlca.ENLCA, x: Tensor) -> Outputs:
    y = module(x)
    return y, module.auxiliary_loss() / module.contrastive_weight


def enlca_short(module: enlca.ENLCA, x: Tensor) -> Outputs:
    """Whole score matrix, of which the largest are selected."""
    q, key, v = module.embed(x)
    positive, negative = enlca.ranks(module.contrastive_ranks, q.shape[1])
    top = (q @ key.mT).topk(negative.stop, 2).values.exp()
    related, unrelated = (top[:, :, r.start : r.stop].mean(2) for r in (positive, negative))
    loss = F.relu(module.margin - torch.log(related / (unrelated + 1e-6))).mean()
    mixed = enlca.linear_attention(module.phi(q), module.phi(key), v)
    return x + module.branch_scale * mixed.mT.unflatten(2, x.shape[2:]), loss


def ignn_ours(module: ignn.GraphAggregation, x: Tensor, embedded: Tensor, small: Tensor) -> Outputs:
    graph = ignn.match_patches(embedded, small, module.scale, module.neighbours, module.window, module.max_scores)
    pasted = ignn.paste_patches(x, graph.matches, module.scale, module.adapn)
    return pasted, ignn.difference_maps(graph.difference, x.shape[2:])


def embeddings(x: Tensor) -> Outputs:
    """Something to match by: other features, and their smaller copy."""
    embedded = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    return embedded, F.avg_pool2d(embedded, 2)


def lir_short(module: lir.AdaptiveFilter, x: Tensor) -> Tensor:
    """The mixed kernel and the separable Gaussian, by PyTorch's own backward pass."""
    alpha, beta = module.alpha, module.beta
    kernel = torch.einsum("i,ijk->jk", alpha[:8], module.operators) + F.pad((alpha[8:] + beta)[None], (1, 1, 1, 1))
    channels = x.shape[1]
    convolved, blurred = F.conv2d(x, kernel.expand(channels, 1, 3, 3), padding=1, groups=channels), x
    for line in (module.gaussian[:, None], module.gaussian[None]):
        sides = (line.shape[1] // 2,) * 2 + (line.shape[0] // 2,) * 2
        padded = F.pad(blurred, sides, mode="reflect")
        blurred = F.conv2d(padded, line.expand(channels, 1, *line.shape), groups=channels)
    return convolved - alpha[8] * blurred


CASES = {
    "pyramid attention": Case(
        lambda: panet.PyramidAttention(64, 2),
        {
            "ours": _output(nn.Module.__call__),
            "reference": _output(by_definition(nn.Module.__call__)),
            "short": _output(pyramid_short),
        },
        (2, 64, 64, 64),
        (4, 3, 6),
    ),
    "non-local": Case(
        lambda: blocks.NonLocal(64),
        {
            "ours": _output(nn.Module.__call__),
            "reference": _output(nonlocal_reference.reference),
            "short": _output(nonlocal_short),
        },
        (2, 64, 64, 64),
        (1.5, 1.5, 6),
    ),
    "DAGL stage": Case(
        dagl.MGFAM,
        {
            "ours": _output(nn.Module.__call__),
            "reference": _output(by_definition(nn.Module.__call__)),
            "short": _output(dagl_short),
        },
        (2, 64, 64, 64),
        (1.6, 1.5, 4),
    ),
    "ENLCA with its loss": Case(
        contrasting,
        {"ours": enlca_ours, "reference": by_definition(enlca_ours), "short": enlca_short},
        (2, 64, 48, 48),
        (3, 3, 4),
    ),
    "IGNN graph": Case(
        lambda: ignn.GraphAggregation(64, 64, 2, 5, "both"),
        {"ours": ignn_ours, "reference": by_definition(ignn_ours)},
        (1, 64, 80, 80),
        (3, 3, 6),
        embeddings,
    ),
    "LIR filter": Case(
        lir.AdaptiveFilter,
        {
            "ours": _output(nn.Module.__call__),
            "reference": _output(by_definition(nn.Module.__call__)),
            "short": _output(lir_short),
        },
        (2, 48, 128, 128),
        (4, 3, 2),
    ),
}


def call(function: Function, module: nn.Module, inputs: Sequence[Tensor], mode: str) -> tuple[Tensor, ...]:
    """Outputs of a forward pass without a graph or, for mode "both", of one with its backward pass."""
    if mode == "forward":
        with torch.no_grad():
            return function(module, *inputs)
    module.zero_grad()
    outputs = function(module, inputs[0].detach().requires_grad_(), *inputs[1:])
    graded = [y for y in outputs if y.requires_grad]
    torch.autograd.backward(graded, [torch.ones_like(y) for y in graded])
    return outputs


#: Class of a module -> what its forward pass is in the reference formulation.
REFERENCES: dict[type[nn.Module], Callable[..., Tensor]] = {
    panet.PyramidAttention: by_definition(panet.PyramidAttention.forward),
    blocks.NonLocal: nonlocal_reference.reference,
    dagl.MGFAM: by_definition(dagl.MGFAM.forward),
    enlca.ENLCA: by_definition(enlca.ENLCA.forward),
    ignn.GraphAggregation: by_definition(ignn.GraphAggregation.forward),
    lir.AdaptiveFilter: by_definition(lir.AdaptiveFilter.forward),
}


def with_references(network: nn.Module) -> nn.Module:
    """A copy of the network, weights included, whose modules compute their reference formulations."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if type(module) in REFERENCES:
            module.forward = partial(REFERENCES[type(module)], module)
    return network


def has_references(network: nn.Module) -> bool:
    """Whether `with_references` found a module to replace."""
    return any("forward" in vars(module) for module in network.modules())


def set_blocks(module: nn.Module, max_scores: int) -> nn.Module:
    """Let the module, in place, hold at most `max_scores` scores at a time."""
    for part in module.modules():
        if hasattr(part, "max_scores"):
            part.max_scores = max_scores
    return module
