"""The released tensors of IMDN."""

from __future__ import annotations

from ..released import State, System, count, from_one, size, upsampling


def options(state: State) -> dict:
    return {
        "scale": upsampling(state, "upsampler.0", 3, (2, 3, 4)),
        "width": size(state, ("fea_conv.bias", 0), ("fea_conv.weight", 0), ("LR_conv.bias", 0)),
        "blocks": count(state, "IMDB", first=1),
    }


SYSTEMS = {
    "imdn": System(
        scales=(2, 3, 4),
        options=options,
        names=(
            (r"^head\.", "fea_conv."),
            (r"^fuse\.0\.", "c.0."),
            (r"^fuse\.2\.", "LR_conv."),
            (r"^tail\.", "upsampler."),
            (r"^blocks\.(\d+)\.", from_one("IMDB%.")),
            (r"\.distil\.(\d)\.", from_one(".c%.")),
            (r"\.last\.", ".c4."),
            (r"\.contrast\.", ".cca.conv_du."),
            (r"\.fuse\.", ".c5."),
        ),
    ),
}
