"""Fetches a file over HTTP so that it is either complete and right, or not there; opens archives safely.

pooch compares hashes and puts files in place; this file adds continuing, limits, locks and errors of one line.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import lzma
import os
import shutil
import stat
import tarfile
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import requests
from filelock import FileLock
from requests.adapters import HTTPAdapter, Retry

from .sets import SetError

CHUNK = 1 << 14  # bytes that a broken connection may lose
LIMIT = 1 << 26  # bytes of a file whose size is not known
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # answers worth another try
LONGEST_WAIT = 60  # seconds, where the server asks for more
UNPACKED = 10  # times its own size that an archive of images may hold

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)

with warnings.catch_warnings():  # tqdm remarks on notebooks by a path of the machine, which would stay in them
    warnings.simplefilter("ignore")
    import pooch

pooch.get_logger().setLevel("ERROR")  # our errors and progress say it


class Hopeless(SetError):
    """An error that the files still to come would meet too: no space left, or a host that cannot be reached."""


class Fetcher:
    """Fetches files into one cache folder, several at a time, from several threads and processes.

    timeout: seconds without a byte before a transfer is broken off. It is then continued, after `backoff` seconds,
    twice as many the next time; given up after `retries` further tries in a row that brought nothing.
    """

    def __init__(self, cache: Path, timeout: float = 30.0, retries: int = 4, backoff: float = 1.0):
        self.cache, self.timeout, self.retries, self.backoff = cache, timeout, retries, backoff
        self._local = threading.local()

    def lock(self, kind: str, path: Path) -> FileLock:
        """A lock between all threads and processes that use this cache, for work on `path`.

        A lock file serves many paths, so hold at most one lock of a kind; kinds may be nested.
        """
        folder = self.cache / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{kind}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:2]}.lock")

    def fetch(
        self,
        url: str,
        path: Path,
        what: str,
        sha256: str = "",
        size: int = 0,
        limit: int = LIMIT,
        report: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Make the file behind `url` be at `path`, with that sha256 and that many bytes where they are given.

        Without a size at most `limit` bytes are accepted, without a sha256 only from the host of `url`.
        report: called with the bytes transferred so far. Raises SetError, a line that begins with `what`; then
        `path` does not exist, and a part that may be right is continued by the next call.
        """
        transfer = _Transfer(self, what, path.with_name(f"{path.name}.part"), bool(sha256), size, size or limit, report)
        try:
            with self.lock("file", path):
                if not sha256:
                    transfer.part.unlink(missing_ok=True)  # nothing would tell whether it still is a part of the file
                while True:
                    continued = transfer.part.exists()
                    try:
                        pooch.retrieve(url, sha256 or None, path.name, path.parent, downloader=transfer)
                        return
                    except SetError:
                        raise
                    except ValueError as error:  # the file is wrong, and gone by now
                        if not continued:
                            raise SetError(f"{what}: {url}: wrong file: {_one_line(error)}") from None
        except OSError as error:
            raise disk_error(what, path, error) from None

    def session(self) -> requests.Session:
        """The thread's own session, which asks again where a server or the network refuses for a while."""
        if not hasattr(self._local, "session"):
            retry = Retry(self.retries, status_forcelist=TEMPORARY, backoff_factor=self.backoff,
                          retry_after_max=LONGEST_WAIT)  # fmt: skip
            self._local.session = requests.Session()
            for scheme in ("http://", "https://"):
                self._local.session.mount(scheme, HTTPAdapter(max_retries=retry))
        return self._local.session


@dataclass
class _Transfer:
    """Fills the file that pooch asks for, by way of `part`, which outlives a broken transfer and is continued."""

    fetcher: Fetcher
    what: str
    part: Path
    any_host: bool
    size: int
    limit: int
    report: Callable[[int], None]

    def __call__(self, url: str, output: str, _: object) -> None:
        """Raises ValueError, without leaving `part`, for a file of the wrong form."""
        in_vain = 0
        while not self.size or self._done < self.size:
            before = self._done
            try:
                self._append(url)
                break
            except requests.RequestException as error:
                in_vain = 0 if self._done > before else in_vain + 1
                if in_vain > self.fetcher.retries:
                    raise SetError(f"{self.what}: {url}: {_reason(error)} ({in_vain} tries in vain)") from None
                time.sleep(self.fetcher.backoff * 2 ** max(in_vain - 1, 0))
        with self.part.open("rb") as file:
            page = file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))
        done, wanted = self._done, f"not {self.size}" if self.size else f"more than the {self.limit} allowed"
        if page or done > self.limit or (self.size and done != self.size):
            self.part.unlink()
            raise ValueError("a web page, not the file" if page else f"{done} bytes, {wanted}")
        self.part.replace(output)

    @property
    def _done(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _append(self, url: str) -> None:
        """Append to `part` what it lacks. Raises requests.RequestException where the connection broke off."""
        done = self._done
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={done}-"} if done else {})}
        try:
            answer = self.fetcher.session().get(url, headers=headers, stream=True, timeout=self.fetcher.timeout)
        except requests.RequestException as error:
            text = f"{self.what}: {url}: {_reason(error)}"
            if isinstance(error, requests.ConnectionError | requests.Timeout):
                text = f"{text} ({self.fetcher.retries + 1} tries); offline, name a mirror (see docs/running.md)"
                raise Hopeless(text) from None
            raise SetError(text) from None
        with answer:
            host = urlsplit(answer.url).hostname
            if not self.any_host and host != urlsplit(url).hostname:
                raise SetError(f"{self.what}: {url}: sent on to {host}; a file without a known sha256 is accepted from "
                               "the host of its address alone")  # fmt: skip
            if answer.status_code == 416:  # nothing follows: the part is complete or wrong, which its hash tells
                return
            if answer.status_code not in (200, 206):
                raise SetError(f"{self.what}: {url}: answer {answer.status_code} {answer.reason}")
            if not answer.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                done = 0  # the server does not continue; it sent all of it
            with self.part.open("ab" if done else "wb") as file:
                for chunk in answer.iter_content(CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    self.report(done)
                    if done > self.limit:
                        return
                file.flush()
                os.fsync(file.fileno())
            if done < self.size and "Content-Length" not in answer.headers:
                raise requests.ConnectionError(f"broke off after {done} of {self.size} bytes")


def _reason(error: Exception) -> str:
    """The innermost cause, in one line."""
    while error.args and isinstance(error.args[-1], Exception):
        error = error.args[-1]
    inner = getattr(error, "reason", None)
    return _one_line(inner if isinstance(inner, Exception) else error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def disk_error(what: str, path: Path, error: OSError) -> SetError:
    """A failure to write `path`, as an error of one line."""
    if error.errno in NO_SPACE:
        return Hopeless(f"{what}: no space left for {path} ({error.strerror}); free some, run again and it goes on")
    return SetError(f"{what}: cannot write {path}: {error.strerror or error}")


def file_sha256(path: Path) -> str:
    """sha256 of the bytes of a file."""
    return pooch.file_hash(str(path))


def extract(archive: Path, folder: Path, members: str, suffixes: tuple[str, ...], what: str) -> None:
    """Unpack the files of a zip or tar that lie directly in its folder `members` and end on one of `suffixes`.

    They get their bare names in `folder`, which is there only once it is complete. Raises SetError for a file that is
    no zip or tar, is damaged, would fill the disk, or has any member that is a link, a device or outside the archive.
    """
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    room = UNPACKED * archive.stat().st_size + 2**20
    try:
        for name, is_plain, size, content in _members(archive, what):
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in name or not is_plain:
                raise SetError(
                    f"{what}: {archive.name} is not safe to unpack: {name!r} is a link or lies outside of it"
                )
            if path.parent != PurePosixPath(members) or path.suffix.lower() not in suffixes:
                continue
            room -= size
            if room < 0:
                raise SetError(f"{what}: {archive.name} is not safe to unpack: more than {UNPACKED} times its size")
            if (temporary / path.name).exists():
                raise SetError(f"{what}: {archive.name} has two members {name!r}")
            with content() as source, (temporary / path.name).open("xb") as file:
                shutil.copyfileobj(source, file)
        temporary.replace(folder)
    except (*DAMAGED, RuntimeError) as error:  # RuntimeError: encrypted, or packed in an unknown way
        raise SetError(f"{what}: {archive.name} is damaged ({error}); remove {archive} and run again") from None
    except OSError as error:
        raise disk_error(what, folder, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _members(archive: Path, what: str) -> Iterator[tuple[str, bool, int, Callable[[], Any]]]:
    """Name, whether it is a plain file, size, and a function that opens it, of all members but folders."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                if not info.is_dir():
                    kind = stat.S_IFMT(info.external_attr >> 16)
                    yield info.filename, kind in (0, stat.S_IFREG), info.file_size, partial(packed.open, info)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            for member in tar:
                if not member.isdir():
                    yield member.name, member.isreg(), member.size, partial(tar.extractfile, member)
            while tar.fileobj and tar.fileobj.read(CHUNK):  # the compressed stream's checksum comes last
                pass
    else:
        raise SetError(f"{what}: {archive} is neither zip nor tar; remove it and run again")
