"""DVC's lock, written fast: the same bytes."""

import io

import pytest
from ruamel.yaml import YAML

from lib import fast_dvc
from lib.params import ROOT


@pytest.mark.parametrize("path", [ROOT / "dvc.lock", *ROOT.glob("results/*/pins/dvc.lock")], ids=str)
def test_a_lock_is_written_as_dvc_writes_it(path):
    text, written = path.read_text(), io.StringIO()
    fast_dvc.write_lock(YAML(typ="safe").load(text), written)
    assert written.getvalue() == text
