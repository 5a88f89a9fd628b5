"""The search for learning rates, on two photographs and three steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from skimage import data

from lib import recipe_search
from lib.images.sets import Item, SetError
from lib.models.blocks import Attention
from lib.params import Params
from lib.tasks import experiment as experiments

PARAMS = Path(__file__).with_name("params_example.yaml")


@pytest.fixture
def params(tmp_path, monkeypatch) -> Params:
    np.save(tmp_path / "camera.npy", data.camera()[::4, ::4])
    item = Item("own/one", "camera", tmp_path / "camera.npy")
    monkeypatch.setattr(recipe_search, "_items", lambda side, run: [item])
    return Params(PARAMS)


def test_every_rate_trains_the_same_row(params):
    found = [recipe_search.search(params, "dagl_gray_denoise_25-nl", rate, steps=3) for rate in (1e-6, 1e-2)]
    low, high = (table.iloc[0] for table in found)
    assert (low.rate, high.rate, low.steps) == (1e-6, 1e-2, 3)
    assert low.psnr == pytest.approx(20.7, abs=0.1)  # clamped noise of sigma 25: nothing is learnt
    assert high.psnr != low.psnr
    assert low.psnr_lost_mean == pytest.approx(0, abs=1e-4) and low.effective_share > 0.9  # keys weigh nearly alike
    table = recipe_search.summary(pd.concat(found))
    assert list(table.acts) == ["no", "no"]
    assert len(recipe_search.figure(table).axes) == 1


def test_a_row_without_attention_has_none_to_act(params):
    found = recipe_search.search(params, "edsr_gray_denoise_25", 1e-3, steps=1)
    assert len(found) == 1 and list(recipe_search.summary(found).acts) == ["no attention"]


def test_both_precisions_train_the_same_row(params):
    one, two = (recipe_search.precision(params, "edsr_gray_denoise_25", 2, kind, 3) for kind in ("float32", "bf16"))
    assert one["psnr"] == pytest.approx(two["psnr"], abs=0.1) and one["psnr"] != two["psnr"]
    assert 0 < one["operations"] < 2 * recipe_search.peak("float32", side=256)
    run = params.experiment("edsr_gray_denoise_25")
    trained = sum(p.numel() for p in experiments.network(run).parameters())
    pixels = run.budget.batch * run.budget.crop**2
    assert recipe_search._operations(run, experiments.network(run)) == pytest.approx(6 * trained * pixels, rel=0.1)


def test_operations_of_a_step_hold_those_of_fused_attention():
    params, counted = Params(profile="quick"), []
    for name in ("edsr_gray_denoise_25", "edsr_gray_denoise_25-nl"):
        run = params.experiment(name)
        counted.append(recipe_search._operations(run, network := experiments.network(run)))
    [inner] = {layer.query.out_channels for layer in network.body if isinstance(layer, Attention)}
    products = 2 + 5  # scores and output; backward the scores again and four derivatives
    of_attention = products * 2 * run.budget.batch * run.budget.crop**4 * inner
    assert counted[1] - counted[0] == pytest.approx(of_attention, rel=0.1)


def test_without_validation_photographs_there_is_no_search(params, monkeypatch):
    monkeypatch.setattr(recipe_search, "_items", lambda side, run: [])
    with pytest.raises(SetError, match="needs validation photographs"):
        recipe_search.search(params, "edsr_gray_denoise_25", 1e-3, steps=1)


def test_attention_is_watched_from_the_first_step(params):
    watched = recipe_search.course(params, "dagl_gray_denoise_25-nl", 1e-3, steps=2)
    assert sorted(set(watched.step)) == [0, 1, 2]
    before = watched[watched.step == 0]
    assert (before.psnr_lost_zero == 0).all()  # it starts as the identity
    assert len(recipe_search.figure_of_courses({"one": watched}).axes) == 3


def test_a_trained_trunk_is_under_the_attention_that_starts_from_it(params):
    trunk = recipe_search.trained_trunk(params, "edsr_gray_denoise_25", 1e-3, steps=2)
    run = params.experiment("edsr_gray_denoise_25")
    network = experiments.network(dataclasses.replace(run, options={**run.options, "attention": "nl"}), 3)
    image = torch.rand(1, 1, 12, 12)
    recipe_search.start_from(trunk, network)
    with torch.inference_mode():
        torch.testing.assert_close(network(image), trunk(image))  # attention starts as the identity
        assert not torch.allclose(network(image), image, atol=1e-3)


def test_a_network_can_be_changed_before_it_is_watched(params):
    rows = ["psnr_lost_mean", "effective_keys"]
    watched = recipe_search.course(params, "dagl_gray_denoise_25-common_trunk", 1e-3, steps=2)
    prepare = lambda network: torch.nn.init.zeros_(network.head.weight)  # noqa: E731
    changed = recipe_search.course(params, "dagl_gray_denoise_25-common_trunk", 1e-3, 2, prepare)
    assert not watched[rows].equals(changed[rows])


@pytest.mark.parametrize("changes", [{"attention_lr": 1e-9}, {"warm_up": 0.9}, {"half_crops": 0.5}])
def test_one_thing_of_the_recipe_can_be_changed(params, changes):
    of_recipe, changed = (
        recipe_search.course(params, "dagl_gray_denoise_25-nl", 1e-2, steps=3, **options) for options in ({}, changes)
    )
    assert not of_recipe.psnr_lost_zero.equals(changed.psnr_lost_zero)
    if "attention_lr" in changes:
        assert changed.psnr_lost_zero.abs().max() < 1e-3 < of_recipe.psnr_lost_zero.abs().max()
