"""The released tensors of PANet, and of PA-EDSR, which is PANet for super-resolution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..released import FIRST_AND_LAST, WITH_UPSAMPLER, System, enlarging_options, plain_options, shifts
from .block_attention import SMALLEST_NORM

PYRAMID = ((r"\.theta\.", ".conv_match_L_base."), (r"\.g\.", ".conv_match."), (r"\.f\.", ".conv_assembly."))


def smallest_norms(*modules: str) -> Callable[[dict], dict[str, Tensor]]:
    """PyramidAttention's, in modules of these names, {0} the index of the one in the trunk."""
    return lambda options: {
        f"{module.format(options['blocks'] // 2)}.escape_NaN": torch.tensor([SMALLEST_NORM]) for module in modules
    }


SYSTEMS = {
    "panet": System(
        scales=(1,),
        options=plain_options,
        names=(FIRST_AND_LAST, *PYRAMID),
        constants=smallest_norms("body.{0}"),
    ),
    "pa_edsr": System(
        scales=(2, 3, 4),
        options=enlarging_options,
        names=(*WITH_UPSAMPLER, *PYRAMID),
        copies=((r"^body\.\d+\.conv_", "msa.conv_"),),
        constants=lambda options: {**shifts(1), **smallest_norms("body.{0}", "msa")(options)},
    ),
}
