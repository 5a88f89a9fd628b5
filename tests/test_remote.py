"""Experiments packed, trained and measured in another folder without DVC or Jupyter, and brought back."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_pipeline import Clone, tiny

from lib import remote

EDSR, DAGL = "edsr_gray_denoise_25", "dagl_gray_denoise_25"
STAGES = {f"{stage}@{name}" for name in (EDSR, DAGL) for stage in ("train", "evaluate")}

#: What another machine need not have.
ABSENT = ("dvc", "papermill", "nbformat", "IPython", "jupyter_client", "matplotlib", "seaborn", "bm3d")


class Remote:
    """The unpacked archive, where nothing of `ABSENT` can be imported."""

    def __init__(self, archive: Path, folder: Path):
        shutil.unpack_archive(archive, folder, filter="data")
        self.folder, self.absent = folder / archive.stem, folder / "absent"
        self.absent.mkdir()
        for name in ABSENT:
            (self.absent / f"{name}.py").write_text("raise ImportError('not on this machine')\n")

    def python(self, arguments: list[str]) -> subprocess.CompletedProcess:
        environment = {"PYTHONPATH": str(self.absent), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True
        )

    def visit(self, name: str, readings: int, compact: bool) -> str:
        """A visit that ends at a reading of the clock; returns what is said of it."""
        code = (
            "import itertools; from lib import remote; remote.time.time = itertools.count().__next__;"
            "remote.unfold(remote.ROOT / 'data');"
            f"print(remote._work({name!r}, {readings}, {compact}))"
        )
        ended = self.python(["-c", code])
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    clone = Clone(tmp_path_factory.mktemp("clone"))
    path = clone.folder / "params.yaml"
    path.write_text(tiny(path.read_text()))
    return clone


@pytest.fixture(scope="module")
def returned(clone, tmp_path_factory) -> Path:
    """The folder of a machine that was there three times: EDSR with a compact checkpoint between, DAGL with a full
    one, then both to the end, side by side."""
    clone.shell(f"python -m lib pack {EDSR} {DAGL} --into box.tar")
    there = Remote(clone.folder / "box.tar", tmp_path_factory.mktemp("there"))
    for name, compact in ((EDSR, True), (DAGL, False)):
        assert there.visit(name, 4, compact) == f"{name}: out of time; `python -m lib remote {name}` goes on"
        [checkpoint] = (there.folder / "elsewhere" / name).glob("*.pt")
        assert 0 < torch.load(checkpoint, weights_only=True)["step"] < 4
    ended = there.python(["-m", "lib", "remote", "--jobs", "2"])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{DAGL}: trained and measured\n{EDSR}: trained and measured" in ended.stdout
    return there.folder / "elsewhere"


def test_results_come_back_into_the_pipeline(clone, returned):
    clone.shell(f"python -m lib import {returned}")
    assert not STAGES & clone.changed()
    results = clone.folder / "results/tiny"
    for stage, said in {"train": "Trained elsewhere", "evaluate": "Measured elsewhere"}.items():
        text = (results / stage / EDSR / f"{stage}.ipynb").read_text()
        assert said in text and f"torch {torch.__version__}" in text
    visits = [visit["begins"] for visit in json.loads((returned / EDSR / "visits.json").read_text())]
    assert (
        visits[0] == "seed 1 from step 0"
        and "rounded moments" in visits[1]
        and visits[2:]
        == [
            "seed 2 from step 0",
            "from photograph 1",
        ]
    )
    assert pd.read_csv(returned / EDSR / "log.csv").joint.notna().sum() == 1
    assert (results / "evaluate" / DAGL / "cost.json").exists() and (results / "pins/dvc.lock").exists()
    # the network that was interrupted with a full checkpoint is the one that is trained here
    before = {path: path.read_bytes() for path in (results / "evaluate" / DAGL).glob("*.csv")}
    weights = load_file(results / "weights" / DAGL / "seed_1.safetensors")
    (clone.folder / "elsewhere" / DAGL).rename(clone.folder / "elsewhere" / "aside")
    clone.shell(f"dvc repro --force --single-item train@{DAGL} evaluate@{DAGL}")
    (clone.folder / "elsewhere" / "aside").rename(clone.folder / "elsewhere" / DAGL)
    again = load_file(results / "weights" / DAGL / "seed_1.safetensors")
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    assert {path: path.read_bytes() for path in before} == before
    assert "elsewhere" not in (results / "train" / DAGL / "train.ipynb").read_text()


@pytest.mark.parametrize(
    ("file", "old", "new", "culprit"),
    [
        ("lib/training.py", '"""Training', '"""The training', "lib/training.py differs"),
        ("params.yaml", "lr: 1.0e-3", "lr: 2.0e-3", "profiles.tiny.training.gray_denoise_25 differs"),
        ("data/test/gray_denoise_25.csv", "sample", "simple", "data/test/gray_denoise_25.csv differs"),
    ],
)
def test_results_of_another_version_are_refused(clone, returned, tmp_path, file, old, new, culprit):
    if file.startswith("data/"):  # DVC would put ours right: theirs is another one
        shutil.copytree(returned, tmp_path / "theirs")
        for path in (tmp_path / "theirs").glob("*/version.json"):
            path.write_text(path.read_text().replace(f'"{file}": "', f'"{file}": "0'))
        returned = tmp_path / "theirs"
    else:
        clone.edit(file, old, new)
    ended = clone.shell(f"python -m lib import {returned}", check=False)
    if not file.startswith("data/"):
        clone.edit(file, new, old)
    [error] = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert ended.returncode == 1 and "Running stage" not in ended.stdout
    assert error == f"error: {DAGL}: {culprit} from what was packed; go back to that, or pack and run it again"


def test_unfinished_results_are_kept_to_be_packed_again(clone, returned, tmp_path):
    shutil.copytree(returned / DAGL, tmp_path / "elsewhere" / DAGL)
    (tmp_path / "elsewhere" / DAGL / "images.csv").rename(tmp_path / "elsewhere" / DAGL / "images.csv.part")
    subprocess.run(["tar", "cf", tmp_path / "back.tar", "-C", tmp_path, "elsewhere"], check=True)
    ended = clone.shell(f"python -m lib import {tmp_path / 'back.tar'}", check=False)
    assert ended.returncode == 1
    assert f"error: {DAGL}: not finished, images.csv is not there: evaluate is not done; kept" in ended.stderr
    clone.shell(f"python -m lib pack {DAGL} --into again.tar")
    there = Remote(clone.folder / "again.tar", tmp_path)
    assert (there.folder / "elsewhere" / DAGL / "log.csv").exists()


def test_an_anchor_is_not_packed(clone):
    ended = clone.shell("python -m lib pack input_gray_denoise_25 --into no.tar", check=False)
    assert (
        ended.returncode == 1 and "is not trained; `dvc repro anchor@input_gray_denoise_25` measures it" in ended.stderr
    )


def test_packed_images_unfold_to_the_same_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    remote.fold(pixels, tmp_path / "color.webp")
    remote.fold(pixels[..., 0], tmp_path / "gray.webp")
    remote.unfold(tmp_path)
    assert np.array_equal(np.load(tmp_path / "color.npy"), pixels)
    assert np.array_equal(np.load(tmp_path / "gray.npy"), pixels[..., 0])
