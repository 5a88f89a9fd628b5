"""Attention to a part of the pixels, beside its definition: all weights, those of other keys being zero."""

import pytest
import torch
from oracles import randomised

from lib import insights
from lib.models import ModelError, build
from lib.models.blocks import NonLocal
from lib.models.nlsa import NLSA
from lib.models.sparse import SparseNonLocal

MODULES = {
    "neighbours": lambda: SparseNonLocal(8, neighbours=5, heads=2, inner=8),
    "all neighbours": lambda: SparseNonLocal(8, neighbours=1000, inner=8),
    "window": lambda: SparseNonLocal(8, window=4, heads=2, inner=8),
    "hashes": lambda: NLSA(8, bucket=7, rounds=3),
    "one bucket": lambda: NLSA(8, bucket=1000, rounds=2, branch_scale=0.5),
}


def made(name: str, sides: tuple[int, int]) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return randomised(MODULES[name]()).double(), torch.randn(1, 8, *sides, dtype=torch.float64)


@pytest.mark.parametrize("sides", [(9, 7), (8, 12), (1, 1)])
@pytest.mark.parametrize("name", MODULES)
def test_output_and_gradients_are_those_of_the_weights_over_all_pixels(name, sides):
    module, x = made(name, sides)

    def defined(x):
        weights = insights.weights(module, x)
        if isinstance(module, NLSA):
            return x + module.branch_scale * (weights[0] @ module.embed(x)[2]).mT.unflatten(2, sides)
        values = module.value(x)[0].flatten(1).unflatten(0, (module.heads, -1)).mT
        return x + module.out((weights @ values).mT.flatten(0, 1).unflatten(1, sides)[None])

    torch.testing.assert_close(module(x), defined(x))
    values = [name for name in ("g.weight", "value.weight", "out.weight") if name in dict(module.named_parameters())]
    parameters = [dict(module.named_parameters())[name] for name in values]
    direction = torch.randn_like(x)
    ours, theirs = (torch.autograd.grad((f(x) * direction).sum(), parameters) for f in (module, defined))
    torch.testing.assert_close(ours, theirs)  # of scores too: below, by differences


@pytest.mark.parametrize("name", MODULES)
def test_gradients_are_those_of_finite_differences(name):
    module, x = made(name, (4, 5))
    parameters = [p for key, p in module.named_parameters() if key != "key.bias"]  # without effect
    inputs = (x.requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(lambda x, *_: module(x), inputs, atol=1e-4, fast_mode=True)


def test_with_all_neighbours_or_one_window_it_is_plain_non_local_attention():
    plain = randomised(NonLocal(8))
    x = torch.randn(2, 8, 6, 9)
    for options in ({"neighbours": 54}, {"window": 9}):
        module = SparseNonLocal(8, **options)
        module.load_state_dict(plain.state_dict())
        torch.testing.assert_close(module(x), plain(x))


def test_a_few_queries_at_a_time_change_nothing(monkeypatch):
    module, x = made("neighbours", (9, 7))
    whole = module(x)
    monkeypatch.setattr("lib.models.sparse.MAX_SCORES", 200)
    torch.testing.assert_close(module(x), whole)


def test_pixels_of_one_hash_share_a_bucket():
    module = NLSA(8, bucket=16, rounds=1)
    x = torch.randn(1, 8, 1, 1).repeat(1, 1, 8, 8)
    x[..., 4:] *= -1  # the other half lies on the other side of the sphere
    module.theta.weight.data[:, :, 1, 1] = torch.eye(2, 8)
    module.theta.weight.data[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    module.theta.bias.data.zero_()
    weights = insights.weights(module, x, torch.tensor([0]))[0, 0].view(8, 8)
    assert weights[:, :4].sum() > 0.5 and torch.equal(module(x), module(x))


def test_neighbours_and_window_exclude_each_other():
    for options in ({}, {"neighbours": 3, "window": 4}):
        with pytest.raises(ValueError, match="give one of them"):
            SparseNonLocal(8, **options)
    with pytest.raises(ModelError, match="reduction 9 leaves no channel of 8"):
        build("nlsa", width=8, blocks=1, reduction=9)
