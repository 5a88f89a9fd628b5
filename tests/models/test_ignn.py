from __future__ import annotations

import hashlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_matches, fill, wave
from torch import nn

from benchmarks.reference.ignn import cut, reference, search_and_aggregate
from lib.degradations import resize
from lib.models import ModelError, build
from lib.models.ignn import (
    IGNN,
    INERT,
    Embedding,
    FeatureGraph,
    GraphAggregation,
    aggregate,
    build_graph,
    first_patches,
    pad_to_cells,
)

#: Per scale: the smaller image's mean and std, matches of the first and of the middle query, mean and std of D, x_lr,
#: x_hr (mean, std, five values).
ROWS = {
    2: (
        (127.642036, 71.965841),
        (11, 3, 5, 26, 17),
        (18, 20, 5, 3, 12),
        (2.207755, 0.453416),
        (0.010119, 0.065878, (-0.090682, -0.076777, -0.043287, 0.041602, 0.035025)),
        (0.000324, 0.667183, (0.046765, -1.159346, 0.178834, -0.203954, 0.555511)),
    ),
    3: (
        (127.564862, 13.982567),
        (0, 3, 22, 6, 16),
        (2, 12, 6, 18, 15),
        (2.679340, 0.447193),
        (0.010209, 0.067990, (-0.096966, -0.062401, -0.043420, 0.051661, 0.037657)),
        (0.000182, 0.503764, (0.231656, 0.114328, -0.953749, 0.420335, -0.775062)),
    ),
}


def stand_in(x):
    """What the released rows were made with in place of VGG19."""
    return torch.cat([x, x.square()], 1).repeat(1, 11, 1, 1)[:, :64]


def assert_row(output, mean, std, values=()):
    assert_matches(output, mean, std, float(output.detach().abs().max()), values or five(output))


def five(output):
    flat, n = output.detach().flatten(), output.numel()
    return flat[[0, n // 7, n // 3, n // 2, n - 1]].tolist()


def randomised(module, scale=0.3):
    for tensor in module.parameters():
        tensor.data.normal_(0, scale)
    return module


@pytest.mark.parametrize("scale", ROWS)
@pytest.mark.parametrize("max_scores", [2**23, 100])
def test_agrees_with_the_released_module(scale, max_scores):
    # In float64: two distances of the x2 row differ by 2e-6 of their size, and the neighbours' order matters.
    son_row, first, middle, difference_row, lr_row, hr_row = ROWS[scale]
    image = 0.5 + 0.5 * wave(1, 3, 12 * scale, 10 * scale).double()
    small = resize(image, down=scale).clamp(0, 1)
    assert_row(255 * small, *son_row)
    module = GraphAggregation(8, 64, scale, max_scores=max_scores)
    fill(list(module.parameters()))
    module.double()
    graph = build_graph(stand_in(image), stand_in(small), scale, max_scores=max_scores)
    matches = graph.index[0].flatten(1).T
    assert matches[0].tolist() == list(first)
    assert matches[len(matches) // 2].tolist() == list(middle)
    assert_row(module.fold(graph.difference, image.shape[2:]), *difference_row)
    inputs = wave(1, 8, 12 * scale, 10 * scale).double(), stand_in(image), stand_in(small)
    for lr, hr in (module(*inputs), reference(module, *inputs)):
        assert_row(lr, *lr_row)
        assert_row(hr, *hr_row)


def outputs_and_gradients(function, module, inputs, directions):
    module.zero_grad()
    x = inputs[0].clone().requires_grad_()
    outputs = [y for y in function(x, *inputs[1:]) if y is not None]
    sum((y * d).sum() for y, d in zip(outputs, directions, strict=False)).backward()
    return [y.detach() for y in outputs], [x.grad] + [p.grad for p in module.parameters()]


@pytest.mark.parametrize("max_scores", [2**23, 2000, 1])
@pytest.mark.parametrize(
    ("scale", "sons", "options"),
    [
        (2, (9, 12), {}),
        (2, (11, 30), {"window": 4}),
        (2, (8, 15), {"adapn": False, "branch": "hr"}),
        (3, (7, 16), {"window": 3, "neighbours": 2}),
        (3, (6, 9), {"edge_weights": "uniform", "branch": "lr", "neighbours": 1}),
    ],
)
def test_equals_the_expanded_form(scale, sons, options, max_scores):
    torch.manual_seed(0)
    size = [scale * side for side in sons]
    module = randomised(GraphAggregation(6, 5, scale, max_scores=max_scores, **options))
    inputs = torch.randn(2, 6, *size), torch.rand(2, 5, *size), torch.rand(2, 5, *sons)
    directions = torch.randn(2, 6, *size), torch.randn(2, 6, *(scale * side for side in size))
    directions = directions[1:] if module.branch == "hr" else directions
    ours, gradients = outputs_and_gradients(module, module, inputs, directions)
    plain, expected = outputs_and_gradients(partial(reference, module), module, inputs, directions)
    for a, b in zip(ours, plain, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    largest = max(g.norm() for g in expected)
    for a, b in zip(gradients, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-6 * largest  # of INERT biases rounding is all there is


@pytest.mark.parametrize("max_scores", [2**23, 5000, 1])
def test_matches_are_the_nearest_of_the_window(max_scores):
    torch.manual_seed(1)
    embedded, small = torch.rand(1, 4, 60, 84), torch.rand(1, 4, 30, 42)
    graph = build_graph(embedded, small, 2, neighbours=3, window=7, max_scores=max_scores)
    pairs = (cut(embedded).double()[:, None] - cut(small).double()).square().sum(2).unflatten(1, (15, 21))
    for i, j in [(0, 0), (13, 20), (29, 41), (30, 2)]:
        i = min(i, 29)
        top, left = (min(max(at // 2 - 3, 0), n - 7) for at, n in ((i, 15), (j, 21)))
        window = pairs[i * 42 + j][top : top + 7, left : left + 7]
        values, numbers = window.flatten().topk(3, largest=False)
        rows, columns = numbers // 7 + top, numbers % 7 + left
        assert graph.index[0, :, i, j].tolist() == (rows * 21 + columns).tolist()
        torch.testing.assert_close(graph.distance[0, :, i, j].double(), values, rtol=1e-4, atol=1e-5)


def test_windowing_depends_on_the_image_alone():
    torch.manual_seed(2)
    embedded, small = torch.rand(1, 3, 40, 48), torch.rand(1, 3, 20, 24)
    before = build_graph(embedded, small, 2, window=5).index
    build_graph(embedded[:, :, :16, :16], small[:, :, :8, :8], 2, window=5)  # small enough to be searched whole
    assert torch.equal(build_graph(embedded, small, 2, window=5).index, before)
    assert not torch.equal(build_graph(embedded, small, 2, window=30).index, before)


@pytest.mark.parametrize("adapn", [True, False])
@pytest.mark.parametrize(("scale", "size"), [(2, (6, 8)), (2, (8, 10)), (3, (9, 6))])
def test_gradients_are_those_of_the_function(scale, size, adapn):
    torch.manual_seed(3)
    m, n = ([side // 2 for side in size], [side // scale // 2 for side in size])
    index = torch.randint(n[0] * n[1], (2, 2, *m))
    x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: aggregate(x, index, scale, adapn), x, fast_mode=True)


def test_what_is_copied_at_a_time_changes_nothing(monkeypatch):
    torch.manual_seed(4)
    index, x = torch.randint(9, (1, 4, 6, 6)), torch.randn(1, 3, 12, 12)
    direction = torch.randn(1, 4, 3, 24, 24)
    results = []
    for copied in (2**19, 1):
        monkeypatch.setattr("lib.models.ignn.COPIED", copied)
        leaf = x.clone().requires_grad_()
        y = aggregate(leaf, index, 2)
        (y * direction).sum().backward()
        results.append((y.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_a_size_first_seen_without_gradients_can_be_trained():
    """What is kept between calls may have been made in inference mode."""
    x, index = torch.randn(1, 3, 26, 34), torch.randint(9, (1, 2, 13, 17))
    first_patches.cache_clear()
    with torch.inference_mode():
        aggregate(x.clone(), index, 2)
    aggregate(x.requires_grad_(), index, 2).sum().backward()
    assert x.grad.isfinite().all()


def test_memory_is_a_sixth_of_the_expanded_form():
    torch.manual_seed(5)
    x, embedded, small = torch.randn(1, 16, 40, 40), torch.rand(1, 16, 40, 40), torch.rand(1, 16, 20, 20)

    def ours(x):
        return aggregate(x, build_graph(embedded, small, 2).index, 2)

    peaks = [peak(f, x) for f in (ours, lambda x: search_and_aggregate(x, embedded, small, 2)[0])]
    assert peaks[0] <= peaks[1] / 6


def peak(function, x):
    """Most bytes that a forward and a backward pass hold of the allocator."""
    x = x.clone().requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorded:
        function(x).sum().backward()
    held = most = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        held += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, held)
    return most


@pytest.mark.parametrize(("scale", "total"), [(2, 47_152_233), (3, 50_102_633), (4, 49_512_553)])
def test_parameters_of_the_published_networks(scale, total):
    with torch.device("meta"):
        network = IGNN(scale=scale)
    shifts = 3 * 12  # of mean colours, 1x1 convolutions in the released code: before, behind, and VGG19's
    assert sum(p.numel() for p in network.parameters()) + shifts == total
    assert sum(p.numel() for p in network.aggregation.parameters()) == 2_843_906
    assert sum(p.numel() for p in network.embedding.parameters()) + 12 == 38_732
    assert not any(p.requires_grad for p in network.embedding.parameters())


@pytest.mark.parametrize("options", [{"embedding": "random"}, {"embedding": "own", "scale": 3}, {"neighbours": 0}])
def test_any_size_and_a_batch_is_its_images(options):
    torch.manual_seed(6)
    network = randomised(IGNN(width=8, blocks=2, **options), 0.1)
    scale = network.scale
    with torch.no_grad():
        assert network(torch.rand(1, 3, 61, 83)).shape == (1, 3, 61 * scale, 83 * scale)
        assert network(torch.rand(1, 3, 1, 5)).shape == (1, 3, scale, 5 * scale)
        images = torch.rand(2, 3, 128, 96)
        restored = network(images)
        assert restored.shape == (2, 3, 128 * scale, 96 * scale)
        for i in range(2):
            torch.testing.assert_close(network(images[i : i + 1]), restored[i : i + 1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"embedding": "random"},
        {"embedding": "own", "scale": 4, "colors": 1, "image_skip": True},
        {"embedding": "random", "scale": 3, "adapn": False, "branch": "lr"},
        {"embedding": "random", "edge_weights": "uniform", "branch": "hr"},
        {"embedding": "own", "neighbours": 1},
        {"neighbours": 0},
    ],
)
def test_every_tensor_learns(options):
    torch.manual_seed(7)
    network = randomised(IGNN(width=8, blocks=2, **options).double(), 0.1)
    network(torch.rand(2, options.get("colors", 3), 14, 13).double()).square().sum().backward()
    trainable = {name: p.grad.norm() for name, p in network.named_parameters() if p.requires_grad}
    floor = 1e-12 * max(trainable.values())
    without = {name for name, norm in trainable.items() if norm <= floor}
    inert = {f"aggregation.{name}" for name in INERT}
    assert without == inert & set(trainable)
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in network.named_parameters() if name.startswith("embedding.")}


def test_no_gradient_flows_through_the_graph():
    torch.manual_seed(8)
    embedded, small = torch.rand(1, 4, 12, 12, requires_grad=True), torch.rand(1, 4, 6, 6, requires_grad=True)
    x = torch.randn(1, 4, 12, 12, requires_grad=True)
    sum(y.sum() for y in GraphAggregation(4, 4)(x, embedded, small)).backward()
    assert x.grad is not None
    assert embedded.grad is None
    assert small.grad is None


def test_input_range_and_mean_colour_stay_inside():
    """Without features the network gives the mean colour; its trunk sees 255 times the image less that colour."""
    network = IGNN(width=4, blocks=2, neighbours=0)
    seen = []
    network.head.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    nn.init.zeros_(network.tail[-1].weight)
    x = torch.rand(1, 3, 6, 6)
    torch.testing.assert_close(network(x), network.mean.expand(1, 3, 12, 12))
    torch.testing.assert_close(seen[0][:, 0], 255 * (x[:, 0] - 0.4488))


def test_image_skip_starts_at_the_enlargement():
    x = torch.rand(1, 3, 13, 15)
    enlarged = F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True)
    torch.testing.assert_close(IGNN(width=4, blocks=2, embedding="random", image_skip=True)(x), enlarged)


def test_initialisation_is_a_tenth_of_kaimings_embedding_included():
    torch.manual_seed(9)
    network = IGNN(width=64, blocks=2, embedding="random")
    assert network.embedding.conv1.weight.std().item() == pytest.approx(0.1 * (2 / 27) ** 0.5, rel=0.1)
    assert network.body1[0].body[0].weight.std().item() == pytest.approx(0.1 * (2 / 576) ** 0.5, rel=0.02)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_padding_leaves_enough_patches_to_choose_from():
    for neighbours, size in ((5, (12, 12)), (10, (16, 16)), (1, (4, 4))):
        padded = pad_to_cells(torch.rand(1, 1, 3, 4), 2, neighbours)
        assert padded.shape[2:] == size
        assert (size[0] // 2 // 2) * (size[1] // 2 // 2) >= neighbours
    torch.testing.assert_close(
        pad_to_cells(torch.arange(3.0).view(1, 1, 1, 3), 2, 1)[0, 0, 0], torch.tensor([0.0, 1, 2, 1])
    )


def vgg19_state():
    torch.manual_seed(10)
    shapes = {"features.0": (64, 3, 3, 3), "features.2": (64, 64, 3, 3), "features.5": (128, 64, 3, 3)}
    return {
        f"{name}.{kind}": torch.randn(shape if kind == "weight" else shape[:1])
        for name, shape in shapes.items()
        for kind in ("weight", "bias")
    }


def test_vgg19_weights_come_from_a_file(tmp_path):
    state = vgg19_state()
    torch.save(state, tmp_path / "vgg19.pth")
    network = build("ignn", width=4, blocks=2, vgg19_weights=tmp_path / "vgg19.pth")
    assert torch.equal(network.embedding.conv2.weight, state["features.2.weight"])
    x = torch.rand(1, 3, 6, 6)
    normal = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    first = F.relu(F.conv2d(normal, state["features.0.weight"], state["features.0.bias"], padding=1))
    second = F.relu(F.conv2d(first, state["features.2.weight"], state["features.2.bias"], padding=1))
    torch.testing.assert_close(network.embedding(x), second)


@pytest.mark.parametrize("content", [None, b"no checkpoint", {"features.0.weight": torch.zeros(64, 3, 3, 3)}])
def test_a_bad_vgg19_file_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "vgg19.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        torch.save(content, path)
    with pytest.raises(ValueError, match="vgg19_weights") as caught:
        IGNN(width=4, blocks=2, vgg19_weights=path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_vgg19_file_is_what_its_name_says(tmp_path):
    torch.save(vgg19_state(), tmp_path / "vgg19.pth")
    digits = hashlib.sha256((tmp_path / "vgg19.pth").read_bytes()).hexdigest()[:8]
    named = (tmp_path / "vgg19.pth").rename(tmp_path / f"vgg19-{digits}.pth")
    assert not IGNN(width=4, blocks=2, vgg19_weights=named).embedding.conv1.weight.isnan().any()
    other = named.rename(tmp_path / "vgg19-dcbb9e9d.pth")
    with pytest.raises(ValueError, match=f"vgg19-dcbb9e9d.pth: its sha256 begins with {digits}; damaged") as caught:
        IGNN(width=4, blocks=2, vgg19_weights=other)
    assert "\n" not in str(caught.value)


def test_vgg19_without_weights_does_not_run_but_loads():
    network = IGNN(width=4, blocks=2)
    x = torch.rand(1, 3, 12, 12)
    with pytest.raises(RuntimeError, match="vgg19"):
        network(x)
    given = IGNN(width=4, blocks=2, embedding="random")
    network.load_state_dict(given.state_dict())
    torch.testing.assert_close(network(x), given(x))


@pytest.mark.parametrize("options", [{"embedding": "vgg"}, {"branch": "sr"}, {"edge_weights": "fixed"}, {"scale": 5}])
def test_an_unknown_value_is_an_error_that_names_the_option(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        IGNN(width=4, blocks=2, **options)


def test_more_neighbours_than_a_window_holds_is_an_error():
    with pytest.raises(ValueError, match="neighbours 5"):
        IGNN(width=4, blocks=2, window=2)


def test_module_for_the_common_trunk():
    torch.manual_seed(11)
    network = build("ignn", common_trunk=True, width=8, blocks=2, scale=2, neighbours=3)
    module = next(part for part in network.body if isinstance(part, FeatureGraph))
    x = torch.randn(2, 8, 13, 17)
    y = module(x)
    assert y.shape == x.shape
    padded = pad_to_cells(x, 2, 3)
    added = reference(module.aggregation, padded, padded, resize(padded, down=2))[0]
    torch.testing.assert_close(y - x, added[:, :, :13, :17], rtol=1e-4, atol=1e-5)
    assert network(torch.rand(1, 3, 9, 8)).shape == (1, 3, 18, 16)
    with pytest.raises(ModelError, match="embedding"):
        build("ignn", common_trunk=True, embedding="random")


@pytest.mark.parametrize("branch", ["both", "lr", "hr"])
def test_mechanism_shows_the_graph_of_the_forward_pass(branch):
    torch.manual_seed(12)
    network = randomised(IGNN(width=8, blocks=2, embedding="random", neighbours=3, branch=branch), 0.2)
    image, points = torch.rand(1, 3, 24, 33), [(0, 0), (5, 8), (23, 32)]
    shown = network.mechanism(image, points)
    present = [f"weight_{side}" for side in ("lr", "hr") if branch in ("both", side)]
    assert set(shown) == {"query", "son", "match", "distance", *present}
    assert shown["query"].tolist() == [[0, 0], [4, 8], [22, 32]]
    assert torch.equal(shown["match"], 2 * shown["son"])
    for key in present:
        torch.testing.assert_close(shown[key].sum(1), torch.ones(3))
    padded = pad_to_cells(image, 2, 3)
    small = resize(padded, down=2).clamp(0, 1)
    queries, sons = network.embedding(padded), network.embedding(small)
    queries, sons = F.pad(queries, (0, 1, 0, 1)), F.pad(sons, (0, 1, 0, 1))
    for p in range(3):
        (i, j), matches = shown["query"][p].tolist(), shown["son"][p].tolist()
        patch = queries[0, :, i : i + 3, j : j + 3]
        far = torch.stack([(patch - sons[0, :, r : r + 3, c : c + 3]).square().sum() for r, c in matches])
        torch.testing.assert_close(shown["distance"][p], far, rtol=1e-3, atol=1e-4)
    assert (shown["distance"].diff(dim=1) >= 0).all()
    assert IGNN(width=4, blocks=2, neighbours=0).mechanism(image, points) == {}


def test_trains_under_autocast():
    torch.manual_seed(13)
    network = IGNN(width=8, blocks=2, embedding="random")
    x = torch.rand(1, 3, 16, 18)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
    y.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)
    with torch.no_grad():
        assert (y - network(x)).abs().max() < 0.05


def test_the_released_embedding_is_named_as_such():
    assert {name: tuple(p.shape) for name, p in Embedding().named_parameters()} == {
        "conv1.weight": (64, 3, 3, 3),
        "conv1.bias": (64,),
        "conv2.weight": (64, 64, 3, 3),
        "conv2.bias": (64,),
    }
