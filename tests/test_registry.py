"""The tables of sets, leaks between training and test, manifests; on the real images where a mirror is there."""

from __future__ import annotations

import csv
import re

import pytest

from lib.images import registry, sets
from lib.images.download import download
from lib.images.sets import SetError

KNOWN = registry.published()
TRAIN = ("bsds500/train", "bsds500/test")
TEST = (
    *("set12", "bsd68", "cbsd68", "kodak24", "mcmaster", "urban100/HR", "set5/HR", "set14/HR", "b100/HR"),
    *("live1/gray_y", "classic5", "rain100l/target", "cc15/target", "levin32/target"),
)


def all_entries():
    return [entry for entries in KNOWN.entries.values() for entry in entries]


def test_every_row_is_complete_and_unique():
    entries, hexadecimal = all_entries(), re.compile("[0-9a-f]{64}")
    assert len({entry.path for entry in entries}) == len(entries)
    known_sets = {entry.set for entry in entries}
    for entry in entries:
        assert re.match(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/|package:skimage/", entry.url)
        assert " " not in entry.url
        assert hexadecimal.fullmatch(entry.sha256)
        assert entry.bytes > 0
        assert entry.terms in KNOWN.terms
        assert set(entry.overlaps) <= known_sets - {entry.set}
        assert not set(entry.reference + entry.name) & set("\\ :*?")
        if entry.is_image:
            assert hexadecimal.fullmatch(entry.pixels_sha256)
            assert entry.channels in (1, 3)
            assert min(entry.height, entry.width) > 0
    assert set(KNOWN.terms) == {entry.terms for entry in entries}


def test_counts_are_the_published_ones():
    counts = {reference: len(KNOWN.pairs(reference)) for reference in KNOWN.references if KNOWN.lists(reference)}
    wanted = {
        "bsds500/train": 200,
        "bsds500/test": 180,
        "bsds500/validation": 20,
        "set12": 12,
        "bsd68": 68,
        "cbsd68": 68,
        "kodak24": 24,
    }
    wanted |= {"mcmaster": 18, "urban100/HR": 100, "set5/HR": 5, "set14/HR": 14, "b100/HR": 100, "live1/gray_y": 29}
    wanted |= {"classic5": 5, "rain100l": 100, "cc15": 15, "levin32": 32, "sample/train": 8, "sample/test": 8}
    assert wanted.items() <= counts.items()
    assert KNOWN.pairs("rain100l")[0][1] is not None


def test_manual_sets_say_where_to_get_them_and_what_is_checked():
    assert {name.split("/")[0] for name in KNOWN.manual} == {
        *("div2k", "flickr2k", "manga109", "gopro", "sots", "rain100h", "sidd"),
    }
    for manual in KNOWN.manual.values():
        assert manual.where.startswith("http")
        assert manual.images > 0
        assert manual.prepare
        assert manual.terms
        assert not manual.archive or manual.archive.startswith("https://")
        assert bool(manual.sha256) == bool(manual.bytes)


def test_a_misspelt_set_is_an_error_with_the_nearest_name():
    registry.check_references(["bsd68", "rain100l", "div2k/train", "own/holidays"])
    with pytest.raises(SetError, match="unknown set 'bsd86'; did you mean 'bsd68'"):
        registry.check_references(["bsd86"])
    for outside in ("own/../x", "own/", "own", "../x"):
        with pytest.raises(SetError, match="unknown set"):
            registry.check_references([outside])


def test_known_leaks_are_left_out_of_training():
    names = {test: [leak.name for leak in KNOWN.leaks(TRAIN, [test])] for test in TEST}
    assert len(names["rain100l/target"]) == 67  # 75 of Rain100L's pairs show them: some scenes appear twice
    assert names["set5/HR"] == ["302003"]
    assert names["set12"] == ["12003"]  # the starfish is a part of it
    assert not any(names[test] for test in set(TEST) - {"rain100l/target", "set5/HR", "set12"})
    assert KNOWN.leaks(TRAIN, ["rain100l"]) == KNOWN.leaks(TRAIN, ["rain100l/input"])
    live = [entry for entry in KNOWN.entries["live1/gray_y"] if "kodak24" in entry.overlaps]
    assert len(live) == len([entry for entry in KNOWN.entries["kodak24"] if "live1" in entry.overlaps]) == 19


def test_overlaps_hold_both_ways():
    noted = {(entry.set, other) for entry in all_entries() for other in entry.overlaps}
    assert noted == {(b, a) for a, b in noted}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    assert download(["sample/train", "sample/test"], folder / "downloads", folder / "cache") == []
    return folder / "downloads"


def test_the_sample_comes_whole_from_installed_packages(sample):
    KNOWN.write_manifests(sample, {"task": {"train": ["sample/train"], "test": ["sample/test"]}})
    train, test = sets.read(sample / "train/task.csv"), sets.read(sample / "test/task.csv")
    assert {item.name for item in train} == {
        *("chelsea", "motorcycle_left", "motorcycle_right", "grass", "hubble_deep_field", "moon", "retina", "cell"),
    }
    assert {item.name for item in test} == {
        *("astronaut", "camera", "coffee", "rocket", "brick", "gravel", "ihc", "coins"),
    }
    for item in (*train, *test):
        assert sets.pixels_sha256(item.load()[0]) == item.pixels_sha256


def test_no_scene_of_the_sample_is_on_both_sides(sample):
    sides = {name: side for side in ("train", "test") for name in (e.name for e in KNOWN.entries[f"sample/{side}"])}
    assert sides["motorcycle_left"] == sides["motorcycle_right"]
    train, test = ([sets.open_image(sample / t.path) for t in KNOWN.files([f"sample/{s}"])] for s in ("train", "test"))
    assert registry.near_duplicates(train, test) == []


def test_describe_has_a_row_per_set_with_its_terms_in_full(sample):
    table = KNOWN.describe(["sample/train", "sample/test", "weights"], sample)
    assert table.loc["sample/test", "images"] == 8
    assert table.loc["sample/test", "channels"] == "1/3"
    assert table.loc["sample/train", "size"] == "300x451 to 1411x1411"
    assert "CC0" in table.loc["sample/train", "terms"]
    assert table.loc["weights", "MB"] == 2.2


def test_manifests_list_hashes_drop_leaks_and_forget_other_tasks(tmp_path):
    sides = {"train": TRAIN, "validation": ["bsds500/validation"]}
    tasks = {"denoise": {**sides, "test": ["set12", "bsd68"]}, "derain": {**sides, "test": ["rain100l"]}}
    KNOWN.write_manifests(tmp_path, {"old": tasks["denoise"]})
    KNOWN.write_manifests(tmp_path, tasks)
    assert sorted(path.name for path in tmp_path.glob("*/*.csv")) == 3 * ["denoise.csv"] + 3 * ["derain.csv"]
    with (tmp_path / "train/derain.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 313
    assert {row["set"] for row in rows} == {"bsds500"}
    with (tmp_path / "validation/derain.csv").open(newline="") as file:
        held_out = {row["name"] for row in csv.DictReader(file)}
    assert len(held_out) == 20 and not held_out & {row["name"] for row in rows}
    assert "302003" in {row["name"] for row in rows}
    with (tmp_path / "test/derain.csv").open(newline="") as file:
        pair = next(csv.DictReader(file))
    assert pair["target"] == "images/rain100l/target/1.npy"
    assert pair["input"] == "images/rain100l/input/1.npy"
    assert pair["pixels_sha256"] != pair["input_sha256"] != ""
    before = (tmp_path / "train/derain.csv").read_bytes()
    KNOWN.write_manifests(tmp_path, {**tasks, "derain": {**sides, "test": ["rain100l", "kodak24"]}})
    assert (tmp_path / "train/derain.csv").read_bytes() == before  # another test set changes no training


def test_manifests_of_single_sets_hold_pairs_and_plain_files(tmp_path):
    folder = tmp_path / "protocol"
    KNOWN.write_set_manifests(folder, ["set12"])
    KNOWN.write_set_manifests(folder, ["set5/LR_x2", "rain100l", "weights"])
    assert sorted(path.name for path in folder.iterdir()) == ["rain100l.csv", "set5_LR_x2.csv", "weights.csv"]
    tables = {path.stem: list(csv.DictReader(path.open(newline=""))) for path in folder.iterdir()}
    assert {name: len(rows) for name, rows in tables.items()} == {"rain100l": 100, "set5_LR_x2": 5, "weights": 1}
    assert tables["rain100l"][0]["input"] == "images/rain100l/input/1.npy"
    (weights,) = tables["weights"]
    assert weights["target"] == "weights/dncnn_25.pth" and weights["pixels_sha256"].startswith("0451a70d")


def test_two_images_of_one_name_in_a_task_are_an_error(tmp_path):
    with pytest.raises(SetError, match="task sr: two test images are called baby of set set5"):
        KNOWN.write_manifests(tmp_path, {"sr": {"test": ["set5/HR", "set5/LR_x2"]}})


def test_a_set_of_the_user_without_images_is_an_error(tmp_path):
    with pytest.raises(SetError, match=r"set own/mine: .* holds no image"):
        KNOWN.write_manifests(tmp_path, {"task": {"test": ["own/mine"]}})


# -- with the published images


@pytest.fixture(scope="module")
def benchmark(mirror, tmp_path_factory):
    """Downloads with every set of TRAIN and TEST, and no network."""
    folder = tmp_path_factory.mktemp("benchmark")
    download([*TRAIN, *TEST], folder / "downloads", folder / "cache", mirror=str(mirror))
    assert not (folder / "cache" / "files").exists()
    return folder / "downloads"


def test_the_registry_agrees_with_the_mirrors(mirror):
    with (mirror / "registry.csv").open(newline="") as file:
        rows = {row["pixels_sha256"]: row for row in csv.DictReader(file)}
    images = [e for e in all_entries() if e.is_image and e.set != "sample"]
    assert {entry.pixels_sha256 for entry in images} == set(rows)
    for entry in images:
        row = rows[entry.pixels_sha256]
        assert (entry.channels, entry.height, entry.width) == tuple(
            int(row[k]) for k in ("channels", "height", "width")
        )


def test_no_photograph_is_in_training_and_test_but_those_left_out(benchmark):
    train, test = KNOWN.files(TRAIN), KNOWN.files(TEST)
    images = [[sets.open_image(benchmark / entry.path) for entry in side] for side in (train, test)]
    found = [(train[i], test[j]) for i, j, _ in registry.near_duplicates(*images)]
    assert len(found) == 76  # 75 pairs of Rain100L and Set5's woman: the search does find what is there
    assert [f"{a} and {b}" for a, b in found if b.set not in a.overlaps] == []


def test_top_left_crops_of_training_images_are_the_clean_rain_images(benchmark):
    rain = [sets.open_image(benchmark / entry.path) for entry in KNOWN.entries["rain100l/target"]]
    seen = {(r.shape, sets.pixels_sha256(r)) for r in rain}
    for entry in KNOWN.entries["bsds500/train"]:
        array = sets.open_image(benchmark / entry.path)
        rows, columns = (320, 480) if array.shape[0] < array.shape[1] else (480, 320)
        crop = array[:rows, :columns]
        assert ("rain100l" in entry.overlaps) == ((crop.shape, sets.pixels_sha256(crop)) in seen)


def test_bsd68_is_matlabs_gray_of_cbsd68(benchmark):
    gray = {entry.pixels_sha256 for entry in KNOWN.entries["bsd68"]}
    color = [sets.open_image(benchmark / entry.path) for entry in KNOWN.entries["cbsd68"]]
    assert {sets.pixels_sha256(sets.to_gray(array, "matlab")) for array in color} == gray
    assert {sets.pixels_sha256(sets.to_gray(array, "opencv")) for array in color} != gray


def test_the_starfish_of_set12_is_a_part_of_a_training_image(benchmark):
    whole = sets.to_gray(sets.open_image(benchmark / "images/bsds500/train/12003.npy"), "matlab").astype(int)
    part = sets.open_image(benchmark / "images/set12/04.npy")
    assert abs(whole[7 : 7 + 256, 109 : 109 + 256] - part).max() <= 1
    assert "set12" in next(e for e in KNOWN.entries["bsds500/train"] if e.name == "12003").overlaps
