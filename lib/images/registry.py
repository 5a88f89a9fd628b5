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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from PIL import Image

from .sets import COLUMNS, SetError, open_image, pixels_sha256

#: How a task uses photographs; those of `validation` choose recipes and follow trainings, and decide no claim.
SIDES = ("train", "validation", "test")

T = TypeVar("T")
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
        self.terms = {row["key"]: row["terms"] for row in _rows(folder / "terms.csv")}
        self.manual = {row["reference"]: _typed(ManualSet, row) for row in _rows(folder / "manual_sets.csv")}
        self.entries: dict[str, list[Entry]] = {}
        for row in _rows(folder / "registry.csv"):
            self.entries.setdefault(row["reference"], []).append(_typed(Entry, row))

    @property
    def references(self) -> list[str]:
        """Every reference that can be named in params.yaml, the user's own aside."""
        pairs = {name.removesuffix("/target") for name in self.entries if name.endswith("/target")}
        return sorted({*self.entries, *pairs, *self.manual})

    @property
    def checkpoints(self) -> dict[str, str]:
        """SHA-256 of every public checkpoint by the path that it has once downloaded, `data/weights/<name>`."""
        return {f"data/{entry.path.as_posix()}": entry.sha256 for entry in self.entries["weights"]}

    def check(self, references: Iterable[str]) -> None:
        """Raises SetError for a reference that is neither known nor the user's own."""
        for reference in references:
            if _is_own(reference) or reference in self.references:
                continue
            close = difflib.get_close_matches(str(reference), self.references, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(self.references)}"
            raise SetError(f"unknown set {reference!r}; {hint} (your own folders are named {OWN}<folder>)")

    def lists(self, reference: str) -> bool:
        """Whether every image of the set has a row (the others come from the user or from an archive)."""
        return reference in self.entries or f"{reference}/target" in self.entries

    def pairs(self, reference: str, downloads: Path | None = None) -> list[tuple[Entry, Entry | None]]:
        """Target and input (None unless a set of pairs) of every image of a set.

        downloads: where the images lie of a set that the registry does not list.
        """
        parts = [f"{reference}{part}" for part in ("", "/target", "/input")]
        if self.lists(reference):
            plain, targets, inputs = (self.entries.get(part, []) for part in parts)
        else:
            plain, targets, inputs = (self._stored(downloads or Path(), reference, part) for part in parts)
        if not plain and [entry.name for entry in targets] != [entry.name for entry in inputs]:
            raise SetError(f"set {reference}: its inputs and targets do not have the same names")
        if not plain and not targets:
            raise SetError(f"set {reference}: {downloads}/images/{reference} holds no image")
        return [(entry, None) for entry in plain] or list(zip(targets, inputs, strict=True))

    def _stored(self, downloads: Path, reference: str, part: str) -> list[Entry]:
        """Images imported from an archive or a folder of the user, as if the registry listed them."""
        terms = self.manual[reference].terms if reference in self.manual else "the user's own"
        found = []
        for path in sorted((downloads / "images" / part).glob("*.npy")):
            image, size = open_image(path), path.stat().st_size
            height, width, channels = (*image.shape, 1)[:3]
            found.append(Entry(part, path.stem, self.set_of(reference), "", size, "", pixels_sha256(image), channels,
                               height, width, terms, ()))  # fmt: skip
        return found

    def files(self, references: Iterable[str]) -> list[Entry]:
        """Every file of the sets that the registry lists, once each."""
        listed = [reference for reference in references if self.lists(reference)]
        found = [entry for reference in listed for pair in self.pairs(reference) for entry in pair if entry]
        return list({entry.path: entry for entry in found}.values())

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
        rows = {}
        for reference in references:
            pairs = self.pairs(reference, downloads)
            images = [target for target, _ in pairs if target.is_image]
            size = sum(entry.bytes for pair in pairs for entry in pair if entry)
            rows[reference] = {
                "images": len(images),
                "pairs": pairs[0][1] is not None,
                "size": _sizes({(image.height, image.width) for image in images}),
                "channels": "/".join(sorted({str(image.channels) for image in images})),
                "MB": round(size / 1e6, 1),
                "terms": "; ".join(sorted({self.terms.get(target.terms, target.terms) for target, _ in pairs})),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("set")

    def write_manifests(
        self,
        downloads: Path,
        tasks: Mapping[str, Mapping[str, Sequence[str]]],
        colored: Collection[str] = (),
    ) -> None:
        """Write <side>/<task>.csv below `downloads` for each of SIDES, from each task's references by side.

        Training and validation get no photograph that `leaks` finds or that has the pixels of a test image, the tasks
        in `colored` no gray one. Manifests of other tasks are removed. Raises SetError when a set has no images or is
        named for training or validation and for test, or two images of a task have the same set and name.
        """
        for side in SIDES:
            _remove_others(downloads / side, {f"{task}.csv" for task in tasks})
        for task, references in tasks.items():
            tested = references.get("test", ())
            shown = {row[4] for reference in tested for row in self._manifest(downloads, reference)}
            for side in SIDES:
                chosen = list(dict.fromkeys(references.get(side, ())))
                rows = [row for reference in chosen for row in self._manifest(downloads, reference, task in colored)]
                if side != "test":
                    if both := [reference for reference in chosen if reference in tested]:
                        raise SetError(f"task {task}: {both[0]} is named for {side} and for test; name another set")
                    leaks = {leak.path.as_posix() for leak in self.leaks(chosen, tested)}
                    rows = [row for row in rows if row[2] not in leaks and row[4] not in shown]
                keys = [row[:2] for row in rows]
                if twice := next((key for key in keys if keys.count(key) > 1), None):
                    raise SetError(f"task {task}: two {side} images are called {twice[1]} of set {twice[0]}")
                _write_manifest(downloads / side / f"{task}.csv", rows)

    def write_set_manifests(self, folder: Path, references: Iterable[str]) -> None:
        """Write a manifest per set, with all of its files, to `folder` in the downloads, and remove any other there.

        `manifest_of` names them.
        """
        wanted = {manifest_of(reference): reference for reference in references}
        _remove_others(folder, set(wanted))
        for name, reference in wanted.items():
            _write_manifest(folder / name, self._manifest(folder.parent, reference))

    def _manifest(self, downloads: Path, reference: str, colored: bool = False) -> list[tuple[str, ...]]:
        """Rows of COLUMNS for the images of a set, or for the colour ones alone."""
        name, rows = self.set_of(reference), list[tuple[str, ...]]()
        for target, degraded in self.pairs(reference, downloads):
            if not (colored and target.channels == 1):
                places = target.path.as_posix(), degraded.path.as_posix() if degraded else ""
                hashes = target.pixels_sha256 or target.sha256, degraded.pixels_sha256 if degraded else ""
                rows.append((name, target.name, *places, *hashes))
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


def _write_manifest(path: Path, rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def _remove_others(folder: Path, names: set[str]) -> None:
    """Make `folder` exist and hold no file but those called `names`."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


def _is_own(reference: str) -> bool:
    parts = Path(reference).parts
    return reference.startswith(OWN) and len(parts) > 1 and ".." not in parts and "//" not in reference


def _sizes(shapes: set[tuple[int, int]]) -> str:
    texts = [f"{h}x{w}" for h, w in sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape))]
    return ", ".join(texts) if len(texts) < 3 else f"{texts[0]} to {texts[-1]}"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


#: How a cell becomes a field, by the field's annotation.
_READ: dict[str, Callable[[str], object]] = {
    "str": str,
    "int": lambda cell: int(cell or 0),
    "bool": lambda cell: cell == "yes",
    "tuple[str, ...]": lambda cell: tuple(cell.split()),
}


def _typed(kind: type[T], row: dict[str, str]) -> T:
    """A row of a table as an Entry or a ManualSet."""
    return kind(**{name: _READ[annotation](row[name]) for name, annotation in kind.__annotations__.items()})


def _gray(array: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).convert("L"))


def _signature(gray: np.ndarray) -> np.ndarray:
    small = Image.fromarray(np.ascontiguousarray(gray)).resize((16, 16), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float64).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-9)
