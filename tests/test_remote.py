"""Experiments packed, trained and measured in another folder without DVC or Jupyter, and brought back."""

import dataclasses
import itertools
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_pipeline import Clone, tiny

from lib import models
from lib.__main__ import main
from lib.images import sets
from lib.measuring import evaluation
from lib.params import Budget, Params, ParamsError
from lib.pipeline import remote, transfer
from lib.pipeline.returned import Returned
from lib.pipeline.runner import StageError
from lib.tasks import experiment as experiments
from lib.training import Crops, read_checkpoint, train

EDSR = "edsr_gray_denoise_25"

#: Packages that another machine need not have.
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

    def visit(self, name: str, readings: int) -> str:
        """A visit that ends at a reading of the clock; returns what is said of it."""
        code = (
            "import itertools; from lib.pipeline import remote; remote.time.time = itertools.count().__next__;"
            "remote.unfold(remote.ROOT / 'data');"
            f"print(remote._work({name!r}, {readings}, False))"
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
    """Results of a second visit, which continued from the unfinished ones of the first."""
    said = clone.shell(f"python -m lib pack {EDSR} {EDSR} --into 'first box.tar'").stdout
    assert ": 1 experiment(s)" in said and "tar xf 'first box.tar' && cd 'first box' && " in said
    there = Remote(clone.folder / "first box.tar", tmp_path_factory.mktemp("first"))
    assert there.visit(EDSR, 3) == f"{EDSR}: out of time; `python -m lib remote {EDSR}` goes on"
    subprocess.run(["tar", "cf", clone.folder / "back.tar", "elsewhere"], cwd=there.folder, check=True)
    ended = clone.shell("python -m lib import back.tar", check=False)
    assert ended.returncode == 1 and "Running stage 'train" not in ended.stdout
    assert f"error: not finished: {EDSR}: log.csv is not there: train is not done. Kept: " in ended.stderr
    [checkpoint] = (clone.folder / "checkpoints").glob("*.pt")
    assert 0 < read_checkpoint(checkpoint)["step"] < 4

    clone.shell(f"python -m lib pack {EDSR} --into second.tar")
    there = Remote(clone.folder / "second.tar", tmp_path_factory.mktemp("second"))
    ended = there.python(["-m", "lib", "remote", "--minutes", "60"])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{EDSR}: trained and measured" in ended.stdout
    return there.folder / "elsewhere"


def test_results_come_back_into_the_pipeline(clone, returned):
    clone.shell(f"python -m lib import {returned}")
    assert not {f"train@{EDSR}", f"evaluate@{EDSR}"} & clone.changed()
    results = clone.folder / "results/tiny"
    for stage in ("train", "evaluate"):
        text = (results / stage / EDSR / f"{stage}.ipynb").read_text()
        assert "computed on another machine" in text and f"torch {torch.__version__}" in text
    begins = [visit["begins"] for visit in json.loads((returned / EDSR / "visits.json").read_text())]
    assert begins == ["seed 1 from step 0", "seed 1 from step 2", "seed 2 from step 0", "from photograph 1"]
    assert (results / "evaluate" / EDSR / "cost.json").exists() and (results / "pins/dvc.lock").exists()

    # the same as if nobody had interrupted it and it had been done here
    files = [*results.glob(f"*/{EDSR}/*.csv"), *results.glob(f"weights/{EDSR}/*")]
    before = {path: path.read_bytes() for path in files}
    shutil.rmtree(clone.folder / "elsewhere")
    clone.shell(f"python -m lib run train {EDSR} && python -m lib run evaluate {EDSR}")
    assert len(before) == 6 and {path: path.read_bytes() for path in files} == before
    assert "trained on this machine" in (results / "train" / EDSR / "train.ipynb").read_text()


def test_results_of_another_version_are_refused(clone, returned, tmp_path):
    shutil.copytree(returned, tmp_path / "theirs")
    file = tmp_path / "theirs" / EDSR / "version.json"
    file.write_text(
        file.read_text().replace('"data/test/gray_denoise_25.csv": "', '"data/test/gray_denoise_25.csv": "0')
    )
    edits = [("lib/training.py", '"""', '"""A '), ("params.yaml", "lr: 1.0e-3", "lr: 2.0e-3")]
    for name, old, new in edits:
        clone.edit(name, old, new)
    ended = clone.shell(f"python -m lib import {tmp_path / 'theirs'}", check=False)
    for name, old, new in edits:
        clone.edit(name, new, old)
    [error] = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert ended.returncode == 1 and "Running stage 'train" not in ended.stdout
    assert error == (
        f"error: {EDSR}: budget, data/test/gray_denoise_25.csv, lib/training.py differ"
        " from what was packed; go back to that, or pack and run it again"
    )


#: What may have become of a file that came back, and what is said of it.
DAMAGED = [
    *((file, "cut", "what came back is damaged (") for file in (
        "version.json", "visits.json", "seed_1.safetensors", "seed_2.safetensors", "picture.npz", "smallest_gain.npz",
        "acts.json", "field.json")),
    *((file, "emptied", "what came back is damaged (") for file in (
        "version.json", "visits.json", "log.csv", "validation.csv", "images.csv", "largest_gain.npz", "acts.json")),
    ("log.csv", "cut", "log.csv does not reach step 4 of seed "),
    ("images.csv", "cut", ""),
    ("x.pt", "emptied", "what came back is damaged ("),
    ("version.json", "[]", "what came back is damaged ("),
    ("visits.json", "[{}]", "what came back is damaged ('stage')"),
]  # fmt: skip


def test_damaged_results_are_refused_in_one_line_before_any_is_kept(clone, returned):
    """In one process, as each takes seconds to start."""
    code = f"""
import json, shutil, sys
from pathlib import Path
from lib.params import Params
from lib.pipeline import transfer
from lib.pipeline.runner import StageError

params = Params()
for number, (file, how, _) in enumerate(json.loads(sys.argv[1])):
    folder = Path("damaged", str(number), {EDSR!r})
    shutil.copytree({str(returned / EDSR)!r}, folder)
    path = folder / file
    content = path.read_bytes() if path.exists() else b""
    path.write_bytes(dict(cut=content[:len(content) // 2], emptied=b"").get(how, how.encode()))
    try:
        print(transfer._check(params, {EDSR!r}, folder))
    except StageError as error:
        print(error)
shutil.rmtree("damaged")
"""
    (clone.folder / "damage.py").write_text(code)
    said = clone.shell(f"PYTHONPATH=. python damage.py '{json.dumps(DAMAGED)}'").stdout.splitlines()
    (clone.folder / "damage.py").unlink()
    for (file, how, message), line in zip(DAMAGED, said, strict=True):
        assert message in line and line != "None", (file, how, line)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x1f\x8b\x08\0\0\0\0\0\0\3", b"<html>", b"\xfd7zXZ\0"])
def test_what_is_no_archive_is_one_line(tmp_path, monkeypatch, content):
    monkeypatch.setattr(transfer.pipeline, "switch", lambda profile: None)
    monkeypatch.setattr(transfer.pipeline, "dvc", lambda *arguments: 0)
    (tmp_path / "back.zip").write_bytes(content)
    with pytest.raises(StageError, match=r"back.zip: is no whole tar archive \([^\n]*\Z"):
        transfer.bring_back(tmp_path / "back.zip")


def test_texts_of_another_machine_are_no_markup(tmp_path):
    visit = {"stage": "train", "begins": "<b>", "device": "H100 `x`", "torch": "2.9+cu", "python": "3.11\x1b[1m"}
    (tmp_path / "visits.json").write_text(json.dumps([visit]))
    assert Returned(tmp_path).machines("train").endswith("  ?b?: H100 ?x?, torch 2.9+cu, Python 3.11??1m")
    (tmp_path / "acts.json").write_text('{"columns":["module"],"index":[0],"data":[["<i>body.4"]]}')
    assert Returned(tmp_path).table("acts").module.tolist() == ["?i?body.4"]


def test_pictures_of_another_machine_name_no_files(tmp_path):
    np.savez(tmp_path / "picture.npz", **{"restored": np.zeros(3), "../../outside": np.zeros(3)})
    assert [*Returned(tmp_path).picture()] == ["restored"]


@pytest.mark.parametrize("verb", ["pack", "import"])
def test_without_git_the_profile_stays(tmp_path, monkeypatch, verb):
    monkeypatch.setattr(transfer.pipeline, "ROOT", tmp_path)
    monkeypatch.setattr(transfer.pipeline, "switch", lambda profile: pytest.fail("it switched"))
    with pytest.raises(StageError, match="is no git repository, which DVC needs; run `git init` there"):
        transfer.pack([EDSR], tmp_path / "x.tar") if verb == "pack" else transfer.bring_back(tmp_path)


@pytest.mark.parametrize(("into", "message"), [("", "is a folder; name a file such as box.tar"),
                                               ("no/box.tar", "there is no folder .*no; name a file")])  # fmt: skip
def test_an_archive_needs_a_file_to_be_written_to(tmp_path, into, message):
    with pytest.raises(StageError, match=message):
        transfer.pack([EDSR, EDSR], tmp_path / into)


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--jobs", "-1"], ["--minutes", "0"], ["--minutes", "nan"]])
def test_numbers_of_jobs_and_minutes_are_above_0(arguments, capsys):
    with pytest.raises(SystemExit):
        main(["remote", *arguments])
    assert capsys.readouterr().err.splitlines()[-1].endswith("above 0")


@pytest.mark.parametrize("arguments", [["import", ""], ["restore", "a.png", "--by", EDSR, "--into", ""]])
def test_an_empty_path_is_not_the_working_folder(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert capsys.readouterr().err.endswith("'' names no file or folder\n")


def test_where_nothing_is_packed_that_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(remote, "ELSEWHERE", tmp_path / "elsewhere")
    assert main(["remote"]) == 1
    assert capsys.readouterr().err.startswith("error: elsewhere: nothing is packed here; unpack")


def test_a_baseline_is_not_packed(tmp_path):
    with pytest.raises(ParamsError, match="is a baseline, which is not trained"):
        transfer.pack(["input_gray_denoise_25"], tmp_path / "no.tar")


def test_nothing_runs_for_results_that_are_not_there(tmp_path):
    with pytest.raises(StageError, match="nowhere: does not exist; name the folder elsewhere"):
        transfer.bring_back(tmp_path / "nowhere")


def test_an_interrupted_measuring_gives_what_the_notebook_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "ROOT", tmp_path)
    given = Params().experiment("dagl_gray_denoise_25")
    small = {**given.options, "width": 4, "blocks": 2, "heads": 1, "stages": 1}
    crop = dataclasses.replace(given.evaluation, crop=32)
    run = dataclasses.replace(given, seeds=(1, 2), options=small, evaluation=crop)
    for number, name in enumerate(("001", "b", "c")):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 44), dtype=np.uint8)
        (tmp_path / "data/images").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f"data/images/{name}.npy", pixels)
    rows = [f"own,{name},images/{name}.npy,,,\n" for name in ("001", "b", "c")]
    manifest = tmp_path / "data/test/gray_denoise_25.csv"
    manifest.parent.mkdir()
    manifest.write_text(",".join(sets.COLUMNS) + "\n" + "".join(rows))
    for seed in run.seeds:
        weights = {key: value.clone() for key, value in experiments.network(run, seed).state_dict().items()}
        save_file(weights, experiments.weights_file(tmp_path, seed))

    monkeypatch.setattr(remote.time, "time", itertools.count().__next__)
    with pytest.raises(remote.OutOfTime):
        remote._measure(run, tmp_path, remote._Watch("x", 2), "cpu")
    assert len((tmp_path / "images.csv.part").read_text().splitlines()) > 1
    remote._measure(run, tmp_path, remote._Watch("x", math.inf), "cpu")

    items, networks = sets.read(manifest), experiments.trained(run, tmp_path)
    expected, photographs = evaluation.measure(run, networks, items)
    returned = Returned(tmp_path)
    found, shown = returned.measured()
    assert found.to_csv() == expected.to_csv()
    assert returned.table("field").to_csv() == evaluation.field_curve(run, networks, items).to_csv()
    assert returned.table("acts").to_csv() == evaluation.acts(run, networks, items).to_csv()
    for one, other in zip(photographs, shown, strict=True):
        assert one.image == other.image and np.array_equal(one.restored, other.restored)
    chosen = evaluation.most_self_similar(items, expected)
    picture = evaluation.picture(run, networks[1], chosen)
    assert {key: value.tolist() for key, value in returned.picture().items()} == {
        "restored": picture["restored"].tolist()
    }
    attended = evaluation.mechanism(run, networks[1], chosen)
    assert {key: value.tolist() for key, value in returned.mechanism().items()} == {
        key: value.tolist() for key, value in attended.items()
    }


def test_a_compact_checkpoint_goes_on_and_the_log_marks_the_joint(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    task = Params().tasks["gray_denoise_25"]
    images = [torch.randint(256, (1, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)]
    crops = Crops(images, None, task.degradation, 12)
    recipe, budget = Params().contents.recipes["common"], Budget(steps=6, batch=2, crop=12, lr=1e-3, ema=0.9)
    networks = [models.build("edsr", colors=1, width=4, blocks=1, image_skip=True) for _ in range(2)]
    with monkeypatch.context() as patched, pytest.raises(remote.OutOfTime):
        patched.setattr(remote.time, "time", itertools.count().__next__)
        train(networks[0], crops, recipe, budget, 1, path, clock=remote._Watch("x", 3))
    left = read_checkpoint(path)["step"]
    remote._compact(path, budget.steps)
    trained = train(networks[1], crops, recipe, budget, 1, path, clock=time.monotonic)
    assert [row["step"] for row in trained.log if "joint" in row] == [left]
    assert [row["step"] for row in trained.log] == [1, 2, 3, 4, 5, 6]
    remote._compact(path, budget.steps)  # what is finished stays as it is
    again = train(networks[0], crops, recipe, budget, 1, path, clock=time.monotonic)
    assert all(torch.equal(again.weights[key], value) for key, value in trained.weights.items())


def test_packed_images_unfold_to_the_same_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    remote.fold(pixels, tmp_path / "color.webp")
    remote.fold(pixels[..., 0], tmp_path / "gray.webp")
    remote.unfold(tmp_path)
    assert np.array_equal(np.load(tmp_path / "color.npy"), pixels)
    assert np.array_equal(np.load(tmp_path / "gray.npy"), pixels[..., 0])
