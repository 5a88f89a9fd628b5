"""Rows packed, run in another folder without DVC, and brought back."""

import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from clones import Clone, tiny

from lib.__main__ import main
from lib.params import ParamsError
from lib.pipeline import transfer
from lib.pipeline.runner import StageError

EDSR, INPUT = "edsr_gray_denoise_25", "input_gray_denoise_25"
STAGES = [f"train@{EDSR}", f"evaluate@{EDSR}", f"baseline@{INPUT}"]


class Remote:
    """The unpacked archive, where DVC cannot be imported."""

    def __init__(self, archive: Path, folder: Path):
        shutil.unpack_archive(archive, folder, "tar", filter="data")
        self.folder, self.absent = folder / archive.stem, folder / "absent"
        self.absent.mkdir()
        (self.absent / "dvc.py").write_text("raise ImportError('not on this machine')\n")

    def visit(self, options: str = "") -> tuple[int, str]:
        """The status of `python -m lib remote`, and the last lines of its rows."""
        environment = {
            "PYTHONPATH": str(self.absent),
            "PATH": str(Path(sys.executable).parent),
            "HOME": str(self.folder),
        }
        command = [sys.executable, "-m", "lib", "remote", *options.split()]
        ended = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        return ended.returncode, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    clone = Clone(tmp_path_factory.mktemp("clone"))
    path = clone.folder / "params.yaml"
    path.write_text(tiny(path.read_text()))
    return clone


@pytest.fixture(scope="module")
def returned(clone, tmp_path_factory) -> Path:
    """Results of a second visit, after one that had no time."""
    said = clone.shell(f"python -m lib pack {EDSR} {INPUT} {EDSR} --into 'a box.tar'").stdout
    assert "tar xf 'a box.tar' && cd 'a box' && python -m lib remote" in said
    there = Remote(clone.folder / "a box.tar", tmp_path_factory.mktemp("there"))
    status, said = there.visit("--minutes 0.0001")
    assert status == 1 and f"{EDSR}: not done (out of time); run it again to go on" in said
    with tarfile.open(there.folder / "back.tar") as archive:
        assert not json.loads(archive.extractfile("box.json").read())["done"]
    status, said = there.visit("--jobs 2")
    assert status == 0, said
    assert f"{EDSR}: done" in said and f"{INPUT}: done" in said
    return there.folder / "back.tar"


def test_results_come_back_as_if_they_had_been_made_here(clone, returned):
    assert (
        f"recorded: {', '.join(STAGES)}; not finished: nothing"
        in clone.shell(f"python -m lib import '{returned}'").stdout
    )
    assert not {*STAGES} & clone.changed()
    results = clone.folder / "results/tiny"
    assert (results / "pins/dvc.lock").exists() and not (clone.folder / "box.json").exists()
    files = [path for name in (EDSR, INPUT) for path in results.glob(f"*/{name}/*")]
    before = {path: path.read_bytes() for path in files}
    clone.shell(" && ".join(f"dvc repro -q --single-item --force {stage}" for stage in STAGES))
    assert len(before) > 12 and {path: path.read_bytes() for path in files} == before


def test_a_training_goes_on_from_the_checkpoint_that_came_back(clone, tmp_path):
    checkpoints = clone.folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    (checkpoints / f"{EDSR}-1-0.pt").write_text("begun here")
    clone.shell(f"python -m lib pack {EDSR} --into box.tar")
    there = Remote(clone.folder / "box.tar", tmp_path)
    (there.folder / "checkpoints" / f"{EDSR}-1-0.pt").write_text("continued there")
    assert there.visit("--minutes 0.0001")[0] == 1
    said = clone.shell(f"python -m lib import {there.folder / 'back.tar'}").stdout
    assert f"recorded: nothing; not finished: {', '.join(STAGES[:2])}" in said
    assert (checkpoints / f"{EDSR}-1-0.pt").read_text() == "continued there"


def test_results_of_another_version_are_refused(clone, returned):
    edits = [("lib/training.py", '"""', '"""A '), ("params.yaml", "lr: 1.0e-3", "lr: 2.0e-3")]
    for name, old, new in edits:
        clone.edit(name, old, new)
    ended = clone.shell(f"python -m lib import '{returned}'", check=False)
    for name, old, new in edits:
        clone.edit(name, new, old)
    [error] = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert error == f"error: {STAGES[0]}: budget, lib/training.py differ from what was packed; pack and run it again"


def test_a_failing_row_stops_no_other_and_is_not_recorded(clone, tmp_path):
    clone.shell(f"python -m lib pack {EDSR} {INPUT} --into box.tar")
    there = Remote(clone.folder / "box.tar", tmp_path)
    (there.folder / "data/train/gray_denoise_25.csv").write_text("")
    status, said = there.visit()
    assert status == 1 and f"{EDSR}: not done (SetError: " in said and f"{INPUT}: done" in said
    said = clone.shell(f"python -m lib import {there.folder / 'back.tar'}").stdout
    assert f"recorded: {STAGES[2]}; not finished: {', '.join(STAGES[:2])}" in said


def damaged(archive: Path, into: Path, name: str, change) -> None:
    """A copy of `archive` in which the content of the first file whose name ends so is another, or the file is new."""
    with tarfile.open(archive) as source, tarfile.open(into, "w:gz") as target:
        files = {member.name: source.extractfile(member).read() for member in source}
        chosen = next((key for key in files if key.endswith(name)), name)
        for key, content in {**files, chosen: change(files.get(chosen, b""))}.items():
            member = tarfile.TarInfo(key)
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))


#: What may have become of a file that came back, and what is said of it.
DAMAGED = {
    "log.csv": (lambda content: content[:-9], "log.csv"),
    "seed_1.safetensors": (lambda content: b"", "seed_1.safetensors"),
    "images.csv": (lambda content: content + b"1", "images.csv"),
    "results/tiny/train/other/log.csv": (lambda content: b"1", "results/tiny/train/other/log.csv"),
    "lib/training.py": (lambda content: b"1", "lib/training.py"),
    "box.json": (lambda content: content[:-9], " ("),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_and_foreign_files_are_refused_before_any_is_put_in_place(clone, returned, tmp_path, name):
    change, message = DAMAGED[name]
    damaged(returned, tmp_path / "back.tar", name, change)
    before = (clone.folder / "lib/training.py").read_bytes()
    ended = clone.shell(f"python -m lib import {tmp_path / 'back.tar'}", check=False)
    [error] = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert ended.returncode == 1 and message in error and error.endswith("; bring it here again")
    assert (clone.folder / "lib/training.py").read_bytes() == before


def test_a_file_outside_that_names_its_own_hash_is_refused(clone, returned, tmp_path):
    content = b"import os"
    listed = b'"files": {"lib/training.py": "%s", ' % hashlib.sha256(content).hexdigest().encode()
    damaged(returned, tmp_path / "one.tar", "lib/training.py", lambda _: content)
    damaged(tmp_path / "one.tar", tmp_path / "two.tar", "box.json", lambda box: box.replace(b'"files": {', listed))
    ended = clone.shell(f"python -m lib import {tmp_path / 'two.tar'}", check=False)
    assert ended.returncode == 1 and "(lib/training.py)" in ended.stderr


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x1f\x8b\x08\0\0\0\0\0\0\3", b"<html>", b"\xfd7zXZ\0", None])
def test_what_is_no_archive_is_one_line(tmp_path, monkeypatch, content):
    monkeypatch.setattr(transfer.pipeline, "switch", lambda profile: pytest.fail("it switched"))
    if content is not None:
        (tmp_path / "back.zip").write_bytes(content)
    with pytest.raises(StageError, match=r"back.zip: is no whole back.tar of this study \([^\n]*\Z"):
        transfer.bring_back(tmp_path / "back.zip")


@pytest.mark.parametrize("verb", ["pack", "import"])
def test_without_git_the_profile_stays(tmp_path, monkeypatch, verb):
    monkeypatch.setattr(transfer.pipeline, "ROOT", tmp_path)
    monkeypatch.setattr(transfer.pipeline, "switch", lambda profile: pytest.fail("it switched"))
    with pytest.raises(StageError, match="is no git repository, which DVC needs; run `git init` there"):
        transfer.pack([EDSR], tmp_path / "x.tar") if verb == "pack" else transfer.bring_back(tmp_path)


@pytest.mark.parametrize("into", ["", "no/box.tar"])
def test_an_archive_that_cannot_be_written_is_one_line(clone, into, tmp_path):
    ended = clone.shell(f"python -m lib pack {INPUT} --into {tmp_path / into}", check=False)
    assert ended.returncode == 2 and "; name a file such as box.tar, in a folder that exists" in ended.stderr


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


def test_where_nothing_is_packed_that_is_said(capsys):
    assert main(["remote"]) == 1
    assert capsys.readouterr().err.startswith("error: box.json: nothing is packed here; unpack")


def test_an_unknown_row_is_not_packed(tmp_path):
    with pytest.raises(ParamsError, match="unknown row 'edsr_gray'"):
        transfer.pack(["edsr_gray"], tmp_path / "no.tar")


def test_a_box_unpacked_over_another_runs_anew(clone, returned, tmp_path):
    """Results of the first are not those of the second, whose code is another."""
    there = Remote(clone.folder / "a box.tar", tmp_path)
    assert there.visit()[0] == 0
    clone.edit("lib/measuring/evaluation.py", '"""', '"""A ')
    clone.shell(f"python -m lib pack {INPUT} --into 'a box.tar'")
    clone.edit("lib/measuring/evaluation.py", '"""A ', '"""')
    shutil.unpack_archive(clone.folder / "a box.tar", tmp_path, "tar", filter="data")
    record = there.folder / f"results/tiny/machine/evaluate@{INPUT}.json"
    record.write_text("of the first")
    assert there.visit()[0] == 0 and record.read_text() != "of the first"


def test_links_are_refused(clone, returned, tmp_path):
    """One that leads out of the archive's folder for results would have code overwritten."""
    with tarfile.open(returned) as source, tarfile.open(tmp_path / "back.tar", "w:gz") as target:
        for member in source:
            target.addfile(member, source.extractfile(member))
        link = tarfile.TarInfo("lib")
        link.type, link.linkname = tarfile.SYMTYPE, f"results/tiny/train/{EDSR}"
        target.addfile(link)
    ended = clone.shell(f"python -m lib import {tmp_path / 'back.tar'}", check=False)
    assert ended.returncode == 1 and "is no whole back.tar of this study (lib); bring it here again" in ended.stderr


@pytest.mark.parametrize("done", ["evaluate@../../../lib", "train@dagl_gray_denoise_25", "tables"])
def test_stages_of_no_packed_row_are_refused(clone, returned, tmp_path, done):
    damaged(returned, tmp_path / "back.tar", "box.json",
            lambda box: json.dumps(json.loads(box) | {"done": [done], "files": {}}).encode())  # fmt: skip
    ended = clone.shell(f"python -m lib import {tmp_path / 'back.tar'}", check=False)
    assert ended.returncode == 1 and (clone.folder / "lib/training.py").exists()
    assert "is no whole back.tar of this study" in ended.stderr


def test_another_profile_is_named(clone, returned, tmp_path):
    damaged(
        returned,
        tmp_path / "back.tar",
        "box.json",
        lambda box: json.dumps({**json.loads(box), "profile": "quick", "done": [], "files": {}}).encode(),
    )
    with tarfile.open(tmp_path / "back.tar") as source, tarfile.open(tmp_path / "two.tar", "w") as target:
        target.addfile(member := source.getmember("box.json"), source.extractfile(member))
    ended = clone.shell(f"python -m lib import {tmp_path / 'two.tar'}", check=False)
    assert ended.returncode == 1 and "is of profile quick; add --profile quick" in ended.stderr


def test_ctrl_c_ends_what_runs(clone, tmp_path):
    clone.edit("lib/training.py", "    began = saved", "    __import__('time').sleep(600)\n    began = saved")
    clone.shell(f"python -m lib pack {EDSR} --into box.tar")
    clone.edit("lib/training.py", "    __import__('time').sleep(600)\n", "")
    there = Remote(clone.folder / "box.tar", tmp_path)
    environment = {"PYTHONPATH": str(there.absent), "PATH": str(Path(sys.executable).parent), "HOME": str(tmp_path)}
    running = subprocess.Popen([sys.executable, "-m", "lib", "remote"], cwd=there.folder, env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert running.stdout.readline() is not None
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130 and "interrupted; `python -m lib remote` goes on from what is done" in said
