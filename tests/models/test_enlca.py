from __future__ import annotations

from functools import partial

import pytest
import torch
from oracles import assert_equals_its_definition, assert_matches, fill, wave

from lib.measuring.inference import cost
from lib.models import build, plain
from lib.models.enlca import ENLCA, ENLCN, random_features, ranked_scores, ranks, softmax_attention

ROW = (-0.000035, 0.707157, 1.010041, (0.285649, 0.813020, -0.822662, 0.263816, -0.935882))


@pytest.mark.parametrize("max_scores", [None, 1000])
def test_agrees_with_the_released_module(max_scores):
    module = ENLCA(256, redraw=None, max_scores=max_scores)
    module.start_step(0.99, torch.Generator())
    layers = [t for layer in (module.theta, module.g, module.f) for t in (layer.weight, layer.bias)]
    fill([*layers, module.projection_matrix], {6: 1.0})
    x = wave(1, 256, 12, 12)
    assert_matches(module(x), *ROW)
    assert module.auxiliary_loss().item() / module.contrastive_weight == pytest.approx(0.908188, rel=1e-4)
    with plain():
        assert_matches(module(x), *ROW)
    assert module.auxiliary_loss().item() / module.contrastive_weight == pytest.approx(0.908188, rel=1e-4)


@pytest.mark.parametrize("max_scores", [None, 100_000, 1000, 1])  # three images, two and one, a few rows, a row
@pytest.mark.parametrize("pixels", [17 * 13, 20, 1])
@pytest.mark.parametrize("rule", ["official", "paper"])
def test_ranked_scores_are_those_of_the_sorted_matrix(rule, pixels, max_scores):
    positive, negative = ranks(rule, pixels)
    operation = partial(ranked_scores, positive=positive, negative=negative, max_scores=max_scores)
    assert_equals_its_definition(operation, *torch.randn(2, 3, pixels, 4))


def test_softmax_attention_is_that_of_the_whole_matrix():
    assert_equals_its_definition(softmax_attention, *(torch.randn(2, 35, channels) for channels in (4, 4, 16)))


def test_autocast_leaves_the_ranks_in_float32():
    module = ENLCA(8)
    q, key = torch.randn(2, 1, 80, 2).unbind(0)
    with torch.autocast("cpu", torch.bfloat16):
        found = module.contrastive_loss(q, key)
    assert torch.equal(found, module.contrastive_loss(q, key))


def test_modules_come_before_the_first_and_after_every_eighth_block():
    with torch.device("meta"):
        body = ENLCN(width=8).body
    assert [i for i, module in enumerate(body) if isinstance(module, ENLCA)] == [0, 9, 18, 27, 36]


def loss_after(network, progress, training=True) -> float:
    network.train(training).start_step(progress, torch.Generator())
    network(torch.rand(2, 3, 10, 12))
    return float(torch.as_tensor(network.auxiliary_loss()).detach())


@pytest.mark.parametrize("common_trunk", [False, True])
def test_the_contrastive_loss_starts_in_time_and_in_training_only(common_trunk):
    def network(**options):
        torch.manual_seed(4)
        return build("enlca", common_trunk=common_trunk, scale=1, width=16, blocks=2, margin=9, **options)

    assert loss_after(network(contrastive_start=0.25), 0.0) == 0
    assert loss_after(network(contrastive_start=0.25), 0.25) > 0
    assert loss_after(network(contrastive_start=0.25), 0.9, training=False) == 0
    assert loss_after(network(contrastive=False), 0.9) == 0


def test_the_network_averages_the_losses_of_its_modules():
    torch.manual_seed(5)
    network = ENLCN(width=16, blocks=2, every=1, margin=9, contrastive_weight=0.5)
    total = loss_after(network, 0.5)
    losses = [module.auxiliary_loss().item() for module in network.body if isinstance(module, ENLCA)]
    assert total == pytest.approx(sum(losses) / 3)
    torch.manual_seed(5)
    heavier = ENLCN(width=16, blocks=2, every=1, margin=9, contrastive_weight=1.0)
    torch.manual_seed(6)
    single = loss_after(network, 0.5)
    torch.manual_seed(6)
    assert loss_after(heavier, 0.5) == pytest.approx(2 * single, rel=1e-4)


def test_features_are_drawn_anew_alike_with_and_without_a_break():
    def drawn(*steps):
        torch.manual_seed(7)
        network, seen = ENLCN(width=16, blocks=2, every=2, redraw=0.1), []
        for progress in steps:
            network.start_step(progress, torch.Generator().manual_seed(len(seen)))
            seen.append(torch.stack([m.projection_matrix.clone() for m in network.body if isinstance(m, ENLCA)]))
        return seen

    whole = drawn(0.0, 0.05, 0.15, 0.19, 0.25)
    assert torch.equal(whole[0], whole[1])
    assert torch.equal(whole[2], whole[3])
    assert not torch.equal(whole[1], whole[2])
    assert not torch.equal(whole[3], whole[4])
    assert not torch.equal(*whole[4])  # two modules
    assert torch.equal(drawn(0.19)[0], whole[3])
    fixed = ENLCA(16, redraw=None)
    before = fixed.projection_matrix.clone()
    fixed.start_step(0.9, torch.Generator())
    assert torch.equal(before, fixed.projection_matrix)
    assert "projection_matrix" in fixed.state_dict()


def test_orthogonal_features():
    rows = random_features(12, 5, True, torch.Generator().manual_seed(0))
    directions = rows / rows.norm(dim=1, keepdim=True)
    for block in directions.split(5):
        torch.testing.assert_close(block @ block.T, torch.eye(len(block)))
    plain = random_features(12, 5, False, torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain.norm(dim=1), rows.norm(dim=1))


def test_features_approximate_the_softmax():
    torch.manual_seed(8)
    x, errors = torch.randn(1, 32, 12, 12), []
    for features in (32, 512, 8192):
        torch.manual_seed(9)
        module = ENLCA(32, k=2, features=features, contrastive=False)
        by_features = module(x)
        module.exact = True
        errors.append((by_features - module(x)).norm().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_ranks():
    assert ranks("official", 784) == (range(15), range(50, 65))
    assert ranks("paper", 784) == (range(16), range(63, 79))
    assert ranks("official", 40) == (range(15), range(25, 40))
    assert ranks("official", 20) == (range(10), range(10, 20))
    assert ranks("paper", 20) == (range(1), range(2, 3))
    assert ranks("official", 1) == ranks("paper", 1) == (range(1), range(1))


def test_exact_scores_never_exist_all_at_once():
    network = build("enlca", width=16, blocks=2, every=2, exact=True)
    assert cost(network, 3, 96)["peak_bytes"] < 4 * 96**4 / 10  # of the matrix in float32
