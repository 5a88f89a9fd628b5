from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracles import randomised

from lib.insights import attended, mechanism, weights
from lib.models import build


@pytest.mark.parametrize("patch", [1, 3])
def test_mechanism_shows_the_weights_of_the_forward_pass_on_each_level(patch):
    network = randomised(build("panet", width=8, blocks=2, patch=patch, scales=(1, 0.8, 0.6)), 0.3)
    image = torch.rand(1, 3, 7, 9)
    shown = mechanism(network, image, [(row, column) for row in range(7) for column in range(9)])
    assert {key: value.shape[1:] for key, value in shown.items()} == {
        "mass": (3,),
        "map_1": (63, 7, 9),
        "map_0.8": (63, 5, 7),
        "map_0.6": (63, 4, 5),
    }
    maps = [shown[f"map_{s}"][0].flatten(1) for s in ("1", "0.8", "0.6")]
    torch.testing.assert_close(shown["mass"][0], torch.stack([level.sum(1).mean() for level in maps]))
    [(module, x)] = attended(network, image)
    [found] = weights(module, x)
    torch.testing.assert_close(found, torch.cat(maps, 1))
    torch.testing.assert_close(found.sum(1), torch.ones(63))
    values = torch.cat([F.unfold(module.f(z), patch, padding=patch // 2)[0] for z in module.pyramid(x)], 1)
    pasted = F.fold((values @ found.T)[None], (7, 9), patch, padding=patch // 2) / (4 if patch == 3 else 1)
    torch.testing.assert_close(pasted + x, module(x), rtol=1e-4, atol=1e-5)
