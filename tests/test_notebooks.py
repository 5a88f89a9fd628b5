"""Notebook sources are stripped and small; executed copies stay within their size."""

import json
import re

import pytest

from lib.params import ROOT, Params

SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = sorted((ROOT / "results").glob("*/**/*.ipynb"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_sources_are_stripped_and_cells_short(path):
    cells = json.loads(path.read_text())["cells"]
    assert cells[0]["cell_type"] == "markdown" and "".join(cells[0]["source"]).startswith("# ")
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            imports = all(line.startswith(("import ", "from ", "\n")) for line in cell["source"])
            assert imports or len(cell["source"]) <= 16


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_executed_copies_are_whole_and_within_their_size(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    limit = 150_000 if path.stem in ("train", "evaluate") else 1_000_000
    assert "site-packages" not in path.read_text(), "a warning that names a path of the machine"
    assert path.stat().st_size < limit


def test_results_belong_to_experiments_that_exist():
    params = Params(profile="quick")
    known = {*params.experiments, *params.baselines}
    for stage in ("train", "evaluate", "weights"):
        assert {path.name for path in params.results(stage).glob("*") if path.is_dir()} <= known


@pytest.mark.parametrize("path", sorted(ROOT.glob("results/*/*/*/not_run.txt")), ids=lambda path: path.parent.name)
def test_a_row_that_was_not_run_names_a_stage_of_its_own(path):
    stage = path.read_text().split()[-1]
    assert stage.endswith(f"@{path.parent.name}")
    assert f"\n  {stage}:\n" in (ROOT / "dvc.lock").read_text()


def test_the_readme_has_at_most_1200_words():
    words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", (ROOT / "README.md").read_text())
    assert len(re.findall(r"[^\s|]+", words)) <= 1200
