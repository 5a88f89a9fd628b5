"""The baselines of every table: the input, bicubic, non-local means, BM3D and DnCNN."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from oracles import photographs, refused

from lib import models
from lib.measuring.metrics import psnr
from lib.models.bm3d import NotInstalledError
from lib.tasks import degradations


def db(restored: torch.Tensor, clean: torch.Tensor) -> float:
    return psnr(restored.numpy(), clean.numpy())


def test_input_returns_its_input():
    x = torch.rand(1, 3, 5, 7)
    assert models.build("input")(x) is x
    with pytest.raises(models.ModelError, match="name model 'bicubic'"):
        models.build("input", scale=2)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_undoes_a_downscaling_as_far_as_it_can(scale):
    clean = photographs(2, 96)
    enlarged = models.build("bicubic", scale=scale)(degradations.resize(clean, down=scale))
    assert enlarged.shape == clean.shape
    assert db(enlarged, clean) > 25
    with pytest.raises(models.ModelError, match="'bicubic': scale 1 is not"):
        models.build("bicubic", scale=1)


@pytest.mark.parametrize("colors", [1, 3])
def test_nlm_denoises(colors):
    clean = photographs(2, 128, colors)
    noisy = degradations.build("gaussian_noise", sigma=25)(clean, torch.Generator().manual_seed(0))
    restored = models.build("nlm", colors=colors)(noisy)
    assert restored.dtype == torch.float32
    assert db(restored, clean) > db(noisy, clean) + 7.5
    for options in ({"h": 5}, {"h": 60}, {"sigma": 5}):
        assert db(models.build("nlm", colors=colors, **options)(noisy), clean) < db(restored, clean)


def test_bm3d_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with refused(NotInstalledError, "needs the package bm3d") as error:
        models.build("bm3d")
    assert isinstance(error.value, models.ModelError)
    assert isinstance(error.value, ImportError)


def test_bm3d_hands_images_to_the_package(monkeypatch):
    seen = []

    def record(name):
        return lambda image, sigma: seen.append((name, image.shape, sigma)) or image / 2

    package = types.SimpleNamespace(bm3d=record("gray"), bm3d_rgb=record("colour"))
    monkeypatch.setitem(sys.modules, "bm3d", package)
    network = models.build("bm3d", sigma=51)
    for colors in (1, 3):
        x = torch.rand(2, colors, 9, 11)
        assert torch.allclose(network(x), x / 2)
    assert seen == [("gray", (9, 11), 0.2)] * 2 + [("colour", (9, 11, 3), 0.2)] * 2


def test_dncnn_predicts_the_noise():
    network = models.build("dncnn", colors=3, width=8, depth=4)
    x = torch.rand(1, 3, 12, 12)
    assert torch.equal(network(x), x - network.model(x))
    assert torch.equal(models.build("dncnn", width=8, depth=3, image_skip=True)(x[:, :1]), x[:, :1])
