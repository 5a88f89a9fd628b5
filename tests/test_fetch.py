"""Transfers over a real loopback server that misbehaves, and archives that should not be trusted."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import socket
import stat
import tarfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from loopback import no_file_larger_than
from oracles import refused

from lib.images.fetch import CHUNK, Fetcher, Hopeless, extract
from lib.images.sets import SetError

CONTENT = np.random.default_rng(0).bytes(300_000)
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"\n<!DOCTYPE html><html><body>Sign in to continue</body></html>"


@pytest.fixture
def get(site, tmp_path):
    """Fetch `/x.png` as set s, image x; returns the path. Waits are a hundredth of a second."""
    site.files["/x.png"] = CONTENT

    def get(sha256=SHA256, size=SIZE, url=f"{site.url}/x.png", limit=2 * SIZE, **options):
        fetcher = Fetcher(tmp_path, **{"timeout": 5, "retries": 2, "backoff": 0.01, **options})
        target = tmp_path / "files" / "x.png"
        fetcher.fetch(url, target, "set s: x", sha256, size, limit)
        return target

    return get


@pytest.fixture
def part(tmp_path):
    path = tmp_path / "files" / "x.png.part"
    path.parent.mkdir()
    return path


def fails(get, *words, kind=SetError, **options):
    with refused(kind, "set s: x", *words) as error:
        get(**options)
    assert "object at" not in str(error.value)
    return str(error.value)


def test_a_file_is_fetched_once_and_fetched_again_when_damaged(get, site):
    path = get()
    assert path.read_bytes() == CONTENT
    get()
    assert site.log == [("/x.png", 0)]
    path.write_bytes(CONTENT[:-1])
    assert get().read_bytes() == CONTENT
    assert len(site.log) == 2


@pytest.mark.parametrize(
    ("left", "faults", "starts"),
    [
        (CONTENT[:123_456], [], [123_456]),
        (CONTENT, [], []),  # its hash is enough
        (b"x" * 1000, [], [1000, 0]),
        (b"x" * SIZE, [], [0]),
        (CONTENT + b"x", [], [0]),
        (CONTENT[:1000], ["no range"], [1000]),
        (b"", [("cut no length", 1000), "no length"], [0, 1000]),
        (b"", [503, (429, {"Retry-After": "0"})], [0, 0, 0]),
        (b"", [(302, {"Location": "/x.png"})], [0, 0]),
        (b"", [("slow", 30_000, 0.05)], [0]),
        (b"", [("stall", 50_000, 1.5)], [0, 50_000 // CHUNK * CHUNK]),
        (b"", [("cut", 60_000)] * 4, [0, 3 * CHUNK, 6 * CHUNK, 9 * CHUNK, 12 * CHUNK]),  # more than may be in vain
    ],
)
def test_a_transfer_ends_with_the_whole_file(get, site, part, left, faults, starts):
    if left:
        part.write_bytes(left)
    site.faults["/x.png"] = faults
    began = time.monotonic()
    assert get(timeout=0.3).read_bytes() == CONTENT
    assert time.monotonic() - began < 1.4  # a stalled server is left
    assert [start for _, start in site.log] == starts
    assert [path.name for path in part.parent.iterdir()] == ["x.png"]


def test_retry_after_is_waited_for(get, site):
    site.faults["/x.png"] = [(503, {"Retry-After": "1"})]
    began = time.monotonic()
    get()
    assert time.monotonic() - began > 1


OTHER = b"y" * SIZE


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (OTHER, {}, (SHA256, hashlib.sha256(OTHER).hexdigest())),
        (CONTENT[:777], {}, ("wrong file: 777 bytes, not 300000",)),
        (CONTENT * 40, {}, ("bytes, not 300000",)),
        (CONTENT * 40, {"size": 0, "sha256": ""}, ("bytes, more than the 600000 allowed",)),
        (PAGE, {}, ("a web page, not the file",)),
        (PAGE, {"size": 0, "sha256": ""}, ("a web page, not the file",)),
    ],
)
def test_a_wrong_file_is_one_line_and_leaves_nothing(get, site, tmp_path, content, options, words):
    site.files["/x.png"] = content
    text = fails(get, f"{site.url}/x.png: wrong file", *words, **options)
    if len(content) > SIZE:  # broken off
        assert int(text.split(" bytes,")[0].split()[-1]) < 3 * SIZE
    assert list((tmp_path / "files").iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "words", "tries"),
    [
        (503, "too many 503 error responses", 3),
        (404, "answer 404", 1),
        (403, "answer 403", 1),
        (410, "answer 410", 1),
        (("stall", 0, 0.5), "3 tries in vain", 3),
    ],
)
def test_a_server_that_refuses_is_asked_again_only_where_that_may_help(get, site, tmp_path, fault, words, tries):
    site.faults["/x.png"] = [fault] * 9
    fails(get, words, site.url, timeout=0.1)
    assert len(site.log) == tries
    assert not (tmp_path / "files" / "x.png").exists()


def test_redirects_end_and_lead_to_another_host_only_with_a_known_hash(get, site):
    elsewhere = (302, {"Location": f"{site.url}/x.png".replace("127.0.0.1", "localhost")})
    site.faults["/x.png"] = [(302, {"Location": "/x.png"})] * 99
    fails(get, "redirects")
    site.faults["/x.png"] = [elsewhere]
    fails(get, "sent on to localhost", sha256="", size=0)
    site.faults["/x.png"] = [elsewhere]
    assert get().read_bytes() == CONTENT


def test_without_a_hash_no_part_is_continued(get, site, part):
    part.write_bytes(b"x" * 1000)
    assert get(sha256="", size=0).read_bytes() == CONTENT
    assert site.log == [("/x.png", 0)]


def test_an_unreachable_host_ends_everything_and_an_address_that_is_none_is_a_line(get):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fails(get, "refused", "3 tries", "mirror", kind=Hopeless, url=f"http://127.0.0.1:{port}/x.png")
    fails(get, url="gopher://x/y.png")


def test_a_full_disk_is_one_line_and_the_part_is_continued_later(get, site, part):
    with no_file_larger_than(100_000):
        fails(get, "no space left", "x.png", kind=Hopeless)
    assert part.stat().st_size == 100_000
    assert get().read_bytes() == CONTENT
    assert site.log[-1] == ("/x.png", 100_000)


def _fetch(cache, url):
    Fetcher(cache).fetch(url, cache / "files" / "x.png", "set s: x", SHA256, SIZE)


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_two_at_once_fetch_it_once(get, site, tmp_path, kind):
    site.faults["/x.png"] = [("slow", 30_000, 0.05)]
    options = {"mp_context": multiprocessing.get_context("spawn")} if kind is ProcessPoolExecutor else {}
    with kind(2, **options) as pool:
        for one in [pool.submit(_fetch, tmp_path, f"{site.url}/x.png") for _ in range(2)]:
            one.result()
    assert get().read_bytes() == CONTENT
    assert site.log == [("/x.png", 0)]


# -- archives


LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)  # contents that stand for a link


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            if content in LINKS:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, content, compression)


def tarred(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content in LINKS:
                info.type, info.linkname = content, "1.png"
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


FORMS = {"zip": zipped, "tar": tarred, "tar.gz": partial(tarred, mode="w:gz")}
GOOD = {"a/HR/1.png": b"one", "a/HR/2.PNG": b"two", "a/HR/read.me": b"no image", "a/LR/1.png": b"small"}


def unpack(archive, folder):
    extract(archive, folder, "a/HR/", (".png",), "set s")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def leaves_nothing(archive, folder, words, kind=SetError):
    with refused(kind, "set s: ", words):
        unpack(archive, folder / "sets" / "s")
    assert list((folder / "sets").iterdir()) == []
    assert list(folder.parent.glob("**/evil.png")) == []


@pytest.mark.parametrize("form", FORMS)
def test_only_the_images_of_the_folder_are_unpacked(tmp_path, form):
    FORMS[form](tmp_path / "x", GOOD)
    assert unpack(tmp_path / "x", tmp_path / "sets" / "s") == {"1.png": b"one", "2.PNG": b"two"}
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["1.png"]


UNSAFE = [
    *((name, b"evil") for name in ("../evil.png", "a/../../evil.png", "/evil.png", r"a\..\evil.png", "C:/evil.png")),
    *(("a/HR/3.png", kind) for kind in LINKS),
    ("a/HR/3.png", bytes(3_000_000)),
]


@pytest.mark.parametrize(("name", "content"), UNSAFE, ids=range(len(UNSAFE)))
@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_what_would_leave_the_folder_or_fill_the_disk_is_refused(tmp_path, form, name, content):
    options = {"compression": zipfile.ZIP_DEFLATED} if form == "zip" else {}
    FORMS[form](tmp_path / "x", {**GOOD, name: content}, **options)
    leaves_nothing(tmp_path / "x", tmp_path, "x is not safe to unpack")


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_a_damaged_archive_is_named(tmp_path, form):
    draw = np.random.default_rng(0)
    FORMS[form](tmp_path / "x", {f"a/HR/{i}.png": draw.bytes(5000) for i in range(9)})
    content = bytearray((tmp_path / "x").read_bytes())
    content[20_000:20_050] = b"?" * 50
    (tmp_path / "x").write_bytes(content)
    leaves_nothing(tmp_path / "x", tmp_path, "x is damaged")
    (tmp_path / "x").write_bytes(b"<html>")
    leaves_nothing(tmp_path / "x", tmp_path, "neither zip nor tar")


def test_two_members_of_one_name_and_a_full_disk_leave_nothing(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("a/HR/1.png", b"one")
        archive.writestr("a/HR/1.png", b"another")
    leaves_nothing(tmp_path / "x", tmp_path, "two members 'a/HR/1.png'")
    zipped(tmp_path / "x", {"a/HR/1.png": b"1" * 1000, "a/HR/2.png": b"2" * 50_000})
    with no_file_larger_than(10_000):
        leaves_nothing(tmp_path / "x", tmp_path, "no space left", kind=Hopeless)
