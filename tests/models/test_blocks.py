from __future__ import annotations

import pytest
import torch
from oracles import output_and_gradients, randomised
from torch import Tensor, nn

from lib.models import build
from lib.models.blocks import DIV2K_MEAN, Network, NonLocal, ResBlock, Trunk, Upsampler, conv


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_edsr():
    assert count(build("edsr", scale=2)) == 1_369_859  # 3->64, 16 x 2 x 64->64, 64->64, 64->256, 64->3
    assert count(build("edsr", scale=4)) == 1_517_571
    assert count(build("edsr", scale=2, width=256, blocks=32, res_scale=0.1)) == 40_729_603
    assert count(NonLocal(64)) == count(NonLocal(64, heads=4)) == 4 * 65 * 64


def test_mean_colour_is_taken_away_and_added():
    network = build("edsr", width=4, blocks=1)
    network.tail.weight.data.zero_()
    network.tail.bias.data.zero_()
    out = network(torch.rand(1, 3, 5, 6))
    torch.testing.assert_close(out, torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1).expand_as(out))
    seen = []
    network.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1).expand(1, 3, 5, 6))
    assert seen[0].abs().max() < 1e-6
    assert build("edsr", colors=1).mean.tolist() == [[[[0.0]]]]


def test_trunk_is_what_its_options_say():
    x = torch.rand(1, 1, 6, 5)
    trunk = randomised(
        Trunk(1, 4, 2, attention=lambda width: conv(width, width), positions=(0, 1, 2), image_residual=True)
    )
    assert [type(part) for part in trunk.body] == [nn.Conv2d, ResBlock, nn.Conv2d, ResBlock, nn.Conv2d, nn.Conv2d]
    features = trunk.head(x)
    torch.testing.assert_close(trunk(x), x + trunk.tail(trunk.body(features) + features))
    plain = randomised(Trunk(1, 4, 2, feature_skip=False))
    torch.testing.assert_close(plain(x), plain.tail(plain.body(plain.head(x))))


@pytest.mark.parametrize(("tied", "slopes"), [(True, 1), (False, 3)])
def test_activations_are_tied_on_request(tied, slopes):
    trunk = Trunk(1, 4, 3, activation=nn.PReLU, tie_activation=tied)
    assert len({id(m) for m in trunk.modules() if isinstance(m, nn.PReLU)}) == slopes
    assert sum(p.numel() == 1 and p.ndim == 1 for p in [*trunk.body.parameters()]) == slopes


def test_res_scale_scales_the_branch():
    block, x = ResBlock(3, nn.ReLU(), 0.1), torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(block(x), x + 0.1 * block.body(x))


def test_upsampler_multiplies_the_size():
    for scale, layers in ((1, 0), (2, 2), (3, 2), (4, 4)):
        up = Upsampler(4, scale)
        assert len(up) == layers and up(torch.rand(1, 4, 5, 3)).shape == (1, 4, 5 * scale, 3 * scale)
    with pytest.raises(ValueError, match="scale 5 is not one of 1, 2, 3, 4"):
        Upsampler(4, 5)


class FullScoreMatrix(NonLocal):
    """The definition of the non-local module."""

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.query, self.key, self.value)
        q, k, v = (layer(x).flatten(2).unflatten(1, (self.heads, -1)) for layer in layers)  # (B, heads, channels, HW)
        mixed = v @ torch.softmax(q.mT @ k, 3).mT
        return x + self.out(mixed.flatten(1, 2).unflatten(2, x.shape[2:]))


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("size", [(16, 12), (7, 13), (1, 1)])
def test_non_local_equals_the_full_score_matrix(heads, size):
    module, defined = (kind(6, inner=8, heads=heads) for kind in (NonLocal, FullScoreMatrix))
    defined.load_state_dict(randomised(module, 0.5).state_dict())
    x, direction = torch.randn(2, 2, 6, *size).unbind(0)
    (y, *found), (exact, *expected) = (output_and_gradients(form, x, direction) for form in (module, defined))
    assert (y - exact).norm() <= 1e-5 * exact.norm()
    scale = max(gradient.norm() for gradient in expected[1:])
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-6 * scale


def test_non_local_by_hand():
    """One channel, two pixels: out = x + softmax(q k) v, without 1/sqrt(d)."""
    module = NonLocal(1, inner=1)
    for layer, value in ((module.query, 2.0), (module.key, 3.0), (module.value, 5.0), (module.out, 7.0)):
        layer.weight.data.fill_(value)
        layer.bias.data.zero_()
    x = torch.tensor([0.1, 0.4])
    weights = torch.softmax(6 * x[:, None] * x[None], 1)
    torch.testing.assert_close(module(x.view(1, 1, 1, 2)).flatten(), x + 35 * weights @ x)


def test_non_local_never_holds_the_score_matrix():
    module, x = NonLocal(8, inner=8), torch.randn(1, 8, 40, 50, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        module(x).sum().backward()
    assert max(event.cpu_memory_usage for event in profile.events()) < 4 * 2000**2 / 4


def test_attention_stands_in_the_middle():
    assert isinstance(build("edsr", width=4, blocks=4, attention="mhnl").body[2], NonLocal)
    assert build("edsr", width=4, blocks=4, attention="mhnl").body[2].heads == 4


def test_network_without_anything_special():
    network = Network()
    network.start_step(0.5, torch.Generator())
    assert network.auxiliary_loss() == 0.0


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match=r"positions \[5\] do not all lie in 0..2"):
        Trunk(1, 4, 2, attention=NonLocal, positions=(5,))
    with pytest.raises(ValueError, match="inner 10 is not a multiple of heads 4"):
        NonLocal(4, inner=10, heads=4)


@pytest.mark.parametrize("row", ["edsr", "dagl", "panet", "enlca"])
def test_layers_that_rows_share_start_from_the_same_weights(row):
    options = {"attention": "nl"} if row == "edsr" else {"common_trunk": True}
    torch.manual_seed(3)
    plain = build("edsr", width=8, blocks=2)
    torch.manual_seed(3)
    attended = build(row, width=8, blocks=2, **options)
    del attended.body[1]
    shared = attended.state_dict()
    assert shared.keys() == plain.state_dict().keys()
    assert all(torch.equal(tensor, shared[name]) for name, tensor in plain.state_dict().items())


def test_attention_modules_start_from_their_seed_and_their_place():
    def drawn(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        trunk = Trunk(1, 4, 2, attention=lambda width: conv(width, width), positions=(0, 1))
        assert torch.initial_seed() == seed
        return [trunk.body[0].weight, trunk.body[2].weight]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(*first) and not torch.equal(first[0], other[0])
