"""`python -m lib new`: three lines of params.yaml, or a fault and an untouched file."""

import difflib
import shutil

import pytest

from lib.params import ROOT, Params, ParamsError
from lib.params.entry import add

DAGL = "dagl_gray_denoise_25"


@pytest.fixture
def file(tmp_path):
    return shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("name", "other", "options", "study", "lines"),
    [
        (
            f"{DAGL}-3_heads", DAGL, ["heads=3"], "dagl_structure",
            [
                f"  {DAGL}-3_heads:",
                '    {title: "DAGL, heads 3", model: dagl, task: gray_denoise_25, recipe: common, options: {heads: 3}}',
                f"      - {DAGL}-3_heads",
            ],
        ),
        (
            "ignn_sr_x2-3_neighbours", "ignn_sr_x2-1_neighbour", ["neighbours=3"], "ignn_aggregation",
            [
                "  ignn_sr_x2-3_neighbours:",
                '    {title: "IGNN, one neighbour, neighbours 3",',
                "     model: ignn, task: sr_x2, recipe: common, options: {embedding: random, neighbours: 3}}",
                "      - ignn_sr_x2-3_neighbours",
            ],
        ),
        (
            "ignn_sr_x2-vgg19_1", "ignn_sr_x2-vgg19_embedding", ["neighbours=1"], None,
            [
                "  ignn_sr_x2-vgg19_1:",
                '    {title: "IGNN, VGG-19 embedding, neighbours 1",',
                '     model: ignn, task: sr_x2, recipe: common, needs: "weights/vgg19_first_layers.pth",',
                '     options: {embedding: vgg19, vgg19_weights: "weights/vgg19_first_layers.pth", neighbours: 1}}',
            ],
        ),
    ],
)  # fmt: skip
def test_an_experiment_is_written_behind_the_one_it_is_like(file, name, other, options, study, lines):
    before = file.read_text()
    add(name, other, options, study, file=file)
    changed = [*difflib.ndiff(before.splitlines(), file.read_text().splitlines())]
    assert [line[2:] for line in changed if line.startswith("+ ")] == lines
    assert not [line for line in changed if line.startswith("- ")]
    params = Params(file)
    names = params.experiments
    assert names.index(name) == names.index(other) + 1 and (not study or name in params.study(study).experiments)


@pytest.mark.parametrize(
    ("name", "other", "options", "study", "fault"),
    [
        (DAGL, DAGL, [], None, f"'{DAGL}' is there already"),
        ("x", "nope", [], None, "unknown experiment 'nope'"),
        (f"{DAGL}-x", DAGL, [], "nope", "unknown study 'nope'"),
        (f"{DAGL}-x", DAGL, ["heads"], None, "--set heads: it must be an option of the network and its value"),
        (f"{DAGL}-x", DAGL, ["heads=["], None, r"--set heads=\[: '\[' is no number, text, list or mapping"),
        *((f"{DAGL}-x", DAGL, [f"heads={value}"], None, f"--set heads={value[:9]}.*is no number, text, list or mapping")
          for value in ("2020-01-01", "2020-13-45", "!!int x", "!!bool x", "9" * 5000, ".nan")),
        (f"{DAGL}-x", DAGL, ["heads=1", "heads=2"], None, "--set heads=1 heads=2: names an option twice"),
        (f"{DAGL}-x", DAGL, ["attention=[nl]"], None,
         "option 'attention' of model 'dagl' is \\['nl'\\]; it must be str"),
        (f"{DAGL}-x", DAGL, ["heads=0"], None, "heads 0 is not above 0"),
        (f"{DAGL}-x", DAGL, ["head=3"], None, "unknown option 'head' of model 'dagl'; known: attention, blocks"),
        ("dagl_x", DAGL, [], None, "'dagl_x'"),
        (f"{DAGL}-a b", DAGL, [], None, "a name is made of"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_nothing_is_written(file, name, other, options, study, fault):
    before = file.read_text()
    with pytest.raises(ParamsError, match=fault):
        add(name, other, options, study, file=file)
    assert file.read_text() == before
