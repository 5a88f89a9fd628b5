"""From addresses, mirrors, packages, archives and the user's folders to decoded images."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import socket
import threading
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.images import sets
from lib.images.download import decode, download
from lib.images.fetch import Fetcher, Hopeless
from lib.images.registry import Entry, ManualSet, Registry
from lib.images.sets import SetError

FIELDS = [field.name for field in fields(Entry)]
MANUAL = [field.name for field in fields(ManualSet)]
DRAW = np.random.default_rng(0)
COLOR = DRAW.integers(0, 256, (12, 10, 3), dtype=np.uint8)
GRAY = DRAW.integers(0, 256, (9, 14), dtype=np.uint8)


def encoded(array, kind="png", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def table(path: Path, fields: list[str], rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, restval="")
        writer.writeheader()
        writer.writerows(rows)


class World:
    """A study in a temporary folder whose sets lie on a loopback server: set `one` (a, b) and the pairs `two` (c)."""

    def __init__(self, folder: Path, site):
        self.folder, self.site, self.rows, self.manual = folder, site, [], []
        self.downloads, self.cache, self.own = folder / "downloads", folder / "cache", folder / "own"
        self.add("one", "a", COLOR)
        self.add("one", "b", GRAY)
        self.add("two/target", "c", COLOR[::-1])
        self.add("two/input", "c", COLOR[:, ::-1])

    def add(self, reference, name, array, content=None, **changes):
        content = encoded(array) if content is None else content
        path = f"/{reference}/{name}.png"
        self.site.files[path] = content
        row = {
            **{"reference": reference, "name": name, "set": reference.split("/")[0], "url": self.site.url + path},
            **{"bytes": len(content), "sha256": sha256(content), "pixels_sha256": sets.pixels_sha256(array)},
            **{"channels": array.ndim if array.ndim == 3 else 1, "height": len(array), "width": array.shape[1]},
            **{"terms": "free", "overlaps": ""},
        }
        self.rows.append(row | changes)

    @property
    def registry(self) -> Registry:
        table(self.folder / "registry.csv", FIELDS, self.rows)
        table(self.folder / "manual_sets.csv", MANUAL, self.manual)
        table(self.folder / "terms.csv", ["key", "terms"], [{"key": "free", "terms": "do as you like"}])
        return Registry(self.folder)

    def download(self, *references, **options):
        """`download` into this folder with this registry, unless `options` say otherwise."""
        fetcher = Fetcher(self.cache, timeout=5, retries=1, backoff=0.01)
        options = {"registry": self.registry, "fetcher": fetcher, "own": self.own, **options}
        return download(references, self.downloads, self.cache, **options)

    def fails(self, *references, kind=SetError, lines=1, **options) -> str:
        with pytest.raises(kind) as error:
            self.download(*references, **options)
        assert str(error.value).count("\n") == lines - 1
        return str(error.value)

    @property
    def there(self) -> list[str]:
        files = (path for path in self.downloads.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.downloads)) for path in files)

    def image(self, name):
        return sets.open_image(self.downloads / "images" / f"{name}.npy")

    def mine(self, path, content) -> Path:
        path = self.own / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else encoded(content))
        return path


@pytest.fixture
def world(tmp_path, site):
    return World(tmp_path, site)


def test_only_what_is_asked_for_is_fetched_and_decoded_to_its_very_pixels(world, site):
    assert world.download("one") == []
    assert world.there == ["images/one/a.npy", "images/one/b.npy"]
    assert np.array_equal(world.image("one/a"), COLOR)
    assert np.array_equal(world.image("one/b"), GRAY)
    assert sorted(path for path, _ in site.log) == ["/one/a.png", "/one/b.png"]


def test_the_folder_holds_exactly_what_was_asked_for_last_and_nothing_is_fetched_twice(world, site):
    world.download("one")
    world.download("two")
    assert world.there == ["images/two/input/c.npy", "images/two/target/c.npy"]
    assert not (world.downloads / "images" / "one").exists()
    site.log.clear()
    world.download("one", "two")
    assert len(world.there) == 4
    assert site.log == []


def test_what_is_there_and_right_is_not_written_again(world, site):
    world.download("one")
    path = world.downloads / "images/one/a.npy"
    before = path.stat()
    world.download("one")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    path.write_bytes(path.read_bytes()[:-1] + b"?")  # same size, another pixel
    world.download("one")
    assert np.array_equal(world.image("one/a"), COLOR)


def test_manifests_of_what_was_downloaded_are_read_back(world):
    world.mine("mine/target/x.png", COLOR)
    world.mine("mine/input/x.png", COLOR[::-1].copy())
    world.download("one", "two", "own/mine")
    world.registry.write_manifests(world.downloads, {"t": {"train": ["one"], "test": ["two", "own/mine"]}})
    pair, mine = sets.read(world.downloads / "test" / "t.csv")
    assert (pair.set, pair.name, mine.set, mine.name) == ("two", "c", "mine", "x")
    assert np.array_equal(pair.load()[1], COLOR[:, ::-1])
    assert mine.pixels_sha256 == sets.pixels_sha256(COLOR)
    assert mine.input_sha256 == sets.pixels_sha256(COLOR[::-1])
    before = mine.target.stat().st_ino
    world.download("one", "two", "own/mine")
    assert (world.downloads / "test" / "t.csv").exists()  # not swept away with old images
    assert mine.target.stat().st_ino == before  # decoded to the same, not written again


def test_an_image_that_shows_a_test_set_is_not_trained_on(world):
    world.rows[0]["overlaps"] = "elsewhere two"
    world.registry.write_manifests(
        world.downloads, {"t": {"train": ["one"], "test": ["two"]}, "u": {"train": ["one"], "test": ["one"]}}
    )
    counts = {name: (world.downloads / "train" / f"{name}.csv").read_text().count("\n") - 1 for name in "tu"}
    assert counts == {"t": 1, "u": 2}


def test_a_wrong_file_is_a_line_and_the_good_ones_stay(world, site):
    site.files["/one/a.png"] = wrong = b"?" * world.rows[0]["bytes"]
    text = world.fails("one", "two")
    for word in ("set one: a", "is wrong", sha256(wrong), world.rows[0]["sha256"]):
        assert word in text
    assert len(world.there) == 3
    del site.files["/one/b.png"]
    (world.downloads / "images/one/b.npy").unlink()
    (world.cache / "files" / f"{world.rows[1]['sha256']}.png").unlink()
    text = world.fails("one", "two", lines=2)
    assert "set one: b" in text
    assert "answer 404" in text


def test_many_wrong_files_are_ten_lines(world, site):
    for i in range(13):
        world.add("three", str(i), GRAY, sha256="0" * 63 + f"{i:x}")
    assert world.fails("three", lines=11).endswith("and 3 more files")


def test_a_decoder_that_differs_is_called_that(world):
    world.rows[0]["pixels_sha256"] = "0" * 64
    text = world.fails("one")
    assert "set one: a: the file is the published one, but Pillow" in text
    assert sets.pixels_sha256(COLOR) in text
    assert "0" * 64 in text


def test_gray_stored_as_three_channels_keeps_the_first(world):
    world.add("three", "g", GRAY, encoded(np.repeat(GRAY[..., None], 3, axis=2)))
    world.add("three", "c", np.repeat(GRAY[..., None], 3, axis=2), encoded(GRAY))
    world.download("three")
    assert world.image("three/g").shape == GRAY.shape
    assert world.image("three/c").shape == (*GRAY.shape, 3)


def test_an_unreachable_host_stops_at_once(world):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for row in world.rows:
            row["url"] = f"http://127.0.0.1:{free.getsockname()[1]}/x.png"
    assert "refused" in world.fails("one", "two", kind=Hopeless, workers=1)


def test_a_full_disk_leaves_the_old_file_and_no_rest(world, monkeypatch):
    world.download("one")
    path = world.downloads / "images/one/a.npy"
    path.write_bytes(b"old")

    tries = []

    def full(file, array):
        tries.append(file)
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert "set one: a: no space left for" in world.fails("one", kind=Hopeless)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []
    for i in range(20):
        world.add("three", str(i), GRAY)
    tries.clear()
    world.fails("three", kind=Hopeless, workers=1)
    assert len(tries) < 20  # the others would fare no better


def test_two_downloads_at_once_into_one_folder(world, site):
    errors, registry = [], world.registry

    def one():
        try:
            download(["one", "two"], world.downloads, world.cache, registry=registry)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(world.there) == 4
    assert len(site.log) == 4


def test_progress_ends_at_the_whole_and_never_goes_back(world):
    seen = []
    world.mine("mine/x.png", COLOR)
    world.download("one", "own/mine", progress=lambda p: seen.append((p.files, p.bytes, str(p))))
    size = world.rows[0]["bytes"] + world.rows[1]["bytes"]
    assert [s[:2] for s in seen] == sorted(s[:2] for s in seen)
    assert seen[-1][:2] == (3, size)
    assert seen[-1][2] == "3/3 images, 0.0/0.0 MB"


def test_a_plain_file_is_kept_as_it_is(world, site):
    content = b"weights of a network"
    row = {"pixels_sha256": "", "channels": 0, "height": 0, "width": 0}
    world.add("weights", "net.pth", GRAY, content, **row)
    world.download("one", "weights")
    assert (world.downloads / "weights" / "net.pth").read_bytes() == content
    (world.downloads / "weights" / "net.pth").write_bytes(b"?")
    world.download("weights")
    assert world.there == ["weights/net.pth"]
    assert (world.downloads / "weights" / "net.pth").read_bytes() == content
    world.download("one")
    assert world.there == ["images/one/a.npy", "images/one/b.npy"]


# -- packages


def test_an_image_in_a_package_is_checked_by_its_hash(world):
    world.rows = [world.rows[0] | {"url": "package:skimage/data/moon.png"}]
    text = world.fails("one")
    assert "skimage's data/moon.png has sha256" in text
    assert world.rows[0]["sha256"] in text
    for url in ("package:skimage/data/none.png", "package:no_such_package/x.png"):
        world.rows = [world.rows[0] | {"url": url}]
        assert "is not in the package" in world.fails("one")


# -- mirrors


@pytest.fixture
def copy(world, tmp_path, site):
    """A mirror of set `one`: lossless WebP, gray as three channels; the real addresses lead nowhere."""
    folder = tmp_path / "shared" / "mirror"
    folder.mkdir(parents=True)
    rows = []
    for row, array in zip(world.rows, (COLOR, np.repeat(GRAY[..., None], 3, axis=2)), strict=False):
        name = f"{row['name']}.webp"
        content = encoded(array, "webp", lossless=True)
        (folder / name).write_bytes(content)
        site.files[f"/mirror/{name}"] = content
        rows.append({"file": name, "pixels_sha256": row["pixels_sha256"]})
    table(folder / "registry.csv", ["file", "pixels_sha256"], rows)
    site.files["/mirror/registry.csv"] = (folder / "registry.csv").read_bytes()
    for row in world.rows:
        row["url"] = row["url"].replace("/one/", "/gone/")
    return folder


@pytest.mark.parametrize("by_url", [False, True])
def test_a_mirror_serves_images_by_their_pixels(world, copy, site, by_url):
    world.download("one", mirror=f"{site.url}/mirror/" if by_url else str(copy))
    assert np.array_equal(world.image("one/a"), COLOR)
    assert np.array_equal(world.image("one/b"), GRAY)
    assert all(path.startswith("/mirror/") for path, _ in site.log)
    assert bool(site.log) == by_url


def test_the_cache_goes_before_the_mirror(world, copy, site):
    for row in world.rows:
        row["url"] = row["url"].replace("/gone/", "/one/")
    world.download("one")
    world.download("two")
    site.log.clear()
    world.download("one", mirror=f"{site.url}/mirror")
    assert [path for path, _ in site.log] == ["/mirror/registry.csv"]


def test_what_a_mirror_does_not_have_comes_from_its_address(world, copy, site):
    world.download("two", mirror=str(copy))
    assert len(world.there) == 2
    (copy / "a.webp").unlink()
    assert "/gone/a.png: answer 404" in world.fails("one", mirror=str(copy))


@pytest.mark.parametrize("by_url", [False, True])
def test_a_mirrors_wrong_file_is_a_line_with_both_hashes(world, copy, site, by_url):
    address = f"{site.url}/mirror" if by_url else str(copy)
    good, wrong = (copy / "a.webp").read_bytes(), encoded(COLOR[::-1], "webp", lossless=True)
    (copy / "a.webp").write_bytes(wrong)
    site.files["/mirror/a.webp"] = wrong
    text = world.fails("one", mirror=address)
    for word in ("set one: a: the mirror's file", sets.pixels_sha256(COLOR), sets.pixels_sha256(COLOR[::-1])):
        assert word in text
    for damage in (good[:-40], b"<html>sorry</html>"):
        (copy / "a.webp").write_bytes(damage)
        site.files["/mirror/a.webp"] = damage
        assert "set one: a" in world.fails("one", mirror=address)
    (copy / "a.webp").write_bytes(good)
    site.files["/mirror/a.webp"] = good
    world.download("one", mirror=address)
    assert len(world.there) == 2


def test_a_folder_that_is_no_mirror_is_named(world, tmp_path):
    assert f"mirror {tmp_path}/none: it has no registry.csv" in world.fails("one", mirror=f"{tmp_path}/none")
    (tmp_path / "other").mkdir()
    table(tmp_path / "other" / "registry.csv", ["set"], [{"set": "x"}])
    assert "lacks the columns" in world.fails("one", mirror=f"{tmp_path}/other")


def test_a_damaged_cache_is_mended_from_the_mirror(world, copy):
    (world.cache / "files").mkdir(parents=True)
    (world.cache / "files" / f"{world.rows[0]['sha256']}.png").write_bytes(b"damaged")
    world.download("one", mirror=str(copy))
    assert np.array_equal(world.image("one/a"), COLOR)


def test_plain_files_lie_beside_a_mirror(world, copy):
    content = b"weights of a network"
    row = {"pixels_sha256": "", "channels": 0, "url": world.site.url + "/gone"}
    world.add("weights", "net.pth", GRAY, content, **row)
    (copy.parent / "weights").mkdir()
    (copy.parent / "weights" / "net.pth").write_bytes(content)
    world.download("weights", mirror=str(copy))
    assert world.there == ["weights/net.pth"]


# -- the user's own folders


def test_the_users_images_are_decoded_as_they_are_seen(world):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    opaque = np.dstack([COLOR, np.full(COLOR.shape[:2], 255, np.uint8)])
    palette = Image.fromarray(COLOR).quantize(16)
    buffer = io.BytesIO()
    palette.save(buffer, "png")
    world.mine("mine/rotated.png", encoded(COLOR, exif=exif))
    world.mine("mine/opaque.png", opaque)
    world.mine("mine/palette.png", buffer.getvalue())
    world.mine("mine/gray.bmp", encoded(GRAY, "bmp"))
    world.mine("mine/gray_alpha.png", encoded(np.dstack([GRAY, np.full(GRAY.shape, 255, np.uint8)])))
    world.mine("mine/photo.JPG", encoded(COLOR, "jpeg", quality=95))
    world.mine("mine/.DS_Store", b"?")
    world.mine("mine/licence.txt", b"mine")
    world.download("own/mine")
    assert len(world.there) == 6
    assert np.array_equal(world.image("own/mine/rotated"), np.rot90(COLOR, -1))
    assert np.array_equal(world.image("own/mine/opaque"), COLOR)
    assert np.array_equal(world.image("own/mine/palette"), np.asarray(palette.convert("RGB")))
    assert np.array_equal(world.image("own/mine/gray"), GRAY)
    assert np.array_equal(world.image("own/mine/gray_alpha"), GRAY)
    frame = world.registry.describe(["own/mine"], world.downloads)
    assert frame.loc["own/mine", "images"] == 6
    assert frame.loc["own/mine", "terms"] == "the user's own"


def sixteen_bit_color() -> bytes:
    """A 1 x 1 PNG with 16 bits a channel; Pillow writes none."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + bytes(range(6)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


TRANSPARENT = np.dstack([COLOR, np.full(COLOR.shape[:2], 254, np.uint8)])
FRAMES = {"save_all": True, "append_images": [Image.fromarray(GRAY)]}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.png", encoded(GRAY.astype(np.uint16) * 257), "more than 8 bits"),
        ("x.png", sixteen_bit_color(), "more than 8 bits"),
        ("x.tif", encoded(GRAY.astype(np.float32), "tiff"), "more than 8 bits"),
        ("x.png", encoded(TRANSPARENT), "transparent pixels"),
        ("x.png", encoded(COLOR, transparency=tuple(int(c) for c in COLOR[0, 0])), "transparent pixels"),
        ("x.tif", encoded(GRAY, "tiff", **FRAMES), "2 frames"),
        ("x.png", encoded(COLOR)[:-30], "truncated or no image"),
        ("x.jpg", encoded(COLOR, "jpeg")[:300], "truncated or no image"),
        ("x.png", b"", "truncated or no image"),
        ("x.png", b"<html>not found</html>", "truncated or no image"),
        ("x.docx", b"text", "is no image file"),
        (".hidden", b"", "has no images"),
    ],
    ids=range(12),
)
def test_what_cannot_be_used_is_refused_by_name(world, name, content, words):
    path = world.mine(f"mine/{name}", content)
    text = world.fails("own/mine")
    assert words in text
    assert str(path if words != "has no images" else path.parent) in text
    assert world.there == []


def test_other_colour_spaces_are_refused(world, tmp_path):
    Image.new("CMYK", (4, 4)).save(tmp_path / "x.jpg")
    with pytest.raises(SetError, match="x: its colours are CMYK"):
        decode(tmp_path / "x.jpg", "x")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns before it gives up
def test_no_damage_to_a_file_escapes_as_another_error(tmp_path):
    draw, path = np.random.default_rng(1), tmp_path / "x"
    for kind in ("png", "jpeg", "webp", "bmp", "tiff", "gif"):
        whole = encoded(COLOR, kind)
        for _ in range(60):
            content = bytearray(whole)
            for at in draw.integers(0, len(content), 3):
                content[at] = draw.integers(0, 256)
            path.write_bytes(content[: draw.integers(1, len(content) + 1)])
            try:
                assert sets.is_image(decode(path, "x"))
            except SetError as error:
                assert "\n" not in str(error)


def test_a_missing_folder_and_two_files_of_one_name_are_errors(world):
    assert f"there is no folder {world.own / 'mine'}" in world.fails("own/mine")
    world.mine("mine/x.png", COLOR)
    world.mine("mine/x.bmp", encoded(COLOR, "bmp"))
    assert "x.png and x.bmp have the same name" in world.fails("own/mine")


def test_pairs_of_the_user_must_match(world):
    world.mine("mine/target/x.png", COLOR)
    assert "has no images" in world.fails("own/mine")
    world.mine("mine/input/y.png", COLOR)
    assert "'x' is not in both" in world.fails("own/mine")
    world.mine("mine/target/y.png", COLOR[:-1])
    world.mine("mine/input/x.png", COLOR)
    assert "y has shape (12, 10, 3) as input and (11, 10, 3) as target" in world.fails("own/mine")


# -- sets that are not fetched image by image


def by_hand(**changes):
    row = {"reference": "big/train", "pairs": "no", "images": 2, "where": "https://example.org/big", "terms": "ask"}
    return {**row, "prepare": "the images of big_HR", **changes}


def test_a_set_to_fetch_by_hand_says_from_where_and_to_which_folder(world):
    world.manual = [by_hand(height=12, width=10)]
    text = world.fails("big/train")
    assert f"get it from https://example.org/big and put into {world.own / 'big' / 'train'}: the images of" in text
    world.mine("big/train/1.png", COLOR)
    assert "has 1 of its 2 images" in world.fails("big/train")
    world.mine("big/train/2.png", GRAY)
    assert "2 has 9 x 14 pixels (rows x columns), not 12 x 10" in world.fails("big/train")
    world.mine("big/train/2.png", COLOR)
    assert world.download("big/train") == []
    assert world.there == ["images/big/train/1.npy", "images/big/train/2.npy"]
    assert world.registry.describe(["big/train"], world.downloads).loc["big/train", "terms"] == "ask"


def test_pairs_to_fetch_by_hand_must_be_pairs(world):
    world.manual = [by_hand(pairs="yes")]
    assert "(folders input and target)" in world.fails("big/train")
    world.mine("big/train/1.png", COLOR)
    world.mine("big/train/2.png", COLOR)
    assert "of its 2 pairs in the folders input and target" in world.fails("big/train")


def packed(**members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"big_HR/{name}.png", content)
    return buffer.getvalue()


def test_an_archive_is_fetched_unpacked_and_not_fetched_again(world, site):
    content = packed(p=encoded(COLOR), q=encoded(GRAY))
    site.files["/big.zip"] = content
    known = {"bytes": len(content), "sha256": sha256(content)}
    world.manual = [by_hand(archive=f"{site.url}/big.zip", members="big_HR/", **known)]
    assert world.download("one", "big/train") == []
    assert np.array_equal(world.image("big/train/q"), GRAY)
    site.log.clear()
    world.download("big/train")
    assert site.log == []
    assert world.there == ["images/big/train/p.npy", "images/big/train/q.npy"]


def test_an_archive_without_known_hash_is_reported_as_unverified(world, site):
    site.files["/big.zip"] = packed(p=encoded(COLOR), q=encoded(GRAY))
    world.manual = [by_hand(archive=f"{site.url}/big.zip", members="big_HR/")]
    for _ in range(2):
        (remark,) = world.download("big/train")
        assert "set big/train: no sha256 of big.zip is known" in remark


def test_a_wrong_or_unsafe_archive_is_a_line(world, site):
    world.manual = [by_hand(archive=f"{site.url}/big.zip", members="big_HR/", sha256="0" * 64, bytes=9)]
    site.files["/big.zip"] = packed(p=encoded(COLOR))
    assert "set big/train: " in world.fails("big/train")
    world.manual[0].update(sha256="", bytes="")
    assert "has 1 of its 2 images" in world.fails("big/train")
