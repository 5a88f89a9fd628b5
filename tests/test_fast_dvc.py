"""dvc.lock, written fast: the same bytes as DVC's, but sorted, and whole at every moment."""

import io

import dvc
import pytest
from ruamel.yaml import YAML

from lib.params import ROOT
from lib.pipeline import fast_dvc


@pytest.mark.parametrize("path", [ROOT / "dvc.lock", *ROOT.glob("results/*/pins/dvc.lock")], ids=str)
def test_a_lock_is_written_as_dvc_writes_it(path):
    text, written = path.read_text(), io.StringIO()
    fast_dvc.write_lock(YAML(typ="safe").load(text), written)
    assert written.getvalue() == text


@pytest.mark.parametrize("length", range(30, 110))
def test_long_lines_break_as_in_dvcs(length):
    name = "x" * length
    stage = {"cmd": "python -m lib run", "deps": [{"path": f"{name}.json", "size": 1}]}
    lock = {"schema": "2.0", "stages": {f"train@{name}": stage}}
    written, expected = io.StringIO(), io.StringIO()
    fast_dvc.write_lock(lock, written)
    dumper = YAML()
    dumper.default_flow_style = False
    dumper.dump(lock, expected)
    assert written.getvalue() == expected.getvalue()


def test_a_lock_is_sorted_and_takes_the_place_of_the_old_one_whole(tmp_path):
    lock = tmp_path / "dvc.lock"
    with fast_dvc.modify(str(lock)) as data:
        data |= {"schema": "2.0", "stages": {"b": {"cmd": "true"}, "a": {"cmd": "true"}}}
    text = lock.read_text()
    assert text == "schema: '2.0'\nstages:\n  a:\n    cmd: true\n  b:\n    cmd: true\n".replace(": true", ": 'true'")
    with pytest.raises(KeyboardInterrupt), fast_dvc.modify(str(lock)) as data:
        data["stages"].clear()
        raise KeyboardInterrupt
    assert lock.read_text() == text and [*tmp_path.iterdir()] == [lock]


def test_the_version_that_it_reaches_into_is_the_pinned_one():
    assert dvc.__version__ == fast_dvc.TRIED_WITH
