"""The released tensors of CARN-M, whose one file serves three scales."""

from __future__ import annotations

import torch
from torch import Tensor

from ..released import State, System, from_one, shifts, size


def options(state: State) -> dict:
    return {"width": size(state, ("entry.bias", 0), ("entry.weight", 0), ("exit.weight", 1))}


def not_read(options: dict) -> dict[str, Tensor]:
    """The mean shifts, and the upsamplers of the scales that were not asked for."""
    width, found = options["width"], {name.replace("mean.", "mean.shifter."): t for name, t in shifts(1).items()}
    for name, scale, factor in (("2.body.0", 2, 2), ("3.body.0", 3, 3), ("4.body.0", 4, 2), ("4.body.3", 4, 2)):
        if scale != options["scale"]:
            outputs = factor**2 * width
            found[f"upsample.up{name}.weight"] = torch.empty(outputs, width // 4, 3, 3, device="meta")
            found[f"upsample.up{name}.bias"] = torch.empty(outputs, device="meta")
    return found


SYSTEMS = {
    "carn_m": System(
        scales=(2, 3, 4),
        options=options,
        names=(
            (r"^head\.", "entry."),
            (r"^tail\.", "exit."),
            (r"^upsampler\.(\d)\.", r"upsample.up\1.body."),
            (r"^body\.steps\.(\d)\.steps\.0\.", from_one("b%.b1.")),
            (r"^body\.steps\.(\d)\.", from_one("b%.")),
            (r"^body\.", ""),
            (r"(^|\.)mix\.(\d)\.", lambda match: f"{match[1]}c{int(match[2]) + 1}.body.0."),
        ),
        constants=not_read,
    ),
}
