"""The released tensors of DAGL."""

from __future__ import annotations

from ..released import FIRST_AND_LAST, System, from_one, plain_options

SYSTEMS = {
    "dagl": System(
        scales=(1,),
        options=plain_options,
        names=(
            FIRST_AND_LAST,
            (r"\.stages\.(\d+)\.fuse\.", from_one(".c%_c.")),
            (r"\.stages\.(\d+)\.", from_one(".c%_HEAD.")),
            (r"\.blocks\.(\d+)\.", from_one(".RBS%.")),
            (r"\.edge\.", ".g."),
            (r"\.node\.", ".theta."),
            (r"\.query\.", ".fc1.0."),
            (r"\.key\.", ".fc2.0."),
            (r"\.threshold\.", ".LIMIT_conv."),  # gamma, beta
            (r"\.unused\.", ".W."),
        ),
        stacked={"LIMIT": ("thr", "bias"), "HEAD": ("1", "2", "3", "4")},
        flat=(".fc1.", ".fc2."),
    ),
}
