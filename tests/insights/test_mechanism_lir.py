import torch
from oracles import randomised

from lib.insights import mechanism
from lib.models import build

SMALL = {"width": 8, "blocks": (1, 1, 1, 1, 1)}


def test_degradation_is_what_the_network_subtracts():
    network = randomised(build("lir", **SMALL))
    image = torch.rand(1, 3, 45, 33)
    shown = mechanism(network, image, [(0, 0)])
    assert shown["degradation"].shape == image.shape
    assert shown["alpha"].shape == (20, 9)
    assert shown["beta"].shape == (20,)
    assert torch.equal(shown["alpha"][0], network.levels[0][0].stage2[0].alpha)
    with torch.no_grad():
        before = network(image)
        network.image_degradation.weight.zero_()
        torch.testing.assert_close(network(image) - before, shown["degradation"], rtol=1e-4, atol=1e-5)


def test_nothing_is_shown_of_parts_that_are_left_out():
    network = build("lir", **SMALL, no_filter=True, no_degradation_subtraction=True)
    assert mechanism(network, torch.rand(1, 3, 45, 33), []) == {}
