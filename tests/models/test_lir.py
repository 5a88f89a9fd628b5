from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_matches, fill, wave

from benchmarks.reference.lir import reference
from lib.models import build, lir
from lib.models.lir import (
    LIR,
    AdaptiveFilter,
    ChannelAttention,
    MergedFilter,
    PatchAttention,
    Residual,
    SimpleGate,
    scale_edges_,
)

ALPHA = (0.5, -0.4, 0.3, 0.2, -0.6, 0.7, 0.8, -0.9, 0.25)
SWITCHES = ("no_filter", "no_patch_attention", "no_gate", "no_channel_attention", "no_degradation_subtraction")
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


def filter_with(alpha, beta) -> AdaptiveFilter:
    module = AdaptiveFilter()
    module.alpha.data.copy_(alpha)
    module.beta.data.fill_(beta)
    return module


def loud_filter() -> AdaptiveFilter:
    """A filter whose 3x3 operators weigh as much as its Gaussian."""
    return filter_with(torch.cat([400 * torch.tensor(ALPHA[:8]), torch.tensor([0.8])]), -0.3)


def randomised(module, scale=0.1):
    for tensor in module.parameters():
        tensor.data.normal_(0, scale)
    return module


@pytest.mark.parametrize("case", ROWS)
def test_agrees_with_the_released_module(case):
    make, shape, row = ROWS[case]
    module = make()
    fill(list(module.parameters()))
    assert_matches(module(wave(*shape)), *row)


@pytest.mark.parametrize("case", FILTER_ROWS)
def test_filter_agrees_with_the_released_one(case):
    alpha, beta, row = FILTER_ROWS[case]
    module = filter_with(alpha, beta)
    x = wave(1, 4, 16, 16)
    assert_matches(module(x), *row)
    assert_matches(MergedFilter(module)(x), *row)
    assert_matches(reference(module, x), *row)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 16, 17), (1, 5, 9, 30), (3, 2, 33, 8)])
def test_filter_equals_its_operators_one_by_one(shape, separable):
    torch.manual_seed(0)
    module, x, direction = loud_filter(), torch.randn(shape), torch.randn(shape)
    results = []
    for function in (module, lambda x: reference(module, x, separable)):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        (y * direction).sum().backward()
        results.append([y.detach(), leaf.grad, module.alpha.grad, module.beta.grad])
    ours, plain = results
    assert (ours[0] - plain[0]).norm() <= 1e-5 * plain[0].norm()
    for a, b in zip(ours[1:], plain[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("shape", [(1, 2, 5, 6), (2, 1, 2, 9), (1, 1, 4, 16)])
def test_filters_gradients_are_those_of_the_function(shape):
    torch.manual_seed(1)
    module = AdaptiveFilter().double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def function(x, alpha, beta):
        return torch.func.functional_call(module, {"alpha": alpha, "beta": beta}, (x,))

    alpha, beta = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (9, 1))
    assert torch.autograd.gradcheck(function, (x, alpha, beta))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("portion", [1, 2 * 4 * 6 * 7])
def test_filtering_a_few_images_at_a_time_changes_nothing(layout, portion, monkeypatch):
    torch.manual_seed(3)
    module, x = loud_filter(), torch.randn(5, 4, 6, 7)
    found = []
    for limit in (10**6, portion):
        monkeypatch.setattr(lir, "PORTION", limit)
        input = x.contiguous(memory_format=layout).requires_grad_()
        y = module(input)
        found.append([y, *torch.autograd.grad(y.square().sum(), [input, *module.parameters()])])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5 * whole.abs().max().item())


def test_filter_keeps_its_input_alone_for_the_backward_pass():
    kept = []
    x = torch.randn(1, 4, 32, 32, requires_grad=True).contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        AdaptiveFilter()(x)
    assert sum(t.numel() for t in kept if t.numel() >= x.numel()) == x.numel()


@pytest.mark.parametrize("size", [(16, 16), (8, 21), (5, 3), (2, 2), (1, 4)])
def test_merged_filter_is_exact_borders_included(size):
    torch.manual_seed(2)
    module, x = loud_filter(), torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, merged = module(x), MergedFilter(module)
        assert (merged(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
        merged.inner.zero_()  # without the correction of its border it is not
        assert (merged(x) - expected).abs().max() > 1e-2 * expected.abs().max()


def test_merged_network_is_the_network():
    torch.manual_seed(3)
    network = randomised(LIR(**SMALL)).eval()
    for module in network.modules():
        if isinstance(module, AdaptiveFilter):
            module.alpha.data.copy_(loud_filter().alpha.data)
    image = torch.rand(1, 3, 40, 64)
    with torch.no_grad():
        merged = copy.deepcopy(network).merge()
        assert not any(isinstance(module, AdaptiveFilter) for module in merged.modules())
        assert sum(isinstance(module, MergedFilter) for module in merged.modules()) == 20
        expected = network(image)
        assert (merged(image) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert set(merged.mechanism(image)) == {"degradation"}


def test_scaling_edges_counts_corners_twice():
    expected = torch.tensor([[4.0, 2, 4], [2, 1, 2], [4, 2, 4]])
    assert torch.equal(scale_edges_(torch.ones(1, 1, 3, 3), 2)[0, 0], expected)


def test_parameters_of_the_published_network():
    with torch.device("meta"):
        network = LIR()
    assert sum(p.numel() for p in network.parameters()) == 7_310_915
    assert len(network.state_dict()) == 2_540
    of_blocks = [sum(p.numel() for p in level[0].parameters()) for level in network.levels]
    assert of_blocks == [431_903, 472_223, 398_255, 472_223, 431_903]
    assert [len(level) for level in network.levels] == [3, 3, 3, 3, 4]


@pytest.mark.parametrize("options", [{}, {"colors": 1}, {"no_degradation_subtraction": True, "no_filter": True}])
def test_any_size_and_a_batch_is_its_images(options):
    torch.manual_seed(4)
    network = randomised(LIR(**SMALL, **options))
    colors = options.get("colors", 3)
    with torch.no_grad():
        for size in ((61, 83), (1, 1), (32, 7)):
            assert network(torch.rand(1, colors, *size)).shape == (1, colors, *size)
        images = torch.rand(2, colors, 128, 96)
        restored = network(images)
        assert restored.shape == images.shape
        for i in range(2):
            torch.testing.assert_close(network(images[i : i + 1]), restored[i : i + 1], rtol=1e-5, atol=1e-5)


def test_small_images_are_padded_by_their_mirror_image():
    torch.manual_seed(5)
    network = randomised(LIR(**SMALL))
    image = torch.rand(1, 3, 61, 83)
    with torch.no_grad():
        whole = network(F.pad(image, (0, 13, 0, 3), mode="reflect"))
        torch.testing.assert_close(network(image), whole[:, :, :61, :83])


@pytest.mark.parametrize("switches", [(), *[(name,) for name in SWITCHES], SWITCHES])
def test_every_tensor_learns(switches):
    torch.manual_seed(6)
    network = randomised(LIR(width=16, blocks=(1, 0, 1, 1, 1), **dict.fromkeys(switches, True)), 0.2)
    for module in network.modules():
        if isinstance(module, ChannelAttention):  # its one ReLU sees one number per image: no chance to be dead
            module.squeeze.bias.data += 1
    network(torch.rand(2, 3, 32, 64)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("switch", "part", "count"),
    [
        ("no_filter", r"stage[2-5]\.0\.(alpha|beta)$", 4 * 5 * 2),
        ("no_patch_attention", r"patch_attention\.", 25 * 8),
        ("no_gate", r"gate\.", 25 * 5),
        ("no_channel_attention", r"channel_block\.attention\.", 25 * 4),
        ("no_degradation_subtraction", r"degradation\.weight$", 5 + 2),
    ],
)
def test_a_switch_leaves_out_its_part_alone(switch, part, count):
    names, without = (set(LIR(**SMALL, **options).state_dict()) for options in ({}, {switch: True}))
    assert without == {name for name in names if not re.search(part, name)}
    assert len(names - without) == count


def test_degradation_is_what_the_network_subtracts():
    torch.manual_seed(7)
    network = randomised(LIR(**SMALL))
    image = torch.rand(1, 3, 45, 33)
    shown = network.mechanism(image, [(0, 0)])
    assert shown["degradation"].shape == image.shape
    assert shown["alpha"].shape == (20, 9)
    assert shown["beta"].shape == (20,)
    first = network.levels[0][0].stage2[0]
    assert torch.equal(shown["alpha"][0], first.alpha)
    with torch.no_grad():
        before = network(image)
        network.image_degradation.weight.zero_()
        torch.testing.assert_close(network(image) - before, shown["degradation"], rtol=1e-4, atol=1e-5)
    plain = LIR(**SMALL, no_filter=True, no_degradation_subtraction=True)
    assert plain.mechanism(image) == {}


def test_image_skip_starts_at_the_input_and_leaves_it():
    torch.manual_seed(8)
    network = build("lir", **SMALL, image_skip=True)
    image = torch.rand(1, 3, 40, 33)
    assert torch.equal(network(image), image)
    network(image).square().sum().backward()
    assert network.tail[0].weight.grad.any()
    assert network.image_degradation.weight.grad.any()
    assert not torch.equal(LIR(**SMALL)(image), image)


def test_levels_need_a_number_each():
    with pytest.raises(ValueError, match="five levels"):
        LIR(blocks=(1, 1))


def test_trains_under_autocast():
    torch.manual_seed(9)
    network, image = randomised(LIR(**SMALL)), torch.rand(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        restored = network(image)
    restored.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    with torch.no_grad():
        assert (restored - network(image)).abs().max() < 0.05
