"""What a deep stage makes of a shallow stage's graph: the weights of both, and how much the prior counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..models.graph_prior import GATE_STEP, Stage
from . import attentions, hooked


def weights(module: Stage, x: Tensor, queries: Tensor | None, weights: Tensor) -> Tensor:
    """The weights ``(heads, Q, keys)`` that the stage was given, of these queries or of all."""
    return weights[0] if queries is None else weights[0][:, queries]


def query_count(module: Stage, x: Tensor) -> int:
    """Number of queries on features ``(1, width, H, W)``."""
    return len(module.centres(*x.shape[2:]))


@torch.no_grad()
def mechanism(network: nn.Module, image: Tensor, points: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """The first and the last stage on one image ``(1, colors, H, W)``, by the queries nearest to the `points`.

    first, last: (points, H, W), the mean of the heads' weights
    shared: (points), how much of a query's weight both give to the same keys: sum of the smaller of the two
    gates: (later stages), the factor of the prior's logarithm; empty without a gate
    """
    seen: list[tuple[Stage, tuple[Tensor, ...]]] = []
    with hooked(attentions(network), lambda name, stage, inputs, y: seen.append((cast(Stage, stage), inputs))):
        network(image)
    maps = []
    for stage, (x, found) in (seen[0], seen[-1]):
        rows, columns = (p[None].float() for p in _grid(stage.centres(*x.shape[2:]), x.shape[3]))
        wanted = torch.tensor(points, dtype=torch.float32)
        nearest = ((rows - wanted[:, :1]).square() + (columns - wanted[:, 1:]).square()).argmin(1)
        maps.append(found[0].mean(0)[nearest])
    gates = [GATE_STEP * stage.gate.detach() for stage, _ in seen if stage.gate is not None]
    return {
        **{key: of_stage.unflatten(1, image.shape[2:]) for key, of_stage in zip(("first", "last"), maps, strict=True)},
        "shared": torch.minimum(*maps).sum(1),
        "gates": torch.stack(gates) if gates else torch.empty(0),
    }


def _grid(pixels: Tensor, width: int) -> tuple[Tensor, Tensor]:
    return pixels // width, pixels % width
