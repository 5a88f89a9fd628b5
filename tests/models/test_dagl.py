from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_matches, fill, output_and_gradients, wave

from lib import insights
from lib.insights.dagl import mechanism, neighbours, weights
from lib.models import build, dagl, plain
from lib.models.blocks import NonLocal
from lib.models.dagl import MGFAM, UNTRAINED, UNUSED, same_padding
from lib.models.dagl.graph_attention import Buffers, coverage

SMALL = {"width": 6, "blocks": 2, "heads": 2, "stages": 2, "stage_blocks": 1, "patch": 3, "stride": 2}
VARIANTS = {
    "official": {},
    "paper": {"weights": "paper"},
    "no_threshold": {"no_threshold": 5},
    "no_threshold, paper": {"no_threshold": 5, "weights": "paper"},
    "no_graph_attention": {"no_graph_attention": True},
}


def released_head(fixed_threshold: bool) -> MGFAM:
    """One head filled in the order of the released head: g, W, theta, fc1, fc2, thr_conv, bias_conv."""
    module = MGFAM(64, heads=1)
    thresholds = [torch.empty(1, 64, 7, 7), torch.empty(1), torch.empty(1, 64, 7, 7), torch.empty(1)]
    layers = (module.edge, module.unused, module.node, module.query, module.key)
    fill([tensor for layer in layers for tensor in (layer.weight, layer.bias)] + thresholds)
    if fixed_threshold:
        thresholds[1].fill_(1)
        thresholds[3].fill_(0)
    module.threshold.weight.data = torch.cat(thresholds[0::2])
    module.threshold.bias.data = torch.cat(thresholds[1::2])
    return module


HEADS = {  # fixed threshold, size, mean, std, absmax, five values, edges, those of the first queries
    "all edges": (False, (16, 16), (-0.002992, 0.059951, 0.108777), 4096, None),
    "all edges, odd": (False, (18, 21), (-0.003517, 0.062204, 0.099774), 30 * 378, None),
    "threshold": (True, (16, 16), (-0.001811, 0.034878, 0.131672), 1849, [154, 249, 116, 0, 5, 30]),
    "threshold, odd": (True, (18, 21), (-0.001664, 0.036053, 0.099758), 5431, None),
}
VALUES = {
    "all edges": (-0.105346, -0.039531, 0.078042, -0.010992, 0.065622),
    "all edges, odd": (-0.099774, -0.035783, 0.087403, -0.010152, 0.090778),
    "threshold": (-0.115360, -0.008733, 0.025922, -0.019180, 0.004893),
    "threshold, odd": (-0.099758, -0.018508, 0.087409, -0.010176, 0.000000),
}


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("max_scores", [2**23, 1000])
def test_head_agrees_with_the_released_module(case, max_scores):
    fixed, size, statistics, edges, first = HEADS[case]
    module, x = released_head(fixed), wave(1, 64, *size)
    module.max_scores = max_scores
    assert_matches(module.aggregate(x, 1), *statistics, VALUES[case])
    with plain():
        assert_matches(module.aggregate(x, 1), *statistics, VALUES[case])
    kept = neighbours(module, x)[0]
    assert abs(kept.sum() - edges) <= 3  # edges within rounding of their threshold
    if first:
        assert (kept.flatten()[: len(first)] - torch.tensor(first)).abs().max() <= 1


def random_stage(width=5, dtype=torch.float32, **options) -> MGFAM:
    """A stage whose thresholds cut through the scores: some queries keep many neighbours, some few."""
    module = MGFAM(width, **options).to(dtype)
    for tensor in module.parameters():
        tensor.data.normal_(0, 0.5 / (tensor[0].numel() if tensor.ndim > 1 else 25) ** 0.5)
    if module.threshold is not None:
        module.threshold.bias.data[: module.heads] = 1
    return module


EXACT = {  # size, options
    "every column": ((12, 16), {}),
    "odd": ((13, 9), {}),
    "larger": ((21, 30), {}),
    "patch 5": ((5, 22), {"patch": 5, "stride": 3}),
    "patch 3": ((9, 7), {"patch": 3, "stride": 1}),
    "less than a patch": ((3, 2), {}),
    "one pixel": ((1, 1), {"patch": 3, "stride": 2}),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", EXACT)
def test_stage_equals_its_definitions(case, variant):
    size, options = EXACT[case]
    torch.manual_seed(0)
    module = random_stage(heads=2, dtype=torch.float64, **options, **VARIANTS[variant])
    x, direction = torch.randn(2, 2, 5, *size, dtype=torch.float64).unbind(0)
    with plain():
        expected = output_and_gradients(module, x, direction)
    scale = float(max(gradient.norm() for gradient in expected[1:]))
    for max_scores in (2**23, 4 * size[0] * size[1], 1):
        module.max_scores = max_scores
        for a, b in zip(output_and_gradients(module, x, direction), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10 * scale)


@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_format_changes_nothing(variant):
    module = random_stage(heads=2, dtype=torch.float64, max_scores=900, **VARIANTS[variant])
    x, direction = torch.randn(2, 2, 5, 12, 16, dtype=torch.float64).unbind(0)
    expected = output_and_gradients(module, x, direction)
    module.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    for a, b in zip(output_and_gradients(module, x, direction), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("variant", VARIANTS)
def test_heads_at_once_equal_one_after_the_other(variant):
    module, x = random_stage(heads=6, dtype=torch.float64, **VARIANTS[variant]), torch.randn(2, 5, 13, 9).double()
    expected = module.aggregate(x, 6)
    for parts in (1, 2):
        torch.testing.assert_close(module.aggregate(x, parts), expected)
    with plain():
        torch.testing.assert_close(module.aggregate(x, 1), expected)


@pytest.mark.parametrize(("max_scores", "expected"), [(100_000, 15_750), (10_000, 9_450), (2_000, 1_800), (1, 450)])
def test_held_scores_stay_below_the_bound(monkeypatch, max_scores, expected):
    held, view = {}, Buffers.view

    def recorded(self, name, *shape):
        held[name] = max(held.get(name, 0), torch.Size(shape).numel())
        return view(self, name, *shape)

    monkeypatch.setattr(Buffers, "view", recorded)
    module = random_stage(4, heads=1, max_scores=max_scores)  # a grid of 5 x 7 queries, 450 keys
    module(torch.randn(1, 4, 18, 25).requires_grad_()).sum().backward()
    assert held["weight"] == held["grad_weight"] == expected
    assert max(held.values()) <= 6 * expected  # one query adds to up to 2 x 2 positions, their keys shifted


def test_unfolded_features_stay_small():
    sizes = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    module, x = MGFAM(16, heads=1, max_scores=2**16), torch.randn(1, 16, 64, 64)
    with Largest():
        module(x)
    assert max(sizes) == 196 * 64 * 64  # the keys; patches would be 784 x 64 x 64, all scores 256 x 64 x 64 per head


@pytest.mark.parametrize("variant", VARIANTS)
def test_untrained_modules_get_no_gradient(variant):
    module = MGFAM(6, heads=2, patch=3, stride=2, **VARIANTS[variant])
    module(torch.rand(2, 6, 13, 10)).square().mean().backward()
    untrained = {name for key in UNTRAINED if key in variant for name in UNTRAINED[key]} | set(UNUSED)
    for name, tensor in module.named_parameters():
        if name.split(".")[0] in untrained:
            assert tensor.grad is None, name
        else:
            assert tensor.grad.abs().max() > 0, name


def test_ablations_do_what_they_say():
    x = torch.randn(1, 5, 16, 12, dtype=torch.float64)

    def graph(**options):
        torch.manual_seed(6)
        module = random_stage(dtype=torch.float64, heads=2, **options)
        found = weights(module, x)
        torch.testing.assert_close(weights(module, x, torch.tensor([7, 2])), found[:, [7, 2]])
        return found, neighbours(module, x).flatten(1)

    (full, kept), (paper, _), (equal, _) = graphs = [graph(), graph(weights="paper"), graph(no_graph_attention=True)]
    assert kept.unique().numel() > 3 and kept.min() == 0
    for found, of in graphs:  # the same edges
        assert torch.equal((found > 0).sum(2), kept) and torch.equal(of, kept)
    assert full.sum(2).max() < 1 + 1e-5 and full.sum(2).min() < 0.9999
    for found in (paper, equal):
        torch.testing.assert_close(found.sum(2), (kept > 0).double())
    torch.testing.assert_close(equal.amax(2) * kept, (kept > 0).double())
    for no_threshold, expected in ((5, 5), (True, dagl.NEIGHBOURS), (10**6, 16 * 12)):
        assert graph(no_threshold=no_threshold)[1].max() == expected
    assert all(isinstance(stage, NonLocal) for stage in build("dagl", attention="nl", **SMALL).body[1].stages)
    inserted = build("dagl", common_trunk=True, width=8, blocks=2, heads=2, patch=3, stride=2, weights="paper").body[1]
    assert isinstance(inserted, MGFAM) and inserted.weights == "paper"


@pytest.mark.parametrize("variant", VARIANTS)
def test_shown_weights_are_those_that_gather(variant):
    module, x = random_stage(heads=2, dtype=torch.float64, **VARIANTS[variant]), torch.randn(1, 5, 13, 10).double()
    patches = F.unfold(module.node(x), 7, padding=3).unflatten(1, (2, -1))[0]
    pasted = F.fold((patches @ insights.weights(module, x).mT).flatten(0, 1), x.shape[2:], 7, padding=3, stride=4)
    found = module.aggregate(x, 2) * coverage(x, 7, 4)
    torch.testing.assert_close(found[0], pasted)


@pytest.mark.parametrize("variant", [name for name, options in VARIANTS.items() if "no_threshold" not in options])
def test_query_without_neighbours_gives_zeros(variant):
    module, x = random_stage(heads=1, **VARIANTS[variant]), torch.randn(1, 5, 9, 8)
    module.threshold.weight.data.zero_()
    module.threshold.bias.data[:] = torch.tensor([0.0, -1e6])
    y, *gradients = output_and_gradients(module, x, torch.ones_like(x))
    torch.testing.assert_close(y, x + module.fuse.bias[:, None, None])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_mechanism_shows_the_graph_of_one_head():
    network, points = build("dagl", **SMALL), [(0, 0), (19, 16), (9, 9)]
    found = mechanism(network, torch.rand(1, 1, 20, 17), points, stage=1, head=1)
    assert found["kept"].shape == (10, 9) and found["weights"].shape == (3, 20, 17)
    assert (found["queries"] - torch.tensor(points)).abs().max() <= 1
    rows, columns = (found["queries"] // 2).unbind(1)
    assert torch.equal((found["weights"] > 0).sum((1, 2)), found["kept"][rows, columns])
    assert insights.mechanism(build("dagl", attention="nl", **SMALL), torch.rand(1, 1, 8, 8), [(0, 0)]) == {}


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"), [(16, 7, 4, (1, 2)), (18, 7, 4, (2, 3)), (4, 1, 4, (0, 0))]
)
def test_same_padding(size, kernel, stride, expected):
    assert same_padding(size, kernel, stride) == expected


def test_rows_share_the_weights_of_all_layers_but_the_stages():
    networks = []
    for options in ({}, {"attention": "nl"}, {"patch": 5, "no_threshold": 3}):
        torch.manual_seed(9)
        networks.append(build("dagl", **SMALL | options).state_dict())
    first, *others = ({name: t for name, t in state.items() if ".stages." not in name} for state in networks)
    assert all(state.keys() == first.keys() for state in others) and any(".blocks." in name for name in first)
    assert all(torch.equal(state[name], tensor) for state in others for name, tensor in first.items())
    edges = [networks[i][f"body.1.stages.{stage}.edge.weight"] for i, stage in ((0, 0), (2, 0), (0, 1))]
    assert torch.equal(edges[0], edges[1]) and not torch.equal(edges[0], edges[2])


@pytest.mark.parametrize("form", ["fast", "plain"])
def test_mixed_precision_keeps_scores_in_single(form):
    module, x = random_stage(heads=1), torch.randn(1, 5, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16), plain() if form == "plain" else contextlib.nullcontext():
        assert module.aggregate(x, 1).dtype == torch.float32
        y, *gradients = output_and_gradients(module, x, torch.ones_like(x))
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients)
    torch.testing.assert_close(y.float(), module(x), rtol=0.1, atol=0.1)
