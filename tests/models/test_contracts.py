"""Contracts of every network and every attention module of the study; their own files test the rest."""

import importlib

import pytest
import torch
from oracles import randomised
from torch import Tensor, nn

from lib import models
from lib.models import blocks, dagl, enlca, ignn, panet
from lib.models.imdn import IMDB
from lib.models.lir import ChannelAttention

SMALL = {"width": 8, "blocks": 2}
GRAPH = {"heads": 1, "patch": 5, "stride": 3}
LEVELS = {"width": 16, "blocks": (1, 1, 1, 1, 1)}

#: Tensors without effect, by the module that has them.
INERT = {blocks.NonLocal: blocks.INERT, ignn.GraphAggregation: ignn.INERT}

#: model, options: every name of `models.names()`, and every attention in the common trunk
CASES = {
    "bicubic": ("bicubic", {"scale": 3}),
    "bm3d": ("bm3d", {"sigma": 25}),
    "carn_m": ("carn_m", {"width": 8, "scale": 3}),
    "dagl": ("dagl", {**SMALL, **GRAPH, "stages": 2, "stage_blocks": 1}),
    "dagl, colour, skip": ("dagl", {**SMALL, **GRAPH, "stages": 1, "colors": 3, "image_skip": True}),
    "dncnn": ("dncnn", {"width": 8, "depth": 4}),
    "dncnn, colour": ("dncnn", {"width": 8, "depth": 4, "colors": 3}),
    "edsr": ("edsr", SMALL),
    "edsr x3": ("edsr", {**SMALL, "scale": 3, "image_skip": True}),
    "enlca x2": ("enlca", {**SMALL, "every": 2, "scale": 2}),
    "enlca, exact": ("enlca", {**SMALL, "every": 2, "scale": 1, "exact": True}),
    "graph_prior": ("graph_prior", {**SMALL, **GRAPH, "colors": 1, "stages": 2, "stage_blocks": 1, "prior": "gate"}),
    "graph_prior, blocks": (
        "graph_prior",
        {**SMALL, "colors": 3, "stages": 2, "attention": "blocks", "prior": "reuse"},
    ),
    "ignn x2": ("ignn", {**SMALL, "embedding": "random"}),
    "ignn x3": ("ignn", {**SMALL, "scale": 3, "embedding": "own", "image_skip": True}),
    "ignn x4, no graph": ("ignn", {**SMALL, "scale": 4, "neighbours": 0}),
    "imdn": ("imdn", {"width": 16, "blocks": 2, "scale": 2}),
    "input": ("input", {}),
    "lir": ("lir", LEVELS),
    "lir, gray": ("lir", {**LEVELS, "colors": 1, "image_skip": True}),
    "nlm": ("nlm", {"sigma": 25, "colors": 1}),
    "nlm, colour": ("nlm", {"sigma": 25, "colors": 3}),
    "nlsa x2": ("nlsa", {**SMALL, "every": 2, "scale": 2, "bucket": 30}),
    "panet": ("panet", {**SMALL, "scales": (0.8, 0.6)}),
    "panet x2": ("panet", {**SMALL, "scale": 2, "scales": (0.5,), "patch": 1, "reduction": 2}),
    "sparse": ("sparse", SMALL),
    "trunk with nlsa": ("nlsa", {**SMALL, "common_trunk": True, "bucket": 50}),
    "trunk with neighbours": ("sparse", {**SMALL, "common_trunk": True, "neighbours": 8}),
    "trunk with windows": ("sparse", {**SMALL, "common_trunk": True, "window": 6}),
    "trunk with nl": ("edsr", {**SMALL, "attention": "nl"}),
    "trunk with mhnl": ("edsr", {**SMALL, "attention": "mhnl"}),
    "trunk with dagl": ("dagl", {**SMALL, **GRAPH, "colors": 1, "common_trunk": True}),
    "trunk with panet": ("panet", {**SMALL, "scales": (0.6, 0.5), "common_trunk": True}),
    "trunk with enlca": ("enlca", {**SMALL, "common_trunk": True, "scale": 2}),
    "trunk with ignn": ("ignn", {**SMALL, "common_trunk": True, "scale": 2}),
}

LEFT_OUT = ("no_filter", "no_patch_attention", "no_gate", "no_channel_attention", "no_degradation_subtraction")

#: Ablations, whose tensors must learn like those of CASES.
ABLATIONS = {
    "ignn x3, one branch": ("ignn", {**SMALL, "embedding": "own", "scale": 3, "adapn": False, "branch": "lr"}),
    "ignn, uniform weights": ("ignn", {**SMALL, "embedding": "own", "edge_weights": "uniform", "branch": "hr"}),
    "ignn, one neighbour": ("ignn", {**SMALL, "embedding": "own", "neighbours": 1}),
    **{f"lir, {option}": ("lir", {**LEVELS, option: True}) for option in LEFT_OUT},
    "lir, all left out": ("lir", {**LEVELS, **dict.fromkeys(LEFT_OUT, True)}),
    "panet, pixels": ("panet", {**SMALL, "patch": 1, "colors": 1, "positions": 2, "image_skip": True}),
}


def test_every_network_and_every_attention_is_here():
    assert {name for name, _ in CASES.values()} == set(models.names())
    modules = {name for name in models.names() if hasattr(importlib.import_module(f"lib.models.{name}"), "attention")}
    assert {name for name, options in CASES.values() if options.get("common_trunk")} == modules


def made(case: str) -> tuple[nn.Module, int, int]:
    """A network whose tensors are all small random values, its colours, its scale."""
    name, options = (CASES | ABLATIONS)[case]
    if name == "bm3d":
        pytest.importorskip("bm3d", reason="BM3D is an optional extra")
    torch.manual_seed(0)
    network = randomised(models.build(name, **options).eval())
    for module in network.modules():  # a ReLU that sees one number per image has no chance to be dead
        if isinstance(module, ChannelAttention):
            module.squeeze.bias.data += 1
        if isinstance(module, IMDB):
            module.contrast[0].bias.data += 1
    colors = options.get("colors", 1 if name in ("dagl", "dncnn") else 3)
    return network, colors, options.get("scale", 2 if name == "ignn" and not options.get("common_trunk") else 1)


@pytest.mark.parametrize("case", CASES)
def test_any_size_is_taken(case):
    network, colors, scale = made(case)
    with torch.no_grad():
        for height, width in ((61, 83), (2, 2)):
            assert network(torch.rand(1, colors, height, width)).shape == (1, colors, height * scale, width * scale)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_smallest_images_are_restored_or_refused_in_one_line(case, size):
    network, colors, scale = made(case)
    try:
        with torch.no_grad():
            restored = network(torch.rand(1, colors, *size))
    except blocks.ImageError as error:
        assert "\n" not in str(error)
    else:
        assert restored.shape == (1, colors, size[0] * scale, size[1] * scale) and restored.isfinite().all()


@pytest.mark.parametrize("case", CASES)
def test_a_batch_is_its_images_one_by_one(case):
    network, colors, scale = made(case)
    images = torch.rand(2, colors, 80, 64)
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    assert together.shape == (2, colors, 80 * scale, 64 * scale)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("case", CASES | ABLATIONS)
def test_every_trainable_tensor_has_a_gradient(case):
    network, colors, _ = made(case)
    if not any(True for _ in network.parameters()):
        pytest.skip("nothing to train")
    network = network.train().double()
    images = torch.rand(2, colors, 32, 24, dtype=torch.float64, requires_grad=True)
    network(images).square().sum().backward()
    assert norm(images.grad) > 0
    norms = {name: norm(p.grad) for name, p in network.named_parameters() if p.requires_grad}
    inert = {f"{place}.{name}" for place, part in network.named_modules() for name in INERT.get(type(part), ())}
    assert {name for name, value in norms.items() if value == 0} <= inert
    assert all(norms[name] <= 1e-12 * max(norms.values()) for name in inert & set(norms))  # rounding, if anything
    model = importlib.import_module(f"lib.models.{(CASES | ABLATIONS)[case][0]}")
    listed = {*getattr(model, "UNUSED", ()), *getattr(model, "FROZEN", ())}
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in network.named_parameters() if listed & set(name.split("."))}


def norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(gradient.norm())


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("dagl", {**SMALL, **GRAPH, "colors": 3}),
        ("dncnn", {"colors": 3, "depth": 3}),
        ("lir", LEVELS),
        *(("edsr", {**SMALL, "scale": scale}) for scale in (1, 2, 3, 4)),
        ("enlca", {**SMALL, "scale": 2}),
        ("ignn", {**SMALL, "scale": 2, "embedding": "random"}),
        ("panet", {**SMALL, "scale": 2}),
    ],
)
def test_image_skip_starts_at_the_enlarged_input(model, options):
    scale, ramp = options.get("scale", 1), torch.linspace(0, 1, 24).expand(1, 3, 20, 24)
    restored = models.build(model, image_skip=True, **options)(ramp)
    if scale == 1:
        torch.testing.assert_close(restored, ramp)
    inside = restored[..., 8 * scale : 12 * scale, 8 * scale : 16 * scale]  # away from the borders a ramp stays a ramp
    expected = (torch.arange(8 * scale, 16 * scale) + 0.5) / scale - 0.5
    torch.testing.assert_close(inside, (expected / 23).expand_as(inside), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("model", "options"), [("ignn", {**SMALL, "embedding": "random"}), ("lir", LEVELS)])
def test_trains_under_autocast(model, options):
    network, image = models.build(model, **options), torch.rand(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        restored = network(image)
    restored.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)
    with torch.no_grad():
        assert (restored - network(image)).abs().max() < 0.05


#: Attention modules of 4 channels whose gradients are written by hand, and heads, or that choose their form by size.
MODULES = {
    "DAGL": lambda **options: dagl.MGFAM(4, heads=1, patch=3, stride=2, **options),
    "DAGL, paper": lambda **options: dagl.MGFAM(4, heads=1, patch=3, stride=2, weights="paper", **options),
    "DAGL, neighbours": lambda **options: dagl.MGFAM(4, heads=1, patch=3, stride=2, no_threshold=5, **options),
    "ENLCA": lambda **options: enlca.ENLCA(4, features=4, redraw=None, margin=3, **options),
    "ENLCA, exact": lambda **options: enlca.ENLCA(4, redraw=None, margin=3, exact=True, **options),
    "non-local": lambda **options: blocks.NonLocal(4, inner=4, heads=2),
    "PANet": lambda **options: panet.PyramidAttention(4, scales=(1, 0.7), softmax_scale=3, **options),
}


@pytest.mark.parametrize("max_scores", [2**23, 40])
@pytest.mark.parametrize("kind", MODULES)
def test_gradients_are_those_of_the_function(kind, max_scores):
    module = randomised(MODULES[kind](max_scores=max_scores).double().train(), 0.3)
    module.start_step(0.99, torch.Generator())
    x = torch.randn(2, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    # DAGL's weights jump where a score crosses its threshold; no score of this seed is that near.
    trained = [p for p in module.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(lambda x, *_: module(x) + module.auxiliary_loss(), (x, *trained), fast_mode=True)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("max_scores", [2**23, 1000])
@pytest.mark.parametrize("kind", MODULES)
def test_nothing_is_read_before_it_is_written(uninitialised_is_nan, kind, max_scores):
    module, x = randomised(MODULES[kind](max_scores=max_scores), 0.3), torch.randn(2, 4, 13, 18, requires_grad=True)
    with torch.autograd.detect_anomaly():
        module(x).sum().backward()
    assert all(t.grad is None or t.grad.isfinite().all() for t in (x, *module.parameters()))
