"""Released state dicts, made here by name and shape, against the networks that `lib.official` makes of them."""

from __future__ import annotations

import functools
import itertools
import re
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from models.oracles import assert_matches, fill, wave
from torch import Tensor

from lib import models, official, params
from lib.degradations import resize
from lib.official import OfficialError

Shapes = dict[str, tuple[int, ...]]

# The shapes of the released networks, in the order of their state dicts.


def layer(name: str, *shape: int) -> Shapes:
    """Weight and bias of a convolution or a linear layer."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def mean_shift(name: str) -> Shapes:
    return layer(name, 3, 3, 1, 1)


def residual_block(name: str, width: int, slope: bool = False) -> Shapes:
    return {
        **layer(f"{name}.body.0", width, width, 3, 3),
        **({f"{name}.body.1.weight": (1,)} if slope else {}),
        **layer(f"{name}.body.2", width, width, 3, 3),
    }


def head_of_dagl(name: str, width: int) -> Shapes:
    return {
        **layer(f"{name}.g", 16, width, 3, 3),
        **layer(f"{name}.W", width, 16, 1, 1),
        **layer(f"{name}.theta", 16, width, 1, 1),
        **layer(f"{name}.fc1.0", 196, 784),
        **layer(f"{name}.fc2.0", 196, 784),
        **layer(f"{name}.thr_conv", 1, width, 7, 7),
        **layer(f"{name}.bias_conv", 1, width, 7, 7),
    }


def dagl(colors: int = 1, blocks: int = 16, width: int = 64) -> Shapes:
    shapes = {**mean_shift("add_mean"), **layer("head.0", width, colors, 3, 3)}
    middle = blocks // 2
    for i in range(blocks + 1):
        if i != middle:
            shapes |= residual_block(f"body.{i}", width, slope=True)
            continue
        for group, block in itertools.product((1, 2), range(4)):
            shapes |= residual_block(f"body.{i}.RBS{group}.{block}", width, slope=True)
        for stage in (1, 2, 3):
            for head in (1, 2, 3, 4):
                shapes |= head_of_dagl(f"body.{i}.c{stage}_{head}", width)
            shapes |= layer(f"body.{i}.c{stage}_c", width, 64, 1, 1)
    return shapes | layer(f"body.{blocks + 1}", width, width, 3, 3) | layer("tail.0", colors, width, 3, 3)


def pyramid_attention(name: str, width: int, reduction: int) -> Shapes:
    shapes = {f"{name}.escape_NaN": (1,)}
    for part, outputs in (
        ("conv_match_L_base", width // reduction),
        ("conv_match", width // reduction),
        ("conv_assembly", width),
    ):
        shapes |= layer(f"{name}.{part}.0", outputs, width, 1, 1) | {f"{name}.{part}.1.weight": (1,)}
    return shapes


def panet(colors: int = 3, blocks: int = 80, width: int = 64) -> Shapes:
    shapes = mean_shift("sub_mean") | mean_shift("add_mean") | layer("head.0", width, colors, 3, 3)
    for i in range(blocks + 1):
        is_attention = i == blocks // 2
        shapes |= (
            pyramid_attention(f"body.{i}", width, 2) if is_attention else residual_block(f"body.{i}", width, slope=True)
        )
    return shapes | layer(f"body.{blocks + 1}", width, width, 3, 3) | layer("tail.0", colors, width, 3, 3)


def upsampling_tail(scale: int, width: int) -> Shapes:
    if scale == 4:
        layers = layer("tail.0.0", 4 * width, width, 3, 3) | layer("tail.0.2", 4 * width, width, 3, 3)
    else:
        layers = layer("tail.0.0", scale**2 * width, width, 3, 3)
    return layers | layer("tail.1", 3, width, 3, 3)


def pa_edsr(scale: int, blocks: int = 32, width: int = 256) -> Shapes:
    shapes = pyramid_attention("msa", width, 8)
    shapes |= mean_shift("sub_mean") | mean_shift("add_mean") | layer("head.0", width, 3, 3, 3)
    for i in range(blocks + 1):
        is_attention = i == blocks // 2
        shapes |= pyramid_attention(f"body.{i}", width, 8) if is_attention else residual_block(f"body.{i}", width)
    return shapes | layer(f"body.{blocks + 1}", width, width, 3, 3) | upsampling_tail(scale, width)


def enlcn(scale: int, blocks: int = 32, width: int = 256) -> Shapes:
    shapes = mean_shift("sub_mean") | mean_shift("add_mean") | layer("head.0", width, 3, 3, 3)
    index = 0
    for block in range(blocks + 1):
        if block % 8 == 0:
            shapes |= layer(f"body.{index}.conv_match1.0", width // 4, width, 1, 1)
            shapes |= layer(f"body.{index}.conv_match2.0", width // 4, width, 1, 1)
            shapes |= layer(f"body.{index}.conv_assembly.0", width, width, 1, 1)
            shapes |= {f"body.{index}.attn_fn.projection_matrix": (128, width // 4)}
            index += 1
        if block < blocks:
            shapes |= residual_block(f"body.{index}", width)
            index += 1
    return shapes | layer(f"body.{index}", width, width, 3, 3) | upsampling_tail(scale, width)


def vgg19(name: str) -> Shapes:
    return (
        mean_shift(f"{name}.sub_mean") | layer(f"{name}.model.0", 64, 3, 3, 3) | layer(f"{name}.model.2", 64, 64, 3, 3)
    )


def ignn_network(scale: int, blocks: int = 32, width: int = 256) -> Shapes:
    graph_scale = 3 if scale == 3 else 2
    shapes = mean_shift("sub_mean") | mean_shift("add_mean") | vgg19("vggnet") | vgg19("graph.embedcnn")
    shapes |= layer("head.0", width, 3, 3, 3)
    for i in range(blocks // 2):
        shapes |= residual_block(f"body1.{i}", width)
    for i, kernel in enumerate((5, 3, 3)):
        shapes |= layer(f"gcn.knn_downsample.{i}.0", width, width, kernel, kernel)
    for branch in ("lr", "hr"):
        for part in ("0.0", "1.body.0", "1.body.2"):
            shapes |= layer(f"gcn.weightnet_{branch}.{part}", 64, 64, 1, 1)
        shapes |= layer(f"gcn.weightnet_{branch}.2.0", 1, 64, 1, 1)
    for i in range(blocks // 2):
        shapes |= residual_block(f"body2.{i}", width)
    shapes |= layer(f"body2.{blocks // 2}.0", width, width, 3, 3)
    for part in ("fuse_b", "fuse_up"):
        shapes |= layer(f"{part}.0.0", width, 2 * width, 3, 3) | layer(f"{part}.1.0", width, width, 3, 3)
    shapes |= layer("upsample.0", graph_scale**2 * width, width, 3, 3)
    if scale == 4:
        shapes |= layer("tail.0.0", 4 * width, width, 3, 3)
    return shapes | layer("tail.1.0" if scale == 4 else "tail.0.0", 3, width, 3, 3)


def residual_of_lir(name: str, width: int) -> Shapes:
    return {
        f"{name}.alpha": (1, width, 1, 1),
        f"{name}.conv_1.weight": (2 * width, width, 1, 1),
        f"{name}.conv_2.weight": (2 * width, 1, 3, 3),
        **layer(f"{name}.layernorm", 2 * width),
        f"{name}.conv_3.weight": (width, 2 * width, 1, 1),
    }


def attention_block(name: str, width: int, patch: int, inner: int) -> Shapes:
    pixels = patch**2
    return {
        **residual_of_lir(f"{name}.resblock", width),
        f"{name}.pa.beta": (1, width, 1, 1),
        f"{name}.pa.down.weight": (inner, width, 1, 1),
        **layer(f"{name}.pa.mlp.0", pixels, inner * pixels),
        **layer(f"{name}.pa.mlp.1", pixels),
        **layer(f"{name}.pa.mlp.3", 1, pixels),
        f"{name}.sg.gamma": (1, width, 1, 1),
        **layer(f"{name}.sg.norm", width),
        **layer(f"{name}.sg.conv", 2 * width, width, 1, 1),
        **residual_of_lir(f"{name}.rescablock", width),
        **layer(f"{name}.rescablock.ca.attention.1", width // 16, width, 1, 1),
        **layer(f"{name}.rescablock.ca.attention.3", width, width // 16, 1, 1),
    }


#: The fixed operators that a file written on a CPU holds; Sobel_y is never among them.
KERNELS = ("Sobel_x", "Laplacian", "Edge", "Sobel_xy", "Sobel_yx", "Roberts_x", "Roberts_y")


def lir(kernels: bool = False, blocks: tuple[int, ...] = (3, 3, 3, 3, 4), width: int = 48) -> Shapes:
    shapes: Shapes = {"Conv_head.conv.weight": (width, 3, 3, 3), "Conv_head.act.weight": (1,)}
    for level, (count, patch, ratio) in enumerate(zip(blocks, (8, 8, 4, 8, 8), (16, 8, 8, 8, 16), strict=True), 1):
        inner = width // ratio
        for name in (f"EAA{level}.{i}" for i in range(count)):
            shapes |= attention_block(f"{name}.stage1.0", width, patch, inner)
            shapes |= {f"{name}.stage1.1.weight": (width, width, 3, 3)}
            for stage in (2, 3, 4, 5):
                channels, factor, side = (2 * width, 2, patch) if stage == 5 else (width, 1, patch // 2)
                part = f"{name}.stage{stage}"
                shapes |= {f"{part}.0.alpha": (9,), f"{part}.0.beta": (1,)}
                if kernels:
                    shapes |= {f"{part}.0.{kernel}": (channels, 1, 3, 3) for kernel in KERNELS}
                shapes |= attention_block(f"{part}.1", channels, side, factor * inner)
            shapes |= {
                f"{name}.stage2.2.weight": (width, width, 3, 3),
                f"{name}.stage4.2.weight": (width, width, 4, 4),
                f"{name}.stage5.2.weight": (2 * width, width, 4, 4),
                f"{name}.transpose.weight": (width, width, 4, 4),
            }
    for i in (1, 2):
        shapes |= {f"downsample{i}.0.weight": (width // 4, width, 3, 3)}
        shapes |= {f"upsample{i}.0.weight": (4 * width, width, 3, 3)}
    return shapes | {
        "down.conv.weight": (width, 2 * width, 3, 3),
        "down.act.weight": (1,),
        "transpose1.weight": (width, width, 4, 4),
        "transpose2.weight": (width, 3, 4, 4),
        "Conv_tail.conv.weight": (3, width, 3, 3),
        "Conv_tail.act.weight": (1,),
    }


def dncnn(colors: int = 1, depth: int = 17, width: int = 64) -> Shapes:
    sides = [colors, *[width] * (depth - 1), colors]
    return {
        key: shape
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sides))
        for key, shape in layer(f"model.{2 * i}", outputs, inputs, 3, 3).items()
    }


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
    return shift or name.endswith("escape_NaN") or (system == "lir" and name.rpartition(".")[2] in KERNELS)


#: system, shapes of the released network, our options, state entries and parameters that the released network has
RELEASED = {
    "DAGL, gray": ("dagl", dagl(), {"colors": 1, "blocks": 16}, 302, 5_727_438),
    "DAGL, real noise": ("dagl", dagl(3), {"colors": 3, "blocks": 16}, 302, 5_729_744),
    "DAGL, demosaicing": ("dagl", dagl(3, 32), {"colors": 3, "blocks": 32}, 382, 6_911_440),
    "PANet": ("panet", panet(), {"colors": 3, "blocks": 80}, 420, 5_957_279),
    "PANet, gray": ("panet", panet(1), {"colors": 1, "blocks": 80}, 420, 5_954_973),
    "PA-EDSR x2": ("pa_edsr", pa_edsr(2), {"scale": 2, "width": 256, "blocks": 32}, None, 40_811_870),
    "PA-EDSR x3": ("pa_edsr", pa_edsr(3), {"scale": 3, "width": 256, "blocks": 32}, None, 43_762_270),
    "PA-EDSR x4": ("pa_edsr", pa_edsr(4), {"scale": 4, "width": 256, "blocks": 32}, None, 43_172_190),
    "ENLCN x2": ("enlcn", enlcn(2), {"scale": 2, "width": 256, "blocks": 32}, 175, 41_223_067),
    "ENLCN x3": ("enlcn", enlcn(3), {"scale": 3, "width": 256, "blocks": 32}, 175, 44_173_467),
    "ENLCN x4": ("enlcn", enlcn(4), {"scale": 4, "width": 256, "blocks": 32}, 177, 43_583_387),
    "IGNN x2": ("ignn", ignn_network(2), {"scale": 2, "width": 256, "blocks": 32}, 182, 47_152_233),
    "IGNN x3": ("ignn", ignn_network(3), {"scale": 3, "width": 256, "blocks": 32}, 182, 50_102_633),
    "IGNN x4": ("ignn", ignn_network(4), {"scale": 4, "width": 256, "blocks": 32}, 184, 49_512_553),
    "LIR": ("lir", lir(), {"width": 48, "blocks": (3, 3, 3, 3, 4)}, 2540, 7_310_915),
    "LIR, kernels": ("lir", lir(True), {"width": 48, "blocks": (3, 3, 3, 3, 4)}, 2988, 7_552_835),
    "DnCNN": ("dncnn", dncnn(), {"colors": 1, "width": 64, "depth": 17}, 34, 555_137),
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
}


@pytest.fixture(autouse=True)
def constants_need_not_agree() -> Iterator[None]:
    """State dicts here hold any numbers, mean shifts included."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has other constants")
        yield


def numbered(system: str, shapes: Shapes) -> dict[str, Tensor]:
    """Tensors whose elements are all different, but for those that are one tensor."""
    made: dict[str, Tensor] = {}
    start = 0
    for name, shape in shapes.items():
        key, numel = same_tensor(system, name), torch.Size(shape).numel()
        if key not in made:
            made[key] = torch.arange(start, start + numel).reshape(shape)
            start += numel
    return {name: made[same_tensor(system, name)] for name in shapes}


def random(system: str, shapes: Shapes, scale: float = 0.05) -> dict[str, Tensor]:
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
    model, found, tensors = official.translate(system, state)
    assert found.items() >= options.items()
    with torch.device("meta"):
        network = models.build(model, **found)
    assert {name: t.shape for name, t in tensors.items()} == {name: t.shape for name, t in network.state_dict().items()}
    left_out = sum(unique[name] for name in unique if is_constant(system, name) and name not in buffers)
    kept = sum(p.numel() for name, p in network.named_parameters() if name.startswith(("sub_mean", "add_mean")))
    assert sum(p.numel() for p in network.parameters()) == parameters - left_out + kept


@pytest.mark.parametrize("case", SMALL)
def test_every_number_of_a_state_dict_is_used_once(case):
    system, shapes = SMALL[case]
    state = numbered(system, shapes)
    model, options, tensors = official.translate(system, state)
    ours = [t.flatten() for name, t in tensors.items() if not is_constant(system, name)]
    released = [t.flatten() for name, t in state.items() if not is_constant(system, name)]
    assert torch.equal(torch.cat(ours).unique(), torch.cat(released).unique())
    with torch.device("meta"):
        network = models.build(model, **options)
    # once: as many as the network has, where a tensor that stands under several names counts once
    ignored = [p for name, p in network.named_parameters() if is_constant(system, name)]
    used = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in ignored)
    used += sum(b.numel() for name, b in network.named_buffers() if name.endswith("projection_matrix"))
    assert len(torch.cat(ours).unique()) == used


@pytest.mark.parametrize(
    ("case", "pairs"),
    [
        ("DAGL", {"body.1.RBS2.3.body.0.weight": "body.1.blocks.1.3.body.0.weight"}),
        ("ENLCN x4", {"tail.0.2.weight": "upsampler.2.weight", "body.10.body.0.bias": "body.10.body.0.bias"}),
        ("IGNN x4", {"fuse_b.0.0.weight": "fuse_lr.0.weight", "fuse_up.1.0.weight": "fuse_hr.2.weight"}),
        ("IGNN x4", {"upsample.0.weight": "upsampler.0.weight", "tail.0.0.weight": "tail.0.weight"}),
        ("LIR", {"upsample1.0.weight": "up.0.0.weight", "downsample2.0.weight": "down.1.0.weight"}),
        ("LIR", {"EAA5.1.stage1.1.weight": "levels.4.1.stage1.1.weight", "down.act.weight": "fuse.1.weight"}),
    ],
)
def test_tensors_of_one_shape_are_told_apart(case, pairs):
    system, shapes = SMALL[case]
    state = numbered(system, shapes)
    tensors = official.translate(system, state)[2]
    for released, own in pairs.items():
        assert torch.equal(tensors[own], state[released])


@pytest.mark.parametrize("case", SMALL)
def test_a_loaded_network_restores_images(case):
    system, shapes = SMALL[case]
    state = random(system, shapes)
    before = torch.get_rng_state()
    network = official.load(system, state)
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.training
    own, wanted = network.state_dict(), official.translate(system, state)[2]
    assert all(torch.equal(own[name], wanted[name]) for name in wanted)
    colors = {"dagl": 3, "panet": 1}.get(system, 3)
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
    state = random(system, shapes)
    build = functools.cache(models.build)  # the same network is asked for again and again
    monkeypatch.setattr(models, "build", build)
    for name in one_of_each_kind(shapes):
        optional = system == "lir" and is_constant(system, name)
        if not optional:
            with pytest.raises(OfficialError) as caught:
                official.translate(system, {key: t for key, t in state.items() if key != name})
            assert f"missing: {name}" in str(caught.value)
        with pytest.raises(OfficialError) as caught:
            official.translate(system, state | {name: torch.zeros(7, *shapes[name][1:])})
        assert (f"unexpected: {name}" if optional else f"misshaped: {name} (7,") in str(caught.value)
    for extra in ("body.99.weight", "extra", next(iter(shapes)) + "s", "EAA1.0.stage2.0.kernel"):
        with pytest.raises(OfficialError, match=f"unexpected: {re.escape(extra)}$"):
            official.translate(system, state | {extra: torch.randn(16, 1, 3, 3)})


@pytest.mark.parametrize("case", ["DAGL", "PANet", "PA-EDSR x2", "IGNN x2"])
def test_one_tensor_under_several_names_has_one_value(case):
    system, shapes = SMALL[case]
    state = random(system, shapes)
    counts: dict[str, list[str]] = {}
    for name in shapes:
        counts.setdefault(same_tensor(system, name), []).append(name)
    several = [names for names in counts.values() if len(names) > 1 and not is_constant(system, names[0])]
    assert several
    for names in several:
        with pytest.raises(OfficialError, match="one tensor in the network") as caught:
            official.translate(system, state | {names[-1]: state[names[-1]] + 1})
        assert all(name in str(caught.value) for name in (names[0], names[-1]))


@pytest.mark.parametrize("case", ["DAGL", "PANet"])
def test_the_slope_of_the_trunk_stays_one_parameter(case):
    system, shapes = SMALL[case]
    network = official.load(system, random(system, shapes))
    slopes = [m for block in network.body for m in getattr(block, "body", ()) if isinstance(m, torch.nn.PReLU)]
    assert len(slopes) > 1
    assert len({id(slope.weight) for slope in slopes}) == 1


def test_constants_that_differ_are_reported():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for system, value_range in (("pa_edsr", 1), ("enlcn", 1), ("ignn", 255)):
            shapes = {"pa_edsr": pa_edsr(2, 2, 16), "enlcn": enlcn(2, 2, 16), "ignn": ignn_network(2, 2, 8)}[system]
            state = random(system, shapes)
            for sign, name in ((-1, "sub_mean"), (1, "add_mean")):
                state[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1)
                state[f"{name}.bias"] = sign * value_range * torch.tensor([0.4488, 0.4371, 0.4040])
            state |= {name: torch.tensor([1e-4]) for name in shapes if name.endswith("escape_NaN")}
            official.translate(system, state)
            with pytest.raises(UserWarning, match=f"{system}: sub_mean.bias not read"):
                official.translate(system, state | {"sub_mean.bias": -state["sub_mean.bias"]})


def test_a_fixed_operator_is_known_by_its_values():
    state = random("lir", lir(False, (1, 1, 1, 1, 1), 16))
    kernel = torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]])
    name = "EAA2.0.stage5.0.edges"
    official.translate("lir", state | {name: 1e-3 * kernel.expand(32, 1, 3, 3)})
    for wrong in (kernel.T.roll(1, 0).expand(32, 1, 3, 3), kernel.expand(16, 1, 3, 3), torch.zeros(32, 1, 3, 3)):
        with pytest.raises(OfficialError, match=f"unexpected: {name}$"):
            official.translate("lir", state | {name: wrong})


def test_many_problems_are_listed_in_one_line():
    state = random("dncnn", dncnn(1, 4, 8))
    wrong = {f"extra.{i}": torch.zeros(1) for i in range(9)} | {"model.2.bias": torch.zeros(5)}
    with pytest.raises(OfficialError) as caught:
        official.translate("dncnn", state | wrong)
    assert str(caught.value) == (
        "dncnn: unexpected: extra.0, extra.1, extra.2, extra.3 and 5 more; misshaped: model.2.bias (5,), expected (8,)"
    )


def test_an_unknown_system_and_another_systems_tensors_are_named():
    state = random("dncnn", dncnn(1, 4, 8))
    with pytest.raises(OfficialError, match="unknown system 'rnan'; known: dagl, panet"):
        official.load("rnan", state)
    for system in official.SYSTEMS:
        if system != "dncnn":
            with pytest.raises(OfficialError, match=f"^{system}: missing: "):
                official.load(system, state)
    with pytest.raises(OfficialError, match=r"model\.0\.weight is list"):
        official.load("dncnn", {"model.0.weight": [1.0]})


# Files.


def test_wrappers_are_taken_off(tmp_path):
    state = random("ignn", SMALL["IGNN x2"][1])
    wrapped = {
        "net_state_dict": {f"module.{name}": t for name, t in state.items()},
        "epoch_idx": 3,
        "best_PSNR": np.float64(38.1),
        "best_epoch": 2,
        "solver_state_dict": {"state": {}, "param_groups": [{"lr": 1e-4}]},
    }
    torch.save(wrapped, tmp_path / "ignn.pth")
    read = official.read(tmp_path / "ignn.pth")
    assert all(torch.equal(read[name], state[name]) for name in {*read, *state})
    plain = official.load("ignn", state).state_dict()
    for form in (read, wrapped, wrapped["net_state_dict"]):
        loaded = official.load("ignn", form).state_dict()
        assert all(torch.equal(loaded[name], plain[name]) for name in plain)

    averaged = random("lir", SMALL["LIR"][1])
    torch.save({"params": {name: t + 1 for name, t in averaged.items()}, "params_ema": averaged}, tmp_path / "lir.pth")
    read = official.read(tmp_path / "lir.pth")
    assert all(torch.equal(read[name], averaged[name]) for name in {*read, *averaged})


def test_what_is_no_checkpoint_is_an_error_of_one_line(tmp_path):
    class Foreign:
        def __reduce__(self):
            return print, ("executed",)

    (tmp_path / "text").write_text("not a checkpoint")
    (tmp_path / "empty").touch()
    torch.save({"x": Foreign()}, tmp_path / "object")
    torch.save([torch.zeros(1)], tmp_path / "list")
    torch.save({"epoch": 1}, tmp_path / "number")
    for name in ("absent", "text", "empty", "object", "list", "number"):
        with pytest.raises(OfficialError) as caught:
            official.read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)


def test_a_file_must_suit_its_task(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(random("pa_edsr", SMALL["PA-EDSR x3"][1]), path)
    assert official.load_file(path, "panet", colors=3, scale=3).scale == 3
    with pytest.raises(OfficialError, match=r"weights.pth: made for scale 3, but the task has scale 2"):
        official.load_file(path, "panet", colors=3, scale=2)
    with pytest.raises(OfficialError, match=r"weights.pth: panet: missing: .*tail.0.weight"):
        official.load_file(path, "panet", colors=3)
    with pytest.raises(OfficialError, match="no released weights of model 'nlm' x1; known: dagl x1, panet x1"):
        official.load_file(path, "nlm", colors=3)


def test_dncnns_published_weights_denoise():
    path = params.ROOT.parent / "shared" / "weights" / "dncnn_25.pth"
    if not path.is_file():
        pytest.skip("DnCNN's published weights are not beside the project")
    from skimage import data

    network = official.load_file(path, "dncnn", colors=1)
    assert sum(p.numel() for p in network.parameters()) == 555_137
    clean = torch.from_numpy(data.camera()[100:228, 150:278] / np.float32(255))[None, None]
    noisy = clean + 25 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = (network(noisy) - clean).square().mean()
    assert -10 * error.log10() > 28.5  # the noisy image has 20.2 dB


# Modules of loaded networks against the released modules.


def filled(shapes: Shapes, amplitudes: dict[int, float] | None = None) -> dict[str, Tensor]:
    """The tensors of one module, by the fill of the oracles."""
    tensors = {name: torch.full(shape, 1e-4) for name, shape in shapes.items()}
    fill([None if name.endswith("escape_NaN") else t for name, t in tensors.items()], amplitudes)
    return tensors


DAGL_ROWS = {  # whether the thresholds are 1 and 0; mean, standard deviation, largest magnitude, five values
    False: (-0.002992, 0.059951, 0.108777, (-0.105346, -0.039531, 0.078042, -0.010992, 0.065622)),
    True: (-0.001811, 0.034878, 0.131672, (-0.115360, -0.008733, 0.025922, -0.019180, 0.004893)),
}


@pytest.mark.parametrize("fixed", DAGL_ROWS)
def test_dagls_heads(fixed):
    state = random("dagl", dagl(1, 2))
    for name in ("body.1.c2_1", "body.1.c2_3"):
        state |= filled(head_of_dagl(name, 64))
        if fixed:
            state |= {f"{name}.thr_conv.bias": torch.ones(1), f"{name}.bias_conv.bias": torch.zeros(1)}
    state |= {"body.1.c2_c.weight": torch.eye(64).view(64, 64, 1, 1), "body.1.c2_c.bias": torch.zeros(64)}
    stage, x = official.load("dagl", state).body[1].stages[1], wave(1, 64, 16, 16)
    with torch.no_grad():
        first, _, third, _ = (stage(x) - x).chunk(4, 1)
    assert_matches(first, *DAGL_ROWS[fixed])
    assert_matches(third, *DAGL_ROWS[fixed])


def test_panets_attention():
    state = random("panet", panet(3, 2)) | filled(pyramid_attention("body.1", 64, 2))
    row = (0.100535, 0.719042, 1.523205, (0.385399, 1.073410, 0.213286, 0.424077, 0.129878))
    assert_matches(official.load("panet", state).body[1](wave(1, 64, 16, 20)), *row)


def test_pa_edsrs_attention():
    module = filled(pyramid_attention("body.1", 256, 8))
    state = random("pa_edsr", pa_edsr(2, 2)) | module
    state |= {name.replace("body.1.", "msa."): t for name, t in module.items()}
    row = (0.052440, 0.103118, 0.300261, (0.069189, 0.068396, -0.026973, 0.018276, -0.017959))
    assert_matches(official.load("pa_edsr", state).body[1](wave(1, 256, 12, 12)), *row)


def test_enlcns_attention():
    shapes = enlcn(2, 2)
    module = filled({name: shape for name, shape in shapes.items() if name.startswith("body.0.")}, {6: 1.0})
    row = (-0.000035, 0.707157, 1.010041, (0.285649, 0.813020, -0.822662, 0.263816, -0.935882))
    assert_matches(official.load("enlcn", random("enlcn", shapes) | module).body[0](wave(1, 256, 12, 12)), *row)


IGNN_ROWS = {  # of x_lr and x_hr: mean, standard deviation, five values
    2: (
        (0.010119, 0.065878, -0.090682, -0.076777, -0.043287, 0.041602, 0.035025),
        (0.000324, 0.667183, 0.046765, -1.159346, 0.178834, -0.203954, 0.555511),
    ),
    3: (
        (0.010209, 0.067990, -0.096966, -0.062401, -0.043420, 0.051661, 0.037657),
        (0.000182, 0.503764, 0.231656, 0.114328, -0.953749, 0.420335, -0.775062),
    ),
}


def summary(output: Tensor) -> Tensor:
    """Mean, standard deviation and the values at n's 0, 1/7, 1/3, 1/2 and end."""
    flat, n = output.flatten(), output.numel()
    return torch.cat([flat.mean()[None], flat.std(correction=0)[None], flat[[0, n // 7, n // 3, n // 2, n - 1]]])


@pytest.mark.parametrize("scale", IGNN_ROWS)
def test_ignns_graph(scale):
    shapes = ignn_network(scale, 2, 8)
    module = filled({name: shape for name, shape in shapes.items() if name.startswith("gcn.")})
    network = official.load("ignn", random("ignn", shapes) | module)
    height, width = 12 * scale, 10 * scale

    def stand_in(x: Tensor) -> Tensor:
        return torch.cat([x, x.square()], 1).repeat(1, 11, 1, 1)[:, :64]

    image = 0.5 + 0.5 * wave(1, 3, height, width)
    small = resize(image, down=scale).clamp(0, 1)
    with torch.no_grad():
        outputs = network.aggregation(wave(1, 8, height, width), stand_in(image), stand_in(small))
    for output, row in zip(outputs, IGNN_ROWS[scale], strict=True):
        torch.testing.assert_close(summary(output), torch.tensor(row), rtol=1e-4, atol=1e-5)


LIR_PARTS = {  # name in the block EAA1.0, ours, fill's options, shape of the input, row
    "resblock": ((1, 48, 8, 8), (0.000071, 0.707281, 1.007405, (0.301233, -0.844277, 0.812066, 0.008349, -0.641425))),
    "pa": ((1, 48, 16, 24), (0.000004, 0.039491, 0.092441, (0.023969, -0.030356, 0.041278, -0.011397, -0.030063))),
    "sg": ((1, 48, 8, 8), (0.000120, 0.707284, 1.003776, (0.295747, -0.842405, 0.814978, 0.008342, -0.632019))),
    "rescablock": ((1, 48, 8, 8), (0.000087, 0.707276, 1.003604, (0.298556, -0.843602, 0.813607, 0.008309, -0.637509))),
}


def test_lirs_parts():
    shapes = lir(False, (1, 1, 1, 1, 1))
    state = random("lir", shapes)
    for part in LIR_PARTS:
        prefix = f"EAA1.0.stage2.1.{part}."
        state |= filled({name: shape for name, shape in shapes.items() if name.startswith(prefix)})
    state["EAA1.0.stage2.0.alpha"] = torch.tensor([0.5, -0.4, 0.3, 0.2, -0.6, 0.7, 0.8, -0.9, 0.25])
    state["EAA1.0.stage2.0.beta"] = torch.tensor([0.1])
    adaptive_filter, attention, _ = official.load("lir", state).levels[0][0].stage2
    row = (-0.001665, 0.213880, 0.431876, (0.059570, -0.215604, 0.219179, 0.201263, 0.203039))
    assert_matches(adaptive_filter(wave(1, 4, 16, 16)), *row)
    for module, (shape, row) in zip(attention, LIR_PARTS.values(), strict=True):
        assert_matches(module(wave(*shape)), *row)
