"""Jobs as an engine runs them, without one: results through a DVC remote, a failing row, one that is only measured."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from clones import KEPT, Clone
from test_pipeline import begin_training_with

from lib.pipeline import cluster, work
from lib.pipeline.repro import PipelineError

EDSR, DAGL, BASELINE = KEPT[2], KEPT[1], "input_gray_denoise_25"

#: Does the rows that are out of date, one after the other, as an engine would at the same time.
ENGINE = """
import sys
from lib.params import Params
from lib.pipeline import repro, work
params = Params()
code, jobs = work.prepare(repro.outdated_rows(sys.argv[1:], params), params, remote=True)
for name, job in jobs.items():
    said = []
    reason = work.collect_result(job, *work.run_in_new_folder(code, job, said.append))
    print(name, *job["stages"], "failed:" if reason else "done", reason or "", sep="|")
    assert any(name in line for line in said), said
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    clone = Clone(tmp_path_factory.mktemp("outer") / "a clone", seeds="[1]")  # a path with a space
    begin_training_with(clone, "if 'edsr' in str(checkpoint): raise TrainingError('the loss is nan')")
    (clone.folder / "engine.py").write_text(ENGINE)
    clone.shell("dvc repro -q resolve data.dvc && dvc remote add -q -d store ../store")
    return clone


def test_a_remote_carries_results_and_a_failing_row_stops_no_other(clone):
    command = f"RESTORATION_CACHE=$PWD/../node python engine.py {EDSR} {DAGL} {BASELINE}"
    said = clone.shell(command).stdout.splitlines()
    notebook = f"results/tiny/train/{EDSR}/train.ipynb"
    reason = f"TrainingError: the loss is nan (traceback in {notebook})"
    assert said == [
        f"{EDSR}|train@{EDSR}|evaluate@{EDSR}|failed:|{reason}",
        f"{DAGL}|train@{DAGL}|evaluate@{DAGL}|done|",
        f"{BASELINE}|baseline@{BASELINE}|done|",
    ]
    assert "the loss is nan" in (clone.folder / notebook).read_text()
    changed = clone.changed()
    assert f"train@{EDSR}" in changed and not {f"train@{DAGL}", f"evaluate@{DAGL}", f"baseline@{BASELINE}"} & changed
    outer = clone.folder.parent
    weights = clone.folder / f"results/tiny/weights/{DAGL}/seed_1.safetensors"
    before = weights.read_bytes()
    assert (outer / "store/runs").is_dir() and (outer / "node/nonlocal-restoration/dvc/runs").is_dir()
    assert (clone.folder / f"results/tiny/machine/train@{DAGL}.json").exists()
    assert not list((clone.folder / "checkpoints").glob(f"{DAGL}*"))

    measured = clone.folder / "lib/measuring/evaluation.py"
    measured.write_text(measured.read_text() + "\n")
    found = clone.shell(f"python -c \"from lib.pipeline import runs; print(runs.restore(['evaluate@{DAGL}']))\"")
    assert found.stdout == f"['evaluate@{DAGL}']\n"  # old results are not taken for new ones, and nothing runs here
    assert clone.shell(command.replace(EDSR, "")).stdout.splitlines() == [
        f"{DAGL}|evaluate@{DAGL}|done|",
        f"{BASELINE}|baseline@{BASELINE}|done|",
    ]
    assert not {f"train@{DAGL}", f"evaluate@{DAGL}", f"baseline@{BASELINE}"} & clone.changed()
    assert weights.read_bytes() == before and clone.shell(command.replace(EDSR, "")).stdout == ""


def test_the_cache_of_a_copied_folder_brings_its_results(clone, tmp_path):
    """What docs/running.md says of a machine without network: nothing runs where the cache came back."""
    row, there = f"results/tiny/evaluate/{BASELINE}", clone.copy(tmp_path / "there")
    for one in (clone, there):
        one.edit("lib/measuring/evaluation.py", '"""', '"""A ')
    command = f"dvc repro --single-item baseline@{BASELINE}"
    assert "Running stage" in there.shell(command).stdout
    caches = (one.folder / ".dvc/cache" for one in (there, clone))
    shutil.copytree(*caches, dirs_exist_ok=True, copy_function=copy_new)
    said = clone.shell(command).stdout
    assert "is cached - skipping run" in said and "Running stage" not in said
    here, brought = ({p.name: p.read_bytes() for p in (one.folder / row).iterdir()} for one in (clone, there))
    assert here == brought


def copy_new(source: str, target: str) -> None:
    """Files of the cache that are there already are read-only, and the same."""
    if not Path(target).exists():
        shutil.copyfile(source, target)


def test_what_own_holds_for_a_row_travels_with_edited_and_new_code(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "ROOT", tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for name in ("lib/new.py", "own/named.pt", "own/other.pt", ".gitignore"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("/own/*\n")
    row = SimpleNamespace(checkpoint="own/named.pt", needs=None)
    params = SimpleNamespace(row=lambda name: row, results=tmp_path.joinpath)
    found = work.needed(params, ["baseline@published"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["lib/new.py", "own/named.pt"]


def test_without_ray_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PipelineError, match=r"needs Ray, which is not installed: pip install -e '\.\[cluster\]' -c"):
        cluster.check("auto")


def test_an_address_where_nothing_answers_is_named(monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name)  # with Ray or without
    said = r"--cluster 127\.0\.0\.1:1: .*refused; `ray start --head` starts a cluster"
    with pytest.raises(PipelineError, match=said):
        cluster.check("127.0.0.1:1")
