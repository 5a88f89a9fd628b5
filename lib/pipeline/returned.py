"""Results of another machine for an experiment, as the notebooks `train` and `evaluate` ask for them.

elsewhere/<experiment>/
    version.json           what the experiment was packed with (`version`), per stage
    visits.json            which machine went on from where
    <name>-<seed>-<digest>.pt    while it trains: checkpoints, named as those of a training here
    seed_<seed>.safetensors, validation.csv, log.csv    once it is trained; weights of the first seed at least
    images.csv.part        while it is measured: the photographs so far
    picture.npz, mechanism.npz, *_gain.npz, acts.json, field.json, images.csv    once it is measured
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..params import ROOT, Params
from . import resolve
from .runner import StageError, dependencies, digest

if TYPE_CHECKING:
    from ..measuring.evaluation import Restored
    from ..training import Trained

#: Folder for the results of other machines, a folder per experiment (`remote` fills it, `transfer` moves it).
ELSEWHERE = ROOT / "elsewhere"

#: stage -> the file that is there once it was done.
DONE = {"train": "log.csv", "evaluate": "images.csv"}


def returned(params: Params, stage: str, experiment: str) -> Returned | None:
    """Results that came back for a stage of an experiment in its present version; None where it is computed here."""
    folder = ELSEWHERE / experiment
    if (
        not (folder / DONE[stage]).exists()
        or json.loads((folder / "version.json").read_text())["profile"] != params.profile
    ):
        return None
    stages = ("train",) if stage == "train" else ("train", "evaluate")  # numbers are those of their own weights
    if differs := difference(params, experiment, stages):
        print(f"{differs} from what {ELSEWHERE.name}/{experiment} was made with, so it is done here")
        return None
    return Returned(folder)


class Returned:
    """The folder of an experiment that came back."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, seeds: Iterable[int]) -> None:
        """Everything, to no end but that a damaged file raises, in one of many ways."""
        self.measured(), self.picture(), self.mechanism()
        for stage in DONE:
            self.machines(stage)
        for seed in seeds:
            self.trained(seed)
        for name in ("acts", "field"):
            self.table(name)

    def machines(self, stage: str) -> str:
        """Where the stage was done, a line per visit."""
        visits = [visit for visit in json.loads((self.folder / "visits.json").read_text()) if visit["stage"] == stage]
        lines = [f"{v['begins']}: {v['device']}, torch {v['torch']}, Python {v['python']}" for v in visits]
        said = "computed on another machine; the files that came back are shown here"
        return "\n".join([said, *(f"  {_plain(line)}" for line in lines)])

    def trained(self, seed: int) -> Trained:
        """The weights and the log of a seed, as `lib.training.train` returns them; weights that did not come back, all
        but those of the first seed may be too large for that, are none."""
        from safetensors.torch import load_file

        from ..training import Trained

        log = pd.read_csv(self.folder / DONE["train"])
        curve = pd.read_csv(self.folder / "validation.csv")
        rows, points = (table[table.seed == seed].drop(columns="seed").to_dict("records") for table in (log, curve))
        path = self.folder / f"seed_{seed}.safetensors"
        return Trained(load_file(path) if path.exists() else {}, rows, points)

    def measured(self) -> tuple[pd.DataFrame, list[Restored]]:
        """All rows, and the photographs of the smallest and of the largest gain, as `evaluation.measure`."""
        from ..measuring.evaluation import Restored

        pictures = []
        for name in ("smallest_gain", "largest_gain"):
            with np.load(self.folder / f"{name}.npz") as arrays:
                pictures.append(
                    Restored(**{key: value if value.ndim else value.item() for key, value in arrays.items()})
                )
        return read_rows(self.folder / DONE["evaluate"]), pictures

    def picture(self) -> dict[str, np.ndarray]:
        """The photograph that all rows show, as `evaluation.picture` returns it."""
        arrays = np.load(self.folder / "picture.npz")  # whose names become those of files: no others than these
        return {name: arrays[name] for name in ("restored", "clean") if name in arrays}

    def mechanism(self) -> dict[str, np.ndarray]:
        """Maps of the attention, as `evaluation.mechanism` returns them."""
        path = self.folder / "mechanism.npz"
        return dict(np.load(path)) if path.exists() else {}

    def table(self, name: str) -> pd.DataFrame:
        """The table `acts` or `field` of the attention modules, as `evaluation` makes them."""
        read = pd.read_json(self.folder / f"{name}.json", orient="split", precise_float=True, dtype=False)
        return read.map(lambda value: _plain(value) if isinstance(value, str) else value)


def _plain(text: str) -> str:
    """Text of another machine for notebooks, without what could be markup."""
    return re.sub(r"[^\w .,:;()+/@-]", "?", text)


def read_rows(path: Path) -> pd.DataFrame:
    """Per-image rows as they were measured: names stay text."""
    return pd.read_csv(path, dtype={"set": str, "image": str}, keep_default_na=False, na_values=[""])


def version(params: Params, stage: str, key: str) -> dict[str, object]:
    """The version that a result of training or measuring `key` belongs to: the sha256 of all code and of the manifest
    of the images, and every value that the stage is given. Raises StageError where a file is missing."""
    found: dict[str, object] = {}
    for name in dependencies(params, stage, key):
        if not name.startswith("results/"):
            if not (ROOT / name).exists():
                raise StageError(f"{stage} {key}: {name} does not exist; run `dvc repro data.dvc`")
            found[name] = digest(ROOT / name)
    return found | json.loads(resolve.text(params, stage, key))


def difference(params: Params, key: str, stages: tuple[str, ...] = tuple(DONE), folder: Path = ELSEWHERE) -> str:
    """Which files and values are not what `key` was packed with for another machine; "" where all are."""
    packed, names = json.loads((folder / key / "version.json").read_text()), set()
    for stage in stages:
        now = version(params, stage, key)
        names |= {name for name in {**packed[stage], **now} if packed[stage].get(name) != now.get(name)}
    return f"{', '.join(sorted(names))} differ{'s' if len(names) == 1 else ''}" if names else ""
