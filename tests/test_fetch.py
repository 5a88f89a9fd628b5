"""Transfers over a real loopback server that misbehaves, and archives that should not be trusted."""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import resource
import socket
import stat
import tarfile
import threading
import time
import zipfile

import numpy as np
import pytest

from lib.images.fetch import CHUNK, Fetcher, Hopeless, extract
from lib.images.sets import SetError

CONTENT = np.random.default_rng(0).bytes(300_000)
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def get(site, tmp_path):
    """Fetch `/x.png` as set s, image x; returns the path. Waits are a hundredth of a second."""
    site.files["/x.png"] = CONTENT

    def get(path="/x.png", sha256=SHA256, size=SIZE, url=None, **options):
        fetcher = Fetcher(tmp_path, **{"timeout": 5, "retries": 2, "backoff": 0.01, **options})
        target = tmp_path / "files" / "x.png"
        fetcher.fetch(url or site.url + path, target, "set s: x", sha256, size)
        return target

    return get


def part_of(tmp_path):
    path = tmp_path / "files" / "x.png.part"
    path.parent.mkdir(exist_ok=True)
    return path


def fails(get, *words, kind=SetError, **options):
    with pytest.raises(kind) as error:
        get(**options)
    text = str(error.value)
    assert "\n" not in text
    for word in ("set s: x", *words):
        assert word in text
    return text


def test_a_file_is_fetched_once_and_fetched_again_when_damaged(get, site):
    path = get()
    assert path.read_bytes() == CONTENT
    get()
    assert site.log == [("/x.png", 0)]
    path.write_bytes(CONTENT[:-1])
    assert get().read_bytes() == CONTENT
    assert len(site.log) == 2


def test_a_part_is_continued(get, site, tmp_path):
    part_of(tmp_path).write_bytes(CONTENT[:123_456])
    assert get().read_bytes() == CONTENT
    assert site.log == [("/x.png", 123_456)]
    assert not part_of(tmp_path).exists()


def test_a_connection_that_breaks_is_continued_as_often_as_it_takes(get, site):
    site.faults["/x.png"] = [("cut", 60_000)] * 4  # more often than the tries that may be in vain
    assert get().read_bytes() == CONTENT
    starts = [start for _, start in site.log]
    assert starts == sorted(set(starts))
    assert len(starts) == 5


@pytest.mark.parametrize("wrong", [b"x" * 1000, CONTENT + b"x", b"x" * len(CONTENT)])
def test_a_wrong_part_is_thrown_away(get, site, tmp_path, wrong):
    part_of(tmp_path).write_bytes(wrong)
    assert get().read_bytes() == CONTENT
    assert site.log[-1] == ("/x.png", 0)


def test_a_complete_part_needs_no_more_than_its_hash(get, tmp_path):
    part_of(tmp_path).write_bytes(CONTENT)
    assert get().read_bytes() == CONTENT


def test_a_server_that_cannot_continue_sends_all_of_it(get, site, tmp_path):
    part_of(tmp_path).write_bytes(CONTENT[:1000])
    site.faults["/x.png"] = ["no range"]
    assert get().read_bytes() == CONTENT


def test_without_a_told_length_a_short_answer_is_continued(get, site):
    site.faults["/x.png"] = [("cut no length", 1000), "no length"]
    assert get().read_bytes() == CONTENT
    assert [start for _, start in site.log] == [0, 1000]


def test_a_busy_server_is_asked_again(get, site):
    site.faults["/x.png"] = [503, (429, {"Retry-After": "0"})]
    assert get().read_bytes() == CONTENT


def test_retry_after_is_waited_for(get, site):
    site.faults["/x.png"] = [(503, {"Retry-After": "1"})]
    began = time.monotonic()
    get()
    assert time.monotonic() - began > 1


def test_a_server_that_stays_busy_is_given_up(get, site, tmp_path):
    site.faults["/x.png"] = [503] * 9
    fails(get, "answer 503", "3 tries in vain")
    assert len(site.log) == 3
    assert not (tmp_path / "files" / "x.png").exists()


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_final_answer_is_not_asked_for_again(get, site, status):
    site.faults["/x.png"] = [status] * 9
    fails(get, f"answer {status}", site.url)
    assert len(site.log) == 1


def test_a_wrong_file_is_one_line_with_both_hashes_and_leaves_nothing(get, site, tmp_path):
    site.files["/x.png"] = b"y" * len(CONTENT)
    fails(get, "is wrong", SHA256, hashlib.sha256(b"y" * len(CONTENT)).hexdigest())
    assert list((tmp_path / "files").iterdir()) == []


def test_a_file_truncated_at_its_source_says_how_long_it_is(get, site, tmp_path):
    site.files["/x.png"] = CONTENT[:777]
    fails(get, "777 bytes, not 300000", SHA256, hashlib.sha256(CONTENT[:777]).hexdigest())
    assert list((tmp_path / "files").iterdir()) == []


def test_an_answer_that_does_not_end_is_broken_off(get, site):
    site.files["/x.png"] = CONTENT * 40
    text = fails(get, "bytes, not 300000")
    assert int(text.split(" bytes, not")[0].split()[-1]) < 2 * SIZE


@pytest.mark.parametrize("sha256", [SHA256, ""])
def test_a_web_page_in_place_of_the_file_is_called_that(get, site, sha256):
    page = b"\n<!DOCTYPE html><html><body>Sign in to continue</body></html>"
    site.files["/x.png"] = page
    fails(get, "a web page, not the file", hashlib.sha256(page).hexdigest(), sha256=sha256)


def test_a_stalled_server_is_left_and_continued(get, site):
    site.faults["/x.png"] = [("stall", 50_000, 1.5)]
    began = time.monotonic()
    assert get(timeout=0.3).read_bytes() == CONTENT
    assert time.monotonic() - began < 1.4
    assert [start for _, start in site.log] == [0, 50_000 // CHUNK * CHUNK]


def test_a_slow_server_is_waited_for(get, site):
    site.faults["/x.png"] = [("slow", 30_000, 0.05)]
    assert get(timeout=0.3).read_bytes() == CONTENT
    assert len(site.log) == 1


def test_redirects_are_followed(get, site):
    site.files["/new.png"] = CONTENT
    site.faults["/x.png"] = [(302, {"Location": "/new.png"})]
    assert get().read_bytes() == CONTENT
    site.faults["/x.png"] = [(302, {"Location": "/x.png"})] * 99
    get().unlink()
    fails(get, "redirects")


def test_an_unreachable_host_ends_everything(get):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = fails(get, "refused", "3 tries", kind=Hopeless, url=f"http://127.0.0.1:{port}/x.png")
    assert "object at" not in text


def test_an_address_that_is_none_is_a_line(get):
    fails(get, url="gopher://x/y.png")


@contextlib.contextmanager
def no_file_larger_than(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_the_part_is_continued_later(get, site, tmp_path):
    with no_file_larger_than(100_000):
        fails(get, "no space left", "x.png", kind=Hopeless)
    assert part_of(tmp_path).stat().st_size == 100_000
    assert get().read_bytes() == CONTENT
    assert site.log[-1] == ("/x.png", 100_000)


def test_two_threads_fetch_it_once(get, site):
    site.faults["/x.png"] = [("slow", 30_000, 0.02)]
    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert get().read_bytes() == CONTENT
    assert site.log == [("/x.png", 0)]


def _fetch(cache, url):
    Fetcher(cache).fetch(url, cache / "files" / "x.png", "set s: x", SHA256, len(CONTENT))


def test_two_processes_fetch_it_once(get, site, tmp_path):
    site.faults["/x.png"] = [("slow", 30_000, 0.1)]
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_fetch, args=(tmp_path, f"{site.url}/x.png")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert get().read_bytes() == CONTENT
    assert site.log == [("/x.png", 0)]


# -- archives


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            else:
                info.type, info.linkname = content
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


GOOD = {"a/HR/1.png": b"one", "a/HR/2.PNG": b"two", "a/HR/read.me": b"no image", "a/LR/1.png": b"small"}


def unpack(archive, folder):
    extract(archive, folder, "a/HR/", (".png",), "set s")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("pack", [zipped, tarred, lambda path, m: tarred(path, m, "w:gz")])
def test_only_the_images_of_the_folder_are_unpacked(tmp_path, pack):
    archive = pack(tmp_path / "x", GOOD)
    assert unpack(archive, tmp_path / "sets" / "s") == {"1.png": b"one", "2.PNG": b"two"}
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["1.png"]


def refused(archive, folder, words):
    with pytest.raises(SetError) as error:
        unpack(archive, folder / "sets" / "s")
    assert "\n" not in str(error.value)
    assert "set s: " in str(error.value)
    assert words in str(error.value)
    assert not any(path.is_file() for path in (folder / "sets").rglob("*"))
    assert not (folder / "sets" / "s").exists()


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/tmp/evil.png", "a\\..\\evil.png", "C:/evil.png"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_member_outside_of_the_archive_is_refused(tmp_path, pack, name):
    refused(pack(tmp_path / "x", {**GOOD, name: b"evil"}), tmp_path, "not safe to unpack")
    assert list(tmp_path.parent.glob("**/evil.png")) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    refused(tarred(tmp_path / "x", {**GOOD, "a/HR/3.png": (kind, "1.png")}), tmp_path, "'a/HR/3.png' is a link")


def test_links_in_a_zip_are_refused(tmp_path):
    info = zipfile.ZipInfo("a/HR/3.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    refused(tmp_path / "x", tmp_path, "is a link")


def test_two_members_of_one_name_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("a/HR/1.png", b"one")
        archive.writestr("a/HR/1.png", b"another")
    refused(tmp_path / "x", tmp_path, "two members 'a/HR/1.png'")


@pytest.mark.parametrize("pack", [zipped, lambda path, m: tarred(path, m, "w:gz")])
def test_a_damaged_archive_is_named(tmp_path, pack):
    draw = np.random.default_rng(0)
    archive = pack(tmp_path / "x", {f"a/HR/{i}.png": draw.bytes(5000) for i in range(9)})
    content = bytearray(archive.read_bytes())
    content[20_000:20_050] = b"?" * 50
    archive.write_bytes(content)
    refused(archive, tmp_path, "x is damaged")


def test_what_is_no_archive_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"<html>")
    refused(tmp_path / "x", tmp_path, "neither zip nor tar")


def test_unpacking_onto_a_full_disk_leaves_nothing(tmp_path):
    archive = zipped(tmp_path / "x", {"a/HR/1.png": b"1" * 1000, "a/HR/2.png": b"2" * 50_000})
    with no_file_larger_than(10_000), pytest.raises(Hopeless, match="no space left"):
        unpack(archive, tmp_path / "sets" / "s")
    assert list((tmp_path / "sets").iterdir()) == []
