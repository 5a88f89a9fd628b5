"""From addresses, mirrors, packages, archives and the user's folders to decoded images."""

from __future__ import annotations

import errno
import hashlib
import io
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from oracles import encoded
from PIL import Image

from lib.images import sets
from lib.images.download import decode, download, size
from lib.images.fetch import Fetcher, Hopeless
from lib.images.registry import Entry, ManualSet, Registry
from lib.images.sets import SetError

DRAW = np.random.default_rng(0)
COLOR = DRAW.integers(0, 256, (12, 10, 3), dtype=np.uint8)
GRAY = DRAW.integers(0, 256, (9, 14), dtype=np.uint8)
GRAY_AS_RGB = np.repeat(GRAY[..., None], 3, axis=2)
WEIGHTS = b"weights of a network"


def tiff(array) -> bytes:
    """A TIFF of (rows, columns), or in planes of (3, rows, columns), as Pillow does not write it."""
    buffer, planes = io.BytesIO(), {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(buffer, array, **planes if array.ndim == 3 else {"photometric": "minisblack"})
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def table(path: Path, fields, rows: list[dict]) -> None:
    pd.DataFrame(rows, columns=[*fields]).to_csv(path, index=False)


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
        table(self.folder / "registry.csv", Entry.__annotations__, self.rows)
        table(self.folder / "manual_sets.csv", ManualSet.__annotations__, self.manual)
        table(self.folder / "terms.csv", ["key", "terms"], [{"key": "free", "terms": "do as you like"}])
        return Registry(self.folder)

    def download(self, *references, **options):
        """`download` into this folder with this registry, unless `options` say otherwise."""
        fetcher = Fetcher(self.cache, timeout=5, retries=1, backoff=0.01)
        options = {"registry": self.registry, "fetcher": fetcher, "own": self.own, **options}
        return download(references, self.downloads, self.cache, **options)

    def fails(self, *references, words=(), kind=SetError, lines=1, **options) -> str:
        with pytest.raises(kind) as error:
            self.download(*references, **options)
        text = str(error.value)
        assert text.count("\n") == lines - 1
        for word in [words] if isinstance(words, str) else words:
            assert word in text
        return text

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


def test_the_folder_holds_exactly_what_was_asked_for_last_and_nothing_is_fetched_twice(world, site):
    assert world.download("one") == []
    assert world.there == ["images/one/a.npy", "images/one/b.npy"]
    assert np.array_equal(world.image("one/a"), COLOR)
    assert np.array_equal(world.image("one/b"), GRAY)
    assert sorted(path for path, _ in site.log) == ["/one/a.png", "/one/b.png"]
    world.download("two")
    assert world.there == ["images/two/input/c.npy", "images/two/target/c.npy"]
    assert not (world.downloads / "images" / "one").exists()
    site.log.clear()
    world.download("one", "two")
    assert len(world.there) == 4
    assert site.log == []


def test_what_is_there_and_right_is_not_written_again(world, site):
    world.mine("mine/x.png", COLOR)
    world.download("one", "own/mine")
    paths = [world.downloads / "images" / name for name in ("one/a.npy", "own/mine/x.npy")]
    before = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in paths]
    world.download("one", "own/mine")
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in paths] == before
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1] + b"?")  # same size, another pixel
    world.download("one", "own/mine")
    assert np.array_equal(world.image("one/a"), COLOR)
    assert np.array_equal(world.image("own/mine/x"), COLOR)


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
    world.download("one", "two", "own/mine")
    assert (world.downloads / "test" / "t.csv").exists()  # not swept away with old images


def test_training_sees_no_tested_scene_no_tested_pixels_and_a_colour_task_no_gray(world):
    world.rows[0]["overlaps"] = "elsewhere two"
    world.mine("mine/a.png", COLOR)
    world.mine("mine/b.png", GRAY)
    world.mine("mine/c.png", COLOR[::-1])
    world.download("one", "two", "own/mine")
    train = ["one", "own/mine"]
    tasks = {"scene": {"train": train, "test": ["two"]}, "pixels": {"train": ["own/mine"], "test": ["one"]}}
    world.registry.write_manifests(world.downloads, {**tasks, "colour": tasks["scene"]}, ["colour"])
    names = {task: [item.name for item in sets.read(world.downloads / "train" / f"{task}.csv")]
             for task in ("scene", "pixels", "colour")}  # fmt: skip
    assert names == {"scene": ["b", "a", "b"], "pixels": ["c"], "colour": ["a"]}
    with pytest.raises(SetError, match="task t: own/mine is named for train and for test"):
        world.registry.write_manifests(world.downloads, {"t": {"train": train, "test": ["own/mine"]}})


def test_wrong_files_are_a_line_each_and_the_good_ones_stay(world, site):
    site.files["/one/a.png"] = wrong = b"?" * world.rows[0]["bytes"]
    world.fails("one", "two", words=("set one: a", "wrong file", sha256(wrong), world.rows[0]["sha256"]))
    assert len(world.there) == 3
    for i in range(13):
        world.add("three", str(i), GRAY, sha256="0" * 63 + f"{i:x}")
    assert world.fails("three", lines=11).endswith("and 3 more files")


def test_a_decoder_that_differs_is_called_that(world):
    world.rows[0]["pixels_sha256"] = "0" * 64
    words = "set one: a: the file is the published one, but Pillow", sets.pixels_sha256(COLOR), "0" * 64
    world.fails("one", words=words)


def test_gray_stored_as_three_channels_keeps_the_first(world):
    world.add("three", "g", GRAY, encoded(GRAY_AS_RGB))
    world.add("three", "c", GRAY_AS_RGB, encoded(GRAY))
    world.download("three")
    assert world.image("three/g").shape == GRAY.shape
    assert world.image("three/c").shape == GRAY_AS_RGB.shape


def test_a_full_disk_leaves_the_old_file_and_no_rest(world, monkeypatch):
    world.download("one")
    path = world.downloads / "images/one/a.npy"
    path.write_bytes(b"old")
    tries = []

    def full(file, array):
        tries.append(file)
        file.write(b"half of it")
        time.sleep(0.02)  # a real disk takes its time, in which the others are called off
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    world.fails("one", words="set one: a: no space left for", kind=Hopeless)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []
    for i in range(20):
        world.add("three", str(i), GRAY)
    tries.clear()
    world.fails("three", kind=Hopeless, workers=1)
    assert len(tries) < 20  # the others would fare no better


def test_two_downloads_at_once_into_one_folder(world, site):
    registry = world.registry
    with ThreadPoolExecutor(4) as pool:
        both = [
            pool.submit(download, ["one", "two"], world.downloads, world.cache, registry=registry) for _ in range(4)
        ]
    assert [one.result() for one in both] == 4 * [[]]
    assert len(world.there) == 4
    assert len(site.log) == 4


def test_progress_ends_at_the_whole_and_never_goes_back(world):
    seen = []
    world.mine("mine/x.png", COLOR)
    world.download("one", "own/mine", progress=lambda p: seen.append((p.files, p.bytes, str(p))))
    assert [s[:2] for s in seen] == sorted(s[:2] for s in seen)
    assert seen[-1] == (3, world.rows[0]["bytes"] + world.rows[1]["bytes"], "3/3 images, 0.0/0.0 MB")


def test_a_plain_file_is_kept_as_it_is(world):
    world.add("weights", "net.pth", GRAY, WEIGHTS, pixels_sha256="", channels=0, height=0, width=0)
    path = world.downloads / "weights" / "net.pth"
    world.download("one", "weights")
    assert path.read_bytes() == WEIGHTS
    path.write_bytes(b"?")
    world.download("weights")
    assert world.there == ["weights/net.pth"] and path.read_bytes() == WEIGHTS
    world.download("one")
    assert world.there == ["images/one/a.npy", "images/one/b.npy"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("package:skimage/data/moon.png", ("skimage's data/moon.png has sha256", sha256(encoded(COLOR)))),
        ("package:skimage/data/none.png", "is not in the package"),
        ("package:no_such_package/x.png", "is not in the package"),
    ],
)
def test_an_image_in_a_package_is_checked_by_its_hash(world, url, words):
    world.rows = [world.rows[0] | {"url": url}]
    world.fails("one", words=words)


# -- mirrors


@pytest.fixture
def copy(world, tmp_path, site):
    """A mirror of set `one`: lossless WebP, gray as three channels; the real addresses lead nowhere."""
    folder = tmp_path / "shared" / "mirror"
    folder.mkdir(parents=True)
    rows = [{"file": f"{row['name']}.webp", "pixels_sha256": row["pixels_sha256"]} for row in world.rows[:2]]
    table(folder / "registry.csv", ["file", "pixels_sha256"], rows)
    for name, array in (("a.webp", COLOR), ("b.webp", GRAY_AS_RGB)):
        (folder / name).write_bytes(encoded(array, "webp", lossless=True))
    site.files |= {f"/mirror/{path.name}": path.read_bytes() for path in folder.iterdir()}
    for row in world.rows:
        row["url"] = row["url"].replace("/one/", "/gone/")
    return folder


@pytest.fixture(params=["folder", "url"])
def address(request, copy, site):
    return f"{site.url}/mirror/" if request.param == "url" else str(copy)


def test_a_mirror_serves_images_by_their_pixels(world, address, site):
    world.download("one", mirror=address)
    assert np.array_equal(world.image("one/a"), COLOR)
    assert np.array_equal(world.image("one/b"), GRAY)
    assert all(path.startswith("/mirror/") for path, _ in site.log)
    assert bool(site.log) == address.startswith("http")


def test_the_cache_goes_before_the_mirror_and_a_damaged_one_does_not(world, copy, site):
    cached = world.cache / "files" / f"{world.rows[0]['sha256']}.png"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(encoded(COLOR))
    site.faults["/mirror/a.webp"] = [404]
    world.download("one", mirror=f"{site.url}/mirror")
    assert [path for path, _ in site.log] == ["/mirror/registry.csv", "/mirror/b.webp"]
    world.download("two")
    cached.write_bytes(b"damaged")
    world.download("one", mirror=str(copy))
    assert np.array_equal(world.image("one/a"), COLOR)


def test_what_a_mirror_does_not_have_comes_from_its_address(world, copy):
    world.download("two", mirror=str(copy))
    assert len(world.there) == 2
    (copy / "a.webp").unlink()
    world.fails("one", words="/gone/a.png: answer 404", mirror=str(copy))


def test_a_mirrors_wrong_file_is_a_line_and_is_fetched_again(world, copy, address, site):
    good, wrong = (copy / "a.webp").read_bytes(), encoded(COLOR[::-1], "webp", lossless=True)
    both = sets.pixels_sha256(COLOR), sets.pixels_sha256(COLOR[::-1])
    for content, words in (
        (wrong, ("set one: a: the mirror's file", *both)),
        (good[:-40], "set one: a"),
        (b"<html>sorry</html>", "set one: a"),
        (good, None),
    ):
        (copy / "a.webp").write_bytes(content)
        site.files["/mirror/a.webp"] = content
        if words:
            world.fails("one", words=words, mirror=address)
    world.download("one", mirror=address)
    assert len(world.there) == 2


def test_a_folder_that_is_no_mirror_is_named(world, tmp_path):
    world.fails("one", words=f"mirror {tmp_path}/none: it has no registry.csv", mirror=f"{tmp_path}/none")
    (tmp_path / "other").mkdir()
    table(tmp_path / "other" / "registry.csv", ["set"], [{"set": "x"}])
    world.fails("one", words="lacks the columns", mirror=f"{tmp_path}/other")


def test_plain_files_lie_beside_a_mirror(world, copy):
    world.add("weights", "net.pth", GRAY, WEIGHTS, pixels_sha256="", channels=0, url=f"{world.site.url}/gone")
    (copy.parent / "weights").mkdir()
    (copy.parent / "weights" / "net.pth").write_bytes(WEIGHTS)
    world.download("weights", mirror=str(copy))
    assert world.there == ["weights/net.pth"]


# -- the user's own folders


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    return encoded(COLOR, exif=exif)


PALETTE = Image.fromarray(COLOR).quantize(16)
SEEN = {
    "rotated.png": (rotated(), np.rot90(COLOR, -1)),
    "opaque.png": (encoded(np.dstack([COLOR, np.full(COLOR.shape[:2], 255, np.uint8)])), COLOR),
    "palette.png": (encoded(PALETTE), np.asarray(PALETTE.convert("RGB"))),
    "gray.bmp": (encoded(GRAY, "bmp"), GRAY),
    "gray_alpha.png": (encoded(np.dstack([GRAY, np.full(GRAY.shape, 255, np.uint8)])), GRAY),
    "photo.TIF": (encoded(COLOR, "tiff"), COLOR),
    "planes.tif": (tiff(COLOR.transpose(2, 0, 1)), COLOR),
    "gray_in_three.png": (encoded(GRAY_AS_RGB), GRAY),
}


def test_the_users_images_are_decoded_as_they_are_seen(world):
    for name, (content, _) in SEEN.items():
        world.mine(f"mine/{name}", content)
    world.mine("mine/.DS_Store", b"?")
    world.mine("mine/licence.txt", b"mine")
    world.download("own/mine")
    assert len(world.there) == len(SEEN)
    for name, (_, pixels) in SEEN.items():
        assert np.array_equal(world.image(f"own/mine/{Path(name).stem}"), pixels), name
    row = world.registry.describe(["own/mine"], world.downloads).loc["own/mine"]
    assert (row["images"], row.channels, row.terms) == (len(SEEN), "1/3", "the user's own")


#: A 1 x 1 PNG with 16 bits a channel, which Pillow cannot write.
SIXTEEN_BIT_COLOR = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000011002000000c0e78f9d000000"
    "0f49444154789c636060646266610500002a00101acc8c240000000049454e44ae426082"
)
TRANSPARENT = np.dstack([COLOR, np.full(COLOR.shape[:2], 254, np.uint8)])
FRAMES = {"save_all": True, "append_images": [Image.fromarray(GRAY)]}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.png", encoded(GRAY.astype(np.uint16) * 257), "more than 8 bits"),
        ("x.png", SIXTEEN_BIT_COLOR, "more than 8 bits"),
        ("x.tif", encoded(GRAY.astype(np.float32), "tiff"), "more than 8 bits"),
        ("x.tif", tiff(COLOR.transpose(2, 0, 1).astype(np.uint16) * 257), "more than 8 bits"),
        ("x.tif", tiff(GRAY.astype(np.int8)), "its pixels are signed numbers"),
        ("x.png", encoded(TRANSPARENT), "transparent pixels"),
        ("x.png", encoded(COLOR, transparency=tuple(int(c) for c in COLOR[0, 0])), "transparent pixels"),
        ("x.jpg", encoded(Image.new("CMYK", (4, 4)), "jpeg"), "its colours are CMYK"),
        ("x.tif", encoded(GRAY, "tiff", **FRAMES), "2 frames"),
        ("x.png", encoded(COLOR)[:-30], "truncated or no image"),
        ("x.jpg", encoded(COLOR, "jpeg")[:300], "truncated or no image"),
        ("x.png", b"", "truncated or no image"),
        ("x.png", b"<html>not found</html>", "truncated or no image"),
        ("x.docx", b"text", "is no image file"),
        ("<b>$x.png", encoded(COLOR), "has a name that reports cannot show"),
        (".hidden", b"", "has no images"),
        ("sub/x.png", encoded(COLOR), "is a folder"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(world, name, content, words):
    path = world.mine(f"mine/{name}", content)
    if words in ("has no images", "is a folder"):
        path = path.parent
    world.fails("own/mine", words=(words, str(path)))
    assert world.there == []


def test_damaged_exif_data_hides_no_size_and_is_no_remark_without_a_file(tmp_path):
    (tmp_path / "x.jpg").write_bytes(encoded(GRAY, "jpeg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0"))
    with warnings.catch_warnings(action="error"):
        assert size(tmp_path / "x.jpg") == GRAY.shape


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


def test_own_folders_must_exist_with_one_file_a_name_and_pairs_must_match(world):
    world.fails("own/mine", words=f"there is no folder {world.own / 'mine'}")
    world.mine("mine/x.png", COLOR)
    world.mine("mine/x.bmp", encoded(COLOR, "bmp"))
    world.fails("own/mine", words="x.png and x.bmp have the same name")
    for path, content, words in (
        ("target/x.png", COLOR, "has no images"),
        ("input/y.png", COLOR, "'x' is not in both"),
        ("target/y.png", COLOR[:-1], "'x' is not in both"),
        ("input/x.png", COLOR, "y has 12 x 10 pixels as input and 11 x 10 as target"),
        ("input/y.png", COLOR[:, :5], "y has 12 x 5 pixels as input and 11 x 10 as target"),
        ("z.png", COLOR, "z.png lies beside the folders of pairs"),
    ):
        world.mine(f"pairs/{path}", content)
        world.fails("own/pairs", words=words)


# -- sets that are not fetched image by image


def by_hand(**changes):
    row = {"reference": "big/train", "pairs": "no", "images": 2, "where": "https://example.org/big", "terms": "ask"}
    return {**row, "prepare": "the images of big_HR", **changes}


def test_a_set_to_fetch_by_hand_says_from_where_and_to_which_folder(world):
    world.manual = [by_hand(height=12, width=10)]
    words = f"get it from https://example.org/big and put into {world.own / 'big' / 'train'}: the images of"
    world.fails("big/train", words=words)
    world.mine("big/train/1.png", COLOR)
    world.fails("big/train", words="has 1 of its 2 images")
    world.mine("big/train/2.png", GRAY)
    world.fails("big/train", words="2 has 9 x 14 pixels (rows x columns), not 12 x 10")
    world.mine("big/train/2.png", COLOR)
    assert world.download("big/train") == []
    assert world.there == ["images/big/train/1.npy", "images/big/train/2.npy"]
    assert world.registry.describe(["big/train"], world.downloads).loc["big/train", "terms"] == "ask"
    world.manual = [by_hand(pairs="yes")]
    world.fails("big/train", words="of its 2 pairs in the folders input and target")


def packed(**members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"big_HR/{name}.png", content)
    return buffer.getvalue()


@pytest.mark.parametrize("known", [True, False])
def test_an_archive_is_fetched_unpacked_and_not_fetched_again(world, site, known):
    content = packed(p=encoded(COLOR), q=encoded(GRAY))
    site.files["/big.zip"] = content
    hashes = {"bytes": len(content), "sha256": sha256(content)} if known else {}
    world.manual = [by_hand(archive=f"{site.url}/big.zip", members="big_HR/", **hashes)]
    said = [] if known else ["set big/train: no sha256 of big.zip is known; c"]
    for _ in range(2):
        assert [remark[:47] for remark in world.download("big/train")] == said
    assert np.array_equal(world.image("big/train/q"), GRAY)
    assert site.log == [("/big.zip", 0)]
    assert world.there == ["images/big/train/p.npy", "images/big/train/q.npy"]
