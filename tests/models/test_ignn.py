from __future__ import annotations

import hashlib
import importlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_equals_its_definition, assert_matches, fill, refused, wave
from torch import nn

from lib.models import ModelError, build, plain
from lib.models.ignn import (
    IGNN,
    FeatureGraph,
    GraphAggregation,
    difference_maps,
    match_patches,
    pad_to_cells,
    paste_patches,
)
from lib.models.ignn.embedding import NAMES
from lib.models.ignn.patches import first_patches, unfold
from lib.params import ROOT
from lib.tasks.degradations import resize

#: Copies of VGG19's published weights, on machines that have one.
OWN_FILES = [*ROOT.glob("own/vgg19*.pth"), *ROOT.glob("data/weights/vgg19*.pth")]

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
    """The embedding in place of VGG19 with which the released rows were made."""
    return torch.cat([x, x.square()], 1).repeat(1, 11, 1, 1)[:, :64]


@pytest.mark.parametrize("scale", ROWS)
@pytest.mark.parametrize("max_scores", [2**23, 100])
def test_agrees_with_the_released_module(scale, max_scores):
    # In float64: two distances of the x2 row differ by 2e-6 of their size, and the neighbours' order matters.
    son_row, first, middle, difference_row, lr_row, hr_row = ROWS[scale]
    image = 0.5 + 0.5 * wave(1, 3, 12 * scale, 10 * scale).double()
    small = resize(image, down=scale).clamp(0, 1)
    assert_matches(255 * small, *son_row)
    module = GraphAggregation(8, 64, scale, 5, "both", max_scores=max_scores)
    fill(list(module.parameters()))
    module.double()
    embeddings = stand_in(image), stand_in(small)
    graph = match_patches(*embeddings, scale, max_scores=max_scores)
    matches = graph.matches[0].flatten(1).T
    assert matches[0].tolist() == list(first)
    assert matches[len(matches) // 2].tolist() == list(middle)
    assert_matches(difference_maps(graph.difference, image.shape[2:]), *difference_row)
    x = wave(1, 8, 12 * scale, 10 * scale).double()
    outputs = module(x, *embeddings)
    with plain():
        outputs += module(x, *embeddings)
    for output, row in zip(outputs, (lr_row, hr_row) * 2, strict=True):
        assert_matches(output, *row[:2], values=row[2])


@pytest.mark.parametrize("max_scores", [2**23, 2000, 1])
@pytest.mark.parametrize(
    ("scale", "sons", "options"),
    [(2, (9, 12), {}), (2, (11, 30), {"window": 4}), (3, (7, 16), {"window": 3, "neighbours": 2}), (3, (6, 9), {})],
)
def test_matches_are_those_of_all_distances(scale, sons, options, max_scores):
    embedded = torch.rand(2, 5, *(scale * side for side in sons), dtype=torch.float64)
    match = partial(match_patches, embedded, torch.rand(2, 5, *sons, dtype=torch.float64), scale, **options)
    graph = match(max_scores=max_scores)
    maps = difference_maps(graph.difference, embedded.shape[2:])
    with plain():
        expected = match()
        expected_maps = difference_maps(graph.difference, embedded.shape[2:])
    for a, b in zip((*graph, maps), (*expected, expected_maps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("copied", [2**19, 1])
@pytest.mark.parametrize("adapn", [True, False])
@pytest.mark.parametrize(("scale", "sons", "neighbours"), [(2, (9, 12), 5), (2, (4, 3), 1), (3, (6, 7), 2)])
def test_pasted_patches_are_those_of_the_expanded_form(monkeypatch, scale, sons, neighbours, adapn, copied):
    monkeypatch.setattr(importlib.import_module("lib.models.ignn.paste_patches"), "COPIED", copied)
    torch.manual_seed(1)
    x = torch.randn(2, 3, *(scale * side for side in sons))
    queries, candidates = ([side // 2 for side in size] for size in (x.shape[2:], sons))
    index = torch.randint(candidates[0] * candidates[1], (2, neighbours, *queries))
    assert_equals_its_definition(lambda x: paste_patches(x, index, scale, adapn), x)


@pytest.mark.parametrize("max_scores", [2**23, 5000, 1])
def test_matches_are_the_nearest_of_the_window(max_scores):
    embedded, small = torch.rand(1, 4, 60, 84), torch.rand(1, 4, 30, 42)
    graph = match_patches(embedded, small, 2, neighbours=3, window=7, max_scores=max_scores)
    queries, sons = (unfold(t.double())[0].flatten(1) for t in (embedded, small))
    pairs = (queries[:, None] - sons).square().sum(2).unflatten(1, (15, 21))
    for i, j in [(0, 0), (13, 20), (29, 41), (30, 2)]:
        i = min(i, 29)
        top, left = (min(max(at // 2 - 3, 0), n - 7) for at, n in ((i, 15), (j, 21)))
        window = pairs[i * 42 + j][top : top + 7, left : left + 7]
        values, numbers = window.flatten().topk(3, largest=False)
        rows, columns = numbers // 7 + top, numbers % 7 + left
        assert graph.matches[0, :, i, j].tolist() == (rows * 21 + columns).tolist()
        torch.testing.assert_close(graph.distance[0, :, i, j].double(), values, rtol=1e-4, atol=1e-5)


def test_windowing_depends_on_the_image_alone():
    embedded, small = torch.rand(1, 3, 40, 48), torch.rand(1, 3, 20, 24)
    before = match_patches(embedded, small, 2, window=5).matches
    match_patches(embedded[:, :, :16, :16], small[:, :, :8, :8], 2, window=5)  # small enough to be searched whole
    assert torch.equal(match_patches(embedded, small, 2, window=5).matches, before)
    assert not torch.equal(match_patches(embedded, small, 2, window=30).matches, before)


def test_a_size_first_seen_without_gradients_can_be_trained():
    """Tensors kept between calls may have been made in inference mode."""
    x, index = torch.randn(1, 3, 26, 34), torch.randint(9, (1, 2, 13, 17))
    first_patches.cache_clear()
    with torch.inference_mode():
        paste_patches(x.clone(), index, 2)
    paste_patches(x.requires_grad_(), index, 2).sum().backward()
    assert x.grad.isfinite().all()


def test_memory_is_a_sixth_of_the_expanded_form():
    x, embedded, small = torch.randn(1, 16, 40, 40), torch.rand(1, 16, 40, 40), torch.rand(1, 16, 20, 20)

    def pasted(x):
        return paste_patches(x, match_patches(embedded, small, 2).matches, 2)

    fast = peak(pasted, x)
    with plain():
        assert fast <= peak(pasted, x) / 6


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


@pytest.mark.parametrize("options", [{"branch": "lr"}, {"edge_weights": "uniform", "branch": "hr"}, {"neighbours": 0}])
def test_the_trunk_of_an_ablation_starts_alike(options):
    def network(**options):
        torch.manual_seed(7)
        return build("ignn", width=8, blocks=2, **{"embedding": "random", **options})

    ablated = network(**options)
    starts = network().state_dict()
    for name, tensor in ablated.state_dict().items():
        if name not in ("fuse_lr.0.weight", "fuse_hr.0.weight") and not name.startswith("aggregation.edges"):
            assert torch.equal(tensor, starts[name]), name


def test_no_gradient_flows_through_the_graph():
    embedded, small = torch.rand(1, 4, 12, 12, requires_grad=True), torch.rand(1, 4, 6, 6, requires_grad=True)
    x = torch.randn(1, 4, 12, 12, requires_grad=True)
    sum(y.sum() for y in GraphAggregation(4, 4, 2, 5, "both")(x, embedded, small)).backward()
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


def test_initialisation_is_a_tenth_of_kaimings_embedding_included():
    network = IGNN(width=64, blocks=2, embedding="random")
    assert network.embedding.conv1.weight.std().item() == pytest.approx(0.1 * (2 / 27) ** 0.5, rel=0.1)
    assert network.body1[0].body[0].weight.std().item() == pytest.approx(0.1 * (2 / 576) ** 0.5, rel=0.02)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_padding_leaves_enough_patches_to_choose_from():
    for neighbours, size in ((5, (12, 12)), (10, (16, 16)), (1, (4, 4))):
        padded = pad_to_cells(torch.rand(1, 1, 3, 4), 2, neighbours)
        assert padded.shape[2:] == size
        assert (size[0] // 2 // 2) * (size[1] // 2 // 2) >= neighbours
    assert pad_to_cells(torch.arange(3.0).view(1, 1, 1, 3), 2, 1)[0, 0, 0].tolist() == [0, 1, 2, 1]


def vgg19_state(first: str = "features.0", second: str = "features.2") -> dict[str, torch.Tensor]:
    torch.manual_seed(10)
    shapes = {first: (64, 3, 3, 3), second: (64, 64, 3, 3), "another": (128, 64, 3, 3)}
    return {
        f"{name}.{kind}": torch.randn(shape if kind == "weight" else shape[:1])
        for name, shape in shapes.items()
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("names", [("features.0", "features.2"), ("conv1_1", "conv1_2")])
def test_vgg19_weights_come_from_a_file(tmp_path, names):
    state = vgg19_state(*names)
    torch.save(state, tmp_path / "vgg19.pth")
    network = build("ignn", width=4, blocks=2, vgg19_weights=str(tmp_path / "vgg19.pth"))
    assert_is_vgg19(network, state, *names)


def assert_is_vgg19(network, state, *names):
    x = torch.rand(1, 3, 6, 6)
    y = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for name in names:
        y = F.relu(F.conv2d(y, state[f"{name}.weight"], state[f"{name}.bias"], padding=1))
    torch.testing.assert_close(network.embedding(x), y)


@pytest.mark.skipif(not OWN_FILES, reason="no such file here")
@pytest.mark.parametrize("path", OWN_FILES)
def test_published_vgg19_weights(path):
    state = torch.load(path, weights_only=True)
    names = next(names for names in NAMES if f"{names[0]}.weight" in state)
    assert_is_vgg19(build("ignn", width=4, blocks=2, vgg19_weights=path), state, *names)


@pytest.mark.parametrize("content", [None, b"no checkpoint", {"features.0.weight": torch.zeros(64, 3, 3, 3)}])
def test_a_bad_vgg19_file_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "vgg19.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        torch.save(content, path)
    with refused(ValueError, "vgg19_weights", str(path)):
        IGNN(width=4, blocks=2, vgg19_weights=path)


def test_a_vgg19_file_is_what_its_name_says(tmp_path):
    torch.save(vgg19_state(), tmp_path / "vgg19.pth")
    digits = hashlib.sha256((tmp_path / "vgg19.pth").read_bytes()).hexdigest()[:8]
    named = (tmp_path / "vgg19.pth").rename(tmp_path / f"vgg19-{digits}.pth")
    assert not IGNN(width=4, blocks=2, vgg19_weights=named).embedding.conv1.weight.isnan().any()
    other = named.rename(tmp_path / "vgg19-dcbb9e9d.pth")
    with refused(ValueError, f"vgg19-dcbb9e9d.pth: its sha256 begins with {digits}; damaged"):
        IGNN(width=4, blocks=2, vgg19_weights=other)


def test_vgg19_without_weights_does_not_run_but_loads():
    network = IGNN(width=4, blocks=2)
    x = torch.rand(1, 3, 12, 12)
    with pytest.raises(RuntimeError, match="vgg19"):
        network(x)
    given = IGNN(width=4, blocks=2, embedding="random")
    network.load_state_dict(given.state_dict())
    torch.testing.assert_close(network(x), given(x))


def test_module_for_the_common_trunk():
    network = build("ignn", common_trunk=True, width=8, blocks=2, scale=2, neighbours=3)
    module = next(part for part in network.body if isinstance(part, FeatureGraph))
    x = torch.randn(2, 8, 13, 17)
    padded = pad_to_cells(x, 2, 3)
    added = module.aggregation(padded, padded, resize(padded, down=2))[0]
    torch.testing.assert_close(module(x), x + added[:, :, :13, :17])
    assert network(torch.rand(1, 3, 9, 8)).shape == (1, 3, 18, 16)
    for option in ("embedding", "branch"):
        with pytest.raises(ModelError, match=f"'{option}'"):
            build("ignn", common_trunk=True, **{option: "lr"})
