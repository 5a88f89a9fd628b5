from __future__ import annotations

import importlib
import re

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_equals_its_definition, assert_matches, fill, randomised, wave

from lib.models import build, plain
from lib.models.lir import LIR, AdaptiveFilter, PatchAttention, Residual, SimpleGate

operation = importlib.import_module("lib.models.lir.mixed_filter")  # the file, not the function of that name

ALPHA = (0.5, -0.4, 0.3, 0.2, -0.6, 0.7, 0.8, -0.9, 0.25)
#: Option -> names of the tensors that it leaves out, and their number in the network SMALL.
LEFT_OUT = {
    "no_filter": (r"stage[2-5]\.0\.(alpha|beta)$", 4 * 5 * 2),
    "no_patch_attention": (r"patch_attention\.", 25 * 8),
    "no_gate": (r"gate\.", 25 * 5),
    "no_channel_attention": (r"channel_block\.attention\.", 25 * 4),
    "no_degradation_subtraction": (r"degradation\.weight$", 5 + 2),
}
SMALL = {"width": 8, "blocks": (1, 1, 1, 1, 1)}

#: Module, shape of the input, row: mean, std, largest magnitude, five values.
ROWS = {
    "patch attention": (
        lambda: PatchAttention(48, 4, 16),
        (1, 48, 16, 24),
        (0.000004, 0.039491, 0.092441, (0.023969, -0.030356, 0.041278, -0.011397, -0.030063)),
    ),
    "gate": (
        lambda: SimpleGate(48),
        (1, 48, 8, 8),
        (0.000120, 0.707284, 1.003776, (0.295747, -0.842405, 0.814978, 0.008342, -0.632019)),
    ),
    "residual block": (
        lambda: Residual(48),
        (1, 48, 8, 8),
        (0.000071, 0.707281, 1.007405, (0.301233, -0.844277, 0.812066, 0.008349, -0.641425)),
    ),
    "residual block with channel attention": (
        lambda: Residual(48, channel_attention=True),
        (1, 48, 8, 8),
        (0.000087, 0.707276, 1.003604, (0.298556, -0.843602, 0.813607, 0.008309, -0.637509)),
    ),
}

FILTER_ROWS = {
    "at its start": (
        torch.ones(9),
        0.0,
        (-0.008119, 0.582198, 1.384750, (0.122470, -0.562677, 0.606981, 0.420259, 0.435002)),
    ),
    "mixed": (
        torch.tensor(ALPHA),
        0.1,
        (-0.001665, 0.213880, 0.431876, (0.059570, -0.215604, 0.219179, 0.201263, 0.203039)),
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_agrees_with_the_released_module(case):
    make, shape, row = ROWS[case]
    module = make()
    fill(list(module.parameters()))
    assert_matches(module(wave(*shape)), *row)


@pytest.mark.parametrize("case", FILTER_ROWS)
def test_filter_agrees_with_the_released_one(case):
    alpha, beta, row = FILTER_ROWS[case]
    module = AdaptiveFilter()
    module.alpha.data.copy_(alpha)
    module.beta.data.fill_(beta)
    assert_matches(module(wave(1, 4, 16, 16)), *row)
    with plain():
        assert_matches(module(wave(1, 4, 16, 16)), *row)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("portion", [1, 2 * 3 * 16 * 17, 10**6])
@pytest.mark.parametrize("shape", [(5, 3, 16, 17), (1, 5, 9, 30), (3, 2, 33, 8), (2, 1, 2, 9), (1, 2, 1, 4)])
def test_mixed_filter_is_its_definition(shape, portion, layout, monkeypatch):
    monkeypatch.setattr(operation, "PORTION", portion)
    torch.manual_seed(0)
    module, x = AdaptiveFilter().double(), torch.randn(shape).contiguous(memory_format=layout)
    alpha = torch.cat([400 * torch.randn(8), torch.tensor([0.8])])  # the operators weigh as much as the Gaussian

    def mixed(*leaves: torch.Tensor) -> torch.Tensor:
        return operation.mixed_filter(*leaves, module.operators, module.gaussian)

    assert_equals_its_definition(mixed, x, alpha, torch.tensor([-0.3]))


def test_filter_keeps_its_input_alone_for_the_backward_pass():
    kept = []
    x = torch.randn(1, 4, 32, 32, requires_grad=True).contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        AdaptiveFilter()(x)
    assert sum(t.numel() for t in kept if t.numel() >= x.numel()) == x.numel()


def test_images_are_padded_by_their_mirror_image():
    network = randomised(LIR(**SMALL))
    image = torch.rand(1, 3, 61, 83)
    with torch.no_grad():
        whole = network(F.pad(image, (0, 13, 0, 3), mode="reflect"))
        torch.testing.assert_close(network(image), whole[:, :, :61, :83])
        for size in ((1, 1), (32, 7)):
            assert network(torch.rand(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("option", LEFT_OUT)
def test_an_option_leaves_out_its_part_alone_and_all_else_starts_the_same(option):
    part, count = LEFT_OUT[option]
    torch.manual_seed(1)
    whole = build("lir", **SMALL).state_dict()
    torch.manual_seed(1)
    without = build("lir", **SMALL, **{option: True}).state_dict()
    assert set(without) == {name for name in whole if not re.search(part, name)}
    assert len(whole) - len(without) == count
    assert all(torch.equal(tensor, whole[name]) for name, tensor in without.items())


def test_image_skip_leaves_the_input_where_it_starts():
    network = build("lir", **SMALL, image_skip=True)
    network(torch.rand(1, 3, 40, 33)).square().sum().backward()
    assert network.tail[0].weight.grad.any() and network.image_degradation.weight.grad.any()
