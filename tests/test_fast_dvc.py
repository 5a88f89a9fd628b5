"""DVC's files, read and written fast: the same values, the same bytes."""

import io

import pytest
from ruamel.yaml import YAML

from lib.params import ROOT
from lib.pipeline import fast_dvc


@pytest.mark.parametrize("path", [ROOT / "dvc.lock", *ROOT.glob("results/*/pins/dvc.lock")], ids=str)
def test_a_lock_is_written_as_dvc_writes_it(path):
    text, written = path.read_text(), io.StringIO()
    fast_dvc.write_lock(YAML(typ="safe").load(text), written)
    assert written.getvalue() == text


def test_values_are_those_at_their_paths():
    document = {"profiles": {"quick": {"seeds": [1, 2]}, "gpu": {"sets": {}}}}
    assert fast_dvc.value_at(document, "profiles.quick.seeds") == [1, 2]
    assert fast_dvc.value_at(document, "profiles/gpu/sets", "/") == {}
    for absent in ("profiles.cpu", "profiles.quick.seeds.first"):
        with pytest.raises(KeyError):
            fast_dvc.value_at(document, absent)
