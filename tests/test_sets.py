"""Reading: manifests, memory-mapped images, gray, thumbnails, near-duplicates."""

from __future__ import annotations

import numpy as np
import pytest

from lib.images import sets
from lib.images.sets import SetError

HEADER = ",".join(sets.COLUMNS) + "\n"


def manifest(folder, *rows, header=HEADER):
    path = folder / "test" / "task.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text(header + "".join(f"{row}\n" for row in rows))
    return path


def image(path, array=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.arange(48, dtype=np.uint8).reshape(4, 4, 3) if array is None else array)
    return path


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_items_are_read_in_order_with_paths_below_the_manifests_folder(tmp_path):
    image(tmp_path / "images/a/y.npy")
    image(tmp_path / "images/p/target/x.npy")
    image(tmp_path / "images/p/input/x.npy", np.zeros((4, 4, 3), np.uint8))
    path = manifest(tmp_path, "p,x,images/p/target/x.npy,images/p/input/x.npy,aa,bb", "a,y,images/a/y.npy,,cc,")
    pair, single = sets.read(path)
    assert (pair.set, pair.name, pair.input_sha256) == ("p", "x", "bb")
    target, degraded = pair.load()
    assert target.sum() == 48 * 47 // 2
    assert degraded.sum() == 0
    assert isinstance(target, np.memmap)
    assert not target.flags.writeable
    assert single.load()[1] is None
    assert single.target == tmp_path / "images/a/y.npy"


def test_manifest_errors_name_the_file_and_the_remedy(tmp_path):
    with pytest.raises(SetError) as error:
        sets.read(tmp_path / "test" / "task.csv")
    assert "task.csv does not exist" in one_line(error)
    assert "make repro" in str(error.value)
    for rows, header, words in (
        ((), HEADER, "lists no image"),
        (("a,y",), "set,name\n", "has the columns set, name"),
        (("a,y,images/a/y.npy,,cc,",), HEADER, "images/a/y.npy does not exist"),
    ):
        with pytest.raises(SetError) as error:
            sets.read(manifest(tmp_path, *rows, header=header))
        assert words in one_line(error)
    image(tmp_path / "images/a/y.npy")
    with pytest.raises(SetError) as error:
        sets.read(manifest(tmp_path, "a,y,images/a/y.npy,,cc,", "a,y,images/a/y.npy,,cc,"))
    assert "y of set a twice" in one_line(error)


def test_a_damaged_image_is_one_line_that_names_it(tmp_path):
    path = tmp_path / "y.npy"
    with pytest.raises(SetError) as error:
        sets.open_image(path)
    assert "y.npy does not exist" in one_line(error)
    whole = image(path).read_bytes()
    damaged = [whole[:-1], whole[:60], whole[:5], b"", b"<html>not an array</html>"]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(SetError) as error:
            sets.open_image(path)
        assert "y.npy is truncated or no array" in one_line(error)
    for array in (np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4), np.uint8), np.array(3, np.uint8)):
        np.save(path, array)
        with pytest.raises(SetError) as error:
            sets.open_image(path)
        assert "not an 8-bit image" in one_line(error)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(SetError):
        sets.open_image(path)
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    path.write_bytes(path.with_suffix(".npz").read_bytes())
    with pytest.raises(SetError) as error:
        sets.open_image(path)
    assert "NpzFile" in one_line(error)


def test_gray_rules_round_as_their_sources_do():
    colors = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 200, 30]]], np.uint8)
    assert sets.to_gray(colors, "matlab").tolist() == [[255, 0, 76, 150, 29, 124]]
    assert sets.to_gray(colors, "opencv").tolist() == [[255, 0, 76, 150, 29, 124]]
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    apart = sets.to_gray(pixels, "matlab").astype(int) - sets.to_gray(pixels, "opencv")
    assert set(np.unique(apart)) == {-1, 0, 1}
    gray = sets.to_gray(pixels, "matlab")
    assert gray.dtype == np.uint8
    assert sets.to_gray(gray, "opencv") is gray
    with pytest.raises(SetError, match="known: matlab, opencv"):
        sets.to_gray(pixels, "average")


def test_pixels_sha256_sees_pixels_and_not_memory_order():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    assert sets.pixels_sha256(np.asfortranarray(pixels)) == sets.pixels_sha256(pixels)
    assert sets.pixels_sha256(pixels[::-1]) != sets.pixels_sha256(pixels)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300, 3), (10, 12)])
def test_a_thumbnail_keeps_proportions_and_is_at_most_64(shape):
    small = sets.thumbnail(np.zeros(shape, np.uint8))
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
    assert [(i, j) for i, j, _ in sets.near_duplicates(photographs, test)] == [(1, 1), (2, 0), (3, 2)]
    flat = [np.full((30, 30), 128, np.uint8)]
    assert sets.near_duplicates(flat, flat) == []  # nothing to tell them by
