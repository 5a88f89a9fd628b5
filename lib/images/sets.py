"""Image sets as the study reads them: decoded photographs, listed by a manifest per task.

`registry` says which images a set has, `download` fetches and decodes them, this file reads the results:

    <folder>/images/<reference>/<name>.npy   uint8, (rows, columns) or (rows, columns, 3)
    <folder>/train/<task>.csv                the training images of a task
    <folder>/test/<task>.csv                 its test images

where <folder> is `downloads` or its copy `data`. A manifest has a row per image: set, name, target, input (empty unless
the degraded photograph comes with the set) and the sha256 of their pixels, so that it changes whenever an image does.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Advice for a missing or damaged image.
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
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def read(manifest: Path, may_be_empty: bool = False) -> list[Item]:
    """The images that a manifest lists, in its order.

    Raises SetError when the manifest is missing or damaged, lists nothing (unless it `may_be_empty`) or lists an image
    twice, and when the file of an image is missing.
    """
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            columns, *rows = list(csv.reader(file)) or [[]]
    except FileNotFoundError:
        raise SetError(f"{manifest} does not exist; run `make repro`, which writes it") from None
    if tuple(columns) != COLUMNS:
        raise SetError(f"{manifest} has the columns {', '.join(columns)}, not {', '.join(COLUMNS)}; {REMEDY}")
    if not rows and not may_be_empty:
        raise SetError(f"{manifest} lists no image; name a set with images for this task in params.yaml")
    root, items = manifest.parent.parent, {}
    for row in rows:
        if len(row) != len(COLUMNS):
            raise SetError(f"{manifest} is truncated at {','.join(row)!r}; {REMEDY}")
        name, image, target, degraded, *hashes = row
        if (name, image) in items:
            raise SetError(f"{manifest} lists {image} of set {name} twice")
        item = Item(name, image, root / target, root / degraded if degraded else None, *hashes)
        for path in filter(None, (item.target, item.input)):
            if not path.is_file():
                raise SetError(f"set {name}: {path} does not exist; {REMEDY}")
        items[name, image] = item
    return list(items.values())


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
