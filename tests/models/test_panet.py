from __future__ import annotations

import pytest
import torch
from oracles import assert_equals_its_definition, assert_matches, fill, wave

from lib.measuring.inference import cost
from lib.models import build, plain
from lib.models.blocks import ImageError
from lib.models.panet import PANet, PyramidAttention
from lib.models.panet.block_attention import CACHED_SCORES, CPU_QUERIES, _Tiling, block_attention

SCALES = (1, 0.9, 0.8, 0.7, 0.6)

CASES = {
    "64 channels": (
        {"width": 64, "reduction": 2},
        (1, 64, 16, 20),
        (0.100535, 0.719042, 1.523205, (0.385399, 1.073410, 0.213286, 0.424077, 0.129878)),
    ),
    "one level": (
        {"width": 64, "reduction": 2, "scales": (1,)},
        (1, 64, 16, 20),
        (0.100375, 0.719584, 1.529690, (0.406758, 1.075298, 0.212827, 0.399024, 0.149490)),
    ),
    "256 channels": (
        {"width": 256, "reduction": 8, "identity_scale": 0.1},
        (1, 256, 12, 12),
        (0.052440, 0.103118, 0.300261, (0.069189, 0.068396, -0.026973, 0.018276, -0.017959)),
    ),
}


def official(module: PyramidAttention) -> list:
    tensors = [None]  # escape_NaN
    for embedding in (module.theta, module.g, module.f):
        tensors += [embedding[0].weight, embedding[0].bias, embedding[1].weight]
    return tensors


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("max_scores", [2**23, 2**14])
def test_agrees_with_the_released_module(case, max_scores):
    options, shape, row = CASES[case]
    module = PyramidAttention(**options, max_scores=max_scores)
    fill(official(module))
    assert_matches(module(wave(*shape)), *row)
    with plain():
        assert_matches(module(wave(*shape)), *row)


def smaller(size, scales=SCALES):
    return [[int(side * s) for side in size] for s in scales]


def assert_equals_blocks(size, scales, patch, max_scores):
    """Of two images, 4 channels of keys and 8 of values."""
    torch.manual_seed(0)
    sizes = smaller(size, scales)
    keys, values = ([torch.randn(2, channels, *side) for side in sizes] for channels in (4, 8))

    def attention(query, *levels):
        return block_attention(query, levels[: len(sizes)], levels[len(sizes) :], patch, 2.0, max_scores)

    assert_equals_its_definition(attention, torch.randn(2, 4, *size), *keys, *values)


@pytest.mark.parametrize(("patch", "max_scores"), [(1, None), (3, None), (3, 40_000), (3, 9_000), (3, 1)])
@pytest.mark.parametrize(
    ("size", "scales"), [((17, 13), SCALES), ((5, 8), (1,)), ((9, 31), (0.7,)), ((8, 6), (0.5, 1, 1))]
)
def test_block_attention_is_that_of_unfolded_blocks(size, scales, patch, max_scores):
    assert_equals_blocks(size, scales, patch, max_scores)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("max_scores", [2**23, 60_000])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_parts_for_the_threads_change_nothing(threads, count, max_scores):
    threads(count)
    tiling = _Tiling(torch.empty(1, 4, 7, 69), [(7, 69), (3, 34)], max_scores)
    assert tiling.parts == min(count, 4 if max_scores == 2**23 else 2)
    assert tiling.margin == (max_scores < 2**23)
    assert_equals_blocks((7, 69), (1, 0.5), 3, max_scores)


def test_blocks_of_one_row_two_and_more_are_among_those_tested():
    tilings = [_Tiling(torch.empty(1, 4, 17, 13), smaller((17, 13)), limit) for limit in (2**23, 40_000, 9_000)]
    assert [(tiling.rows, tiling.delay) for tiling in tilings] == [(17, 0), (3, 1), (1, 1)]
    assert _Tiling(torch.empty(1, 4, 9, 31), [(6, 21)], 9_000).rows == 2


@pytest.mark.parametrize("limit", [1, 10**5, 10**6, 2**23])
def test_blocks_hold_no_more_scores_than_allowed(limit):
    tiling = _Tiling(torch.empty(1, 4, 64, 64), [(64, 64), (32, 32)], limit)
    held = tiling.rows * tiling.parts * tiling.part_width * tiling.keys
    assert held <= max(limit, 3 * tiling.keys)
    assert held <= max(CACHED_SCORES, CPU_QUERIES * tiling.keys)
    assert limit < 2**23 or tiling.columns == 64


def test_a_key_of_zeros_gives_finite_gradients():
    module = PyramidAttention(8)
    module.g[0].weight.data.zero_()
    module.g[0].bias.data.zero_()
    x = torch.randn(1, 8, 6, 6, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("positions", "indices"),
    [("pre", [0]), ("mid", [2]), ("post", [4]), (["pre", "mid", "post"], [0, 3, 6]), (1, [2]), (3, [1, 3, 5])],
)
def test_positions(positions, indices):
    body = PANet(width=8, blocks=4, positions=positions).body
    assert [i for i, module in enumerate(body) if isinstance(module, PyramidAttention)] == indices


@pytest.mark.parametrize("common_trunk", [False, True])
@pytest.mark.parametrize(("size", "message"), [((1, 5), "needs at least 2"), ((2, 2), None)])
def test_an_image_too_small_for_the_pyramid_is_an_error(size, message, common_trunk):
    network = build("panet", width=8, blocks=2, common_trunk=common_trunk)
    if message:
        with pytest.raises(ImageError, match=message):
            network(torch.rand(1, 3, *size))
    else:
        assert network(torch.rand(1, 3, *size)).shape == (1, 3, *size)


def test_pixel_wise_scores_never_exist_all_at_once():
    network = build("panet", width=16, blocks=2, patch=1)
    keys = sum(int(48 * scale) ** 2 for scale in SCALES)
    assert cost(network, 3, 48)["peak_bytes"] < 4 * 48**2 * keys / 10  # of the matrix in float32
