from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracles import randomised

from lib.insights import mechanism, weights
from lib.models import build
from lib.models.ignn import FeatureGraph
from lib.models.ignn.patches import pad_to_cells
from lib.tasks.degradations import resize


@pytest.mark.parametrize("branch", ["both", "lr", "hr"])
def test_mechanism_shows_the_graph_of_the_forward_pass(branch):
    network = randomised(build("ignn", width=8, blocks=2, embedding="random", neighbours=3, branch=branch), 0.2)
    image, points = torch.rand(1, 3, 24, 33), [(0, 0), (5, 8), (23, 32)]
    shown = mechanism(network, image, points)
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
    assert mechanism(build("ignn", width=4, blocks=2, neighbours=0), image, points) == {}


def test_the_weights_of_a_pixel_are_those_of_its_patchs_matches():
    module, x = randomised(FeatureGraph(8, neighbours=3, window=4), 0.5), torch.randn(1, 8, 20, 25)
    found = weights(module, x)
    assert found.shape == (1, 20 * 25, 5 * 6)  # the copy of 20 x 26 pixels has 10 x 13
    torch.testing.assert_close(found.sum(2), torch.ones(1, 500))
    assert ((found > 0).sum(2) == 3).all()
    assert torch.equal(weights(module, x, torch.tensor([7, 499])), found[:, [7, 499]])
