"""Transfers one file over HTTP so that it is either complete and right, or not there; opens archives safely."""

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
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import requests
from filelock import FileLock

from .sets import SetError

CHUNK = 1 << 14  # what a broken connection may lose
#: Answers worth another try; any other error of a server is final.
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 60  # seconds, where the server asks for more
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)


class Hopeless(SetError):
    """An error that the files still to come would meet too: no space left, or a host that cannot be reached."""


class _Again(Exception):
    def __init__(self, reason: str, wait: float | None = None, unreachable: bool = False):
        super().__init__(reason)
        self.wait, self.unreachable = wait, unreachable


class Fetcher:
    """Fetches files into one cache folder, several at a time, from several threads and processes.

    timeout: seconds without a byte before a transfer is broken off. It is then continued, after `backoff` seconds,
    twice as many the next time; given up after `retries` tries in a row that brought nothing.
    """

    def __init__(self, cache: Path, timeout: float = 30.0, retries: int = 4, backoff: float = 1.0):
        self.cache, self.timeout, self.retries, self.backoff = cache, timeout, retries, backoff
        self._local = threading.local()

    def lock(self, kind: str, path: Path) -> FileLock:
        """A lock between all threads and processes that use this cache, for work on `path`.

        Few lock files serve many paths, so hold at most one of a kind; kinds may be nested.
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
        report: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Make the file behind `url` be at `path`, with that sha256 and that many bytes where they are given.

        report: called with the bytes transferred so far. Raises SetError, a line that begins with `what`; then
        `path` does not exist, and a part that may be right is continued by the next call.
        """
        try:
            with self.lock("file", path):
                if path.exists() and (not sha256 or file_sha256(path) == sha256):
                    return
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f"{path.name}.part")
                self._persist(url, part, what, sha256, size, report)
                part.replace(path)
        except OSError as error:
            raise disk_error(what, path, error) from None

    def _persist(self, url: str, part: Path, what: str, sha256: str, size: int, report: Callable) -> None:
        in_vain = 0
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                complete = self._transfer(url, part, what, size, report)
                return self._verify(url, part, what, sha256, size, complete, continued=before > 0)
            except _Again as again:
                in_vain = 0 if part.exists() and part.stat().st_size > before else in_vain + 1
                if in_vain > self.retries:
                    text = f"{what}: {url}: {again} ({in_vain} tries in vain)"
                    if again.unreachable:
                        raise Hopeless(f"{text}; without a network, name a mirror (see README)") from None
                    raise SetError(text) from None
                time.sleep(self.backoff * 2 ** max(in_vain - 1, 0) if again.wait is None else again.wait)

    def _transfer(self, url: str, part: Path, what: str, size: int, report: Callable) -> bool:
        """Append what is missing to `part`; returns whether the server told the length, so that all of it is there."""
        done = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={done}-"} if done else {})}
        try:
            answer = self._session().get(url, headers=headers, stream=True, timeout=self.timeout)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _Again(_reason(error), unreachable=True) from None
        except requests.RequestException as error:
            raise SetError(f"{what}: {url}: {_reason(error)}") from None
        with answer:
            if answer.status_code == 416:  # nothing after what is there: it is complete or wrong, which the hash tells
                return True
            if answer.status_code in TEMPORARY:
                wait = answer.headers.get("Retry-After", "")
                raise _Again(f"answer {answer.status_code}", min(int(wait), LONGEST_WAIT) if wait.isdigit() else None)
            if answer.status_code not in (200, 206):
                raise SetError(f"{what}: {url}: answer {answer.status_code} {answer.reason}")
            if answer.status_code == 200 or not answer.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                done = 0  # the server does not continue; it sent all of it
            with part.open("ab" if done else "wb") as file:
                for chunk in _chunks(answer):
                    file.write(chunk)
                    done += len(chunk)
                    report(done)
                    if size and done > size:
                        break
                file.flush()
                os.fsync(file.fileno())
            return "Content-Length" in answer.headers

    def _verify(self, url: str, part: Path, what: str, sha256: str, size: int, complete: bool, continued: bool) -> None:
        done = part.stat().st_size
        got = file_sha256(part)
        with part.open("rb") as file:
            page = file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))
        if not page and got == (sha256 or got):
            return
        if done < size and not complete:
            raise _Again(f"broke off after {done} of {size} bytes")
        part.unlink()
        if continued:
            raise _Again("what was continued is wrong", wait=0)
        form = "a web page, not the file" if page else f"{done} bytes, not {size}" if done != size else "wrong"
        raise SetError(f"{what}: {url}: the answer is {form}: sha256 {got}, expected {sha256 or 'unknown'}")

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        return self._local.session


def _chunks(answer: requests.Response) -> Iterator[bytes]:
    try:
        yield from answer.iter_content(CHUNK)
    except requests.RequestException as error:
        raise _Again(_reason(error)) from None


def _reason(error: Exception) -> str:
    """The innermost cause, in one line."""
    while error.args and isinstance(error.args[-1], Exception):
        error = error.args[-1]
    error = getattr(error, "reason", None) if isinstance(getattr(error, "reason", None), Exception) else error
    return " ".join(str(error).split()) or type(error).__name__


def disk_error(what: str, path: Path, error: OSError) -> SetError:
    """What a failure to write `path` means, as an error of one line."""
    if error.errno in NO_SPACE:
        return Hopeless(f"{what}: no space left for {path} ({error.strerror}); free some, run again and it goes on")
    return SetError(f"{what}: cannot write {path}: {error.strerror or error}")


def file_sha256(path: Path) -> str:
    """sha256 of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extract(archive: Path, folder: Path, members: str, suffixes: tuple[str, ...], what: str) -> None:
    """Unpack the files of a zip or tar that lie directly in its folder `members` and end on one of `suffixes`.

    They get their bare names in `folder`, which is there only once it is complete. Raises SetError for a file that is
    no zip or tar, is damaged, or has any member that is a link, a device or lies outside the archive.
    """
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, is_plain, content in _members(archive, what):
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in name or not is_plain:
                raise SetError(
                    f"{what}: {archive.name} is not safe to unpack: {name!r} is a link or lies outside of it"
                )
            if path.parent == PurePosixPath(members) and path.suffix.lower() in suffixes:
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


def _members(archive: Path, what: str) -> Iterator[tuple[str, bool, Callable[[], BinaryIO]]]:
    """Name, whether it is a plain file, and a function that opens it, of all members but folders."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if not info.is_dir():
                    kind = stat.S_IFMT(info.external_attr >> 16)
                    yield info.filename, kind in (0, stat.S_IFREG), lambda info=info: opened.open(info)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened:
            for info in opened:
                if not info.isdir():
                    yield info.name, info.isreg(), lambda info=info: opened.extractfile(info)
            while opened.fileobj.read(CHUNK):  # the compressed stream's checksum comes last
                pass
    else:
        raise SetError(f"{what}: {archive} is neither zip nor tar; remove it and run again")
