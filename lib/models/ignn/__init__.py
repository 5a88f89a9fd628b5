r"""IGNN: cross-scale internal graph neural network.

Zhou et al., "Cross-Scale Internal Graph Neural Network for Image Super-Resolution", NeurIPS 2020 (arXiv 2006.16673),
and the released code (sczhou/IGNN, 32bfa71).

Every 3x3 patch q of the image I (stride 2) is matched with its k nearest patches n_1..n_k of the image made s times
smaller, I↓s: nearest by the squared Euclidean distance of their embeddings E. Where n_t came from, I itself shows the
same content s times larger: the 3s x 3s patch N_t of I's features x. These are pasted where q lies in the s times
larger result, N_t adapted to q's mean and deviation (AdaPN), overlaps averaged,

    P_t = fold_q( (N_t - μ_N) σ_q / σ_N + μ_q )              D_t = fold_q( Σ_positions |E_q - E_n| )

and the k pasted images are mixed by learned functions (ECN) of the difference maps D_t, at both resolutions:

    x_hr = Σ_t softmax_t(ECN_hr(D_t)) P_t                    x_lr = Σ_t softmax_t(ECN_lr(D_t)) DEN(P_t)

Nothing is differentiated through the embedding and the choice of neighbours. D_t is constant on cells of s x s pixels
and ECN is made of 1x1 convolutions: both are computed at the small resolution alone.

Ours: I↓s is made inside; an image is continued by its mirror image to whole cells; with `neighbours` 0, or a branch
left out, the fusing layers see the trunk's features alone; the module for the common trunk (`FeatureGraph`). The
released code switches windowing off for good after the first small image; here it depends on the image alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...tasks.degradations import resize
from ..blocks import (
    DIV2K_MEAN,
    MAX_SCORES,
    Attention,
    Network,
    ResBlock,
    Upsampler,
    conv,
    enlarge,
    independent_draws,
    positive,
)
from .difference_maps import difference_maps
from .embedding import Embedding, embedded_by_themselves
from .match_patches import match_patches
from .paste_patches import paste_patches
from .patches import pad_to_cells

#: Parts that are never trained.
FROZEN = ("embedding",)

#: Tensors of GraphAggregation without effect or gradient: they add one number to the scores of all neighbours, and the
#: softmax takes it away again.
INERT = ("edges_lr.1.body.2.bias", "edges_lr.2.bias", "edges_hr.1.body.2.bias", "edges_hr.2.bias")


class GraphAggregation(Attention):
    """The graph and its aggregation (GraphAgg of the paper).

    width, embedded: channels of the features and of the embeddings
    scale: the factor s that the graph spans
    neighbours: k
    branch: "lr", "hr" or "both" resolutions
    window: side of the search window in patches of the smaller image; an image of no more patches is searched whole
    adapn: adapt a pasted patch to the mean and deviation of the patch it was chosen for
    edge_weights: "learned" (ECN) or "uniform", 1/k each; one neighbour needs none
    max_scores: largest number of distances held at a time
    """

    def __init__(
        self,
        width: int,
        embedded: int,
        scale: int,
        neighbours: int,
        branch: str,
        /,
        window: int = 30,
        adapn: bool = True,
        edge_weights: Literal["learned", "uniform"] = "learned",
        max_scores: int = MAX_SCORES,
    ):
        super().__init__()
        positive(scale=scale, max_scores=max_scores)
        if neighbours < 1 or window**2 < neighbours:
            raise ValueError(f"neighbours {neighbours} must lie in 1..{window**2}, the patches of a window")
        self.scale, self.neighbours, self.window = scale, neighbours, window
        self.adapn, self.branch, self.max_scores = adapn, branch, max_scores
        lr, hr = branch != "hr", branch != "lr"
        learned = edge_weights == "learned" and neighbours > 1
        self.den = patch_downsampling(width, scale) if lr else None
        self.edges_lr = edge_network(embedded) if lr and learned else None
        self.edges_hr = edge_network(embedded) if hr and learned else None

    def forward(self, x: Tensor, embedded: Tensor, small: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Features ``(B, width, H, W)``, embeddings of the image ``(B, embedded, H, W)`` and of its smaller version.

        H and W are multiples of s. Returns x_lr ``(B, width, H, W)`` and x_hr ``(B, width, sH, sW)``, None without it.
        """
        graph = match_patches(embedded, small, self.scale, self.neighbours, self.window, self.max_scores)
        pasted = paste_patches(x, graph.matches, self.scale, self.adapn)  # P_t ``(B, k, width, sH, sW)``
        difference = difference_maps(graph.difference, x.shape[2:])  # D_t ``(B, k, embedded, H, W)``
        lr = hr = None
        if self.den is not None:
            down = self.den(pasted.flatten(0, 1)).unflatten(0, pasted.shape[:2])
            lr = (down * self.weights(self.edges_lr, difference)).sum(1)
        if self.branch != "lr":
            weights = F.interpolate(self.weights(self.edges_hr, difference)[:, :, 0], scale_factor=self.scale)
            hr = sum(image * weight for image, weight in zip(pasted.unbind(1), weights.split(1, 1), strict=True))
        return lr, hr

    def weights(self, edges: nn.Module | None, difference: Tensor) -> Tensor:
        """Weights ``(B, k, 1, H, W)`` of the neighbours, from the difference maps ``(B, k, embedded, H, W)``."""
        if edges is None:
            return torch.full_like(difference[:, :, :1], 1 / self.neighbours)
        return edges(difference.flatten(0, 1)).unflatten(0, difference.shape[:2]).softmax(1)


class IGNN(Network):
    """Super-resolution by 2, 3 or 4; the graph spans a factor of 2, 3 and 2.

    width, blocks: features, residual blocks (half before the graph, half after it)
    neighbours: k; 0 leaves the graph out
    branch: "both", "lr" or "hr", the resolutions at which the graph contributes
    embedding: by which patches are compared; "vgg19", "random": VGG19's first two convolutions, as published or as they
        were initialised (what training the released code from scratch uses); "own": the trunk's features
    vgg19_weights: file of a state dict of VGG19 (see Embedding); None leaves the embedding to a state dict that is
        loaded later
    image_skip: the study's option for short trainings: add the input's bicubic enlargement to a last convolution that
        starts at zero
    the other options: see GraphAggregation

    Any H, W >= 1: to multiples of the graph's factor s, and to 2 s ceil(sqrt(k)) at least, an image is padded inside.
    """

    options_of = GraphAggregation

    def __init__(
        self,
        colors: int = 3,
        scale: int = 2,
        width: int = 256,
        blocks: int = 32,
        neighbours: int = 5,
        branch: Literal["both", "lr", "hr"] = "both",
        embedding: Literal["vgg19", "random", "own"] = "vgg19",
        vgg19_weights: str | Path | None = None,
        image_skip: bool = False,
        **graph,
    ):
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"scale {scale} is not one of 2, 3, 4")
        self.scale, self.image_skip = scale, image_skip
        self.graph_scale = 3 if scale == 3 else 2
        self.mean: Tensor
        mean = torch.tensor(DIV2K_MEAN if colors == 3 else [0.0] * colors)
        self.register_buffer("mean", mean.view(1, colors, 1, 1), persistent=False)

        self.head = conv(colors, width)
        self.body1 = nn.Sequential(*[residual(width) for _ in range(blocks // 2)])
        self.embedding = Embedding() if neighbours and embedding != "own" else None
        embedded = Embedding.width if self.embedding else width
        self.aggregation = (
            GraphAggregation(width, embedded, self.graph_scale, neighbours, branch, **graph) if neighbours else None
        )
        lr, hr = (neighbours > 0 and branch in ("both", side) for side in ("lr", "hr"))
        self.fuse_lr = nn.Sequential(conv(width * (1 + lr), width), nn.ReLU(), conv(width, width))
        self.body2 = nn.Sequential(*[residual(width) for _ in range(blocks - blocks // 2)], conv(width, width))
        self.upsampler = Upsampler(width, self.graph_scale)
        self.fuse_hr = nn.Sequential(conv(width * (1 + hr), width), nn.ReLU(), conv(width, width), nn.ReLU())
        last = conv(width, colors)
        self.tail = nn.Sequential(*Upsampler(width, scale // self.graph_scale), last)

        initialise(self)
        if image_skip:
            nn.init.zeros_(last.weight)
        if self.embedding is not None and embedding == "vgg19":
            self.embedding.load(vgg19_weights)

    def forward(self, x: Tensor) -> Tensor:
        height, width = (self.scale * side for side in x.shape[2:])
        padded, head, shallow = self.features(x)
        lr = hr = None
        if self.aggregation is not None:
            lr, hr = self.aggregation(shallow, *self.embedded(padded, shallow))
        deep = self.body2(self.fuse_lr(joined(shallow, lr))) + head
        y = self.tail(self.fuse_hr(joined(self.upsampler(deep), hr)))[:, :, :height, :width] / 255
        return y + (enlarge(x, self.scale) if self.image_skip else self.mean)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The padded image, the features of the head, and those before the graph."""
        padded = pad_to_cells(x, self.graph_scale, self.aggregation.neighbours if self.aggregation else 1)
        head = self.head(255 * (padded - self.mean))
        return padded, head, self.body1(head)

    @torch.no_grad()
    def embedded(self, x: Tensor, shallow: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the padded image and of its smaller version."""
        if self.embedding is None:
            return embedded_by_themselves(shallow, self.graph_scale)
        with torch.autocast(x.device.type, enabled=False):
            return self.embedding(x), self.embedding(resize(x, down=self.graph_scale).clamp(0, 1))


class FeatureGraph(Attention):
    """The graph for the common trunk, ours: x + x_lr, of features ``(B, width, H, W)`` that are embedded by themselves.

    The smaller copy is the features' bicubic downscaling. Any H, W >= 1, as in IGNN. Layers start as PyTorch's do, the
    last at zero: the module starts as the identity.
    """

    options_of = GraphAggregation

    def __init__(self, width: int, neighbours: int = 5, graph_scale: int = 2, **graph):
        super().__init__()
        self.aggregation = GraphAggregation(width, width, graph_scale, neighbours, "lr", **graph)
        assert self.aggregation.den is not None
        for tensor in self.aggregation.den[-1].parameters():
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        padded = pad_to_cells(x, self.aggregation.scale, self.aggregation.neighbours)
        added = self.aggregation(padded, *embedded_by_themselves(padded, self.aggregation.scale))[0]
        return x + added[:, :, : x.shape[2], : x.shape[3]]


network = IGNN
attention = FeatureGraph


def edge_network(inputs: int, width: int = 64) -> nn.Sequential:
    """ECN: difference maps to one score per cell."""
    block = ResBlock(width, nn.ReLU(), res_scale=0.1)
    block.body[0], block.body[2] = conv(width, width, 1), conv(width, width, 1)
    return nn.Sequential(conv(inputs, width, 1), block, conv(width, 1, 1))


def patch_downsampling(width: int, scale: int) -> nn.Sequential:
    """DEN: pasted images to the resolution of the features."""
    first = nn.Conv2d(width, width, 5, stride=scale, padding=2)
    return nn.Sequential(first, nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))


def residual(width: int) -> ResBlock:
    return ResBlock(width, nn.ReLU(), res_scale=0.1)


def joined(x: Tensor, other: Tensor | None) -> Tensor:
    return x if other is None else torch.cat([x, other], 1)


def initialise(network: nn.Module) -> None:
    """As released: Kaiming's normal distribution (fan in) times 0.1, zero biases; the frozen embedding too.

    Each layer draws from a stream of its own, named after it: the trunk starts alike, whatever the graph's options.
    """
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            with independent_draws(name), torch.no_grad():
                nn.init.kaiming_normal_(layer.weight).mul_(0.1)
                layer.bias.zero_()
