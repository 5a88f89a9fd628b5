"""The search for learning rates, on two photographs and three steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from skimage import data

from lib import recipe_search
from lib.images.sets import Item, SetError
from lib.params import Params

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
    assert low.psnr_lost_mean == pytest.approx(0, abs=1e-4) and low.same_largest <= 1
    table = recipe_search.summary(pd.concat(found))
    assert list(table.acts) == ["no", "no"] or high.psnr_lost_mean >= 0.005
    assert len(recipe_search.figure(table).axes) == 1


def test_a_row_without_attention_has_none_to_act(params):
    found = recipe_search.search(params, "edsr_gray_denoise_25", 1e-3, steps=1)
    assert len(found) == 1 and list(recipe_search.summary(found).acts) == ["no attention"]


def test_without_validation_photographs_there_is_no_search(params, monkeypatch):
    monkeypatch.setattr(recipe_search, "_items", lambda side, run: [])
    with pytest.raises(SetError, match="needs validation photographs"):
        recipe_search.search(params, "edsr_gray_denoise_25", 1e-3, steps=1)
