"""Brings a folder to exactly the image sets asked for: fetched, checked, and decoded once into memory-mapped arrays.

An image comes from an installed package, the cache of published files, a mirror, or its published address, in this
order. A published file gets its name in the cache only once its sha256 is right, and a decoded image is written only
once the sha256 of its pixels is right. What is already there and right is left alone.

Images decode to uint8, (rows, columns) or (rows, columns, 3). EXIF rotation is applied, a palette is resolved, an
alpha channel is dropped where all of it is opaque, a colour profile is ignored. Refused by name: more than 8 bits a
channel, transparency, CMYK and other colour spaces, several frames.
"""

from __future__ import annotations

import csv
import importlib.resources
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlsplit

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT

from .fetch import Fetcher, Hopeless, disk_error, extract, file_sha256
from .registry import OWN, Entry, ManualSet, Registry, published
from .sets import SetError, open_image, pixels_sha256

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
IGNORED = (".txt", ".md", ".db", ".ini")  # files that people and file managers put beside images
PACKAGE = "package:"
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "TIFF", "GIF")  # of others Pillow may cut to 8 bits silently
MODES = ("L", "RGB", "P", "LA", "PA", "RGBA")
SIGNED = 2  # as SAMPLEFORMAT of a TIFF
ERRORS_SHOWN = 10
LARGEST = 1 << 25  # bytes per image of an archive whose size is not known


class Progress:
    """The progress of a download; its text is one line for a terminal."""

    def __init__(self, callback: Callable[[Progress], None] = lambda progress: None):
        self.files = self.total_files = self.bytes = self.total_bytes = 0
        self._callback, self._lock = callback, threading.Lock()
        self._sizes: dict[object, int] = {}

    def __str__(self) -> str:
        return f"{self.files}/{self.total_files} images, {self.bytes / 1e6:.1f}/{self.total_bytes / 1e6:.1f} MB"

    def expect(self, files: int, size: int = 0) -> None:
        """Count `files` and `size` bytes more as still to come."""
        self.total_files += files
        self.total_bytes += size

    def report(self, key: object, done: int, files: int = 0) -> None:
        """Of `key` there are now `done` bytes, and `files` more are complete."""
        with self._lock:
            self.bytes += done - self._sizes.get(key, 0)
            self._sizes[key] = done
            self.files += files
            self._callback(self)


def download(
    references: Iterable[str],
    downloads: Path,
    cache: Path,
    *,
    own: Path = Path("own"),
    mirror: str | None = None,
    registry: Registry | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
    workers: int = 8,
    fetcher: Fetcher | None = None,
) -> list[str]:
    """Make `downloads` hold the decoded images of `references` and of no other set; returns remarks for the reader.

    cache: folder that keeps published files between runs. own: folder of the user's sets, where the reference
    `own/<x>` is the folder <x>. mirror: folder or URL with a copy of the published images and its own registry.csv.
    progress: called whenever there is more, by several threads, one at a time.

    Raises SetError with a line per file that is wrong (the first ten); the good files stay.
    """
    registry, references = registry or published(), list(dict.fromkeys(references))
    registry.check(references)
    job = _Job(downloads, cache, fetcher or Fetcher(cache), registry, Progress(progress))
    job.mirror = _Mirror(mirror, cache, job.fetcher) if mirror else None
    entries = registry.files(references)
    job.progress.expect(len(entries), sum(entry.bytes for entry in entries))
    # one download at a time into one folder, whose last step removes what does not belong there
    with job.fetcher.lock("downloads", downloads):
        # the user's part first: errors that only the user can mend appear before hours of transfer
        others = {r: job.find(r, own) for r in references if not registry.lists(r)}
        _each(workers, job.bring, entries)
        for reference, files in others.items():
            _each(workers, job.convert, files)
            job.check(reference, {target for _, target in files})
        kept = {downloads / entry.path for entry in entries}
        kept.update(target for files in others.values() for _, target in files)
        roots = {"images", *(listed[0].path.parts[0] for listed in registry.entries.values())}
        _prune({downloads / root for root in roots}, kept)
    return job.remarks


class _Job:
    """One call of `download`."""

    def __init__(self, downloads: Path, cache: Path, fetcher: Fetcher, registry: Registry, progress: Progress):
        self.downloads, self.cache, self.fetcher = downloads, cache, fetcher
        self.registry, self.progress = registry, progress
        self.mirror: _Mirror | None = None
        self.remarks: list[str] = []

    def bring(self, entry: Entry) -> None:
        """Make the decoded image (or the plain file) of a row of the registry be in the downloads."""
        target = self.downloads / entry.path
        if not _is_right(target, entry):
            source, origin = self._source(entry)
            if entry.is_image:
                array = self._pixels(source, entry, origin)
                _write(target, lambda file: np.save(file, array), str(entry))
            else:
                _write(target, lambda file: file.write(source.read_bytes()), str(entry))
        self.progress.report(entry.path, entry.bytes, files=1)

    def _source(self, entry: Entry) -> tuple[Path, str]:
        """A file that should hold the image, and in words where it is from."""
        if entry.url.startswith(PACKAGE):
            return _in_package(entry), "the installed package"
        cached = self.cache / "files" / f"{entry.sha256}{Path(urlsplit(entry.url).path).suffix}"
        right = cached.exists() and file_sha256(cached) == entry.sha256
        if not right and self.mirror and (found := self.mirror.find(entry)):
            return found, "the mirror's file"
        if not right:
            report = partial(self.progress.report, entry.path)
            self.fetcher.fetch(entry.url, cached, str(entry), entry.sha256, entry.bytes, report=report)
        return cached, "the published file"

    def _pixels(self, source: Path, entry: Entry, origin: str) -> np.ndarray:
        try:
            array = decode(source, f"{entry}: {origin}", entry.channels)
            if (got := pixels_sha256(array)) != entry.pixels_sha256:
                hashes = f"sha256 {got}, expected {entry.pixels_sha256}"
                if file_sha256(source) != entry.sha256:
                    raise SetError(f"{entry}: {origin} {source.name} holds other pixels: {hashes}")
                raise SetError(
                    f"{entry}: the file is the published one, but Pillow {PIL.__version__} decodes it to other pixels: "
                    f"{hashes}; install the versions of environment.yml"
                )
        except SetError:
            if source.parent == self.cache / "mirror":
                source.unlink(missing_ok=True)  # so that the next run fetches it anew
            raise
        return array

    def find(self, reference: str, own: Path) -> list[tuple[Path, Path]]:
        """Image files of a set that the registry does not list, each with the place of its decoded form."""
        manual, what = self.registry.manual.get(reference), f"set {reference}"
        folder = own / reference.removeprefix(OWN)
        if manual and manual.archive and not folder.is_dir():
            folder = self._unpacked(manual)
        if not folder.is_dir():
            if not manual:
                raise SetError(_absent(what, folder))
            raise SetError(f"{what}: get it from {manual.where} and put into {folder}"
                           f"{' (folders input and target)' if manual.pairs else ''}: {manual.prepare}")  # fmt: skip
        listed = listing(folder, what)
        paired, count = "" not in listed, len(next(iter(listed.values())))
        if manual and (paired, count) != (manual.pairs, manual.images):
            form = "pairs in the folders input and target" if manual.pairs else "images"
            raise SetError(f"{what}: {folder} has {count} of its {manual.images} {form}")
        images = self.downloads / "images" / reference
        files = [(file, images / part / f"{name}.npy")
                 for part, found in listed.items() for name, file in found.items()]  # fmt: skip
        self.progress.expect(len(files))
        return files

    def _unpacked(self, manual: ManualSet) -> Path:
        folder, what = self.cache / "sets" / manual.reference, f"set {manual.reference}"
        archive = self.cache / "archives" / Path(urlsplit(manual.archive).path).name
        if not manual.sha256:
            self.remarks.append(f"{what}: no sha256 of {archive.name} is known; checked were the number of images and "
                                "that each decodes")  # fmt: skip
        with self.fetcher.lock("set", folder):
            if not folder.is_dir():
                self.progress.expect(0, manual.bytes)
                limit, report = manual.images * LARGEST, partial(self.progress.report, archive)
                self.fetcher.fetch(manual.archive, archive, what, manual.sha256, manual.bytes, limit, report)
                extract(archive, folder, manual.members, SUFFIXES, what)
                archive.unlink()  # its images are kept in its place
        return folder

    def convert(self, file: tuple[Path, Path]) -> None:
        """Decode an image file of the user to its place, unless the same pixels are there."""
        source, target = file
        array = decode(source, f"{source}")
        if array.ndim == 3 and (array == array[..., :1]).all():
            array = np.ascontiguousarray(array[..., 0])  # a gray photograph that was stored as three channels
        try:
            same = np.array_equal(open_image(target), array)
        except SetError:
            same = False
        if not same:
            _write(target, lambda out: np.save(out, array), f"{source}")
        self.progress.report(target, 0, files=1)

    def check(self, reference: str, targets: set[Path]) -> None:
        """Sizes of a set that the registry does not list: as its table says, and of both of a pair the same, or in a
        pair of the user's those of a super-resolution."""
        manual = self.registry.manual.get(reference)
        for path in sorted(targets):
            shape = open_image(path).shape
            if manual and manual.height and shape[:2] != (manual.height, manual.width):
                raise SetError(f"set {reference}: {path.stem} has {shape[0]} x {shape[1]} pixels (rows x columns), not "
                               f"{manual.height} x {manual.width}; it is not as published")  # fmt: skip
            other = path.parent.parent / "target" / path.name
            if path.parent.name == "input" and other in targets:
                times = (1,) if manual else (1, 2, 3, 4)
                rows, columns = open_image(other).shape[:2]
                if (rows, columns) not in {(shape[0] * by, shape[1] * by) for by in times}:
                    raise SetError(f"set {reference}: {path.stem} has {shape[0]} x {shape[1]} pixels as input and "
                                   f"{rows} x {columns} as target; the target's sides must be those of the input, or "
                                   "both 2, 3 or 4 times them in a set of your own for super-resolution")  # fmt: skip


class _Mirror:
    """Copies of published images, found by their pixels in the mirror's registry.csv (columns file, pixels_sha256)."""

    def __init__(self, address: str, cache: Path, fetcher: Fetcher):
        self.address, self.cache, self.fetcher = address.rstrip("/"), cache / "mirror", fetcher
        self.is_url = urlsplit(address).scheme in ("http", "https")
        table = Path(address) / "registry.csv"
        with fetcher.lock("mirror", self.cache):
            if self.is_url:
                table = self.cache / "registry.csv"
                table.unlink(missing_ok=True)  # it may have grown
                fetcher.fetch(f"{self.address}/registry.csv", table, "mirror")
            if not table.is_file():
                raise SetError(f"mirror {address}: it has no registry.csv")
            with table.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        if not rows or not {"file", "pixels_sha256"} <= set(rows[0]):
            raise SetError(f"mirror {address}: its registry.csv lacks the columns file and pixels_sha256")
        self.files = {row["pixels_sha256"]: row["file"] for row in rows}

    def find(self, entry: Entry) -> Path | None:
        """The mirror's file with the pixels of `entry`, or None. What is no image lies in or beside a folder."""
        if not entry.is_image:
            root = Path(self.address)
            places = [] if self.is_url else [folder / entry.reference / entry.name for folder in (root, root.parent)]
            return next((path for path in places if path.is_file() and file_sha256(path) == entry.sha256), None)
        name = self.files.get(entry.pixels_sha256)
        if name is None:
            return None
        path = Path(self.address, name)
        if self.is_url:
            path = self.cache / f"{entry.pixels_sha256}{Path(name).suffix}"
            self.fetcher.fetch(f"{self.address}/{quote(name)}", path, str(entry))
        return path if path.is_file() else None


def decode(source: Path, what: str, channels: int | None = None) -> np.ndarray:
    """The pixels of an image file: uint8, (rows, columns) for gray, (rows, columns, 3) for colour.

    channels: 1 takes the first channel of an image stored as three equal ones, 3 the reverse; None keeps what it is.
    Raises SetError that begins with `what` for what is no image, is truncated or is refused (see above).
    """
    array, alpha = decode_layers(source, what)
    if alpha is not None:
        raise SetError(f"{what}: it has transparent pixels; flatten it onto a background first")
    if channels == 1 and array.ndim == 3:
        return np.ascontiguousarray(array[..., 0])
    return np.repeat(array[..., None], 3, axis=2) if channels == 3 and array.ndim == 2 else array


def decode_layers(source: Path, what: str) -> tuple[np.ndarray, Image.Image | None]:
    """As `decode`, but an image with transparent pixels is taken: its colours beneath, and its opacity (mode L)."""
    try:
        with Image.open(source) as image:
            _refuse(image, what)
            upright = ImageOps.exif_transpose(image)
            alpha = upright.convert("RGBA").getchannel("A") if image.has_transparency_data else None
            kind = "L" if image.mode in ("L", "LA") else "RGB"
            palette = image.mode == "P" and alpha is not None  # else Pillow warns
            array = np.asarray((upright.convert("RGBA") if palette else upright).convert(kind))
    except SetError:
        raise
    except Image.DecompressionBombError:
        raise SetError(f"{what}: has more pixels than Pillow takes; cut or reduce it") from None
    except Exception as error:  # Pillow meets damage with almost any of them
        raise _damaged(what, error) from None
    return array, None if alpha is None or alpha.getextrema() == (255, 255) else alpha


def _damaged(what: str, error: Exception) -> SetError:
    return SetError(f"{what}: truncated or no image ({' '.join(str(error).split())})")


def thumbnail(array: np.ndarray, side: int = 64) -> np.ndarray:
    """The image scaled down to at most `side` pixels a side, uint8."""
    image = Image.fromarray(np.ascontiguousarray(array))
    image.thumbnail((side, side), Image.Resampling.BOX)
    return np.asarray(image)


def _refuse(image: Image.Image, what: str) -> None:
    frames, tiles = getattr(image, "n_frames", 1), getattr(image, "tile", ())
    # Tags of a TIFF: Pillow reads planes of 16 bits, and signed numbers, as 8 bits.
    tags = getattr(image, "tag_v2", {})
    if image.format not in FORMATS:
        raise SetError(f"{what}: its format is {image.format}; save it as PNG")
    if frames > 1 and image.format != "MPO":  # a camera's JPEG with a preview in it
        raise SetError(f"{what}: it has {frames} frames; save the one you want")
    # Pillow reduces 16-bit colour to 8 bits without a word; its raw mode still tells
    deep = any(";16" in str(tile[3]) for tile in tiles) or max(tags.get(BITSPERSAMPLE, (8,))) > 8
    if image.mode.startswith(("I", "F")) or deep:
        raise SetError(f"{what}: it has more than 8 bits a channel (Pillow mode {image.mode}); save it with 8")
    if SIGNED in tags.get(SAMPLEFORMAT, ()):
        raise SetError(f"{what}: its pixels are signed numbers; save it with values from 0 to 255")
    if image.mode not in MODES:
        raise SetError(f"{what}: its colours are {image.mode}; save it as gray or RGB")


def _is_right(target: Path, entry: Entry) -> bool:
    try:
        if entry.is_image:
            return pixels_sha256(open_image(target)) == entry.pixels_sha256
        return file_sha256(target) == entry.sha256
    except (SetError, OSError):
        return False


def _in_package(entry: Entry) -> Path:
    package, _, inside = entry.url.removeprefix(PACKAGE).partition("/")
    try:
        path = Path(str(importlib.resources.files(package) / inside))
        got = file_sha256(path)
    except (ModuleNotFoundError, OSError) as error:
        raise SetError(
            f"{entry}: {inside} is not in the package {package} ({error}); install environment.yml"
        ) from None
    if got != entry.sha256:
        raise SetError(
            f"{entry}: {package}'s {inside} has sha256 {got}, expected {entry.sha256}; install environment.yml"
        )
    return path


def own_images(reference: str, own: Path) -> list[tuple[Path, Path | None]]:
    """The files of a set of the user: photographs, each with its degraded version or None; raises SetError."""
    folder, what = own / reference.removeprefix(OWN), f"set {reference}"
    if not folder.is_dir():
        raise SetError(_absent(what, folder))
    targets, *inputs = listing(folder, what).values()
    return [(file, inputs[0][name] if inputs else None) for name, file in targets.items()]


def size(path: Path) -> tuple[int, int]:
    """Rows and columns of an image file as it is seen, from its header; raises SetError where it is none."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:  # they name no file
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # as in `decode`
        raise _damaged(str(path), error) from None


def listing(folder: Path, what: str) -> dict[str, dict[str, Path]]:
    """Image files of a set by their name without suffix, below "", or those of pairs below "target" and "input".

    Raises SetError, which begins with `what`, for anything else in the folder, and for pairs that are none.
    """
    parts = [part for part in ("target", "input") if (folder / part).is_dir()]
    if not parts:
        return {"": _images(folder, what)}
    if beside := [path for path in _visible(folder) if path.name not in ("target", "input")]:
        raise SetError(f"{what}: {beside[0]} lies beside the folders of pairs; put it into one, or into another set")
    found = {part: _images(folder / part, what) for part in ("target", "input")}
    if odd := sorted(found["target"].keys() ^ found["input"].keys()):
        raise SetError(f"{what}: {odd[0]!r} is not in both {folder / 'target'} and {folder / 'input'}")
    return found


def _absent(what: str, folder: Path) -> str:
    return (
        f"{what}: there is no folder {folder}; put its images there (or pairs: in its folders input and target, under "
        "the same names)"
    )


def _visible(folder: Path) -> list[Path]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if not path.name.startswith(".") and path.suffix.lower() not in IGNORED]


def _images(folder: Path, what: str) -> dict[str, Path]:
    """Image files of a folder by their name without suffix."""
    found: dict[str, Path] = {}
    for path in _visible(folder):
        if path.is_dir():
            raise SetError(f"{what}: {path} is a folder; put images into {folder}, or pairs into its folders input and "
                           "target, or name the folder as a set of its own")  # fmt: skip
        if path.suffix.lower() not in SUFFIXES:
            raise SetError(f"{what}: {path} is no image file; known are {', '.join(SUFFIXES)}")
        if re.search(r"[<>$`|]", path.name) or not path.name.isprintable():
            raise SetError(f"{what}: {str(path)!r} has a name that reports cannot show; rename it without < > $ ` |")
        if path.stem in found:
            raise SetError(f"{what}: {path.name} and {found[path.stem].name} have the same name")
        found[path.stem] = path
    if not found:
        raise SetError(f"{what}: {folder} has no images; known are {', '.join(SUFFIXES)}")
    return found


def _write(path: Path, write: Callable[[BinaryIO], object], what: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise disk_error(what, path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def _each(workers: int, function: Callable, items: Iterable) -> None:
    """Call `function` on every item; raises one SetError for all that failed, at once where going on is hopeless."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in as_completed(futures):
                if isinstance(error := future.exception(), Hopeless) or not isinstance(error, SetError | None):
                    raise error
        except BaseException:  # Ctrl-C too
            pool.shutdown(cancel_futures=True)
            raise
    errors = [str(error) for future in futures if (error := future.exception())]
    if len(errors) > ERRORS_SHOWN:
        errors[ERRORS_SHOWN:] = [f"and {len(errors) - ERRORS_SHOWN} more files"]
    if errors:
        raise SetError("\n".join(errors))


def _prune(roots: set[Path], kept: set[Path]) -> None:
    for root in roots:
        for path in sorted(root.rglob("*"), reverse=True):  # what is in a folder before the folder
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path not in kept:
                path.unlink()
