"""The published tensors of DnCNN, batch normalisation merged."""

from __future__ import annotations

from ..released import State, System, count, size


def dncnn_options(state: State) -> dict:
    depth = max(1, count(state, "model.", step=2))
    last = f"model.{2 * depth - 2}"
    return {
        "colors": size(state, ("model.0.weight", 1), (f"{last}.bias", 0), (f"{last}.weight", 0)),
        "width": size(state, ("model.0.bias", 0), ("model.0.weight", 0), (f"{last}.weight", 1)),
        "depth": depth,
    }


SYSTEMS = {
    "dncnn": System(scales=(1,), options=dncnn_options),
}
