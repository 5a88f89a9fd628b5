"""params.yaml is checked whole: every fault is one line that names the culprit, and all are found at once."""

from dataclasses import replace
from pathlib import Path

import pytest

from lib.params import ROOT, Baseline, Experiment, Params, ParamsError, check, fingerprint, missing, table

TEXT = (ROOT / "params.yaml").read_text()


def params(tmp_path: Path, *edits: tuple[str, str]) -> Params:
    """The study's parameters with the first occurrence of each text replaced."""
    text = TEXT
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new, 1)
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return Params(path)


def faults(tmp_path: Path, *edits: tuple[str, str]) -> list[str]:
    """The lines that reading and checking the edited file ends with."""
    with pytest.raises(ParamsError) as raised:
        check(params(tmp_path, *edits))
    assert all(line.startswith("params.yaml: ") for line in raised.value.faults)
    return [line.removeprefix("params.yaml: ") for line in str(raised.value).splitlines()]


def test_the_studys_own_file_is_sound():
    for profile in Params().profiles:
        known = Params(profile=profile)
        check(known)
        for name in [*known.experiments, *known.baselines]:
            assert known.row(name).name == name and known.row(name).title in table(known.row(name))


def test_an_experiment_is_resolved_for_its_profile(tmp_path):
    run = params(tmp_path).experiment("dagl_gray_denoise_25-nl")
    assert run.options["attention"] == "nl" and run.options["width"] == 16
    assert run.task.train == ("sample/train",) and run.task.degradation.sigma == 25
    assert run.task.convention.channel == "gray" and run.task.title == "gray denoising, sigma 25"
    assert run.seeds == (1, 2, 3) and run.difference == "nl" and run.title == "DAGL, single-head non-local"
    assert run.recipe.schedule.warm_up == 0.05 and run.precision == "float32" and run.start is None
    assert Params(profile="gpu").experiment(run.name).precision == "bf16"


def test_a_baseline_is_not_trained(tmp_path):
    known = params(tmp_path)
    row = known.baseline("nlm_gray_denoise_25")
    assert isinstance(row, Baseline) and row == known.row(row.name) and known.stage(row.name) == "baseline"
    assert isinstance(known.row("edsr_sr_x2"), Experiment) and known.stage("edsr_sr_x2") == "evaluate"
    for read, name in ((known.experiment, row.name), (known.baseline, "edsr_sr_x2"), (known.row, "edsr_sr_x3")):
        with pytest.raises(ParamsError, match=name):
            read(name)


def test_a_public_checkpoint_is_a_baseline(tmp_path):
    entry = "dncnn_gray_denoise_25: {title: DnCNN, model: dncnn, task: gray_denoise_25, checkpoint: own/dncnn.pth}"
    row = params(tmp_path, ("\nbaselines:\n", f"\nbaselines:\n  {entry}\n")).baseline("dncnn_gray_denoise_25")
    assert (row.checkpoint, row.options, row.seeds) == ("own/dncnn.pth", {}, (1,))
    assert missing(row) == "the file own/dncnn.pth is not there"


def test_adding_an_experiment_is_adding_lines(tmp_path):
    entry = "dagl_gray_denoise_25-9: {title: a, model: dagl, task: gray_denoise_25, recipe: dagl, options: {heads: 9}}"
    known = params(tmp_path, ("\nexperiments:\n", f"\nexperiments:\n  {entry}\n"))
    assert known.experiment("dagl_gray_denoise_25-9").options["heads"] == 9


def test_a_size_stands_in_for_the_models_options(tmp_path):
    known = params(tmp_path)
    trunk = known.experiment("dagl_gray_denoise_25-common_trunk").options
    assert trunk["common_trunk"] is True and "stages" not in trunk
    assert "common_trunk" not in known.experiment("dagl_gray_denoise_25").options


def test_a_budget_may_name_its_own_seeds(tmp_path):
    known = params(tmp_path, ("steps: 950,", "steps: 950, seeds: [4, 5],"))
    name = "dagl_gray_denoise_25-nl"
    assert known.experiment(name).seeds == (4, 5) and known.experiment("edsr_sr_x2").seeds == (1, 2, 3)
    assert fingerprint(known.experiment(name)) == fingerprint(Params(profile="quick").experiment(name))


def test_what_a_row_needs_is_named_when_it_is_missing(tmp_path):
    known = params(tmp_path)
    row = known.experiment("ignn_sr_x2-vgg19_embedding")
    assert missing(replace(row, needs="own/absent.pth")) == "the file own/absent.pth is not there"
    assert missing(replace(row, needs="package:absent_package")) == "the package absent_package is not installed"
    assert missing(replace(row, needs="params.yaml")) is missing(replace(row, needs="package:torch")) is None
    assert missing(known.experiment("edsr_sr_x2")) is None


def test_tasks_that_nothing_is_about_are_not_used(tmp_path):
    known = params(tmp_path)
    assert "dehaze" in known.tasks and "dehaze" not in known.used_tasks and "sr_x4" in known.used_tasks


def test_a_fingerprint_follows_what_training_depends_on_only(tmp_path):
    name = "dagl_gray_denoise_25-nl"
    base = fingerprint(params(tmp_path).experiment(name))
    other_test = params(tmp_path, ("test: [sample/test]", "test: [set12]")).experiment(name)
    other_sigma = params(tmp_path, ("sigma: 25}", "sigma: 20}")).experiment(name)
    assert fingerprint(other_test) == base != fingerprint(other_sigma)
    assert fingerprint(params(tmp_path).experiment(name), "another code") != base


#: What is changed in the file -> the line that says so.
FAULTS = [
    # names and keys
    ("profile: quick", "profile: quik", "unknown profile 'quik' in profiles; did you mean 'quick'?"),
    ("\nrecipes:", "\nrecipies: {}\nrecipes:", "unknown key 'recipies' in the top level; did you mean 'recipes'?"),
    ("\ndelta: {psnr: 0.05,", "\ndelta: {", "delta lacks the key 'psnr'"),
    (
        "model: edsr, task: gray_denoise_25",
        "model: edsr, task: gray_denoize_25",
        "unknown task 'gray_denoize_25' in experiments.edsr_gray_denoise_25; did you mean 'gray_denoise_25'?",
    ),
    ("recipe: common", "recipe: comon", "unknown recipe 'comon' in experiments.edsr_gray_denoise_25; did you mean"),
    (
        "recipe: common",
        "recpie: common",
        "unknown key 'recpie' in experiments.edsr_gray_denoise_25; did you mean 'recipe'",
    ),
    ("    convention: {channel", "    convention: {chanel", "unknown key 'chanel' in tasks.gray_denoise_15.convention"),
    ("    loss: mse", "    los: mse", "unknown key 'los' in recipes.common; did you mean 'loss'?"),
    ("warm_up: 0.05}", "warmup: 0.05}", "unknown key 'warmup' in recipes.common.schedule; did you mean 'warm_up'?"),
    ("ema: 0.97}", "ema: 0.97, repeat: true}", "unknown key 'repeat' in profiles.quick.training.gray_denoise_25"),
    (
        "  edsr_gray_denoise_25: {title: EDSR trunk, model: edsr",
        "  ersr_gray_denoise_25: {title: EDSR trunk, model: edsr",
        "the name 'ersr_gray_denoise_25' must be edsr_gray_denoise_25 or that and -<difference>",
    ),
    ("- edsr_gray_denoise_25\n", "- edsr_gray\n", "unknown row 'edsr_gray' in studies.dagl_ablation; did you mean"),
]


@pytest.mark.parametrize(("old", "new", "message"), FAULTS)
def test_a_fault_is_one_line_that_names_its_key(tmp_path, old, new, message):
    assert any(line.startswith(message) for line in faults(tmp_path, (old, new)))


def test_all_faults_are_found_at_once(tmp_path):
    found = faults(
        tmp_path, ("steps: 950", "steps: 0"), ("loss: mse", "loss: huber"), ("quantise: false", "quantise: no")
    )
    assert len(found) >= 3


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "params.yaml").write_text("profile: [")
    with pytest.raises(ParamsError, match=r"params.yaml: not YAML"):
        Params(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match="No such file"):
        Params(tmp_path / "absent.yaml")
