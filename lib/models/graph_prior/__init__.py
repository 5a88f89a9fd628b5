r"""A prior over keys for a deep stage of attention, from the graph that a shallow stage found.

Ours; no paper has it. DAGL repeats its module: each stage compares all positions anew. Here the logits L' of a later
stage, the evidence, get the logarithm of a prior π over the keys of each query, made from the first stage's softmax p:

    p  = softmax_j(L_ij)                        first stage
    p' = softmax_j(L'_ij + g log π_ij)          later stages

With π = p the logarithm is L_ij less a number per query, which the softmax does not see: the prior adds the logits of
the first stage, times the gate g. Forms of the prior:

    none            g = 0: DAGL, and PANet's block attention in stages
    reuse           p' = p: later stages have no matching of their own, no queries, keys and thresholds
    gate            π = p, one learned gate per stage
    most, least     π = p where key and query are more (less) dependent than the mean over the query's other keys,
                    weighted by p; elsewhere π is the smallest p of the query. Dependence: see `mutual_information`
    random          π = p of another key: the keys of each image size in an order that is drawn once

The stages are DAGL's graph ("graph": `dagl.MGFAM`, with the released form of weights: p, or zero without an edge) or
PANet's attention between blocks ("blocks": `panet.PyramidAttention` on one level, with one query for every second pixel
along each axis), in DAGL's trunk. A key without an edge in a later stage is not reached through the prior either.

Everything is computed as it is defined, the values in the arithmetic of autocast: all scores of a batch are held at a
time, for a later stage reads them again. DAGL's own forms take fewer multiply-adds and less memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import Attention, ResBlock, Trunk, independent_draws, positive
from ..dagl import HEAD, MGFAM, same_padding
from ..dagl import UNUSED as UNUSED
from ..dagl.graph_attention import at_least_float32, coverage
from ..panet import PyramidAttention
from ..panet.block_attention import SMALLEST_NORM, unfold
from .mutual_information import mutual_information, scores_of_positions

#: Pixels between the queries of "blocks", along each axis: their blocks of 3 overlap by one. PANet has 1.
BLOCK_STRIDE = 2

#: Forms of the prior.
PRIORS = ("none", "reuse", "gate", "most", "least", "random")

#: The gate is this many times its parameter, so that a step of Adam moves it as many times as far.
GATE_STEP = 10.0

#: What the gate starts from.
FIRST_GATE = 0.5

#: Added to every weight where keys are averaged: a query without an edge has the mean of all.
FEWEST = 1e-12

#: Weights and logits ``(B, heads, queries, keys)``, weights zero where there is no edge.
Graph = tuple[Tensor, Tensor]


class Stage(Attention):
    """A stage ``(B, width, H, W)`` -> the same shape, by weights ``(B, heads, queries, keys)`` that `find` gives: p, or
    zero where there is no edge.

    prior: one of PRIORS for a later stage, None for the first
    """

    def __init__(self, prior: str | None):
        super().__init__()
        self.matches = prior != "reuse"
        self.gate = nn.Parameter(torch.tensor(FIRST_GATE / GATE_STEP)) if prior in ("gate", *PRIORS[3:]) else None

    def find(self, x: Tensor, prior: Tensor | None = None) -> Graph:
        """The graph on features x; `prior`: what the gate multiplies, in the shape of the logits."""
        logits, edge = self.evidence(x)
        if prior is not None and self.gate is not None:
            logits = logits + GATE_STEP * self.gate * prior
        weights = logits.softmax(3)
        return weights if edge is None else weights * edge, logits

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return x + self.gather(x, weights)

    def identity(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        return x

    def evidence(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits ``(B, heads, queries, keys)`` and, where some pairs have no edge, 1 for an edge and 0 for none."""
        raise NotImplementedError

    def gather(self, x: Tensor, weights: Tensor) -> Tensor:
        """The weighted patches of all keys, pasted for each query and averaged, ``(B, width, H, W)``."""
        raise NotImplementedError

    def centres(self, height: int, width: int) -> Tensor:
        """The pixels, by flat index, that the queries lie around."""
        raise NotImplementedError


class GraphStage(Stage):
    """A stage of DAGL: `dagl.MGFAM` in two steps, by the definition of `dagl.graph_attention`."""

    def __init__(self, width: int, prior: str | None = None, heads: int = 4, patch: int = 7, stride: int = 4):
        super().__init__(prior)
        self.graph = MGFAM(width, heads, patch, stride)
        if not self.matches:
            for layer in ("edge", "query", "key", "threshold"):
                delattr(self.graph, layer)

    def evidence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        graph = self.graph
        query, key, _, limits = graph.match(x, *next(graph.layers(x, 1)))
        assert limits is not None
        gamma, beta = at_least_float32(limits).flatten(2)
        score = products(query.flatten(1, 2), key.flatten(2))
        strength = F.relu(score - (gamma * score.mean(2) - beta)[..., None])
        logits, edge = (t.unflatten(0, (len(x), -1)) for t in (10 * score * strength, strength > 0))
        return logits, edge

    def gather(self, x: Tensor, weights: Tensor) -> Tensor:
        graph, size = self.graph, x.shape[2:]
        values = graph.node(x).unflatten(1, (graph.heads, HEAD)).flatten(0, 1)
        patches = F.unfold(values, graph.patch, padding=graph.patch // 2) @ weights.flatten(0, 1).mT
        patches = at_least_float32(patches)
        pasted = F.fold(patches, size, graph.patch, padding=graph.patch // 2, stride=graph.stride)
        pasted = pasted / coverage(pasted, graph.patch, graph.stride)
        return graph.fuse(pasted.unflatten(0, (len(x), -1)).flatten(1, 2))

    def centres(self, height: int, width: int) -> Tensor:
        patch, stride = self.graph.patch, self.graph.stride
        rows, columns = (
            (torch.arange(math.ceil(n / stride)) * stride + patch // 2 - same_padding(n, patch, stride)[0]).clamp(
                0, n - 1
            )
            for n in (height, width)
        )
        return (rows[:, None] * width + columns).flatten()


class BlockStage(Stage):
    """A stage of PANet's block attention on one level, by its definition, with queries on a grid.

    Pasted blocks are divided by how many overlap, where PANet, with more of them, divides by 4.
    """

    def __init__(self, width: int, prior: str | None = None):
        super().__init__(prior)
        self.attention = PyramidAttention(width, scales=[1])
        if not self.matches:
            del self.attention.theta, self.attention.g

    def evidence(self, x: Tensor) -> tuple[Tensor, None]:
        of, patch = self.attention, self.attention.patch
        query = F.unfold(at_least_float32(of.theta(x)), patch, padding=patch // 2, stride=BLOCK_STRIDE)
        key = unfold([at_least_float32(of.g(x))], patch)
        key = key * (of.softmax_scale / key.norm(dim=1, keepdim=True).clamp_min(SMALLEST_NORM))
        return products(query.mT, key)[:, None], None

    def gather(self, x: Tensor, weights: Tensor) -> Tensor:
        patch = self.attention.patch
        patches = unfold([self.attention.f(x)], patch) @ weights[:, 0].mT
        pasted = F.fold(at_least_float32(patches), x.shape[2:], patch, padding=patch // 2, stride=BLOCK_STRIDE)
        return pasted / coverage(pasted, patch, BLOCK_STRIDE)

    def centres(self, height: int, width: int) -> Tensor:
        return torch.arange(height * width).view(height, width)[::BLOCK_STRIDE, ::BLOCK_STRIDE].flatten()


class Stages(nn.Module):
    """Stages with residual blocks between them, as `dagl.CES`; the later ones get a prior from the first's graph."""

    def __init__(
        self, width: int, stages: int, stage_blocks: int, prior: str, kind: Callable[..., Stage], options: dict
    ):
        super().__init__()
        self.prior = prior
        self.stages = nn.ModuleList()
        for place in range(stages):
            with independent_draws(place):
                self.stages.append(kind(width, prior if place else None, **options))
        self.blocks = nn.ModuleList(
            nn.Sequential(*[ResBlock(width, nn.PReLU()) for _ in range(stage_blocks)]) for _ in range(stages - 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        first, *later = (cast(Stage, stage) for stage in self.stages)
        weights, logits = first.find(x)
        prior = self.over_keys(x, weights, logits, first)
        x = first(x, weights)
        for blocks, stage in zip(self.blocks, later, strict=True):
            x = blocks(x)
            x = stage(x, stage.find(x, prior)[0] if stage.matches else weights)
        return x

    def over_keys(self, x: Tensor, weights: Tensor, logits: Tensor, first: Stage) -> Tensor | None:
        """The logarithm of the prior, but for a number per query, from the first stage's features and graph."""
        if self.prior in ("none", "reuse"):
            return None
        if self.prior == "random":
            order = torch.randperm(logits.shape[3], generator=torch.Generator().manual_seed(0))
            return logits[..., order.to(x.device)]
        if self.prior == "gate":
            return logits
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            scores = scores_of_positions(at_least_float32(x))
            queries = first.centres(*x.shape[2:]).to(x.device)
            information = mutual_information(scores[:, queries], scores)[:, None]
            others = (weights + FEWEST) * (1 - F.one_hot(queries, scores.shape[1]))
            mean = (others * information).sum(3, keepdim=True) / others.sum(3, keepdim=True).clamp_min(FEWEST)
            surplus = information - mean
            kept = surplus >= 0 if self.prior == "most" else surplus <= 0
        return torch.where(kept, logits, logits.amin(3, keepdim=True))


def products(query: Tensor, key: Tensor) -> Tensor:
    """Scores ``(..., Q, keys)`` of queries ``(..., Q, D)`` and keys ``(..., D, keys)``, always in float32 or better."""
    with torch.autocast(query.device.type, enabled=False):
        return at_least_float32(query) @ at_least_float32(key)


class GraphPrior(Trunk):
    """DAGL's network with stages of "graph" or "blocks", whose later ones get a prior from the first; any H, W >= 1.

    attention: "graph" or "blocks"
    prior: one of PRIORS
    heads, patch, stride: of the stages of "graph", see `dagl.MGFAM`
    the other options: see `dagl.DAGL`

    Raises ValueError for options outside their range.
    """

    def __init__(
        self,
        colors: int = 1,
        width: int = 64,
        blocks: int = 16,
        stages: int = 3,
        stage_blocks: int = 4,
        attention: str = "graph",
        prior: str = "none",
        heads: int = 4,
        patch: int = 7,
        stride: int = 4,
        image_skip: bool = False,
    ):
        kinds: dict[str, tuple[Callable[..., Stage], dict]] = {
            "graph": (GraphStage, {"heads": heads, "patch": patch, "stride": stride}),
            "blocks": (BlockStage, {}),
        }
        if attention not in kinds:
            raise ValueError(f"attention {attention!r} is not one of {', '.join(kinds)}")
        if prior not in PRIORS:
            raise ValueError(f"prior {prior!r} is not one of {', '.join(PRIORS)}")
        positive(stages=stages, stage_blocks=stage_blocks)
        if stages < 2 and prior != "none":
            raise ValueError(f"stages {stages} has no later stage for prior {prior!r}")
        super().__init__(
            colors,
            width,
            blocks,
            activation=nn.PReLU,
            tie_activation=True,
            attention=lambda width: Stages(width, stages, stage_blocks, prior, *kinds[attention]),
            positions=(blocks // 2,),
            feature_skip=False,
            image_residual=True,
            image_skip=image_skip,
        )
        if image_skip:
            for graph in self.modules():
                for tensor in graph.fuse.parameters() if isinstance(graph, MGFAM) else ():
                    nn.init.zeros_(tensor)


network = GraphPrior
