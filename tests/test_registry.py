"""The tables of sets, leaks between training and test, manifests; on the real images where a mirror is there."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from lib.images import registry, sets
from lib.images.download import download
from lib.images.sets import SetError

KNOWN = registry.published()
ENTRIES = [entry for entries in KNOWN.entries.values() for entry in entries]
TRAIN = ("bsds500/train", "bsds500/test")
#: test set -> images
TEST = {
    **{"set12": 12, "bsd68": 68, "cbsd68": 68, "kodak24": 24, "mcmaster": 18, "urban100/HR": 100, "set5/HR": 5},
    **{"set14/HR": 14, "b100/HR": 100, "live1/gray_y": 29, "classic5": 5, "rain100l/target": 100, "cc15/target": 15},
    "levin32/target": 32,
}
MANUAL = {"div2k", "flickr2k", "manga109", "gopro", "sots", "rain100h", "sidd"}


def rows(path) -> list[dict[str, str]]:
    return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")


def test_every_row_is_complete_and_unique():
    hexadecimal, known_sets = re.compile("[0-9a-f]{64}"), {entry.set for entry in ENTRIES}
    assert len({entry.path for entry in ENTRIES}) == len(ENTRIES)
    for entry in ENTRIES:
        assert re.match(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/|package:skimage/", entry.url)
        assert " " not in entry.url and not set(entry.reference + entry.name) & set("\\ :*?")
        assert hexadecimal.fullmatch(entry.sha256) and entry.bytes > 0
        assert set(entry.overlaps) <= known_sets - {entry.set}
        if entry.is_image:
            assert hexadecimal.fullmatch(entry.pixels_sha256)
            assert entry.channels in (1, 3) and min(entry.height, entry.width) > 0
    assert set(KNOWN.terms) == {entry.terms for entry in ENTRIES}
    noted = {(entry.set, other) for entry in ENTRIES for other in entry.overlaps}
    assert noted == {(b, a) for a, b in noted}  # an overlap holds both ways


def test_counts_are_the_published_ones():
    sets_of_training = {"bsds500/train": 200, "bsds500/test": 180, "bsds500/validation": 20}
    for reference, count in {**TEST, **sets_of_training, "sample/train": 8, "sample/test": 8}.items():
        assert len(KNOWN.pairs(reference)) == count
    for reference, count in {"rain100l": 100, "cc15": 15, "levin32": 32}.items():
        pairs = KNOWN.pairs(reference)
        assert len(pairs) == count and all(target.name == degraded.name for target, degraded in pairs)


def test_manual_sets_say_where_to_get_them_and_what_is_checked():
    assert {name.split("/")[0] for name in KNOWN.manual} == MANUAL
    for manual in KNOWN.manual.values():
        assert manual.where.startswith("http") and manual.archive.startswith("https://" if manual.archive else "")
        assert manual.images > 0 and manual.prepare and manual.terms
        assert bool(manual.sha256) == bool(manual.bytes)


def test_a_misspelt_set_is_an_error_with_the_nearest_name():
    registry.check_references(["bsd68", "rain100l", "div2k/train", "own/holidays"])
    with pytest.raises(SetError, match="unknown set 'bsd86'; did you mean 'bsd68'"):
        registry.check_references(["bsd86"])
    for outside in ("own/../x", "own//tmp/x", "own/", "own", "../x"):
        with pytest.raises(SetError, match="unknown set"):
            registry.check_references([outside])


def test_known_leaks_are_left_out_of_training():
    names = {test: [leak.name for leak in KNOWN.leaks(TRAIN, [test])] for test in TEST}
    assert len(names.pop("rain100l/target")) == 67  # 75 of Rain100L's pairs show them: some scenes appear twice
    # the starfish of Set12 is a part of 12003
    assert {test: found for test, found in names.items() if found} == {"set5/HR": ["302003"], "set12": ["12003"]}
    assert KNOWN.leaks(TRAIN, ["rain100l"]) == KNOWN.leaks(TRAIN, ["rain100l/input"])
    for reference, other in (("live1/gray_y", "kodak24"), ("kodak24", "live1")):
        assert sum(other in entry.overlaps for entry in KNOWN.entries[reference]) == 19


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    assert download(["sample/train", "sample/test"], folder / "downloads", folder / "cache") == []
    return folder / "downloads"


def test_the_sample_comes_whole_from_installed_packages_and_shows_no_scene_on_both_sides(sample):
    KNOWN.write_manifests(sample, {"task": {"train": ["sample/train"], "test": ["sample/test"]}})
    train, test = sets.read(sample / "train/task.csv"), sets.read(sample / "test/task.csv")
    trained = "chelsea motorcycle_left motorcycle_right grass hubble_deep_field moon retina cell"
    tested = "astronaut camera coffee rocket brick gravel ihc coins"
    assert {item.name for item in train} == {*trained.split()} and {item.name for item in test} == {*tested.split()}
    for item in (*train, *test):
        assert sets.pixels_sha256(item.load()[0]) == item.pixels_sha256
    assert registry.near_duplicates(*([item.load()[0] for item in side] for side in (train, test))) == []


def test_describe_has_a_row_per_set_with_its_terms_in_full(sample):
    table = KNOWN.describe(["sample/train", "sample/test", "weights"], sample)
    assert table.index.name == "set"
    assert table.loc["sample/test", ["images", "channels"]].tolist() == [8, "1/3"]
    assert table.loc["sample/train", "size"] == "300x451 to 1411x1411"
    assert "CC0" in table.loc["sample/train", "terms"]
    assert table.loc["weights", ["images", "MB"]].tolist() == [0, 10.1]


def test_manifests_list_hashes_drop_leaks_and_forget_other_tasks(tmp_path):
    sides = {"train": TRAIN, "validation": ["bsds500/validation"]}
    tasks = {"denoise": {**sides, "test": ["set12", "bsd68"]}, "derain": {**sides, "test": ["rain100l"]}}
    KNOWN.write_manifests(tmp_path, {"old": tasks["denoise"]})
    KNOWN.write_manifests(tmp_path, tasks)
    assert sorted(path.name for path in tmp_path.glob("*/*.csv")) == 3 * ["denoise.csv"] + 3 * ["derain.csv"]
    trained, held_out = rows(tmp_path / "train/derain.csv"), rows(tmp_path / "validation/derain.csv")
    assert len(trained) == 313 and {row["set"] for row in trained} == {"bsds500"}
    assert len(held_out) == 20 and not {row["name"] for row in held_out} & {row["name"] for row in trained}
    assert "302003" in {row["name"] for row in trained}
    pair = rows(tmp_path / "test/derain.csv")[0]
    assert (pair["target"], pair["input"]) == ("images/rain100l/target/1.npy", "images/rain100l/input/1.npy")
    assert pair["pixels_sha256"] != pair["input_sha256"] != ""
    before = (tmp_path / "train/derain.csv").read_bytes()
    KNOWN.write_manifests(tmp_path, {**tasks, "derain": {**sides, "test": ["rain100l", "kodak24"]}})
    assert (tmp_path / "train/derain.csv").read_bytes() == before  # another test set changes no training


def test_manifests_of_single_sets_hold_pairs_and_plain_files(tmp_path):
    KNOWN.write_set_manifests(tmp_path / "p", ["set12"])
    KNOWN.write_set_manifests(tmp_path / "p", ["set5/LR_x2", "rain100l", "weights"])
    tables = {path.name: rows(path) for path in (tmp_path / "p").iterdir()}
    counts = {name: len(found) for name, found in tables.items()}
    assert counts == {"rain100l.csv": 100, "set5_LR_x2.csv": 5, "weights.csv": 4}
    assert tables["rain100l.csv"][0]["input"] == "images/rain100l/input/1.npy"
    weights = {row["name"]: row for row in tables["weights.csv"]}["dncnn_25.pth"]
    assert weights["target"] == "weights/dncnn_25.pth" and weights["pixels_sha256"].startswith("0451a70d")


@pytest.mark.parametrize(
    ("tested", "words"),
    [
        (["set5/HR", "set5/LR_x2"], "task t: two test images are called baby of set set5"),
        (["own/mine"], "set own/mine: .* holds no image"),
    ],
)
def test_sets_of_which_no_manifest_can_be_made_are_named(tmp_path, tested, words):
    with pytest.raises(SetError, match=words):
        KNOWN.write_manifests(tmp_path, {"t": {"test": tested}})


# -- with the published images


@pytest.fixture(scope="module")
def benchmark(mirror, tmp_path_factory):
    """Downloads with every set of TRAIN and TEST, and no network."""
    folder = tmp_path_factory.mktemp("benchmark")
    download([*TRAIN, *TEST], folder / "downloads", folder / "cache", mirror=str(mirror))
    assert not (folder / "cache" / "files").exists()
    return folder / "downloads"


def test_the_registry_agrees_with_the_mirrors(mirror):
    keys = "channels", "height", "width"
    theirs = {row["pixels_sha256"]: [int(row[key]) for key in keys] for row in rows(mirror / "registry.csv")}
    images = [entry for entry in ENTRIES if entry.is_image and entry.set != "sample"]
    assert {entry.pixels_sha256: [getattr(entry, key) for key in keys] for entry in images} == theirs


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
