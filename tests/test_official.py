"""Released state dicts, made here by name and shape, against the networks that `lib.official` makes of them."""

from __future__ import annotations

import argparse
import bz2
import collections
import functools
import gzip
import lzma
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from oracles import refused
from PIL import Image
from torch import Tensor

from lib import models, official
from lib.measuring.metrics import Convention
from lib.models.blocks import DIV2K_MEAN
from lib.official import OfficialError

Shapes = dict[str, tuple[int, ...]]

# The tensors of the released networks: names and shapes, one kind a line.


def tensors(lines: str) -> Shapes:
    """From lines `name shape`: [a..b,c] in a name stands for each of these, an asterisk for a weight and its bias."""
    shapes = {}
    for name, *numbers in filter(None, map(str.split, lines.splitlines())):
        shape = tuple(map(int, numbers))
        for one in expanded(name):
            shapes |= {f"{one[:-1]}.weight": shape, f"{one[:-1]}.bias": shape[:1]} if one[-1] == "*" else {one: shape}
    return shapes


def expanded(name: str) -> list[str]:
    if not (found := re.search(r"\[(.*?)\]", name)):
        return [name]
    choices: list = []
    for part in found[1].split(","):
        first, _, last = part.partition("..")
        choices += range(int(first), int(last) + 1) if last else [part]
    return [one for choice in choices for one in expanded(f"{name[: found.start()]}{choice}{name[found.end() :]}")]


def dagl(colors: int = 1, blocks: int = 16, w: int = 64) -> Shapes:
    middle = blocks // 2
    residual = f"body.[0..{middle - 1},{middle + 1}..{blocks}].body"
    head = f"body.{middle}.c[1..3]_[1..4]"
    return tensors(f"""
        add_mean* 3 3 1 1
        head.0* {w} {colors} 3 3
        {residual}.[0,2]* {w} {w} 3 3
        {residual}.1.weight 1
        body.{middle}.RBS[1,2].[0..3].body.[0,2]* {w} {w} 3 3
        body.{middle}.RBS[1,2].[0..3].body.1.weight 1
        {head}.g* 16 {w} 3 3
        {head}.W* {w} 16 1 1
        {head}.theta* 16 {w} 1 1
        {head}.[fc1,fc2].0* 196 784
        {head}.[thr_conv,bias_conv]* 1 {w} 7 7
        body.{middle}.c[1..3]_c* {w} 64 1 1
        body.{blocks + 1}* {w} {w} 3 3
        tail.0* {colors} {w} 3 3
    """)


def pyramid_attention(place: str, w: int, reduction: int) -> str:
    return f"""{place}.escape_NaN 1
        {place}.[conv_match_L_base,conv_match].0* {w // reduction} {w} 1 1
        {place}.conv_assembly.0* {w} {w} 1 1
        {place}.[conv_match_L_base,conv_match,conv_assembly].1.weight 1"""


def panet(colors: int = 3, blocks: int = 80, w: int = 64) -> Shapes:
    middle = blocks // 2
    residual = f"body.[0..{middle - 1},{middle + 1}..{blocks}].body"
    return tensors(f"""
        [sub,add]_mean* 3 3 1 1
        head.0* {w} {colors} 3 3
        {residual}.[0,2]* {w} {w} 3 3
        {residual}.1.weight 1
        {pyramid_attention(f"body.{middle}", w, 2)}
        body.{blocks + 1}* {w} {w} 3 3
        tail.0* {colors} {w} 3 3
    """)


def edsr(scale: int, w: int, residual: str, last: int) -> str:
    """The tensors that PA-EDSR and ENLCN share with EDSR; `residual` are the indices of the residual blocks."""
    return f"""
        [sub,add]_mean* 3 3 1 1
        head.0* {w} 3 3 3
        body.[{residual}].body.[0,2]* {w} {w} 3 3
        body.{last}* {w} {w} 3 3
        tail.0.{"[0,2]" if scale == 4 else 0}* {(9 if scale == 3 else 4) * w} {w} 3 3
        tail.1* 3 {w} 3 3"""


def pa_edsr(scale: int, blocks: int = 32, w: int = 256) -> Shapes:
    middle = blocks // 2
    return tensors(f"""
        {pyramid_attention(f"[msa,body.{middle}]", w, 8)}
        {edsr(scale, w, f"0..{middle - 1},{middle + 1}..{blocks}", blocks + 1)}
    """)


def enlcn(scale: int, blocks: int = 32, w: int = 256) -> Shapes:
    last = blocks + blocks // 8 + 1
    modules = range(0, last, 9)
    return tensors(f"""
        body.[{",".join(map(str, modules))}].conv_match[1,2].0* {w // 4} {w} 1 1
        body.[{",".join(map(str, modules))}].conv_assembly.0* {w} {w} 1 1
        body.[{",".join(map(str, modules))}].attn_fn.projection_matrix 128 {w // 4}
        {edsr(scale, w, ",".join(str(i) for i in range(last) if i not in modules), last)}
    """)


def ignn_network(scale: int, blocks: int = 32, w: int = 256) -> Shapes:
    half, pixels = blocks // 2, 9 if scale == 3 else 4
    return tensors(f"""
        [,vggnet.,graph.embedcnn.]sub_mean* 3 3 1 1
        add_mean* 3 3 1 1
        [vggnet,graph.embedcnn].model.0* 64 3 3 3
        [vggnet,graph.embedcnn].model.2* 64 64 3 3
        head.0* {w} 3 3 3
        [body1,body2].[0..{half - 1}].body.[0,2]* {w} {w} 3 3
        gcn.knn_downsample.0.0* {w} {w} 5 5
        gcn.knn_downsample.[1,2].0* {w} {w} 3 3
        gcn.weightnet_[lr,hr].[0.0,1.body.0,1.body.2]* 64 64 1 1
        gcn.weightnet_[lr,hr].2.0* 1 64 1 1
        body2.{half}.0* {w} {w} 3 3
        [fuse_b,fuse_up].0.0* {w} {2 * w} 3 3
        [fuse_b,fuse_up].1.0* {w} {w} 3 3
        upsample.0* {pixels * w} {w} 3 3
        {f"tail.0.0* {4 * w} {w} 3 3" if scale == 4 else ""}
        tail.{1 if scale == 4 else 0}.0* 3 {w} 3 3
    """)


#: The fixed operators that a file written on a CPU holds; Sobel_y is never among them.
KERNELS = ("Sobel_x", "Laplacian", "Edge", "Sobel_xy", "Sobel_yx", "Roberts_x", "Roberts_y")


def lir_block(place: str, w: int, pixels: int, inner: int) -> str:
    return f"""
        {place}.[resblock,rescablock].alpha 1 {w} 1 1
        {place}.[resblock,rescablock].conv_1.weight {2 * w} {w} 1 1
        {place}.[resblock,rescablock].conv_2.weight {2 * w} 1 3 3
        {place}.[resblock,rescablock].layernorm* {2 * w}
        {place}.[resblock,rescablock].conv_3.weight {w} {2 * w} 1 1
        {place}.[pa.beta,sg.gamma] 1 {w} 1 1
        {place}.pa.down.weight {inner} {w} 1 1
        {place}.pa.mlp.0* {pixels} {inner * pixels}
        {place}.pa.mlp.1* {pixels}
        {place}.pa.mlp.3* 1 {pixels}
        {place}.sg.norm* {w}
        {place}.sg.conv* {2 * w} {w} 1 1
        {place}.rescablock.ca.attention.1* {w // 16} {w} 1 1
        {place}.rescablock.ca.attention.3* {w} {w // 16} 1 1"""


def lir(kernels: bool = False, blocks: tuple[int, ...] = (3, 3, 3, 3, 4), w: int = 48) -> Shapes:
    levels = ""
    for level, (count, patch, ratio) in enumerate(zip(blocks, (8, 8, 4, 8, 8), (16, 8, 8, 8, 16), strict=True), 1):
        block = f"EAA{level}.[0..{count - 1}]"
        operators = "alpha 9", "beta 1", *(f"{name} CHANNELS 1 3 3" for name in KERNELS if kernels)
        levels += f"""
            {lir_block(f"{block}.stage1.0", w, patch**2, w // ratio)}
            {lir_block(f"{block}.stage[2..4].1", w, patch**2 // 4, w // ratio)}
            {lir_block(f"{block}.stage5.1", 2 * w, patch**2, 2 * w // ratio)}
            {chr(10).join(f"{block}.stage[2..4].0.{line}".replace("CHANNELS", str(w)) for line in operators)}
            {chr(10).join(f"{block}.stage5.0.{line}".replace("CHANNELS", str(2 * w)) for line in operators)}
            {block}.[stage1.1,stage2.2].weight {w} {w} 3 3
            {block}.[stage4.2,transpose].weight {w} {w} 4 4
            {block}.stage5.2.weight {2 * w} {w} 4 4"""
    return tensors(f"""{levels}
        downsample[1,2].0.weight {w // 4} {w} 3 3
        upsample[1,2].0.weight {4 * w} {w} 3 3
        down.conv.weight {w} {2 * w} 3 3
        [down,Conv_head,Conv_tail].act.weight 1
        transpose1.weight {w} {w} 4 4
        transpose2.weight {w} 3 4 4
        Conv_head.conv.weight {w} 3 3 3
        Conv_tail.conv.weight 3 {w} 3 3
    """)


def dncnn(colors: int = 1, depth: int = 17, w: int = 64) -> Shapes:
    return tensors(f"""
        model.0* {w} {colors} 3 3
        model.[{",".join(str(2 * i) for i in range(1, depth - 1))}]* {w} {w} 3 3
        model.{2 * depth - 2}* {colors} {w} 3 3
    """)


def imdn(scale: int, blocks: int = 6, w: int = 64) -> Shapes:
    return tensors(f"""
        fea_conv* {w} 3 3 3
        IMDB[1..{blocks}].c1* {w} {w} 3 3
        IMDB[1..{blocks}].[c2,c3]* {w} {w - w // 4} 3 3
        IMDB[1..{blocks}].c4* {w // 4} {w - w // 4} 3 3
        IMDB[1..{blocks}].cca.conv_du.0* {w // 16} {w} 1 1
        IMDB[1..{blocks}].cca.conv_du.2* {w} {w // 16} 1 1
        IMDB[1..{blocks}].c5* {w} {w} 1 1
        c.0* {w} {blocks * w} 1 1
        LR_conv* {w} {w} 3 3
        upsampler.0* {3 * scale**2} {w} 3 3
    """)


def carn_m(w: int = 64) -> Shapes:
    return tensors(f"""
        [sub,add]_mean.shifter* 3 3 1 1
        entry* {w} 3 3 3
        b[1..3].b1.body.[0,2]* {w} {w // 4} 3 3
        b[1..3].b1.body.4* {w} {w} 1 1
        [b1.,b2.,b3.,]c1.body.0* {w} {2 * w} 1 1
        [b1.,b2.,b3.,]c2.body.0* {w} {3 * w} 1 1
        [b1.,b2.,b3.,]c3.body.0* {w} {4 * w} 1 1
        upsample.[up2.body.0,up4.body.0,up4.body.3]* {4 * w} {w // 4} 3 3
        upsample.up3.body.0* {9 * w} {w // 4} 3 3
        exit* 3 {w} 3 3
    """)


def same_tensor(system: str, name: str) -> str:
    """The name under which a released tensor that is registered several times comes first."""
    parts = name.split(".")
    if system in ("dagl", "panet") and parts[0] == "body" and parts[2:] == ["body", "1", "weight"]:
        return "the trunk's slope"
    if system == "pa_edsr" and parts[1].startswith(("conv_", "escape")):
        return "msa." + ".".join(parts[1:])
    if system == "pa_edsr" and len(parts) > 2 and parts[2].startswith(("conv_", "escape")):
        return "msa." + ".".join(parts[2:])
    if system == "ignn":
        return name.replace("graph.embedcnn.", "vggnet.")
    return name


def is_constant(system: str, name: str) -> bool:
    """Tensors of the released networks that ours do not have, or do not read."""
    shift = name.startswith(("sub_mean", "add_mean", "vggnet.sub_mean", "graph.embedcnn.sub_mean"))
    other_scales = system == "carn_m" and name.startswith(("upsample.up3", "upsample.up4"))  # read for x2 here
    return (
        shift or other_scales or name.endswith("escape_NaN") or (system == "lir" and name.rpartition(".")[2] in KERNELS)
    )


#: system, shapes of the released network, our options where not the defaults, its state entries and parameters
RELEASED = {
    "DAGL, gray": ("dagl", dagl(), {}, 302, 5_727_438),
    "DAGL, real noise": ("dagl", dagl(3), {"colors": 3}, 302, 5_729_744),
    "DAGL, demosaicing": ("dagl", dagl(3, 32), {"colors": 3, "blocks": 32}, 382, 6_911_440),
    "PANet": ("panet", panet(), {}, 420, 5_957_279),
    "PANet, gray": ("panet", panet(1), {"colors": 1}, 420, 5_954_973),
    "PA-EDSR x2": ("pa_edsr", pa_edsr(2), {"scale": 2}, None, 40_811_870),
    "PA-EDSR x3": ("pa_edsr", pa_edsr(3), {"scale": 3}, None, 43_762_270),
    "PA-EDSR x4": ("pa_edsr", pa_edsr(4), {"scale": 4}, None, 43_172_190),
    "ENLCN x2": ("enlcn", enlcn(2), {"scale": 2}, 175, 41_223_067),
    "ENLCN x3": ("enlcn", enlcn(3), {"scale": 3}, 175, 44_173_467),
    "ENLCN x4": ("enlcn", enlcn(4), {"scale": 4}, 177, 43_583_387),
    "IGNN x2": ("ignn", ignn_network(2), {"scale": 2}, 182, 47_152_233),
    "IGNN x3": ("ignn", ignn_network(3), {"scale": 3}, 182, 50_102_633),
    "IGNN x4": ("ignn", ignn_network(4), {"scale": 4}, 184, 49_512_553),
    "LIR": ("lir", lir(), {}, 2540, 7_310_915),
    "LIR, kernels": ("lir", lir(True), {}, 2988, 7_552_835),
    "DnCNN": ("dncnn", dncnn(), {}, 34, 555_137),
    "IMDN x2": ("imdn", imdn(2), {"scale": 2}, 92, 694_404),
    "IMDN x4": ("imdn", imdn(4), {"scale": 4}, 92, 715_176),
    "CARN-M x2": ("carn_m", carn_m(), {"scale": 2}, 58, 414_811),
}

#: The same, small.
SMALL = {
    "DAGL": ("dagl", dagl(3, 2, 16)),
    "PANet": ("panet", panet(1, 4, 16)),
    "PA-EDSR x2": ("pa_edsr", pa_edsr(2, 4, 16)),
    "PA-EDSR x3": ("pa_edsr", pa_edsr(3, 2, 16)),
    "PA-EDSR x4": ("pa_edsr", pa_edsr(4, 4, 16)),
    "ENLCN x2": ("enlcn", enlcn(2, 8, 16)),
    "ENLCN x3": ("enlcn", enlcn(3, 9, 16)),
    "ENLCN x4": ("enlcn", enlcn(4, 16, 16)),
    "IGNN x2": ("ignn", ignn_network(2, 2, 8)),
    "IGNN x3": ("ignn", ignn_network(3, 4, 8)),
    "IGNN x4": ("ignn", ignn_network(4, 2, 8)),
    "LIR": ("lir", lir(False, (1, 0, 1, 1, 2), 16)),
    "LIR, kernels": ("lir", lir(True, (0, 1, 0, 0, 0), 16)),
    "DnCNN": ("dncnn", dncnn(3, 4, 8)),
    "IMDN x3": ("imdn", imdn(3, 2, 16)),
    "CARN-M x2": ("carn_m", carn_m(8)),
}


#: What released state dicts leave open.
OPEN = {"carn_m": {"scale": 2}}


#: State dicts here hold any numbers, mean shifts included.
pytestmark = pytest.mark.filterwarnings("ignore:.*has other constants")


def numbered(system: str, shapes: Shapes) -> dict[str, Tensor]:
    """Tensors whose elements are all different, but for those that are one tensor."""
    made: dict[str, Tensor] = {}
    start = 0
    for name, shape in shapes.items():
        key, numel = same_tensor(system, name), torch.Size(shape).numel()
        if key not in made:
            made[key] = torch.arange(start, start + numel, dtype=torch.float64).reshape(shape)
            start += numel
    return {name: made[same_tensor(system, name)] for name in shapes}


def drawn(system: str, shapes: Shapes, scale: float = 0.05) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = numbered(system, shapes)
    made = {id(t): scale * torch.randn(t.shape, generator=generator) for t in state.values()}
    return {name: made[id(t)] for name, t in state.items()}


@pytest.mark.parametrize("case", RELEASED)
def test_the_released_networks_are_recognised(case):
    system, shapes, options, entries, parameters = RELEASED[case]
    assert entries in (None, len(shapes))
    unique = {same_tensor(system, name): torch.Size(shape).numel() for name, shape in shapes.items()}
    buffers = [name for name in unique if name.endswith(("escape_NaN", "projection_matrix"))]
    assert sum(unique.values()) - sum(unique[name] for name in buffers) == parameters

    state = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    model, _, tensors = official.translate(system, state, **OPEN.get(system, {}))
    with torch.device("meta"):
        network = models.build(model, **options)
    assert {name: t.shape for name, t in tensors.items()} == {name: t.shape for name, t in network.state_dict().items()}
    left_out = sum(unique[name] for name in unique if is_constant(system, name) and name not in buffers)
    kept = sum(p.numel() for name, p in network.named_parameters() if name.startswith(("sub_mean", "add_mean")))
    assert sum(p.numel() for p in network.parameters()) == parameters - left_out + kept


@pytest.mark.parametrize("case", SMALL)
def test_every_number_of_a_state_dict_is_used_in_its_place(case):
    system, shapes = SMALL[case]
    state = numbered(system, shapes)
    tensors = official.translate(system, state, **OPEN.get(system, {}))[2]
    numbers = [
        torch.cat([t.flatten() for name, t in of.items() if not is_constant(system, name)]) for of in (tensors, state)
    ]
    assert torch.equal(numbers[0].unique(), numbers[1].unique())
    assert all(torch.equal(tensors[own], state[released]) for released, own in TOLD_APART.get(case, {}).items())


#: Released name -> ours, where another tensor has the same shape.
TOLD_APART = {
    "DAGL": {"body.1.RBS2.3.body.0.weight": "body.1.blocks.1.3.body.0.weight"},
    "PANet": {
        "body.2.conv_match_L_base.0.weight": "body.2.theta.0.weight",
        "body.2.conv_match.0.weight": "body.2.g.0.weight",
        "body.2.conv_assembly.1.weight": "body.2.f.1.weight",
    },
    "ENLCN x4": {
        "body.0.conv_match1.0.bias": "body.0.theta.bias",
        "body.0.conv_match2.0.bias": "body.0.g.bias",
        "body.10.body.0.bias": "body.10.body.0.bias",
        "tail.0.2.weight": "upsampler.2.weight",
    },
    "IGNN x4": {
        "gcn.weightnet_lr.0.0.bias": "aggregation.edges_lr.0.bias",
        "gcn.knn_downsample.1.0.weight": "aggregation.den.2.weight",
        "fuse_b.0.0.weight": "fuse_lr.0.weight",
        "fuse_up.1.0.weight": "fuse_hr.2.weight",
        "upsample.0.weight": "upsampler.0.weight",
        "tail.0.0.weight": "tail.0.weight",
    },
    "LIR": {
        "EAA1.0.stage2.1.resblock.conv_1.weight": "levels.0.0.stage2.1.block.expand.weight",
        "EAA1.0.stage2.1.rescablock.conv_3.weight": "levels.0.0.stage2.1.channel_block.reduce.weight",
        "EAA5.1.stage1.1.weight": "levels.4.1.stage1.1.weight",
        "upsample1.0.weight": "up.0.0.weight",
        "downsample2.0.weight": "down.1.0.weight",
        "down.act.weight": "fuse.1.weight",
    },
    "IMDN x3": {"IMDB2.c2.weight": "blocks.1.distil.1.weight", "IMDB2.c3.weight": "blocks.1.distil.2.weight"},
    "CARN-M x2": {"b2.c3.body.0.bias": "body.steps.1.mix.2.bias", "c3.body.0.bias": "body.mix.2.bias"},
}


@pytest.mark.parametrize(
    ("ours", "parts"),
    [("edge", "g"), ("node", "theta"), ("query", "fc1.0"), ("key", "fc2.0"), ("threshold", "thr_conv bias_conv")],
)
def test_heads_of_dagl_are_stacked(ours, parts):
    """Head after head; of the thresholds all gammas, then all betas."""
    state = numbered("dagl", SMALL["DAGL"][1])
    stacked = torch.cat([state[f"body.1.c3_{head}.{part}.bias"] for part in parts.split() for head in (1, 2, 3, 4)])
    assert torch.equal(official.translate("dagl", state)[2][f"body.1.stages.2.{ours}.bias"], stacked)


@pytest.mark.parametrize("case", SMALL)
def test_a_loaded_network_restores_images(case):
    system, shapes = SMALL[case]
    state = drawn(system, shapes)
    before = torch.get_rng_state()
    network = official.load(system, state, **OPEN.get(system, {}))
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.training
    own, wanted = network.state_dict(), official.translate(system, state, **OPEN.get(system, {}))[2]
    assert all(torch.equal(own[name], wanted[name]) for name in wanted)
    colors = 1 if system == "panet" else 3
    scale = int(case[-1]) if case[-2] == "x" else 1
    with torch.no_grad():
        restored = network(torch.rand(1, colors, 14, 12))
    assert restored.shape == (1, colors, 14 * scale, 12 * scale)
    assert restored.isfinite().all()


def one_of_each_kind(shapes: Shapes) -> set[str]:
    """Tensors whose names differ in more than their numbers."""
    return set({re.sub(r"\d+", "", name): name for name in shapes}.values())


@pytest.mark.parametrize("case", SMALL)
def test_a_tensor_that_is_missing_misshaped_or_too_much_is_named(case, monkeypatch):
    system, shapes = SMALL[case]
    state, more = drawn(system, shapes), OPEN.get(system, {})
    build = functools.cache(models.build)  # the same network is asked for again and again
    monkeypatch.setattr(models, "build", build)
    for name in one_of_each_kind(shapes):
        optional = system == "lir" and is_constant(system, name)
        if not optional:
            with pytest.raises(OfficialError) as caught:
                official.translate(system, {key: t for key, t in state.items() if key != name}, **more)
            assert f"missing: {name}" in str(caught.value)
        with pytest.raises(OfficialError) as caught:
            official.translate(system, state | {name: torch.zeros(7, *shapes[name][1:])}, **more)
        assert (f"unexpected: {name}" if optional else f"misshaped: {name} (7,") in str(caught.value)
    for extra in ("body.99.weight", "extra", next(iter(shapes)) + "s", "EAA1.0.stage2.0.kernel"):
        with pytest.raises(OfficialError, match=f"unexpected: {re.escape(extra)}$"):
            official.translate(system, state | {extra: torch.randn(16, 1, 3, 3)}, **more)


@pytest.mark.parametrize("case", ["DAGL", "PANet", "PA-EDSR x2", "IGNN x2"])
def test_one_tensor_under_several_names_has_one_value(case):
    system, shapes = SMALL[case]
    state = drawn(system, shapes)
    counts: dict[str, list[str]] = {}
    for name in shapes:
        counts.setdefault(same_tensor(system, name), []).append(name)
    several = [names for names in counts.values() if len(names) > 1 and not is_constant(system, names[0])]
    assert several
    for names in several:
        with pytest.raises(OfficialError, match="one tensor in the network") as caught:
            official.translate(system, state | {names[-1]: state[names[-1]] + 1})
        assert all(name in str(caught.value) for name in (names[0], names[-1]))


@pytest.mark.parametrize(
    ("system", "shapes", "value_range"),
    [("pa_edsr", pa_edsr(2, 2, 16), 1), ("enlcn", enlcn(2, 2, 16), 1), ("ignn", ignn_network(2, 2, 8), 255)],
)
def test_constants_that_differ_are_reported(system, shapes, value_range):
    state = drawn(system, shapes)
    for sign, name in ((-1, "sub_mean"), (1, "add_mean")):
        state[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1)
        state[f"{name}.bias"] = sign * value_range * torch.tensor(DIV2K_MEAN)
    state |= {name: torch.tensor([1e-4]) for name in shapes if name.endswith("escape_NaN")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        official.translate(system, state)
        with pytest.raises(UserWarning, match=f"{system}: sub_mean.bias not read"):
            official.translate(system, state | {"sub_mean.bias": -state["sub_mean.bias"]})


def test_a_fixed_operator_is_known_by_its_values():
    state = drawn("lir", lir(False, (1, 1, 1, 1, 1), 16))
    kernel = torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]])
    name = "EAA2.0.stage5.0.edges"
    official.translate("lir", state | {name: 1e-3 * kernel.expand(32, 1, 3, 3)})
    for wrong in (kernel.T.roll(1, 0).expand(32, 1, 3, 3), kernel.expand(16, 1, 3, 3), torch.zeros(32, 1, 3, 3)):
        with pytest.raises(OfficialError, match=f"unexpected: {name}$"):
            official.translate("lir", state | {name: wrong})


def test_many_problems_are_listed_in_one_line():
    state = drawn("dncnn", dncnn(1, 4, 8))
    wrong = {f"extra.{i}": torch.zeros(1) for i in range(9)} | {"model.2.bias": torch.zeros(5)}
    with pytest.raises(OfficialError) as caught:
        official.translate("dncnn", state | wrong)
    assert str(caught.value) == (
        "dncnn: unexpected: extra.0, extra.1, extra.2, extra.3 and 5 more; misshaped: model.2.bias (5,), expected (8,)"
    )


def test_an_unknown_system_and_another_systems_tensors_are_named():
    state = drawn("dncnn", dncnn(1, 4, 8))
    with pytest.raises(OfficialError, match="unknown system 'rnan'; known: carn_m, dagl, dncnn"):
        official.load("rnan", state)
    for system in official.systems():
        if system != "dncnn":
            with pytest.raises(OfficialError, match=f"^{system}: missing: "):
                official.load(system, state, **OPEN.get(system, {}))
    with pytest.raises(OfficialError, match=r"model\.0\.weight is list"):
        official.load("dncnn", {"model.0.weight": [1.0]})


# Files.

TENSORS = drawn("dncnn", dncnn(1, 3, 4))


def named(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: t for name, t in TENSORS.items()}


class Options(dict):
    """As EasyDict: its items are attributes too."""


class History(list):
    """A list of a program's own."""


class Stranger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)


class Printing:
    def __reduce__(self):
        return print, ("executed",)


OTHER = {name: t + 1 for name, t in TENSORS.items()}
BESIDE = {"epoch": 3, "best": np.float64(38.1), "curve": np.zeros(3), "args": argparse.Namespace(lr=1e-4)}
BESIDE["x"] = Printing()


@pytest.mark.parametrize(
    "content",
    [
        *[{key: TENSORS} for key in official.WRAPPERS],
        *[named(prefix) for prefix in official.PREFIXES],
        named("module._orig_mod."),
        named("model.module.model."),
        {"model": {"state_dict": named("module.")}},
        {"params": OTHER, "params_ema": TENSORS},
        {"state_dict": OTHER, "state_dict_ema": TENSORS},
        {"gen": named("net_g."), "step": torch.tensor(3)},
        {"state_dict": {**named("model."), "loss.vgg.weight": torch.zeros(1)}, "hyper_parameters": {"lr": 1e-4}},
        {"ema": TENSORS, "state_dict": OTHER, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}},
        {"n_averaged": torch.tensor(7), **named("module.")},
        {**TENSORS, "total_ops": torch.zeros(1), "model.0.total_params": torch.zeros(1)},
        {**TENSORS, "model.1.num_batches_tracked": torch.tensor(7)},
        {"net_state_dict": named("module."), **BESIDE},
        {"ema": Stranger(), "state_dict": TENSORS},
        {"params": {"lr": 1e-4}, "state_dict": TENSORS},
        {"weights": {"l1": 1.0}, "model": {"width": 64}, "net": named("module.")},
        {"ema": {"decay": 0.9, "shadow_params": [torch.zeros(1)]}, "model": TENSORS},
        {"ema": {}, "state_dict": {"model": TENSORS}},
        {**TENSORS, **BESIDE},
    ],
    ids=lambda content: ", ".join(list(content)[:2]),
)
@pytest.mark.parametrize("new", [True, False])
def test_what_people_put_around_and_beside_the_tensors(tmp_path, capsys, content, new):
    if not new:  # PyTorch reads no module of an old file
        content = {key: value for key, value in content.items() if not isinstance(value, Stranger)}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    for state in (official.read(tmp_path / "x.pth"), official.unwrap(content)):
        assert state.keys() == TENSORS.keys()
        assert all(torch.equal(state[name], TENSORS[name]) for name in TENSORS)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_safetensors_by_any_name(tmp_path, name):
    safetensors.torch.save_file(named("module."), tmp_path / name)
    state = official.read(tmp_path / name)
    assert all(torch.equal(state[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read(dtype):
    state = {name: t.to(dtype) for name, t in drawn("imdn", imdn(2, 1, 16)).items()}
    loaded = official.load("imdn", state).state_dict()
    assert torch.equal(loaded["head.weight"], state["fea_conv.weight"].float())
    state = drawn("carn_m", carn_m(8)) | {
        f"{sign}_mean.shifter.weight": torch.eye(3).view(3, 3, 1, 1) for sign in ("sub", "add")
    }
    state |= {f"{name}_mean.shifter.bias": sign * torch.tensor(DIV2K_MEAN) for name, sign in (("sub", -1), ("add", 1))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        official.load("carn_m", {name: t.to(dtype) for name, t in state.items()}, scale=3)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/x2.pth", "")


def tarred(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("x2.pth"))


def cut(path: Path) -> None:
    torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-300])


def cut_safetensors(path: Path) -> None:
    safetensors.torch.save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-300])


def saved(content: object) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def script(path: Path) -> None:
    torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(str(path))


def arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(1))


def itself(path: Path) -> None:
    content: dict = {"epoch": 1}
    content["model"] = content
    torch.save(content, path)


def quantised(path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        torch.save({"a": torch.quantize_per_tensor(torch.ones(1), 1.0, 0, torch.qint8)}, path)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", ["wrapper", "weights", "beside", "list beside"])
def test_kinds_of_dictionaries_and_lists_are_taken_for_what_they_hold(tmp_path, kind, old):
    options, history = Options(width=8), History([1, 2])
    options.width = 8
    content = {
        "wrapper": Options(state_dict=TENSORS),
        "weights": {"model": Options(TENSORS)},
        "beside": {"state_dict": TENSORS, "options": options, "log": collections.defaultdict(list, loss=[1.0])},
        "list beside": {"state_dict": TENSORS, "log": history, "last": collections.deque([1, 2])},
    }[kind]
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    assert official.read(tmp_path / "x.pth").keys() == TENSORS.keys()


MISTAKEN = {
    "absent": (lambda path: None, "no such file"),
    "empty": (lambda path: path.touch(), "the file is empty: download it again"),
    "text": (lambda path: path.write_text("not a checkpoint"), r"a text \('not a checkpoint'\), not a checkpoint"),
    "HTML": (lambda path: path.write_text("\n<!DOCTYPE html><html>"), "a page of HTML or XML"),
    "LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "a pointer of Git LFS"),
    "JSON": (lambda path: path.write_text('{"a": 1}'), "a text in JSON"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x")), "packed by gzip: unpack it first"),
    "MATLAB": (lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file, Platform"), "a file of MATLAB: read it by scipy"),
    "ONNX": (
        lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch\x1a\x052.0.1:\xff"),
        "a program in ONNX, not a state",
    ),
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n\0"), "a file of HDF5: read it by h5py"),
    "HTML with a mark": (lambda path: path.write_bytes(b"\xef\xbb\xbf<html>"), "a page of HTML or XML"),
    "zip": (zipped, r"a zip archive \(weights/x2.pth\): unpack it first"),
    "cut": (cut, "damaged, or no state dict"),
    "cut safetensors": (cut_safetensors, "a damaged file of safetensors: download it again"),
    "TorchScript": (script, r"a TorchScript program, .* save its state_dict\(\)"),
    "module": (saved(Stranger()), r"a pickled test_official.Stranger, .* save its state_dict\(\)"),
    "module beside": (saved({"model": Stranger(), "epoch": 3}), "a pickled test_official.Stranger"),
    "old module": (
        lambda path: torch.save(Stranger(), path, _use_new_zipfile_serialization=False),
        r"damaged, or a pickled object of .*test_official.Stranger.* save its state_dict\(\)",
    ),
    "tar": (tarred, "a tar archive: unpack it first"),
    "object": (saved({"x": Printing()}), "no state dict: x is "),
    "list": (saved([torch.zeros(1)]), "no state dict, but list"),
    "nothing": (saved({}), "no state dict, but an empty one"),
    "number": (saved({"epoch": 1}), "no state dict: epoch is int, not a tensor"),
    "integer keys": (saved({0: torch.zeros(1)}), r"no state dict: 0 \(int\) is not the name of a tensor"),
    "newline": (saved({"a\nb": torch.zeros(1)}), r"no state dict: 'a\\nb' \(str\) is not the name of a tensor"),
    "folder": (lambda path: path.mkdir(), "is a folder; name the checkpoint in it"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "zero bytes, as a broken download leaves"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(TENSORS)), "a pickle that torch.save did not write"),
    "array": (lambda path: path.write_bytes(b"\x93NUMPY\x01\0v\0{"), "an array of NumPy, not a state dict"),
    "arrays": (arrays, "arrays of NumPy: save a state dict of tensors"),
    "dict of arrays": (saved({"a": np.zeros(1)}), "no state dict: a is of NumPy, not a tensor: save torch.from_numpy"),
    "xz": (lambda path: path.write_bytes(lzma.compress(b"x")), "packed by xz: unpack it first"),
    "bzip2": (lambda path: path.write_bytes(bz2.compress(b"x")), "packed by bzip2: unpack it first"),
    "zstd": (lambda path: path.write_bytes(b"\x28\xb5\x2f\xfd\0"), "packed by zstd: unpack it first"),
    "image": (lambda path: Image.new("L", (8, 8)).save(path, "PNG"), "an image, not a checkpoint"),
    "PDF": (lambda path: path.write_bytes(b"%PDF-1.7"), "a document in PDF, not a checkpoint"),
    "GGUF": (lambda path: path.write_bytes(b"GGUF\x03\0\0\0"), "weights in GGUF, which is for language models"),
    "HTML in UTF-16": (lambda path: path.write_text("<html>", encoding="utf-16"), "a page of HTML or XML"),
    "itself": (itself, "no state dict, but a dict that contains itself: save the state dict alone"),
    "integers": (saved({"a": torch.ones(1, dtype=torch.int8)}), "a is of torch.int8, not of dense floating numbers"),
    "booleans": (saved({"a": torch.ones(1) > 0}), "a is of torch.bool, not of dense floating numbers"),
    "complex": (saved({"a": torch.ones(1) * 1j}), "a is of torch.complex64, not of dense floating numbers"),
    "sparse": (saved({"a": torch.eye(2).to_sparse()}), "a is of torch.sparse_coo, not of dense floating numbers"),
    "quantised": (quantised, "a is of torch.qint8, not of dense floating numbers"),
    "meta": (saved({"a": torch.zeros(1, device="meta")}), "a is on the device meta, without values"),
}


@pytest.mark.parametrize("kind", MISTAKEN)
def test_what_is_no_checkpoint_is_an_error_of_one_line(tmp_path, capsys, kind):
    make, message = MISTAKEN[kind]
    make(tmp_path / "x.pth")
    with refused(OfficialError, match=message) as caught:
        official.read(tmp_path / "x.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'x.pth'}: ")
    assert not capsys.readouterr().out


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused(number):
    state = drawn("dncnn", dncnn(1, 4, 8))
    state["model.2.bias"][3] = number
    with pytest.raises(OfficialError, match=r"^dncnn: NaN or infinite numbers: model.2.bias; the training failed"):
        official.load("dncnn", state)


def test_a_file_must_suit_its_task(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(drawn("pa_edsr", SMALL["PA-EDSR x3"][1]), path)
    assert official.load_file(path, "panet", colors=3, scale=3).scale == 3
    with pytest.raises(OfficialError, match=r"weights.pth: made for scale 3, but the task has scale 2"):
        official.load_file(path, "panet", colors=3, scale=2)
    with pytest.raises(OfficialError, match=r"weights.pth: panet: missing: .*tail.0.weight"):
        official.load_file(path, "panet", colors=3)
    said = "no released weights of model 'nlm' x1; known: carn_m x2/3/4, dagl x1, dncnn x1"
    with pytest.raises(OfficialError, match=said):
        official.load_file(path, "nlm", colors=3)


@pytest.mark.parametrize(("scale", "published"), [(2, 37.53), (3, 33.99), (4, 31.92)])
def test_public_weights_of_carn_m_restore_set5(mirror, scale, published):
    path = mirror.parent / "weights" / "carn_m.pth"
    if not path.is_file():
        pytest.skip(f"no {path.name} beside the mirror")
    network = official.load_file(path, "carn_m", colors=3, scale=scale)
    small, large = (sorted((mirror / "set5" / part).iterdir()) for part in (f"LR_x{scale}", "HR"))
    found = []
    for pair in zip(small, large, strict=True):
        x, y = (torch.from_numpy(np.array(Image.open(f).convert("RGB"))).movedim(2, 0)[None] / 255 for f in pair)
        with torch.no_grad():
            restored = network(x)
        y = y[..., : restored.shape[2], : restored.shape[3]]
        found.append(Convention("y8", border=scale, quantise=True).measure(restored, y)["psnr"])
    assert len(found) == 5
    assert np.mean(found) == pytest.approx(published, abs=0.1)
