"""Networks by name, and what is refused before one is made."""

from __future__ import annotations

import pytest
import torch
from oracles import refused
from torch import nn

from lib import models
from lib.models import ModelError, build, check_options


def test_a_folder_is_a_network():
    assert {"bicubic", "dagl", "edsr", "enlca", "ignn", "input", "lir", "panet"} <= set(models.names())
    for name in models.names():
        check_options(name, {})
        assert issubclass(models.network_class(name), models.Network)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dgal", {}, r"unknown model 'dgal'; known: .*dagl, .*edsr"),
        ("../dagl", {}, r"unknown model '../dagl'; known: "),
        ("blocks", {}, r"unknown model 'blocks'; known: "),
        ("edsr", {"widht": 4}, r"unknown option 'widht' of model 'edsr'; known: .*blocks.*width"),
        ("edsr", {"common_trunk": True}, "model 'edsr' has no attention module for the common trunk"),
        ("edsr", {"common_trunk": "no"}, "option 'common_trunk' of model 'edsr' is 'no'; it must be bool"),
        ("dagl", {"common_trunk": True, "attention": "nl"}, "unknown option 'attention'"),
        ("dagl", {"common_trunk": True, "stages": 2}, r"unknown option 'stages' of model 'dagl'; known: .*heads"),
        ("edsr", {"attention": "graph"}, "model 'edsr': attention 'graph' is not one of nl, mhnl"),
        # YAML 1.2 reads `no` as a text, and 3.5, "3" and true where whole numbers are meant
        ("edsr", {"image_skip": "no"}, "option 'image_skip' of model 'edsr' is 'no'; it must be bool"),
        ("edsr", {"image_skip": 1}, "it must be bool"),
        ("edsr", {"res_scale": "0.1"}, "option 'res_scale' of model 'edsr' is '0.1'; it must be float"),
        ("edsr", {"res_scale": True}, "it must be float"),
        ("edsr", {"blocks": None}, "it must be int"),
        ("dagl", {"heads": "3"}, "option 'heads' of model 'dagl' is '3'; it must be int"),
        ("dagl", {"heads": 3.5}, "it must be int"),
        ("dagl", {"heads": True}, "it must be int"),
        ("dagl", {"common_trunk": True, "heads": 2.0}, "it must be int"),
        ("lir", {"blocks": 3}, r"option 'blocks' of model 'lir' is 3; it must be Sequence\[int\]"),
        ("lir", {"blocks": "33334"}, r"it must be Sequence\[int\]"),
        ("lir", {"blocks": [1, 1, 1, 1, "1"]}, r"it must be Sequence\[int\]"),
        ("panet", {"scales": "0.5"}, "option 'scales' of model 'panet' is '0.5'"),
        ("nlm", {"sigma": "25"}, "option 'sigma' of model 'nlm' is '25'; it must be float"),
        ("nlm", {"h": "5"}, r"it must be float \| None"),
    ],
)
def test_refused_in_one_line(name, options, message):
    with refused(ModelError, match=message):
        build(name, **options)


def test_whole_numbers_are_floats_and_lists_are_sequences():
    assert build("edsr", width=4, blocks=1, res_scale=1).body[0].res_scale == 1
    assert [len(level) for level in build("lir", width=16, blocks=[0, 1, 0, 0, 0]).levels] == [0, 1, 0, 0, 0]


def test_options_go_to_the_trunk_and_to_the_module():
    network = build("dagl", common_trunk=True, colors=1, width=8, blocks=2, heads=1, patch=3, stride=2)
    assert network.body[1].heads == 1 and len(network.body) == 4


def test_options_are_known_by_following_them_on_their_way_down(monkeypatch):
    class Inner(nn.Module):
        def __init__(self, width: int, heads: int = 4):
            super().__init__()
            self.heads = heads

    class Outer(models.Network):
        options_of = Inner

        def __init__(self, width: int = 8, **attention):
            super().__init__()
            self.inner = Inner(width, **attention)

    monkeypatch.setattr(models, "network_class", lambda name: Outer)
    assert build("outer", width=4, heads=2).inner.heads == 2
    with pytest.raises(ModelError, match="option 'heads' of model 'outer' is '2'; it must be int"):
        build("outer", heads="2")
    with pytest.raises(ModelError, match="unknown option 'head' of model 'outer'; known: common_trunk, heads, width"):
        build("outer", head=2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[("edsr", {key: value}) for key, value in {"width": 0, "blocks": -1, "colors": 2, "scale": 5}.items()],
        ("edsr", {"res_scale": float("nan")}),
        *[("dagl", {key: -1}) for key in ("heads", "stages", "stage_blocks", "patch", "stride", "max_scores")],
        *[("lir", {"blocks": blocks}) for blocks in ((1, 1), (1, 1, 1, 1, -1))],
        *[("lir", {"width": width}) for width in (0, 18)],
        ("dagl", {"patch": 4}),
        ("dagl", {"stride": 5}),
        ("dagl", {"no_threshold": -3}),
        ("dagl", {"attention": "nl", "no_threshold": 4}),
        *[("dagl", {key: "foo"}) for key in ("attention", "weights")],
        *[("enlca", {key: -1}) for key in ("k", "features", "redraw", "contrastive_start", "every", "max_scores")],
        *[("ignn", {key: -1}) for key in ("neighbours", "window", "max_scores")],
        *[("ignn", {key: "foo"}) for key in ("embedding", "branch", "edge_weights")],
        ("ignn", {"common_trunk": True, "graph_scale": 0}),
        ("ignn", {"window": 2}),  # holds fewer patches than the 5 neighbours
        *[("panet", {"scales": scales}) for scales in ([1, 0], [1.2])],
        *[("panet", {key: 0}) for key in ("patch", "softmax_scale")],
        ("panet", {"positions": "foo"}),
        ("panet", {"width": 8, "reduction": 16}),
        ("enlca", {"contrastive_ranks": "top"}),
        *[("dncnn", {key: 0}) for key in ("depth", "width")],
        *[("nlm", {key: -1}) for key in ("sigma", "patch_size", "patch_distance", "h")],
        *[("nlm", option) for option in ({"patch_size": 4}, {"colors": 2})],
        *[("imdn", {key: 1}) for key in ("scale", "width")],
        *[("carn_m", {key: -1}) for key in ("scale", "width", "groups")],
    ],
)
def test_out_of_range_is_refused_in_one_line_that_names_the_option(name, options):
    with torch.device("meta"), refused(ModelError, f"model '{name}'", [*options][-1].removeprefix("graph_")):
        build(name, **options)
