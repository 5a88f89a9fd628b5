from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lib.insights import attended, enlca, mechanism
from lib.insights.enlca import AMPLIFICATIONS, DRAWS, FEATURES, KINDS, approximation_in
from lib.models.enlca import ENLCA, ENLCN, random_features


def test_mechanism_shows_the_weights_of_the_forward_pass():
    network = ENLCN(scale=1, width=16, blocks=2, every=2)
    image = torch.rand(1, 3, 6, 8)
    shown = mechanism(network, image, [(row, column) for row in range(6) for column in range(8)])
    assert shown["entropy_exact"].shape == (2, 6, 8)
    assert shown["k"].tolist() == [6, 6]
    assert shown["m"].tolist() == [128, 128]
    assert shown["error_gaussian"].shape == (2, *shown["at_k"].shape[1:], *shown["at_m"].shape[1:])
    for index, (module, features) in enumerate(attended(network, image)):
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
    return approximation_in(ENLCA(64), torch.randn(1, 64, 17, 19))  # more pixels than are looked at


def test_the_error_of_features_falls_with_their_number_and_grows_with_the_amplification(approximated):
    for kind in KINDS:
        error = approximated[f"error_{kind}"]
        assert (error[:, -1] < error[:, 0]).all()
        assert (error[1:] > error[:-1]).all()
        assert kind == "orthogonal" or error[0, -1] < 0.2 * error[0, 0]  # 64 times as many features: an eighth


def test_orthogonal_features_of_few_dimensions_need_random_signs():
    """As released, their directions are not uniform: an error that no number of features takes away."""
    found = approximation_in(ENLCA(16), torch.randn(1, 16, 16, 16))
    biased, unbiased = (found[f"error_{kind}"][0] for kind in ("orthogonal", "random_signs"))
    assert unbiased[-1] < 0.35 * unbiased[0]
    assert biased[-1] > 2 * unbiased[-1]


def test_the_error_of_features_is_that_of_the_module():
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
    measured = approximation_in(module, x)["error_orthogonal"][AMPLIFICATIONS.index(4), FEATURES.index(64)]
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=0)


def test_the_variance_of_many_draws_is_the_closed_form_and_that_of_few_is_less(approximated, monkeypatch):
    assert (approximated["log_variance_gaussian"][-1] < approximated["log_variance_expected"][-1]).all()
    monkeypatch.setattr(enlca, "DRAWS", 100)
    monkeypatch.setattr(enlca, "AMPLIFICATIONS", (0.5, 1))
    monkeypatch.setattr(enlca, "FEATURES", (16, 64))
    torch.manual_seed(13)
    direction = torch.randn(16)  # of the queries; the keys' is the opposite, so that no feature is large
    q, key = (F.normalize(side * direction + 0.3 * torch.randn(200, 16), dim=1) for side in (1, -1))
    found = enlca.approximation(q, key, torch.randn(200, 4))
    closed = found["log_variance_expected"]
    torch.testing.assert_close(found["log_variance_gaussian"], closed, rtol=0, atol=0.3)
    torch.testing.assert_close(closed[:, 0] - closed[:, 1], torch.full((2,), math.log(4)))
