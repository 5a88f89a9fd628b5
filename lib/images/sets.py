"""Image sets as the study reads them: decoded photographs, listed by a manifest per task.

`registry` says which images a set has, `download` fetches and decodes them, this file reads what they left:

    <folder>/images/<reference>/<name>.npy   uint8, (rows, columns) or (rows, columns, 3)
    <folder>/train/<task>.csv                the training images of a task
    <folder>/test/<task>.csv                 its test images

where <folder> is `downloads` or its copy `data`. A manifest has a row per image: set, name, target, input (empty unless
the degraded photograph comes with the set) and the sha256 of their pixels, so that it changes whenever an image does.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

#: What brings a missing or damaged image back.
REMEDY = "run `make repro`, which fetches it again"

COLUMNS = ("set", "name", "target", "input", "pixels_sha256", "input_sha256")

#: First row of the inverse of the NTSC matrix that MATLAB's rgb2gray uses.
MATLAB_GRAY = (0.298936021293775, 0.587043074451121, 0.114020904255103)


class SetError(ValueError):
    """An image set is not as it should be: one line that names the set, the file and what to do."""


@dataclass(frozen=True)
class Item:
    """One image of a set: the photograph (`target`) and, in a set of pairs, its degraded version (`input`)."""

    set: str
    name: str
    target: Path
    input: Path | None = None
    pixels_sha256: str = ""
    input_sha256: str = ""

    def load(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Target and input (or None) as read-only memory maps, uint8, (rows, columns) or (rows, columns, 3).

        Raises SetError where a file is missing, truncated or no image.
        """
        return open_image(self.target), open_image(self.input) if self.input else None


def open_image(path: Path) -> np.ndarray:
    """The decoded image at `path` as a read-only memory map: uint8, (rows, columns) or (rows, columns, 3)."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise SetError(f"{path} does not exist; {REMEDY}") from None
    except (OSError, ValueError, EOFError) as error:
        raise SetError(f"{path} is truncated or no array ({error}); remove it and {REMEDY}") from None
    if not is_image(array):
        shape, kind = getattr(array, "shape", None), getattr(array, "dtype", type(array).__name__)
        raise SetError(f"{path} holds {kind} of shape {shape}, not an 8-bit image; remove it and {REMEDY}")
    return array


def is_image(array: np.ndarray) -> bool:
    """Whether `array` has the form of a decoded image: uint8, (rows, columns) or (rows, columns, 3), not empty."""
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.size == 0:
        return False
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)


def pixels_sha256(array: np.ndarray) -> str:
    """sha256 of the pixels: uint8, rows x columns [x channels], C order."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def read(manifest: Path | str) -> list[Item]:
    """The images that a manifest lists, in its order.

    Raises SetError when the manifest is missing, lists nothing, lists an image twice, or a file is not there.
    """
    manifest = Path(manifest)
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise SetError(f"{manifest} does not exist; run `make repro`, which writes it") from None
    if not rows:
        raise SetError(f"{manifest} lists no image; name a set with images for this task in params.yaml")
    if tuple(rows[0]) != COLUMNS:
        raise SetError(f"{manifest} has the columns {', '.join(rows[0])}, not {', '.join(COLUMNS)}; {REMEDY}")
    root, seen, items = manifest.parent.parent, set(), []
    for row in rows:
        key = row["set"], row["name"]
        if key in seen:
            raise SetError(f"{manifest} lists {row['name']} of set {row['set']} twice")
        seen.add(key)
        paths = {kind: root / row[kind] if row[kind] else None for kind in ("target", "input")}
        for path in filter(None, paths.values()):
            if not path.is_file():
                raise SetError(f"set {row['set']}: {path} does not exist; {REMEDY}")
        items.append(Item(**{**row, **paths}))
    return items


def to_gray(array: np.ndarray, rule: str) -> np.ndarray:
    """A gray version, uint8 (rows, columns), of an image that may be gray already.

    rule: `matlab` is rgb2gray, as BSD68 was made from CBSD68; `opencv` is cvtColor's fixed-point BT.601, as the
    denoising papers use Urban100. The two differ by at most one gray level. Raises SetError for another rule.
    """
    if rule not in ("matlab", "opencv"):
        raise SetError(f"unknown gray rule {rule!r}; known: matlab, opencv")
    if array.ndim == 2:
        return array
    if rule == "opencv":
        red, green, blue = np.moveaxis(array, -1, 0).astype(np.int32)
        return ((9798 * red + 19235 * green + 3735 * blue + 16384) >> 15).astype(np.uint8)
    return np.floor(array @ np.array(MATLAB_GRAY) + 0.5).astype(np.uint8)  # MATLAB rounds halves up


def thumbnail(array: np.ndarray, side: int = 64) -> np.ndarray:
    """The image scaled down to at most `side` pixels a side, uint8."""
    image = Image.fromarray(np.ascontiguousarray(array))
    image.thumbnail((side, side), Image.Resampling.BOX)
    return np.asarray(image)


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


def _gray(array: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).convert("L"))


def _signature(gray: np.ndarray) -> np.ndarray:
    small = Image.fromarray(np.ascontiguousarray(gray)).resize((16, 16), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float64).ravel()
    values -= values.mean()
    return values / max(np.linalg.norm(values), 1e-9)
