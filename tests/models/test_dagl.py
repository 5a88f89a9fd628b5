from __future__ import annotations

import pytest
import torch
from oracles import assert_matches, fill, wave

from benchmarks.reference.dagl import reference
from lib.models import build, dagl
from lib.models.blocks import NonLocal
from lib.models.dagl import CES, DAGL, MGFAM, UNTRAINED, UNUSED, same_padding

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
    module.graph = module.graph._replace(max_scores=max_scores)
    seen = []
    module.fuse.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(x)
    reference(module, x)
    for output in seen:
        assert_matches(output, *statistics, VALUES[case])
    kept = module.show(x, [(0, 0)], 0)["kept"]
    assert abs(kept.sum() - edges) <= 3  # edges within rounding of their threshold
    if first:
        assert (kept.flatten()[: len(first)] - torch.tensor(first)).abs().max() <= 1


def test_parameters_of_the_released_networks():
    count = lambda **options: sum(p.numel() for p in build("dagl", **options).parameters())  # noqa: E731
    assert count() == 5_727_438
    assert count(colors=3) == 5_729_744
    assert count(colors=3, blocks=32) == 6_911_440
    network = build("dagl")
    assert sum(p.numel() for p in next(m for m in network.modules() if isinstance(m, CES)).parameters()) == 4_507_584
    slopes = [m.weight for m in network.modules() if isinstance(m, torch.nn.PReLU)]
    assert len({id(slope) for slope in slopes}) == 9  # one for the trunk, eight between the stages


def random_stage(width=5, dtype=torch.float32, **options) -> MGFAM:
    """A stage whose thresholds cut through the scores: some queries keep many neighbours, some few."""
    module = MGFAM(width, **options).to(dtype)
    for tensor in module.parameters():
        tensor.data.normal_(0, 0.5 / (tensor[0].numel() if tensor.ndim > 1 else 25) ** 0.5)
    if module.threshold is not None:
        module.threshold.bias.data[: module.heads] = 1
    return module


def outputs_and_gradients(function, module, x, direction) -> list:
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = function(x)
    (y * direction).sum().backward()
    return [y.detach(), x.grad] + [None if p.grad is None else p.grad.clone() for p in module.parameters()]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((12, 16), {}),
        ((13, 9), {}),
        ((5, 22), {"patch": 5, "stride": 3}),
        ((9, 7), {"patch": 3, "stride": 1}),
        ((3, 2), {}),
        ((1, 1), {"patch": 3, "stride": 2}),
    ],
)
def test_stage_equals_the_full_score_matrix(size, options, variant):
    torch.manual_seed(0)
    module = random_stage(heads=2, dtype=torch.float64, **options, **VARIANTS[variant])
    x, direction = torch.randn(2, 2, 5, *size, dtype=torch.float64).unbind(0)
    plain = outputs_and_gradients(lambda x: reference(module, x), module, x, direction)
    scale = max(g.norm() for g in plain[1:] if g is not None)
    for max_scores in (2**23, 4 * size[0] * size[1], 1):
        module.graph = module.graph._replace(max_scores=max_scores)
        ours = outputs_and_gradients(module, module, x, direction)
        for a, b in zip(ours, plain, strict=True):
            if a is None:  # no gradient at all, or of exactly zero in the plain form
                assert b is None or b.norm() <= 1e-10 * scale
            else:
                torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-8, atol=1e-10 * scale)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("max_scores", [2**23, 1000])
@pytest.mark.parametrize("options", [{}, {"patch": 3, "stride": 1}])
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_read_before_it_is_written(uninitialised_is_nan, variant, options, max_scores):
    torch.manual_seed(0)
    module = random_stage(heads=1, max_scores=max_scores, **options, **VARIANTS[variant])
    x = torch.randn(2, 5, 13, 18, requires_grad=True)
    with torch.autograd.detect_anomaly():
        module(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("size", [(24, 32), (21, 30)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_stage_in_single_precision(variant, size):
    torch.manual_seed(1)
    module = random_stage(8, heads=2, **VARIANTS[variant])
    x, direction = torch.randn(2, 2, 8, *size).unbind(0)
    plain = outputs_and_gradients(lambda x: reference(module, x), module, x, direction)
    scale = max(g.norm() for g in plain[2:] if g is not None)
    for max_scores in (2**23, 20_000):
        module.graph = module.graph._replace(max_scores=max_scores)
        ours = outputs_and_gradients(module, module, x, direction)
        assert (ours[0] - plain[0]).norm() <= 1e-5 * plain[0].norm()
        for a, b in zip(ours[1:], plain[1:], strict=True):
            if a is not None:
                assert (a - (0 if b is None else b)).norm() <= 1e-4 * a.norm() + 1e-6 * scale


@pytest.mark.parametrize("max_scores", [2**23, 40])
@pytest.mark.parametrize("variant", ["official", "paper", "no_threshold"])
def test_gradients_are_those_of_the_function(variant, max_scores):
    torch.manual_seed(2)
    module = random_stage(2, torch.float64, heads=1, patch=3, stride=2, max_scores=max_scores, **VARIANTS[variant])
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    inputs = (x, module.edge.weight, module.query.bias, module.key.weight, module.node.weight)
    if variant == "official":
        inputs += (module.threshold.weight, module.threshold.bias)
    # The weights jump where a score crosses its threshold; no score of this seed is that near.
    assert torch.autograd.gradcheck(lambda *_: module(x), inputs, fast_mode=True)


@pytest.mark.parametrize(("max_scores", "expected"), [(100_000, 15_750), (10_000, 9_450), (2_000, 1_800), (1, 450)])
def test_held_scores_stay_below_the_bound(monkeypatch, max_scores, expected):
    held = {}

    class Space(dagl.Space):
        def __call__(self, name, *shape):
            held[name] = max(held.get(name, 0), torch.Size(shape).numel())
            return super().__call__(name, *shape)

    monkeypatch.setattr(dagl, "Space", Space)
    module = random_stage(4, heads=1, max_scores=max_scores)  # a grid of 5 x 7 queries, 450 keys
    module(torch.randn(1, 4, 18, 25).requires_grad_()).sum().backward()
    assert held["weight"] == held["grad_weight"] == expected
    assert max(held.values()) <= 6 * expected  # one query adds to up to 2 x 2 positions, their keys shifted


@pytest.mark.parametrize(("outputs", "taps", "products"), [(32, 7, 56), (21, 7, 40), (1, 5, 5), (6, 1, 8)])
def test_short_convolution(outputs, taps, products):
    of_taps, of_pixels, to_outputs = dagl.transforms(outputs, taps)
    assert len(of_taps) == products
    w, x = torch.randn(2, outputs + taps - 1, dtype=torch.float64).unbind(0)
    expected = torch.nn.functional.conv1d(x[None, None], w[None, None, :taps])[0, 0]
    torch.testing.assert_close(to_outputs @ ((of_taps @ w[:taps]) * (of_pixels @ x)), expected)


@pytest.mark.parametrize(
    ("patch", "size", "together"), [(7, (9, 70), 4), (5, (6, 33), 5), (7, (2, 3), 100), (5, (1, 1), 1)]
)
def test_keys_equal_a_convolution(monkeypatch, patch, size, together):
    """Pieces of several lengths, strips and parts of the channels that do not divide the whole."""
    monkeypatch.setattr(dagl, "PIECES", together)
    monkeypatch.setattr(dagl, "CHANNELS", 3)
    torch.manual_seed(9)
    x, weight, bias = torch.randn(2, 3, *size), torch.randn(8, 3, patch, patch), torch.randn(8)
    inputs = [t.double().requires_grad_() for t in (x, weight, bias)]
    expected = torch.relu(torch.nn.functional.conv2d(*inputs, padding=patch // 2))
    found = dagl.Embed.apply(*inputs)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad(y, inputs, direction) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)
    single = dagl.Embed.apply(x, weight, bias)
    assert (single - expected).norm() <= 1e-6 * expected.norm()
    torch.testing.assert_close(dagl.embed(*inputs), expected)


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


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"patch": 5, "stride": 3}, (61, 83, 128, 96)),
        ({"attention": "nl"}, (61, 83, 64, 48)),
        ({"attention": "mhnl"}, (61, 83, 64, 48)),
    ],
)
def test_network_takes_any_size_and_batch(options, sizes):
    torch.manual_seed(3)
    network = build("dagl", **SMALL | {"stages": 1} | options).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 1, *sizes[:2])).shape == (1, 1, *sizes[:2])
        batch = torch.rand(2, 1, *sizes[2:])
        for image, out in zip(batch, network(batch), strict=True):
            torch.testing.assert_close(network(image[None])[0], out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch", [3, 7])  # keys by a plain convolution and by a short one
@pytest.mark.parametrize("variant", [*VARIANTS, "nl", "mhnl"])
def test_every_trained_tensor_gets_a_gradient(variant, patch):
    torch.manual_seed(4)
    options = VARIANTS.get(variant, {"attention": variant})
    network = build("dagl", colors=3, **SMALL | {"patch": patch}, **options)
    for tensor in network.parameters():
        tensor.data.normal_(0, 0.1)  # larger ones saturate the softmax
    network(torch.rand(2, 3, 13, 10)).square().mean().backward()
    frozen = {name for key in UNTRAINED if key in variant for name in UNTRAINED[key]} | set(UNUSED)
    for name, tensor in network.named_parameters():
        if frozen & set(name.split(".")):
            assert tensor.grad is None, name
        elif "key.bias" not in name or variant not in ("nl", "mhnl"):  # a softmax does not see what all keys share
            assert tensor.grad is not None and tensor.grad.abs().max() > 0, name
    assert all(not p.requires_grad for n, p in network.named_parameters() if set(UNUSED) & set(n.split(".")))


def test_ablations_do_what_they_say():
    torch.manual_seed(5)
    x = torch.randn(1, 5, 16, 12)
    points = [(0, 0), (8, 8), (15, 11)]

    def shown(**options):
        torch.manual_seed(6)
        return random_stage(heads=2, **options).show(x, points, 1)

    full, paper, few = shown(), shown(weights="paper"), shown(no_threshold=5)
    mean = shown(no_graph_attention=True)
    assert full["kept"].unique().numel() > 3 and (few["kept"] == 5).all()
    assert shown(no_threshold=True)["kept"].unique().tolist() == [dagl.NEIGHBOURS]
    assert shown(no_threshold=10**6)["kept"].max() <= 16 * 12
    sums = [graph["weights"].sum((1, 2)) for graph in (full, paper, mean)]
    occupied = full["weights"].flatten(1).amax(1) > 0
    assert occupied.any() and sums[0].max() < 1 + 1e-5 and sums[0].min() < 0.9999
    for total in sums[1:]:
        torch.testing.assert_close(total[occupied], torch.ones_like(total[occupied]))
    assert all(len(row[row > 0].unique()) <= 1 for row in mean["weights"])
    for graph in (full, paper, mean):  # the same edges
        assert torch.equal(graph["kept"], full["kept"])
    assert len(build("dagl", **SMALL | {"stages": 3}).body[1].stages) == 3
    assert all(isinstance(stage, NonLocal) for stage in build("dagl", attention="nl", **SMALL).body[1].stages)


def test_query_without_neighbours_gives_zeros():
    for options in VARIANTS.values():
        module = random_stage(heads=1, **options)
        if module.threshold is None:
            continue
        module.threshold.weight.data.zero_()
        module.threshold.bias.data[:] = torch.tensor([0.0, -1e6])
        x = torch.randn(1, 5, 9, 8, requires_grad=True)
        y = module(x)
        torch.testing.assert_close(y, x + module.fuse.bias[:, None, None])
        y.sum().backward()
        assert torch.isfinite(x.grad).all()


def test_mechanism_shows_the_graph_of_one_head():
    torch.manual_seed(7)
    network = build("dagl", **SMALL)
    found = network.mechanism(torch.rand(1, 1, 20, 17), [(0, 0), (19, 16), (9, 9)], stage=1, head=1)
    assert found["kept"].shape == (10, 9) and found["weights"].shape == (3, 20, 17)
    assert found["queries"].shape == (3, 2)
    assert (found["queries"] - torch.tensor([(0, 0), (19, 16), (9, 9)])).abs().max() <= 1
    # The query's own patch lies on a pixel: its weight is what a unit value there is given.
    columns = (found["queries"] // 2)[:, 1]
    rows = (found["queries"] // 2)[:, 0]
    assert torch.equal((found["weights"] > 0).sum((1, 2)), found["kept"][rows, columns])
    assert network.mechanism(torch.rand(1, 1, 8, 8), [(0, 0)], 0, 0)["weights"].shape == (1, 8, 8)
    assert build("dagl", attention="nl", **SMALL).mechanism(torch.rand(1, 1, 8, 8), [(0, 0)]) == {}


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"), [(16, 7, 4, (1, 2)), (18, 7, 4, (2, 3)), (4, 1, 4, (0, 0))]
)
def test_same_padding(size, kernel, stride, expected):
    assert same_padding(size, kernel, stride) == expected


def test_stands_in_the_common_trunk():
    network = build("dagl", common_trunk=True, colors=1, width=8, blocks=2, heads=2, patch=3, stride=2, weights="paper")
    assert isinstance(network.body[1], MGFAM) and network.body[1].graph.weights == "paper"
    assert network(torch.rand(1, 1, 9, 11)).shape == (1, 1, 9, 11)


def test_image_skip_starts_at_the_identity():
    x = torch.rand(2, 1, 9, 8)
    torch.testing.assert_close(build("dagl", image_skip=True, **SMALL)(x), x)


def test_mixed_precision_keeps_scores_in_single():
    torch.manual_seed(8)
    module, x = random_stage(heads=1), torch.randn(1, 5, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x.requires_grad_())
        y.float().square().mean().backward()
    assert module.key.weight.grad.dtype == torch.float32 and torch.isfinite(module.key.weight.grad).all()
    torch.testing.assert_close(y.float(), module(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "local"}, "attention 'local' is not one of graph, nl, mhnl"),
        ({"patch": 4}, "patch 4 is not odd"),
        ({"stride": 5}, r"stride 5 is not in 1..4"),
        ({"weights": "mine"}, "weights 'mine' is not one of official, paper"),
        ({"no_threshold": -3}, "no_threshold -3"),
        ({"attention": "nl", "no_threshold": 4}, "belong to attention 'graph'"),
        ({"stages": 0}, "stages 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DAGL(**options)
