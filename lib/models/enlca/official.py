"""The released tensors of ENLCN."""

from __future__ import annotations

from ..released import WITH_UPSAMPLER, State, System, enlarging_options, shifts


def enlcn_options(state: State) -> dict:
    """One module before the first and after every 8th residual block, one convolution after them."""
    found = enlarging_options(state)
    return {**found, "blocks": found["blocks"] - found["blocks"] // 9}


SYSTEMS = {
    "enlcn": System(
        scales=(2, 3, 4),
        options=enlcn_options,
        names=(
            *WITH_UPSAMPLER,
            (r"\.theta\.", ".conv_match1.0."),
            (r"\.g\.", ".conv_match2.0."),
            (r"\.f\.", ".conv_assembly.0."),
            (r"\.projection_matrix$", ".attn_fn.projection_matrix"),
        ),
        constants=lambda options: shifts(1),
    ),
}
