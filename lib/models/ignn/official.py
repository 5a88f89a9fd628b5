"""The released tensors of IGNN."""

from __future__ import annotations

import torch
from torch import Tensor

from ..released import State, System, count, shifts, sizes, upsampling, without_activations


def ignn_options(state: State) -> dict:
    twice = any(name.startswith("tail.1.") for name in state)
    found = sizes(state, "tail.1.0" if twice else "tail.0.0")
    graph_scale = upsampling(state, "upsample.0", found["width"])
    blocks = count(state, "body1.") + max(0, count(state, "body2.") - 1)
    return {**found, "scale": 4 if twice else graph_scale, "blocks": blocks}


def vgg_shifts() -> dict[str, Tensor]:
    """IGNN's shift to ImageNet's colours, registered twice; how it is written into weight and bias is left open."""
    shapes = {"weight": (3, 3, 1, 1), "bias": (3,)}
    return {
        f"{module}.sub_mean.{key}": torch.empty(shape, device="meta")
        for module in ("vggnet", "graph.embedcnn")
        for key, shape in shapes.items()
    }


SYSTEMS = {
    "ignn": System(
        scales=(2, 3, 4),
        options=ignn_options,
        names=(
            (r"^head\.", "head.0."),
            (r"^tail\.(\d+)\.", without_activations("tail.%.0.")),  # what lies between is the upsampler's shuffling
            (r"^upsampler\.", "upsample."),
            (r"^body2\.(\d+)\.(?=weight|bias)", r"body2.\1.0."),
            (r"^embedding\.conv1\.", "vggnet.model.0."),
            (r"^embedding\.conv2\.", "vggnet.model.2."),
            (r"^fuse_lr\.(\d)\.", without_activations("fuse_b.%.0.")),
            (r"^fuse_hr\.(\d)\.", without_activations("fuse_up.%.0.")),
            (r"^aggregation\.den\.(\d)\.", without_activations("gcn.knn_downsample.%.0.")),
            (r"^aggregation\.edges_(lr|hr)\.(\d)\.(?=weight|bias)", r"gcn.weightnet_\1.\2.0."),
            (r"^aggregation\.edges_(lr|hr)\.1\.body\.", r"gcn.weightnet_\1.1.body."),
        ),
        copies=((r"^vggnet\.", "graph.embedcnn."),),
        constants=lambda options: {**shifts(255), **vgg_shifts()},
    ),
}
