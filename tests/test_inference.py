"""Whole images, tiles, the eight-fold mean, and what a network costs."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from lib.measuring.inference import _spans, cost, restore
from lib.models import build
from lib.tasks.degradations import Bayer


@pytest.fixture(scope="module")
def convolutions():
    torch.manual_seed(0)
    return build("edsr", colors=1, width=4, blocks=1).eval()  # sees 4 pixels each way


@pytest.mark.parametrize("size", [(61, 83), (40, 40), (17, 130)])
def test_tiles_that_overlap_by_the_receptive_field_change_nothing(convolutions, size):
    image = torch.rand(1, 1, *size)
    whole = restore(convolutions, image, tile=1000, overlap=0)
    tiled = restore(convolutions, image, tile=24, overlap=10)
    assert torch.allclose(whole, tiled, atol=1e-6)


def test_tiles_that_overlap_too_little_do_change_something(convolutions):
    image = torch.rand(1, 1, 60, 60)
    difference = restore(convolutions, image, 1000, 0) - restore(convolutions, image, 20, 0)
    assert difference.abs().max() > 1e-4


@pytest.mark.parametrize("scale", [2, 3])
def test_tiles_are_put_together_at_the_networks_scale(scale):
    network = nn.Upsample(scale_factor=scale, mode="nearest")
    image = torch.rand(1, 3, 31, 45)
    assert torch.equal(restore(network, image, 16, 4), network(image))


def rggb(x):
    """Adds 1 wherever a mosaic does not have its pattern: R G in even rows, G B in odd ones."""
    wrong = x - Bayer()(x, torch.Generator())
    return x + (wrong != 0).any(1, keepdim=True)


@pytest.mark.parametrize("size", [(61, 83), (60, 84), (26, 90), (25, 25)])
@pytest.mark.parametrize("self_ensemble", [False, True])
def test_a_mosaic_keeps_its_pattern_in_tiles_and_flips(size, self_ensemble):
    mosaic = Bayer()(torch.rand(1, 3, *size) + 0.1, torch.Generator())
    restored = restore(rggb, mosaic, 25, 7, self_ensemble, Bayer.period)
    torch.testing.assert_close(restored, mosaic)
    without = restore(rggb, mosaic, 25, 7, self_ensemble)
    assert torch.allclose(without, mosaic) == (size == (25, 25))


def test_tiles_of_a_mosaic_overlap_enough_and_cover_it():
    for size in range(9, 60):
        spans = _spans(size, 9, 3, 2)
        assert all(start % 2 == 0 and stop - start <= 10 for start, stop, *_ in spans)
        assert all(a[1] - b[0] >= 3 and a[3] == b[2] for a, b in pairwise(spans))
        assert spans[0][2] == 0 and spans[-1][3] == spans[-1][1] == size


def test_memory_follows_the_tile_not_the_image():
    image, seen = torch.rand(1, 1, 200, 300), []

    def watched(x):
        seen.append(x.numel())
        return x

    restore(watched, image, tile=32, overlap=8)
    assert max(seen) <= 32 * 32
    restore(watched, image, tile=None, overlap=0)
    assert seen[-1] == image.numel()


def test_the_self_ensemble_is_the_mean_over_eight_undone_transforms():
    image = torch.rand(1, 1, 5, 7)
    mean = restore(lambda x: torch.roll(x, 1, dims=3), image, 100, 0, self_ensemble=True)
    expected = sum(torch.roll(image, shift, dims) for dims in (2, 3) for shift in (-1, 1)) / 4
    assert torch.allclose(mean, expected, atol=1e-6)


def test_an_overlap_as_large_as_the_tile_is_refused(convolutions):
    with pytest.raises(ValueError, match="overlap 16 must be smaller than tile 16"):
        restore(convolutions, torch.rand(1, 1, 40, 40), 16, 16)


def test_cost_counts_convolutions_and_fused_attention():
    plain = cost(build("edsr", colors=1, width=8, blocks=0), 1, side=32)
    weights = 9 * 8 + 9 * 64 + 9 * 8
    assert plain["multiply_adds"] == weights * 32 * 32
    assert plain["parameters"] == weights + 8 + 8 + 1

    attentive = cost(build("edsr", colors=1, width=8, blocks=0, attention="nl"), 1, side=32)
    added = 4 * 8 * 64 * 1024 + 2 * 1024 * 1024 * 64
    assert attentive["multiply_adds"] == plain["multiply_adds"] + added


def test_cost_repeats_exactly_and_sees_a_large_buffer():
    class Buffer(nn.Module):
        def forward(self, x):
            return x + torch.zeros(10_000_000).sum()

    first, second = (cost(Buffer(), 1, 16) for _ in range(2))
    assert first == second and 40_000_000 <= first["peak_bytes"] < 45_000_000
