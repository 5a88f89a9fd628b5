from __future__ import annotations

import math

import pytest
import torch
from oracles import assert_matches, fill, wave

from benchmarks.reference.enlca import reference
from lib.inference import cost
from lib.models import build, enlca
from lib.models.enlca import AMPLIFICATIONS, DRAWS, ENLCA, ENLCN, FEATURES, KINDS, UNUSED, random_features, ranks

ROW = (-0.000035, 0.707157, 1.010041, (0.285649, 0.813020, -0.822662, 0.263816, -0.935882))


def contrasting(module: ENLCA) -> ENLCA:
    module.train().start_step(0.99, torch.Generator())
    return module


@pytest.mark.parametrize("max_scores", [2**23, 1000])
def test_agrees_with_the_released_module(max_scores):
    module = contrasting(ENLCA(256, redraw=None, max_scores=max_scores))
    layers = [t for layer in (module.theta, module.g, module.f) for t in (layer.weight, layer.bias)]
    fill([*layers, module.projection_matrix], {6: 1.0})
    x = wave(1, 256, 12, 12)
    assert_matches(module(x), *ROW)
    assert module.auxiliary_loss().item() / module.contrastive_weight == pytest.approx(0.908188, rel=1e-4)
    y, loss = reference(module, x)
    assert_matches(y, *ROW)
    assert loss.item() == pytest.approx(0.908188, rel=1e-4)


def outputs_and_gradients(function, module, x, direction):
    module.zero_grad()
    x = x.clone().requires_grad_()
    y, loss = function(x)
    ((y * direction).sum() + 100 * loss).backward()
    return [y.detach(), loss.detach(), x.grad] + [p.grad.clone() for p in module.parameters()]


@pytest.mark.parametrize("max_scores", [2**23, 100_000, 1000, 1])  # three images, two and one, a few rows, a row
@pytest.mark.parametrize("size", [(17, 13), (5, 4)])
@pytest.mark.parametrize("options", [{}, {"contrastive_ranks": "paper"}, {"exact": True, "k": 3}])
def test_equals_the_sorted_score_matrix(size, options, max_scores):
    torch.manual_seed(0)
    module = contrasting(ENLCA(16, redraw=None, margin=9, max_scores=max_scores, **options))
    x, direction = torch.randn(2, 3, 16, *size).unbind(0)
    ours = outputs_and_gradients(
        lambda x: (module(x), module.auxiliary_loss() / module.contrastive_weight), module, x, direction
    )
    plain = outputs_and_gradients(lambda x: reference(module, x), module, x, direction)
    assert plain[1] > 0
    for a, b in zip(ours[:2], plain[:2], strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    for a, b in zip(ours[2:], plain[2:], strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


@pytest.mark.parametrize("exact", [False, True])
def test_gradients_are_those_of_the_function(exact):
    torch.manual_seed(1)
    module = contrasting(ENLCA(8, features=4, redraw=None, exact=exact, margin=3, max_scores=40).double())
    x = torch.randn(2, 8, 4, 5, dtype=torch.float64, requires_grad=True)

    def function(x, *_):
        return module(x), module.auxiliary_loss()

    assert torch.autograd.gradcheck(function, (x, *module.parameters()))


def test_parameters_of_the_published_networks():
    counts = [sum(p.numel() for p in ENLCN(scale=s).parameters()) for s in (2, 3, 4)]
    assert counts == [41_223_067, 44_173_467, 43_583_387]
    assert sum(p.numel() for p in ENLCA(256).parameters()) == 98_688


def test_modules_come_before_the_first_and_after_every_eighth_block():
    with torch.device("meta"):
        body = ENLCN(width=8).body
    assert [i for i, module in enumerate(body) if isinstance(module, ENLCA)] == [0, 9, 18, 27, 36]


@pytest.mark.parametrize(("exact", "batch_size"), [(False, (128, 96)), (True, (33, 24))])
def test_any_size_and_a_batch_is_its_images(exact, batch_size):
    torch.manual_seed(2)
    network = ENLCN(width=8, blocks=2, every=2, scale=2, exact=exact)
    height, width = batch_size
    with torch.no_grad():
        assert network(torch.rand(1, 3, 61, 83)).shape == (1, 3, 122, 166)
        images = torch.rand(2, 3, height, width)
        restored = network(images)
        assert restored.shape == (2, 3, 2 * height, 2 * width)
        torch.testing.assert_close(network(images[1:]), restored[1:], rtol=1e-5, atol=1e-5)


def test_every_tensor_learns():
    torch.manual_seed(3)
    network = ENLCN(width=16, blocks=2, every=1)
    for p in network.parameters():
        p.data.normal_(0, 0.1)
    network(torch.rand(2, 3, 9, 12)).square().sum().backward()
    without = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == set(UNUSED)
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def loss_after(network, progress, training=True) -> float:
    network.train(training).start_step(progress, torch.Generator())
    network(torch.rand(2, 3, 10, 12))
    return float(torch.as_tensor(network.auxiliary_loss()).detach())


@pytest.mark.parametrize("common_trunk", [False, True])
def test_the_contrastive_loss_starts_in_time_and_in_training_only(common_trunk):
    torch.manual_seed(4)
    network = build("enlca", common_trunk=common_trunk, scale=1, width=16, blocks=2, margin=9, contrastive_start=0.25)
    assert loss_after(network, 0.0) == 0
    assert loss_after(network, 0.25) > 0
    assert loss_after(network, 0.9, training=False) == 0
    without = build("enlca", common_trunk=common_trunk, scale=1, width=16, blocks=2, margin=9, contrastive=False)
    assert loss_after(without, 0.9) == 0


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
    def network():
        torch.manual_seed(7)
        return ENLCN(width=16, blocks=2, every=2, redraw=0.1)

    def drawn(network, *steps):
        seen = []
        for progress in steps:
            network.start_step(progress, torch.Generator().manual_seed(len(seen)))
            seen.append(torch.stack([m.projection_matrix.clone() for m in network.body if isinstance(m, ENLCA)]))
        return seen

    whole = drawn(network(), 0.0, 0.05, 0.15, 0.19, 0.25)
    assert torch.equal(whole[0], whole[1])
    assert torch.equal(whole[2], whole[3])
    assert not torch.equal(whole[1], whole[2])
    assert not torch.equal(whole[3], whole[4])
    assert not torch.equal(*whole[4])  # two modules
    assert torch.equal(drawn(network(), 0.19)[0], whole[3])
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


def test_mechanism_shows_the_weights_of_the_forward_pass():
    torch.manual_seed(10)
    network = ENLCN(scale=1, width=16, blocks=2, every=2, max_scores=100)
    image = torch.rand(1, 3, 6, 8)
    shown = network.mechanism(image, [(row, column) for row in range(6) for column in range(8)])
    assert shown["entropy_exact"].shape == (2, 6, 8)
    assert shown["k"].tolist() == [6, 6]
    assert shown["m"].tolist() == [128, 128]
    assert shown["error_gaussian"].shape == (2, *shown["at_k"].shape[1:], *shown["at_m"].shape[1:])
    for index, (module, features) in enumerate(network.attended(image)):
        for exact, name in ((False, "features"), (True, "exact")):
            weights = shown[name][index].flatten(1)
            torch.testing.assert_close(weights.sum(1), torch.ones(48))
            entropy = -(weights * weights.log()).sum(1).view(6, 8)
            torch.testing.assert_close(shown[f"entropy_{name}"][index], entropy)
            assert entropy.max() <= math.log(48) + 1e-5
            module.exact = exact
            mixed = (weights @ module.f(features).flatten(2).mT).mT.view_as(features)
            torch.testing.assert_close(features + 0.1 * mixed, module(features))


@pytest.fixture(scope="module")
def approximated() -> dict[str, torch.Tensor]:
    torch.manual_seed(11)
    return ENLCA(64).approximation(torch.randn(1, 64, 17, 19))  # more pixels than are looked at


def test_the_error_of_features_falls_with_their_number_and_grows_with_the_amplification(approximated):
    for kind in KINDS:
        error = approximated[f"error_{kind}"]
        assert (error[:, -1] < error[:, 0]).all()
        assert (error[1:] > error[:-1]).all()
        assert kind == "orthogonal" or error[0, -1] < 0.2 * error[0, 0]  # 64 times as many features: an eighth


def test_orthogonal_features_of_few_dimensions_need_random_signs():
    """As released, their directions are not uniform: an error that no number of features takes away."""
    torch.manual_seed(14)
    found = ENLCA(16).approximation(torch.randn(1, 16, 16, 16))
    biased, unbiased = (found[f"error_{kind}"][0] for kind in ("orthogonal", "random_signs"))
    assert unbiased[-1] < 0.35 * unbiased[0]
    assert biased[-1] > 2 * unbiased[-1]


def test_the_error_of_features_is_that_of_the_module():
    torch.manual_seed(12)
    module, x = ENLCA(16, k=4, features=64, branch_scale=1), torch.randn(1, 16, 8, 8)
    draws = []
    for draw in range(DRAWS):
        whole = random_features(max(FEATURES), 4, True, torch.Generator().manual_seed(draw))
        module.projection_matrix.copy_(whole[:64])
        module.exact = False
        by_features = module(x) - x
        module.exact = True
        exact = module(x) - x
        draws.append((by_features - exact).norm(dim=1) / exact.norm(dim=1))
    expected = torch.stack(draws).median()
    measured = module.approximation(x)["error_orthogonal"][AMPLIFICATIONS.index(4), FEATURES.index(64)]
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=0)


def test_the_variance_of_many_draws_is_the_closed_form_and_that_of_few_is_less(approximated, monkeypatch):
    assert (approximated["log_variance_gaussian"][-1] < approximated["log_variance_expected"][-1]).all()
    monkeypatch.setattr(enlca, "DRAWS", 100)
    monkeypatch.setattr(enlca, "AMPLIFICATIONS", (0.5, 1))
    monkeypatch.setattr(enlca, "FEATURES", (16, 64))
    torch.manual_seed(13)
    direction = torch.randn(16)  # of the queries; the keys' is the opposite, so that no feature is large
    q, key = (torch.nn.functional.normalize(side * direction + 0.3 * torch.randn(200, 16), dim=1) for side in (1, -1))
    found = enlca.approximation(q, key, torch.randn(200, 4))
    closed = found["log_variance_expected"]
    torch.testing.assert_close(found["log_variance_gaussian"], closed, rtol=0, atol=0.3)
    torch.testing.assert_close(closed[:, 0] - closed[:, 1], torch.full((2,), math.log(4)))


def test_an_unknown_rule_of_ranks_is_named():
    with pytest.raises(ValueError, match="contrastive_ranks 'top'"):
        ENLCA(16, contrastive_ranks="top")


def test_exact_scores_never_exist_all_at_once():
    network = build("enlca", width=16, blocks=2, every=2, exact=True)
    assert cost(network, 3, 96)["peak_bytes"] < 4 * 96**4 / 10  # of the matrix in float32
