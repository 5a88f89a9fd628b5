"""DAGL: dynamic attentive graph learning.

Mou, Zhang, Wu, "Dynamic Attentive Graph Learning for Image Restoration", ICCV 2021 (arXiv 2109.06620), and the released
code (jianzhangcs/DAGL, 7ebfe6c) where it differs.

The network is a trunk of residual blocks with a cross-graph enhancement section (`CES`) in its middle: stages of
multi-head graph feature aggregation (`MGFAM`) with residual blocks between them. A head of a stage turns its input x
into edge features (3x3 convolution) and node features (1x1 convolution) of 16 channels. Queries are p x p patches on a
grid of the given stride, keys the patches around every pixel:

    Q, K = ReLU(linear(patches of the edge features)), 16 p^2 -> 4 p^2
    gamma, beta: p x p convolutions of x with the grid's stride

A query keeps as neighbours the keys whose scores exceed T = gamma * (mean score) - beta, and gathers the patches of
their node features; `graph_attention` has the equations.

As in the released code, beta is subtracted, gamma and beta see x itself and not the edge features, queries are cut
with one padding (`same_padding`) and pasted with another (p // 2), so that they move by up to two pixels, the
activations of the trunk share one slope, and by default the softmax has the form "official", with all keys in its
denominator.

Ours, where the paper is silent: `no_threshold` counts the keys with the largest scores as neighbours; with
`no_graph_attention` neighbours have equal weights. Some options leave layers without a gradient, which then keep their
initial values: see `UNTRAINED`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import NON_LOCAL, Attention, ResBlock, Trunk, conv, independent_draws, positive
from .embed_patches import embed_patches
from .graph_attention import graph_attention

#: Channels of a head's edge and node features.
HEAD = 16

#: Neighbours per query for `no_threshold=True`; ours.
NEIGHBOURS = 16

#: Modules of the released network that no computation reads: in the checkpoints and the parameter count, never trained.
UNUSED = ("add_mean", "unused")

#: Modules of a stage that an option leaves without a gradient: choosing neighbours has none, and a softmax over the
#: neighbours alone does not see the threshold.
UNTRAINED = {"no_graph_attention": ("edge", "query", "key", "threshold"), "paper": ("threshold",)}

#: Without gradients, where no head's features have to stay, a CPU restores images of at most this many pixels at once.
CPU_PIXELS = 4096

Layer = tuple[Tensor, Tensor]  # weight and bias


class MGFAM(Attention):
    """Multi-head graph feature aggregation: x + fuse(all heads), ``(B, width, H, W)`` to the same; any H, W >= 1.

    no_threshold: number of neighbours, True for `NEIGHBOURS`, in place of the threshold (Table 5, "w/o THD")
    no_graph_attention: equal weights for all neighbours (Table 5, "w/o GAT")
    weights: "official" or "paper", see `graph_attention`
    max_scores: the largest number of scores held at a time, None for as many as the machine takes well; never changes a
        result

    The linear layers on patches, `query` and `key`, are stored as convolutions: row d of a head's layer is output
    channel d of its part. The tensors of the heads are stacked along the output channels, head after head; `threshold`
    has the gammas of all heads, then the betas.

    Raises ValueError for a patch that is even, a stride that leaves pixels uncovered and an unknown form of weights.
    """

    def __init__(
        self,
        width: int = 64,
        heads: int = 4,
        patch: int = 7,
        stride: int = 4,
        no_threshold: int | bool | None = None,
        no_graph_attention: bool = False,
        weights: str = "official",
        max_scores: int | None = None,
    ):
        super().__init__()
        positive(heads=heads, max_scores=max_scores)
        if patch % 2 == 0:
            raise ValueError(f"patch {patch} is not odd")
        if not 1 <= stride <= patch // 2 + 1:
            raise ValueError(
                f"stride {stride} is not in 1..{patch // 2 + 1}, where patches of {patch} cover every pixel"
            )
        if weights not in ("official", "paper"):
            raise ValueError(f"weights {weights!r} is not one of official, paper")
        self.neighbours = NEIGHBOURS if no_threshold is True else int(no_threshold or 0)
        if self.neighbours < 0:
            raise ValueError(f"no_threshold {no_threshold} is negative")
        self.heads, self.patch, self.stride, self.max_scores = heads, patch, stride, max_scores
        self.weights = "equal" if no_graph_attention else weights
        inner, embedded = heads * HEAD, heads * 4 * patch**2
        self.edge = conv(width, inner, 3)
        self.node = conv(width, inner, 1)
        self.query = nn.Conv2d(inner, embedded, patch, stride, groups=heads)
        self.key = nn.Conv2d(inner, embedded, patch, padding=patch // 2, groups=heads)
        self.threshold = None if self.neighbours else nn.Conv2d(width, 2 * heads, patch, stride)
        self.fuse = conv(inner, width, 1)
        self.unused = conv(HEAD, heads * width, 1).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        at_once = len(x)
        if not (torch.is_grad_enabled() or x.is_cuda):
            at_once = max(1, CPU_PIXELS // x[0, 0].numel())
        # On a CPU head after head: convolutions without groups are faster there, and without gradients the keys of one
        # head exist at a time.
        parts = 1 if x.is_cuda else self.heads
        return torch.cat([images + self.fuse(self.aggregate(images, parts)) for images in x.split(at_once)])

    def aggregate(self, x: Tensor, parts: int) -> Tensor:
        """Output of the heads, side by side, ``(B, heads * 16, H, W)``, computed in `parts` one after the other."""
        gathered = [
            graph_attention(
                *self.match(x, *layers),
                patch=self.patch,
                stride=self.stride,
                neighbours=self.neighbours,
                weights=self.weights,
                max_scores=self.max_scores,
            )
            for layers in self.layers(x, parts)
        ]
        return torch.cat([images.unflatten(0, (len(x), -1)).flatten(1, 2) for images in gathered], 1)

    def layers(self, x: Tensor, parts: int) -> Iterator[tuple[Layer, Layer, Layer, Layer, Tensor | None]]:
        """For each part of the heads its edge, query, key and node layers, gammas and betas: arguments of `match`."""
        layers = [
            zip(*(tensor.chunk(parts) for tensor in layer.parameters()), strict=True)
            for layer in (self.edge, self.query, self.key, self.node)
        ]
        limits: Tensor | list[None] = [None] * parts
        if self.threshold is not None:
            gamma_beta = self.threshold(pad_same(x, self.patch, self.stride)).unflatten(1, (2, parts, -1))
            limits = gamma_beta.permute(2, 1, 0, 3, 4, 5).flatten(2, 3)
        return zip(*layers, limits, strict=True)

    def match(
        self, x: Tensor, edge: Layer, query: Layer, key: Layer, node: Layer, limits: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys, values and limits as `graph_attention` takes them, heads as if they were images."""
        heads = len(node[0]) // HEAD

        def as_images(features: Tensor) -> Tensor:
            return features.unflatten(1, (heads, -1)).flatten(0, 1)

        features = F.conv2d(x, *edge, padding=1)
        queries = embed_patches(pad_same(features, self.patch, self.stride), *query, self.stride, heads=heads)
        keys = embed_patches(features, *key, padding=self.patch // 2, heads=heads)
        queries, keys = (as_images(F.relu(embedded, inplace=True)) for embedded in (queries, keys))
        return queries.permute(0, 2, 3, 1), keys, as_images(F.conv2d(x, *node)), limits


class CES(nn.Module):
    """Cross-graph enhancement: stages with residual blocks between consecutive ones, each block with its own slope."""

    def __init__(self, width: int, stages: int, stage_blocks: int, stage: Callable[[int], nn.Module]):
        super().__init__()
        self.stages = nn.ModuleList()
        for place in range(stages):
            with independent_draws(place):
                self.stages.append(stage(width))
        self.blocks = nn.ModuleList(
            nn.Sequential(*[ResBlock(width, nn.PReLU()) for _ in range(stage_blocks)]) for _ in range(stages - 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages[0](x)
        for blocks, stage in zip(self.blocks, self.stages[1:], strict=True):
            x = stage(blocks(x))
        return x


class DAGL(Trunk):
    """DAGL for denoising, demosaicing and compression artefacts, at the input's size; any H, W >= 1.

    Published: 64 channels, 16 residual blocks (32 for demosaicing), and after half of them three stages of four heads
    with four residual blocks between consecutive stages. `attention` is "graph" or, for Table 5, "nl" or "mhnl":
    non-local modules with one head of 64 or four of 16 channels in place of the stages. Options of `MGFAM` are handed
    to the stages; non-local modules have none of them. With `image_skip` every stage starts as the identity.

    Raises ValueError for options that contradict each other or lie outside their range.
    """

    options_of = MGFAM

    def __init__(
        self,
        colors: int = 1,
        width: int = 64,
        blocks: int = 16,
        stages: int = 3,
        stage_blocks: int = 4,
        attention: str = "graph",
        image_skip: bool = False,
        **graph,
    ):
        inspect.signature(MGFAM).bind(width, **graph)  # refuses unknown options for the non-local modules too
        makers: dict[str, Callable[[int], nn.Module]] = {"graph": lambda width: MGFAM(width, **graph), **NON_LOCAL}
        if attention not in makers:
            raise ValueError(f"attention {attention!r} is not one of {', '.join(makers)}")
        if attention != "graph" and (graph.get("no_threshold") or graph.get("no_graph_attention")):
            raise ValueError(f"no_threshold and no_graph_attention belong to attention 'graph', not to {attention!r}")
        positive(stages=stages, stage_blocks=stage_blocks)
        super().__init__(
            colors,
            width,
            blocks,
            activation=nn.PReLU,
            tie_activation=True,
            attention=lambda width: CES(width, stages, stage_blocks, makers[attention]),
            positions=(blocks // 2,),
            feature_skip=False,
            image_residual=True,
            image_skip=image_skip,
        )
        self.add_mean = nn.Conv2d(3, 3, 1).requires_grad_(False)
        if image_skip:
            for stage in self.modules():
                for tensor in stage.fuse.parameters() if isinstance(stage, MGFAM) else ():
                    nn.init.zeros_(tensor)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros (before, after) an axis so that a convolution gives ceil(size / stride) outputs (TensorFlow's "same")."""
    total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """`same_padding` of the last two axes."""
    return F.pad(x, (*same_padding(x.shape[3], kernel, stride), *same_padding(x.shape[2], kernel, stride)))


network, attention = DAGL, MGFAM
