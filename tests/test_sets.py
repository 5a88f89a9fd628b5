"""Reading: manifests, memory-mapped images, gray, thumbnails, near-duplicates, training images in memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import refused

from lib.images import registry, sets
from lib.images.download import thumbnail
from lib.images.sets import Item, SetError
from lib.measuring.metrics import Convention
from lib.params import Params
from lib.tasks import Task, experiment
from lib.tasks.degradations import build
from lib.training import TrainingError

HEADER = ",".join(sets.COLUMNS)
ROW = "a,y,images/a/y.npy,,cc,"


def manifest(folder, *lines):
    path = folder / "test" / "task.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def image(path, array=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.arange(48, dtype=np.uint8).reshape(4, 4, 3) if array is None else array)
    return path


def fails(words, function, *arguments, kind=SetError):
    with refused(kind, words):
        function(*arguments)


def test_items_are_read_in_order_with_paths_below_the_manifests_folder(tmp_path):
    image(tmp_path / "images/a/y.npy")
    image(tmp_path / "images/p/target/x.npy")
    image(tmp_path / "images/p/input/x.npy", np.zeros((4, 4, 3), np.uint8))
    path = manifest(tmp_path, HEADER, "p,x,images/p/target/x.npy,images/p/input/x.npy,aa,bb", ROW)
    pair, single = sets.read(path)
    assert (pair.set, pair.name, pair.pixels_sha256, pair.input_sha256) == ("p", "x", "aa", "bb")
    target, degraded = pair.load()
    assert (target.sum(), degraded.sum()) == (48 * 47 // 2, 0)
    assert isinstance(target, np.memmap) and not target.flags.writeable
    assert single == Item("a", "y", tmp_path / "images/a/y.npy", None, "cc")
    assert single.load()[1] is None


def test_manifest_errors_name_the_file_and_the_remedy(tmp_path):
    fails("task.csv does not exist; run `make repro`", sets.read, tmp_path / "test" / "task.csv")
    fails("images/a/y.npy does not exist; run `make repro`", sets.read, manifest(tmp_path, HEADER, ROW))
    image(tmp_path / "images/a/y.npy")
    assert sets.read(manifest(tmp_path, HEADER), may_be_empty=True) == []
    for lines, words in (
        ((), "has the columns , not set"),
        ((HEADER,), "lists no image"),
        (("set,name", "a,y"), "has the columns set, name, not"),
        ((HEADER, ROW, ROW), "y of set a twice"),
        ((HEADER, ROW[:12]), "is truncated at 'a,y,images/a'"),
    ):
        fails(words, sets.read, manifest(tmp_path, *lines))


def test_a_damaged_image_is_one_line_that_names_it(tmp_path):
    path = tmp_path / "y.npy"
    fails("y.npy does not exist", sets.open_image, path)
    whole = image(path).read_bytes()
    np.savez(tmp_path / "z.npz", a=np.zeros(3))
    for content in (whole[:-1], whole[:60], whole[:5], b"", b"<html>not an array</html>"):
        path.write_bytes(content)
        fails("y.npy is truncated or no array", sets.open_image, path)
    for array in (np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4), np.uint8), np.array(3, np.uint8)):
        np.save(path, array)
        fails("not an 8-bit image", sets.open_image, path)
    np.save(path, np.array([{}]), allow_pickle=True)
    fails("y.npy is truncated or no array", sets.open_image, path)
    path.write_bytes((tmp_path / "z.npz").read_bytes())
    fails("NpzFile", sets.open_image, path)


def test_gray_rules_round_as_their_sources_do():
    colors = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 200, 30]]], np.uint8)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for rule in ("matlab", "opencv"):
        gray = sets.to_gray(pixels, rule)
        assert sets.to_gray(colors, rule).tolist() == [[255, 0, 76, 150, 29, 124]]
        assert gray.dtype == np.uint8 and sets.to_gray(gray, rule) is gray
    apart = sets.to_gray(pixels, "matlab").astype(int) - sets.to_gray(pixels, "opencv")
    assert set(np.unique(apart)) == {-1, 0, 1}
    fails("known: matlab, opencv", sets.to_gray, pixels, "average")


def test_pixels_sha256_sees_pixels_and_not_memory_order():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    assert sets.pixels_sha256(np.asfortranarray(pixels)) == sets.pixels_sha256(pixels)
    assert sets.pixels_sha256(pixels[::-1]) != sets.pixels_sha256(pixels)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300, 3), (10, 12)])
def test_a_thumbnail_keeps_proportions_and_is_at_most_64(shape):
    small = thumbnail(np.zeros(shape, np.uint8))
    assert small.shape[2:] == shape[2:]
    assert max(small.shape[:2]) == min(64, max(shape[:2]))
    assert small.shape[0] / small.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.05)


def test_near_duplicates_are_found_scaled_cropped_and_gray():
    draw = np.random.default_rng(0)
    photographs = [np.kron(draw.integers(0, 256, (9, 12, 3)), np.ones((20, 20, 1))).astype(np.uint8) for _ in range(4)]
    test = [
        sets.to_gray(photographs[2], "matlab"),
        photographs[1][::2, ::2],
        photographs[3][:160, :200],
        np.kron(draw.integers(0, 256, (9, 12)), np.ones((20, 20))).astype(np.uint8),
    ]
    assert [(i, j) for i, j, _ in registry.near_duplicates(photographs, test)] == [(1, 1), (2, 0), (3, 2)]
    flat = [np.full((30, 30), 128, np.uint8)]
    assert registry.near_duplicates(flat, flat) == []  # nothing to tell them by


# -- in memory for training


@pytest.fixture
def task():
    """Denoising of colour."""
    return Task("t", "", build("gaussian_noise", sigma=25), Convention(), 3, (), (), (), "matlab")


def items(folder, *shapes, pairs=False):
    draw, found = np.random.default_rng(0), []
    for n, shape in enumerate(shapes):
        paths = [image(folder / side / f"{n}.npy", draw.integers(0, 256, shape, np.uint8)) for side in "ti"]
        found.append(Item("s", str(n), paths[0], paths[1] if pairs else None))
    return found


def test_training_images_are_converted_one_at_a_time(tmp_path, task):
    some = items(tmp_path, *[(200, 300, 3)] * 20)
    tracemalloc.start()
    crops = experiment.crops(task, some, 48, "cpu")
    assert tracemalloc.get_traced_memory()[1] < 1.5 * crops.targets.pixels.numel()
    tracemalloc.stop()
    wanted = np.concatenate([np.moveaxis(np.load(item.target), 2, 0).ravel() for item in some])
    assert np.array_equal(crops.targets.pixels.numpy(), wanted)


def test_pairs_train_on_the_input_that_they_came_with(tmp_path, task):
    drawn, clean = experiment.crops(task, items(tmp_path, (50, 60, 3), pairs=True), 50, "cpu").draw(1, seed=0, step=0)
    wanted = experiment.crops(task, items(tmp_path, (50, 60, 3)), 50, "cpu").draw(1, seed=0, step=0)
    assert clean.equal(wanted[1])
    assert (drawn * 255 - (drawn * 255).round()).abs().max() < 1e-4  # stored in 8 bit; noise drawn anew is not
    assert not drawn.equal(clean)


def test_inputs_with_the_levels_of_a_file_are_kept_in_8_bit(tmp_path):
    found = items(tmp_path, (50, 60, 3), (52, 54, 3))
    for name in ("sr_x2", "jpeg_10"):
        its_task = Params(profile="quick").task(name)
        crops = experiment.crops(its_task, found, 48, "cpu")
        assert crops.inputs.pixels.dtype == torch.uint8
        whole = torch.cat([
            experiment.degraded(item, its_task, experiment.target(item, its_task)).flatten() for item in found
        ])  # fmt: skip
        assert torch.equal(crops.inputs.pixels.float() / 255, whole)
    exact = replace(its_task, degradation=build("bicubic", scale=2, rounding="none"))
    assert experiment.crops(exact, found, 48, "cpu").inputs.pixels.dtype == torch.float32


def test_training_images_that_do_not_fit_are_named(tmp_path, task):
    pair, single = items(tmp_path, (50, 60, 3), (9, 60, 3), pairs=True)
    single = replace(single, input=None)
    fails("set s: 1 has 9 x 60 pixels", experiment.crops, task, [single], 48, "cpu")
    fails("set s has no degraded photographs", experiment.crops, task, [pair, single], 48, "cpu")
    wrong = replace(pair, input=single.target)
    fails("must have 1/1 of the sides", experiment.crops, task, [wrong], 48, "cpu", kind=TrainingError)
