"""Modules of known behaviour come out as what they are."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import randomised
from PIL import Image
from torch import nn

from lib.images import sets
from lib.insights import health, weights
from lib.measuring import evaluation
from lib.models import build
from lib.models.blocks import Attention, NonLocal
from lib.params import ROOT, Params
from lib.tasks import experiment as experiments

SIDE = 12


class ByWeights(Attention):
    """Adds its weights' mixture of the pixels minus a gray: weights ``(heads, Q, keys)`` as given."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, x):
        mixed = (x.flatten(2) - 0.5) @ self.table.mean(0).T
        return x + mixed.unflatten(2, x.shape[2:])


class Constant(Attention):
    def forward(self, x):
        return x + 0.1


def weights_of(module, x, queries, *others):
    return module.table[:, queries] if isinstance(module, ByWeights) else None


ONE_KEY = torch.zeros(2, SIDE**2, SIDE**2).index_fill_(2, torch.tensor([7]), 1.0)
UNIFORM = torch.full((1, SIDE**2, SIDE**2), 1 / SIDE**2)
PERMUTED = torch.eye(SIDE**2)[torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(0))][None]


def measured(module, weights=weights_of, image=None, clean=None):
    """The table of one photograph in the network that is one module; the clean image is what it restores to."""
    network = nn.Sequential(module)
    if image is None:
        image = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        clean = network(image).detach() + 0.01 * torch.sin(torch.arange(image.numel())).view_as(image)
    psnr = lambda restored: -10 * math.log10((restored - clean).square().mean())  # noqa: E731
    with torch.inference_mode():
        table = health.measure(network, lambda: network(image), psnr, weights)
    assert network[0] is module and not module._forward_hooks
    return table.assign(seed=1)


@pytest.mark.parametrize(
    ("module", "effective", "same"),
    [(Constant(), None, None), (ByWeights(ONE_KEY), 1, 1), (ByWeights(UNIFORM), SIDE**2, 1 / SIDE**2)],
)
def test_modules_that_add_a_constant_do_not_act(module, effective, same):
    table = measured(module)
    assert table.variation.max() < 1e-3 and table.psnr_lost_mean.abs().max() < 1e-3
    assert table.psnr_lost_zero.min() > 0 or isinstance(module, ByWeights)
    assert not health.acts(table).any() and health.describe(table) == "no" and not health.tested(table)
    if effective is None:
        assert table["head"].isna().all() and table.effective_keys.isna().all()
    else:
        assert table["head"].tolist() == [*range(len(module.table))]
        assert table.effective_keys.to_numpy() == pytest.approx(effective, rel=1e-4)
        assert table.effective_share.to_numpy() == pytest.approx(effective / SIDE**2, rel=1e-4)
        assert table.same_largest.to_numpy() == pytest.approx(same)


def test_a_module_that_looks_elsewhere_for_each_pixel_acts():
    table = measured(ByWeights(PERMUTED))
    assert table.variation[0] > 0.9 and table.psnr_lost_mean[0] > 1 and table.psnr_lost_zero[0] > 1
    assert table.effective_keys[0] == pytest.approx(1) and table.same_largest[0] == pytest.approx(1 / SIDE**2)
    assert health.acts(table).tolist() == [True] and health.describe(table) == "yes" and health.tested(table)


def test_a_working_non_local_module_on_a_self_similar_image_acts():
    """Equal pixels of a repeated texture are averaged: noise goes, and without the module it comes back."""
    module = NonLocal(1, inner=1)
    for layer, value in ((module.query, 40.0), (module.key, 40.0), (module.value, 1.0), (module.out, 0.7)):
        nn.init.constant_(layer.weight, value)
        nn.init.zeros_(layer.bias)
    clean = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).repeat(8, 8)[None, None]
    noisy = clean + 0.2 * torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    module.out.weight.data.fill_(1.0)
    table = measured(module, weights, noisy, 2 * clean)
    assert table.same_largest[0] < 0.6 and table.psnr_lost_mean[0] > 1
    assert health.concentration(weights(module, noisy, None))[0, 2] == pytest.approx(table.same_largest[0], abs=0.2)


def test_a_query_without_keys_has_none():
    table = torch.zeros(1, 4, 4)
    table[0, 0, 2] = table[0, 1, 2] = 0.3
    effective, share, same = health.concentration(table)[0].tolist()
    assert effective == pytest.approx(0) and share == pytest.approx(0) and same == 0.5
    assert health.concentration(torch.zeros(1, 4, 4)).tolist() == [[0, 0, 1]]


def test_keys_of_equal_weight_share_a_query():
    table = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0], [0.5, 0.0, 0.0, 0.5]]])
    effective, share, same = health.concentration(table)[0].tolist()
    assert (effective, share, same) == pytest.approx((2, 0.5, 1.5 / 4))


def test_one_collapsed_head_leaves_a_module_acting():
    table = measured(ByWeights(torch.cat([ONE_KEY[:1], PERMUTED])))
    assert table.same_largest.tolist() == pytest.approx([1, 1 / SIDE**2]) and health.acts(table).all()


def rows(**columns):
    found = {"seed": [1, 1, 2, 2], "module": ["a", "b"] * 2, "same_largest": 0.1, "psnr_lost_mean": 1.0, **columns}
    return pd.DataFrame(found)


def test_the_rule_by_its_thresholds():
    assert health.describe(rows()) == "yes"
    assert health.describe(rows(psnr_lost_mean=health.SMALLEST_LOSS - 1e-4)) == "no"
    assert health.describe(rows(psnr_lost_mean=health.SMALLEST_LOSS)) == "yes"
    assert health.describe(rows(same_largest=health.LARGEST_SHARE + 0.01)) == "no"
    assert health.describe(rows(same_largest=float("nan"))) == "yes"
    assert health.describe(rows(psnr_lost_mean=[1, 0, 1, 1])) == "3 of 4"
    assert health.describe(rows()[:0]) == "no attention" and health.tested(rows()[:0])
    assert health.tested(rows(psnr_lost_mean=[1, 0, 0, 1])) and not health.tested(rows(psnr_lost_mean=[1, 1, 0, 0]))


def test_photographs_are_averaged():
    a, b = (rows(psnr_lost_mean=value).drop(columns="seed").iloc[:2].assign(head=None) for value in (0.0, 1.0))
    assert health.over_photographs([a, b]).psnr_lost_mean.tolist() == [0.5, 0.5]


def test_many_modules_are_replaced_class_by_class():
    class Half(Attention):
        def forward(self, x):
            return 1.5 * x

    network = nn.Sequential(*[Half() for _ in range(health.MANY)], Constant())
    image = torch.rand(1, 1, 4, 4)
    clean = network(image) + 0.1 * torch.rand(1, 1, 4, 4)
    table = health.measure(network, lambda: network(image), lambda y: -10 * math.log10((y - clean).square().mean()))
    assert table.module.tolist() == ["Half", "Constant"] and table.psnr_lost_zero.min() > 0
    assert [type(module) for module in network] == [Half] * health.MANY + [Constant]


def test_what_is_in_the_identity_is_not_added():
    class Scaled(Attention):
        def identity(self, x):
            return 0.1 * x

        def forward(self, x):
            return self.identity(x) + 0.2

    table = measured(Scaled(), weights)
    assert table.variation[0] < 1e-3 and abs(table.psnr_lost_mean[0]) < 1e-3


@pytest.mark.parametrize(("branch", "heads"), [("both", 2), ("lr", 1), ("hr", 1)])
def test_a_graph_whose_output_is_joined_to_the_features(branch, heads):
    network = randomised(build("ignn", width=8, blocks=2, branch=branch, embedding="own").eval())
    image = torch.rand(1, 3, 24, 24)
    with torch.inference_mode():
        restored = network(image)
        clean = restored + 1e-3 * torch.randn(restored.shape)
        table = health.measure(network, lambda: network(image), lambda y: -10 * math.log10((y - clean).square().mean()))
        assert torch.equal(network(image), restored)
    assert table.module.tolist() == ["aggregation"] * heads and table["head"].tolist() == [*range(heads)]
    assert table.variation.min() > 0 and (table.psnr_lost_mean > 1).all()
    assert table.effective_keys.between(1, 5, inclusive="neither").all()  # of five neighbours


@pytest.mark.parametrize(
    ("name", "acting", "tested"),
    [
        ("dagl_gray_denoise_25", "yes", True),
        ("panet_gray_denoise_25-common_trunk", "yes", True),
        ("enlca_gray_denoise_25-common_trunk", "no", False),
    ],
)
def test_what_the_kept_networks_of_profile_cpu_do(name, acting, tested, mirror, tmp_path):
    """PANet's pyramid and DAGL's graphs work in every seed; ENLCA's queries share a key."""
    run = Params(profile="cpu").experiment(name)
    networks = experiments.trained(run, ROOT / "results" / "cpu" / "networks" / name)
    items = []
    for path in sorted((mirror / "set12").glob("*.webp"))[:3]:
        np.save(tmp_path / path.stem, np.array(Image.open(path)))
        items.append(sets.Item("set12", path.stem, tmp_path / f"{path.stem}.npy"))
    table = evaluation.acts(run, networks, items)
    assert len(networks) == 3 and health.describe(table) == acting
    assert health.tested(table) is tested
