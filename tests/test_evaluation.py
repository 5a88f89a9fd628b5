"""Photographs as a task sees them, the measurement of an experiment, and self-similarity."""

import dataclasses
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lib import insights
from lib.images import registry, sets
from lib.images.download import download
from lib.insights import health
from lib.measuring import evaluation
from lib.measuring.metrics import Convention
from lib.models import ModelError
from lib.params import Budget, Params
from lib.tasks import experiment as experiments
from lib.tasks.degradations import build
from lib.training import train

RUN = Params(profile="quick").experiment("edsr_gray_denoise_25")


def item(tmp_path, name="a", size=(40, 52)):
    pixels = np.random.default_rng(len(name)).integers(256, size=(*size, 3), dtype=np.uint8)
    np.save(tmp_path / f"{name}.npy", pixels)
    return sets.Item("set", name, tmp_path / f"{name}.npy")


def test_a_gray_task_sees_gray_and_the_centre(tmp_path):
    photograph = item(tmp_path)
    whole = experiments.target(photograph, RUN.task)
    gray = sets.to_gray(photograph.load()[0], "matlab")
    assert whole.shape == (1, 1, 40, 52) and torch.equal((whole[0, 0] * 255).round().byte(), torch.from_numpy(gray))
    assert torch.equal(experiments.target(photograph, RUN.task, 16), whole[:, :, 12:28, 18:34])
    assert experiments.target(photograph, RUN.task, 100).shape == whole.shape


def test_noise_is_one_realisation_per_photograph(tmp_path):
    a, b = item(tmp_path, "a"), item(tmp_path, "b")
    clean = experiments.target(a, RUN.task)
    noisy = experiments.degraded(a, RUN.task, clean)
    assert torch.equal(noisy, experiments.degraded(a, RUN.task, clean))
    assert not torch.equal(noisy, experiments.degraded(b, RUN.task, clean))
    assert (noisy - clean).std().item() == pytest.approx(25 / 255, rel=0.05)
    assert noisy.min() < 0 and noisy.max() > 1


def test_measuring_gives_a_row_per_photograph_and_seed(tmp_path):
    run = dataclasses.replace(RUN, seeds=(1, 2), evaluation=dataclasses.replace(RUN.evaluation, crop=32))
    networks = {seed: experiments.network(run, seed).eval() for seed in run.seeds}  # the identity: the tail is zero
    rows, pictures = evaluation.measure(run, networks, [item(tmp_path, name) for name in "abc"])
    assert list(rows.image) == ["a", "a", "b", "b", "c", "c"] and list(rows.seed) == [1, 2] * 3
    assert (rows.psnr == rows.input_psnr).all() and (rows.input_psnr > rows.input_psnr_unclamped).all()
    first = pictures[0]
    expected = Convention("gray").measure(first.degraded[None], first.clean[None])["psnr"]
    assert rows.psnr[rows.image == first.image].iloc[0] == pytest.approx(expected, abs=1e-4)
    assert len(pictures) == 2 and first.clean.shape == (32, 32)


def test_the_photographs_kept_are_those_of_smallest_and_largest_gain(tmp_path):
    run = dataclasses.replace(RUN, evaluation=dataclasses.replace(RUN.evaluation, crop=32))
    blur = torch.nn.AvgPool2d(3, 1, 1)
    rows, pictures = evaluation.measure(run, {1: blur}, [item(tmp_path, name) for name in "abcde"])
    gain = rows.psnr - rows.input_psnr
    assert gain.nunique() == 5
    assert [picture.image for picture in pictures] == [rows.image[gain.idxmin()], rows.image[gain.idxmax()]]


def test_pairs_of_super_resolution_of_ones_own_train_and_are_measured(tmp_path):
    draw = np.random.default_rng(0)
    for name, sizes in {"mine": ((30, 24), (25, 41)), "tested": ((120, 9), (33, 30))}.items():
        for number, (rows, columns) in enumerate(sizes):
            for part, scale in (("input", 1), ("target", 2)):
                path = tmp_path / "own" / name / part / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = draw.integers(256, size=(scale * rows, scale * columns, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
    named = {"train": ("own/mine",), "test": ("own/tested",)}
    folder = tmp_path / "downloads"
    download(["own/mine", "own/tested"], folder, tmp_path / "cache", own=tmp_path / "own")
    registry.published().write_manifests(folder, {"sr_x2": named}, ["sr_x2"])
    run = Params(profile="quick").experiment("ignn_sr_x2-common_trunk")
    options = {**run.options, "width": 4, "blocks": 2}
    how = dataclasses.replace(run.evaluation, crop=80)
    run = dataclasses.replace(run, task=dataclasses.replace(run.task, **named), evaluation=how, options=options)

    crops = experiments.crops(run.task, sets.read(folder / "train/sr_x2.csv"), 16, "cpu")
    network, budget = experiments.network(run, 1), Budget(steps=2, batch=2, crop=16, lr=1e-3, ema=0.9)
    weights = train(network, crops, run.recipe, budget, 1, tmp_path / "x.pt", clock=time.monotonic).weights
    network.load_state_dict(weights)
    items = sets.read(folder / "test/sr_x2.csv")
    given = experiments.degraded(items[1], run.task, experiments.target(items[1], run.task))
    stored = np.moveaxis(np.asarray(Image.open(tmp_path / "own/tested/input/1.png")), 2, 0)
    assert np.array_equal(given[0].mul(255).round().byte().numpy(), stored)
    rows, pictures = evaluation.measure(run, {1: network.eval()}, items)
    assert len(rows) == 2 and rows.psnr.between(3, 20).all()
    assert {p.clean.shape for p in pictures} == {(80, 18, 3), (66, 60, 3)}
    assert len(evaluation.field_curve(run, {1: network}, items)) > 1


@pytest.mark.parametrize("rows, columns", [(33, 30), (34, 9)])
def test_crops_of_a_pair_show_the_same_place(tmp_path, rows, columns):
    """Every pixel of the input is its place; those of the target are the places of the pixels they lie in."""
    place = (np.arange(rows)[:, None] + 40 * np.arange(columns)) % 256
    low = np.repeat(place[:, :, None], 3, 2).astype(np.uint8)
    for name, pixels in (("low", low), ("high", low.repeat(2, 0).repeat(2, 1))):
        np.save(tmp_path / f"{name}.npy", pixels)
    pair = sets.Item("own/x", "a", tmp_path / "high.npy", tmp_path / "low.npy")
    task = Params(profile="quick").experiment("edsr_sr_x2").task
    clean = experiments.target(pair, task, 20)
    given = experiments.degraded(pair, task, clean, 20)
    assert given.shape[2:] == (10, min(columns, 10))
    assert torch.equal(clean, given.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("rows, columns", [(30, 34), (29, 27)])
def test_crops_of_a_given_mosaic_begin_where_its_pattern_does(tmp_path, rows, columns):
    task = Params(profile="quick").task("demosaic")
    clean = np.random.default_rng(0).integers(1, 256, (rows, columns, 3), np.uint8)
    mosaic = task.degradation(torch.from_numpy(np.moveaxis(clean, 2, 0)[None] / 255), torch.Generator())
    np.save(tmp_path / "clean.npy", clean)
    np.save(tmp_path / "mosaic.npy", np.moveaxis((mosaic[0] * 255).round().byte().numpy(), 0, 2))
    pair = sets.Item("own/x", "a", tmp_path / "clean.npy", tmp_path / "mosaic.npy")
    target = experiments.target(pair, task, 24)
    given = experiments.degraded(pair, task, target, 24)
    assert torch.equal(given, task.degradation(target, torch.Generator()))


def test_methods_without_weights_get_whole_photographs(tmp_path):
    seen = []

    class Method(torch.nn.Module):
        def forward(self, x):
            seen.append(tuple(x.shape[2:]))
            return x

    class Network(Method):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

    run = dataclasses.replace(RUN, evaluation=dataclasses.replace(RUN.evaluation, crop=None, tile=24, overlap=6))
    rows, _ = evaluation.measure(run, {0: Method()}, [item(tmp_path)])
    assert seen == [(40, 52)] and rows.field.tolist() == [round((40 * 52) ** 0.5)]
    seen.clear()
    rows, _ = evaluation.measure(run, {0: Network()}, [item(tmp_path)])
    assert set(seen) == {(24, 24)} and rows.field.tolist() == [24]


def test_a_mosaic_is_cut_where_its_pattern_begins(tmp_path):
    run = Params(profile="quick").row("panet_demosaic")
    run = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, crop=None, tile=25, overlap=3))
    phases = []

    class Network(torch.nn.Conv2d):
        def forward(self, x):
            phases.append(bool((x[:, 0, ::2, ::2] != 0).any() and not (x[:, 0, 1::2] != 0).any()))
            return x

    evaluation.measure(run, {1: Network(1, 1, 1)}, [item(tmp_path)])
    assert len(phases) > 4 and all(phases)


def attentive():
    run = Params(profile="quick").row("dagl_gray_denoise_25-nl")
    how = dataclasses.replace(run.evaluation, crop=None, tile=24, overlap=6)
    run = dataclasses.replace(run, seeds=(1, 2), evaluation=how)
    networks = {seed: experiments.network(run, seed).eval() for seed in run.seeds}
    for network in networks.values():
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return run, networks


def test_acts_has_a_row_per_seed_module_and_head(tmp_path):
    run, networks = attentive()
    items = [item(tmp_path, name) for name in "abc"]
    before, _ = evaluation.measure(run, networks, items)
    found = evaluation.acts(run, networks, items)
    modules = list(insights.attentions(networks[1]))
    assert len(modules) == 2 and list(found.columns[:3]) == ["seed", "module", "head"]
    assert [*zip(found.seed, found.module, found["head"], strict=True)] == [(s, m, 0) for s in (1, 2) for m in modules]
    assert found.notna().all(axis=None) and (found.effective_keys <= 24 * 24).all() and (found.effective_keys > 1).all()
    assert health.acts(found).index.tolist() == [(s, m) for s in (1, 2) for m in modules]
    pd.testing.assert_frame_equal(evaluation.measure(run, networks, items)[0], before)  # the networks are as they were
    plain = dataclasses.replace(RUN, seeds=(1,))
    assert len(evaluation.acts(plain, {1: experiments.network(plain, 1)}, items)) == 0


def test_the_field_curve_goes_from_small_tiles_to_whole_photographs(tmp_path):
    run, networks = attentive()
    items = [item(tmp_path, name, size=(70, 70)) for name in "ab"]
    curve = evaluation.field_curve(run, networks, items)
    assert [*zip(curve.seed, curve.side, strict=True)] == [(s, side) for s in (1, 2) for side in (32, 64, 70)]
    run_whole = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, tile=70))
    whole, _ = evaluation.measure(run_whole, networks, items)
    assert curve.psnr[2] == pytest.approx(whole.psnr[whole.seed == 1].mean(), abs=2e-4)
    assert len(evaluation.field_curve(run, {1: torch.nn.Identity()}, items)) == 0


def test_few_photographs_are_spread_and_take_a_third():
    assert evaluation.few(range(100), 2.5, 12) == [4, 12, 20, 29, 37, 45, 54, 62, 70, 79, 87, 95]
    assert evaluation.few(range(45), 3, 12) == [4, 13, 22, 31, 40]
    assert evaluation.few(range(3), 3, 12) == [0, 2] and evaluation.few([7], 3, 12) == [7]


def test_trained_weights_come_back(tmp_path):
    made = experiments.network(RUN, 7)
    with torch.no_grad():
        made.tail.bias.fill_(0.5)
    for seed in RUN.seeds:
        save_file(made.state_dict(), experiments.weights_file(tmp_path, seed))
    for network in experiments.trained(RUN, tmp_path).values():
        states = made.state_dict(), network.state_dict()
        assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))
        assert not network.training


def test_a_baseline_needs_no_weights(tmp_path):
    baseline = Params(profile="quick").row("input_gray_denoise_25")
    (network,) = experiments.trained(baseline, tmp_path).values()
    image = torch.rand(1, 1, 8, 8)
    assert torch.equal(network(image), image)


def test_a_scale_that_the_model_does_not_know_is_an_error():
    task = dataclasses.replace(RUN.task, degradation=build("bicubic", scale=2))
    with pytest.raises(ModelError, match="model 'dagl' has no option 'scale', but gray_denoise_25 is x2"):
        experiments.network(dataclasses.replace(RUN, model="dagl", task=task, options={}))


def test_self_similarity_knows_copies_from_noise():
    generator = torch.Generator().manual_seed(0)
    tile = torch.rand(1, 1, 16, 16, generator=generator)
    assert evaluation.self_similarity(tile.repeat(1, 1, 4, 4)) == pytest.approx(1, abs=1e-6)
    assert evaluation.self_similarity(torch.rand(1, 1, 64, 64, generator=generator)) < 0.5
    assert evaluation.self_similarity(torch.full((1, 3, 40, 40), 0.5)) == pytest.approx(1)


def test_detail_points_lie_on_detail_apart_and_inside():
    image = torch.full((1, 1, 64, 80), 0.5)
    image[:, :, 20:30, 20:30] = 1
    image[:, :, 40:50, 60:66] = 0
    (first, second, _) = evaluation.detail_points(image)
    near = lambda point, box: box[0] - 4 <= point[0] <= box[1] + 4 and box[2] - 4 <= point[1] <= box[3] + 4  # noqa: E731
    boxes = [(20, 30, 20, 30), (40, 50, 60, 66)]
    assert {next(i for i, box in enumerate(boxes) if near(point, box)) for point in (first, second)} == {0, 1}


def test_detail_points_of_a_small_image_lie_inside():
    for seed in range(20):
        image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
        points = evaluation.detail_points(image)
        assert len(set(points)) == 3
        assert all(4 <= row < 20 and 4 <= column < 20 for row, column in points)
