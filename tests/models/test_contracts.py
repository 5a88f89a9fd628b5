"""Contracts of every network and every attention module of the study; their own files test the rest."""

import importlib

import pytest
import torch
from torch import Tensor, nn

from lib import models
from lib.models import blocks, ignn
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
    "ignn x2": ("ignn", {**SMALL, "embedding": "random"}),
    "ignn x3": ("ignn", {**SMALL, "scale": 3, "embedding": "own", "image_skip": True}),
    "ignn x4, no graph": ("ignn", {**SMALL, "scale": 4, "neighbours": 0}),
    "imdn": ("imdn", {"width": 16, "blocks": 2, "scale": 2}),
    "input": ("input", {}),
    "lir": ("lir", LEVELS),
    "lir, gray": ("lir", {**LEVELS, "colors": 1, "image_skip": True}),
    "nlm": ("nlm", {"sigma": 25, "colors": 1}),
    "nlm, colour": ("nlm", {"sigma": 25, "colors": 3}),
    "panet": ("panet", {**SMALL, "scales": (0.8, 0.6)}),
    "panet x2": ("panet", {**SMALL, "scale": 2, "scales": (0.5,), "patch": 1, "reduction": 2}),
    "trunk with nl": ("edsr", {**SMALL, "attention": "nl"}),
    "trunk with dagl": ("dagl", {**SMALL, **GRAPH, "colors": 1, "common_trunk": True}),
    "trunk with panet": ("panet", {**SMALL, "scales": (0.6, 0.5), "common_trunk": True}),
    "trunk with enlca": ("enlca", {**SMALL, "common_trunk": True, "scale": 2}),
    "trunk with ignn": ("ignn", {**SMALL, "common_trunk": True, "scale": 2}),
}


def test_every_network_and_every_attention_is_here():
    assert {name for name, _ in CASES.values()} == set(models.names())
    modules = {name for name in models.names() if hasattr(importlib.import_module(f"lib.models.{name}"), "attention")}
    assert {name for name, options in CASES.values() if options.get("common_trunk")} == modules


def made(case: str) -> tuple[nn.Module, int, int]:
    """A network whose tensors are all small random values, its colours, its scale."""
    name, options = CASES[case]
    if name == "bm3d":
        pytest.importorskip("bm3d", reason="BM3D is an optional extra")
    torch.manual_seed(0)
    network = models.build(name, **options).eval()
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.1)
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
        assert network(torch.rand(1, colors, 61, 83)).shape == (1, colors, 61 * scale, 83 * scale)


@pytest.mark.parametrize("case", CASES)
def test_a_batch_is_its_images_one_by_one(case):
    network, colors, scale = made(case)
    images = torch.rand(2, colors, 128, 96)
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    assert together.shape == (2, colors, 128 * scale, 96 * scale)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("case", CASES)
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
    model = importlib.import_module(f"lib.models.{CASES[case][0]}")
    listed = {*getattr(model, "UNUSED", ()), *getattr(model, "FROZEN", ())}
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in network.named_parameters() if listed & set(name.split("."))}


def norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(gradient.norm())
