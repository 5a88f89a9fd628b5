import pytest
import torch
from oracles import randomised

from lib.insights import influence, mechanism
from lib.models import build
from lib.models.blocks import Attention


def test_influence_is_the_norm_of_the_jacobian():
    mix = torch.randn(5 * 4, 5 * 4)

    class Mix(Attention):  # adds at pixel p the sum over q of mix[p, q] x_q, channel by channel
        def forward(self, x):
            return x + (x.flatten(2) @ mix.T).unflatten(2, x.shape[2:])

    x = torch.randn(1, 3, 5, 4)
    with torch.inference_mode():
        maps = influence(Mix(), x.clone(), [(2, 1), (4, 3)])
    expected = mix[[2 * 4 + 1, 4 * 4 + 3]].abs().unflatten(1, (5, 4)) * 3**0.5
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("name", ["edsr", "dagl", "panet", "enlca", "ignn"])
def test_every_module_in_the_common_trunk_shows_its_influence(name):
    options = {"attention": "nl"} if name == "edsr" else {"common_trunk": True}
    network = randomised(build(name, colors=1, width=8, blocks=2, **options))
    torch.manual_seed(0)
    maps = mechanism(network.eval(), torch.rand(1, 1, 12, 14), [(3, 4), (8, 9)])["influence"]
    assert maps.shape == (2, 12, 14) and bool(maps.isfinite().all()) and float(maps.amax()) > 0


def test_a_trunk_without_attention_shows_none():
    assert mechanism(build("edsr", colors=1, width=8, blocks=2), torch.rand(1, 1, 8, 8), [(1, 1)]) == {}
