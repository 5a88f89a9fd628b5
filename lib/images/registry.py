"""The registry: which images every set has, from where, under which terms, and which of them show the same scene.

    registry.csv     a row per published image: reference (the folder that names its set), name, set, url, bytes and
                     sha256 of the published file, pixels_sha256 of the decoded image, channels, height, width, terms,
                     overlaps (other sets that show the same scene). A url `package:<package>/<path>` is a file inside
                     an installed package. A row without channels is a file that is kept as it is.
    terms.csv        the terms in full
    manual_sets.csv  sets that are not fetched image by image: where a user gets them, what is checked, and the archive
                     where it has a direct address (without sha256 the archive is not verified, and that is reported)

A reference is a folder: `bsd68`, `bsds500/train`, `urban100/HR`. One that has the folders `target` and `input` is a set
of pairs. References that begin with `own/` are folders of the user. Adding a set is adding rows.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from .sets import COLUMNS, SetError, open_image, pixels_sha256

#: How a task uses photographs; those of `validation` choose recipes and follow trainings, and decide no claim.
SIDES = ("train", "validation", "test")

HERE = Path(__file__).resolve().parent
OWN = "own/"


@dataclass(frozen=True)
class Entry:
    """One published file; `channels`, `height` and `width` are 0 where it is no image."""

    reference: str
    name: str
    set: str
    url: str
    bytes: int
    sha256: str
    pixels_sha256: str
    channels: int
    height: int
    width: int
    terms: str
    overlaps: tuple[str, ...]

    def __str__(self) -> str:
        return f"set {self.reference}: {self.name}"

    @property
    def is_image(self) -> bool:
        return self.channels > 0

    @property
    def path(self) -> Path:
        """Where it lies once downloaded, relative to the downloads."""
        folder = Path(self.reference)
        return Path("images") / folder / f"{self.name}.npy" if self.is_image else folder / self.name


@dataclass(frozen=True)
class ManualSet:
    """A set that the user or an archive provides; 0 for what differs between images or is not known."""

    reference: str
    pairs: bool
    images: int
    height: int
    width: int
    archive: str
    members: str
    bytes: int
    sha256: str
    where: str
    prepare: str
    terms: str


class Registry:
    """The tables of one folder, by default those of the study."""

    def __init__(self, folder: Path = HERE):
        self.entries: dict[str, tuple[Entry, ...]] = {}
        self.terms = {row["key"]: row["terms"] for row in _rows(folder / "terms.csv")}
        for row in _rows(folder / "registry.csv"):
            numbers = {key: int(row[key] or 0) for key in ("bytes", "channels", "height", "width")}
            entry = Entry(**{**row, **numbers, "overlaps": tuple(row["overlaps"].split())})
            self.entries[entry.reference] = (*self.entries.get(entry.reference, ()), entry)
        self.manual: dict[str, ManualSet] = {}
        for row in _rows(folder / "manual_sets.csv"):
            numbers = {key: int(row[key] or 0) for key in ("images", "height", "width", "bytes")}
            self.manual[row["reference"]] = ManualSet(**{**row, **numbers, "pairs": row["pairs"] == "yes"})

    @property
    def references(self) -> list[str]:
        """Every reference that can be named in params.yaml, the user's own aside."""
        pairs = {name.removesuffix("/target") for name in self.entries if name.endswith("/target")}
        return sorted({*self.entries, *pairs, *self.manual})

    def check(self, references: Iterable[str]) -> None:
        """Raises SetError for a reference that is neither known nor the user's own."""
        for reference in references:
            if _is_own(reference) or reference in self.references:
                continue
            close = difflib.get_close_matches(str(reference), self.references, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(self.references)}"
            raise SetError(f"unknown set {reference!r}; {hint} (your own folders are named {OWN}<folder>)")

    def pairs(self, reference: str) -> list[tuple[Entry, Entry | None]]:
        """Target and input (None unless a set of pairs) of every image of a set that the registry lists."""
        if reference in self.entries:
            return [(entry, None) for entry in self.entries[reference]]
        inputs = {entry.name: entry for entry in self.entries[f"{reference}/input"]}
        targets = self.entries[f"{reference}/target"]
        if {entry.name for entry in targets} != set(inputs):
            raise SetError(f"set {reference}: the registry's inputs and targets do not have the same names")
        return [(entry, inputs[entry.name]) for entry in targets]

    def files(self, references: Iterable[str]) -> list[Entry]:
        """Every file of the sets that the registry lists, once each."""
        listed = [reference for reference in references if self.lists(reference)]
        found = [entry for reference in listed for pair in self.pairs(reference) for entry in pair if entry]
        return list({entry.path: entry for entry in found}.values())

    def lists(self, reference: str) -> bool:
        """Whether every image of the set has a row (the others come from the user or from an archive)."""
        return reference in self.entries or f"{reference}/target" in self.entries

    def leaks(self, train: Iterable[str], test: Iterable[str]) -> list[Entry]:
        """The images of `train` that show a scene of one of the sets `test`: never trained on for such a task."""
        tested = {self.set_of(reference) for reference in test}
        listed = [reference for reference in train if self.lists(reference)]
        return [t for reference in listed for t, _ in self.pairs(reference) if tested & set(t.overlaps)]

    def set_of(self, reference: str) -> str:
        """The name that a set has in tables."""
        if self.lists(reference):
            return self.pairs(reference)[0][0].set
        return reference.removeprefix(OWN).replace("/", "_") if _is_own(reference) else reference.split("/")[0]

    def describe(self, references: Iterable[str], downloads: Path) -> pd.DataFrame:
        """A row per set: images, whether pairs, sizes (rows x columns), channels, megabytes published, terms."""
        rows = []
        for reference in dict.fromkeys(references):
            if self.lists(reference):
                pairs = self.pairs(reference)
                shapes = [(t.height, t.width, t.channels) for t, _ in pairs if t.is_image]
                size = sum(entry.bytes for pair in pairs for entry in pair if entry)
                terms = {self.terms[t.terms] for t, _ in pairs}
                paired = pairs[0][1] is not None
            else:
                found = _stored(downloads, reference)
                shapes = [(*open_image(t).shape, 1)[:3] for _, t, _ in found]
                size = sum(path.stat().st_size for row in found for path in row[1:] if path)
                terms = {self.manual[reference].terms if reference in self.manual else "the user's own"}
                paired = found[0][2] is not None
            rows.append(
                {
                    "set": reference,
                    "images": len(shapes),
                    "pairs": paired,
                    "size": _sizes({shape[:2] for shape in shapes}),
                    "channels": "/".join(str(c) for c in sorted({c for *_, c in shapes})),
                    "MB": round(size / 1e6, 1),
                    "terms": "; ".join(sorted(terms)),
                }
            )
        return pd.DataFrame(rows).set_index("set")

    def write_manifests(
        self,
        downloads: Path,
        tasks: Mapping[str, Mapping[str, Sequence[str]]],
        colored: Collection[str] = (),
    ) -> None:
        """Write <side>/<task>.csv below `downloads` for each of SIDES, from each task's references by side.

        Photographs that `leaks` finds are in neither training nor validation, gray photographs not in the tasks in
        `colored`. Manifests of other tasks are removed. Raises SetError when a set has no images, or two images of a
        task have the same set and name.
        """
        for side in SIDES:
            folder = downloads / side
            folder.mkdir(parents=True, exist_ok=True)
            for stale in {path.name for path in folder.iterdir()} - {f"{task}.csv" for task in tasks}:
                (folder / stale).unlink()
            for task, references in tasks.items():
                chosen, tested = references.get(side, ()), references.get("test", ())
                left_out = set() if side == "test" else {leak.path for leak in self.leaks(chosen, tested)}
                if task in colored:
                    left_out |= {entry.path for entry in self.files(chosen) if entry.channels == 1}
                rows = [row for r in dict.fromkeys(chosen) for row in self._manifest(downloads, r, left_out)]
                keys = [(row[0], row[1]) for row in rows]
                twice = next((key for key in keys if keys.count(key) > 1), None)
                if twice:
                    raise SetError(f"task {task}: two {side} images are called {twice[1]} of set {twice[0]}")
                _write_manifest(folder / f"{task}.csv", rows)

    def write_set_manifests(self, folder: Path, references: Iterable[str]) -> None:
        """Write a manifest per set, with all of its files, to `folder` in the downloads, and remove any other there.

        `manifest_of` names them.
        """
        wanted = {manifest_of(reference): reference for reference in references}
        folder.mkdir(parents=True, exist_ok=True)
        for stale in {path.name for path in folder.iterdir()} - set(wanted):
            (folder / stale).unlink()
        for name, reference in wanted.items():
            _write_manifest(folder / name, self._manifest(folder.parent, reference, set()))

    def _manifest(self, downloads: Path, reference: str, left_out: set[Path]) -> list[tuple]:
        name = self.set_of(reference)
        if self.lists(reference):
            return [
                (name, t.name, t.path.as_posix(), i.path.as_posix(), t.pixels_sha256, i.pixels_sha256)
                if i
                else (name, t.name, t.path.as_posix(), "", t.pixels_sha256 or t.sha256, "")
                for t, i in self.pairs(reference)
                if t.path not in left_out
            ]
        rows = []
        for stem, *paths in _stored(downloads, reference):
            relative = [path.relative_to(downloads).as_posix() if path else "" for path in paths]
            hashes = [pixels_sha256(open_image(path)) if path else "" for path in paths]
            rows.append((name, stem, *relative, *hashes))
        return rows


def manifest_of(reference: str) -> str:
    """Name of the manifest of one set: `set5/HR` -> `set5_HR.csv`."""
    return f"{reference.replace('/', '_')}.csv"


@cache
def published() -> Registry:
    """The registry of the study."""
    return Registry()


def check_references(references: Iterable[str]) -> None:
    """Raises SetError for a reference that the study's registry does not know."""
    published().check(references)


def near_duplicates(
    train: Sequence[np.ndarray], test: Sequence[np.ndarray], threshold: float = 0.95
) -> list[tuple[int, int, float]]:
    """Pairs (index in `train`, index in `test`, correlation) of images that show the same picture.

    Compared are 16 x 16 gray versions, less their mean: the whole of both images, at any resolution, and the test
    image with the top-left crop of its size, the way Rain100 was cut from BSDS500. A part taken from elsewhere in the
    photograph is not found. On the benchmark sets every pair above 0.95 is the same photograph.
    """
    found: dict[tuple[int, int], float] = {}
    train, test = [_gray(image) for image in train], [_gray(image) for image in test]
    whole = np.stack([_signature(image) for image in train])
    for size in sorted({image.shape[:2] for image in test}):
        at = [i for i, image in enumerate(test) if image.shape[:2] == size]
        there = np.stack([_signature(test[i]) for i in at])
        corners = [image[: size[0], : size[1]] for image in train]
        corner = np.stack([_signature(c) if c.shape == size else whole[i] for i, c in enumerate(corners)])
        score = np.maximum(whole @ there.T, corner @ there.T)
        for i, j in np.argwhere(score > threshold):
            found[int(i), at[j]] = float(score[i, j])
    return [(i, j, score) for (i, j), score in sorted(found.items())]


def _stored(downloads: Path, reference: str) -> list[tuple[str, Path, Path | None]]:
    """Name, target and input of what was imported from an archive or a folder of the user."""
    folder = downloads / "images" / reference
    paired = (folder / "target").is_dir()
    targets = sorted((folder / "target" if paired else folder).glob("*.npy"))
    if not targets:
        raise SetError(f"set {reference}: {folder} holds no image")
    return [(path.stem, path, folder / "input" / path.name if paired else None) for path in targets]


def _write_manifest(path: Path, rows: list[tuple]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def _is_own(reference: str) -> bool:
    parts = Path(reference).parts
    return reference.startswith(OWN) and len(parts) > 1 and ".." not in parts


def _sizes(shapes: set[tuple[int, int]]) -> str:
    texts = [f"{h}x{w}" for h, w in sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape))]
    return ", ".join(texts) if len(texts) < 3 else f"{texts[0]} to {texts[-1]}"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _gray(array: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).convert("L"))


def _signature(gray: np.ndarray) -> np.ndarray:
    small = Image.fromarray(np.ascontiguousarray(gray)).resize((16, 16), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float64).ravel()
    values -= values.mean()
    return values / max(np.linalg.norm(values), 1e-9)
