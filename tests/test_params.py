"""params.yaml is checked whole: every error is one line that names the culprit."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lib.params import ROOT, Params, ParamsError, check, fingerprint, missing

TEXT = (ROOT / "params.yaml").read_text()


def params(tmp_path: Path, text: str = TEXT, profile: str | None = None) -> Params:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return Params(path, profile)


def edited(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, 1)


def test_the_studys_own_file_is_sound():
    known = Params()
    check(known)
    for name in [*known.experiments, *known.anchors]:
        assert known.experiment(name).name == name


def test_an_experiment_is_resolved_for_its_profile(tmp_path):
    run = params(tmp_path).experiment("dagl_gray_denoise_25-nl")
    assert run.options["attention"] == "nl" and run.options["width"] == 16
    assert run.task.train == ("sample/train",) and run.task.degradation["sigma"] == 25
    assert run.seeds == (1,) and run.difference == "nl"
    assert params(tmp_path).experiment("dagl_gray_denoise_25").seeds == (1, 2, 3)


def test_adding_an_experiment_is_adding_lines(tmp_path):
    text = edited(
        "\nexperiments:\n",
        "\nexperiments:\n  dagl_gray_denoise_25-heads_9:\n"
        "    {model: dagl, task: gray_denoise_25, recipe: dagl, options: {heads: 9}}\n",
    )
    assert params(tmp_path, text).experiment("dagl_gray_denoise_25-heads_9").options["heads"] == 9


def test_a_size_stands_in_for_the_familys_options(tmp_path):
    known = params(tmp_path)
    trunk = known.experiment("dagl_gray_denoise_25-common_trunk").options
    assert trunk["common_trunk"] is True and "stages" not in trunk
    assert "common_trunk" not in known.experiment("dagl_gray_denoise_25").options


def test_a_public_checkpoint_is_an_anchor_of_its_own_stage(tmp_path):
    entry = "dncnn_gray_denoise_25-official: {model: dncnn, task: gray_denoise_25, official: own/dncnn.pth}"
    known = params(tmp_path, edited("official: {}", f"official:\n  {entry}"))
    run = known.experiment("dncnn_gray_denoise_25-official")
    assert (run.official, run.options, run.recipe, run.seeds) == ("own/dncnn.pth", {}, None, (1,))
    assert run.name in known.anchors and known.stage(run.name) == "official"
    assert known.stage("nlm_gray_denoise_25") == "anchor" and known.stage("edsr_gray_denoise_25") == "evaluate"
    for wrong in ("official: own/dncnn.pth, options: {depth: 3}", "needs: own/dncnn.pth"):
        with pytest.raises(ParamsError, match="dncnn_gray_denoise_25-official"):
            params(tmp_path, edited("official: {}", f"official:\n  {entry.replace('official: own/dncnn.pth', wrong)}"))


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


ERRORS = {
    "profile": ("profile: quick", "profile: quik", "unknown profile 'quik'"),
    "top level": ("\nrecipes:", "\nrecipies: {}\nrecipes:", "unknown key 'recipies' in the top level; did you mean"),
    "task of experiment": (
        "{model: edsr, task: gray_denoise_25",
        "{model: edsr, task: gray_denoize_25",
        "unknown task 'gray_denoize_25' in experiments.edsr_gray_denoise_25; did you mean 'gray_denoise_25'",
    ),
    "recipe": ("recipe: common, repeat", "recipe: comon, repeat", "unknown recipe 'comon'"),
    "key of experiment": (
        "recipe: common, repeat: true}",
        "recipe: common, repaet: true}",
        "unknown key 'repaet' in experiments.edsr_gray_denoise_25",
    ),
    "key of task": ("    measured: gray", "    mesured: gray", "unknown key 'mesured' in tasks.gray_denoise_15"),
    "key of recipe": ("    loss: mse", "    los: mse", "unknown key 'los' in recipes.common"),
    "type": ("    border: 0", "    border: none", "tasks.gray_denoise_15.border is 'none'; it must be of type int"),
    "varied set": (
        "      denoised: sample/test",
        "      denoised: set12",
        "unknown set 'set12' in profiles.quick.protocol.denoised; known: sample/test",
    ),
    "draws": ("      draws: 20", "      draws: 1", "profiles.quick.protocol.draws must be at least 2"),
    "name": (
        "  edsr_gray_denoise_25: {model: edsr",
        "  ersr_gray_denoise_25: {model: edsr",
        "the name 'ersr_gray_denoise_25' must be edsr_gray_denoise_25",
    ),
    "experiment of study": ("- edsr_gray_denoise_25\n", "- edsr_gray\n", "unknown experiment 'edsr_gray' in studies."),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_names_its_key_in_one_line(tmp_path, case):
    old, new, message = ERRORS[case]
    with pytest.raises(ParamsError, match=re.escape(message)) as raised:
        params(tmp_path, edited(old, new))
    assert "\n" not in str(raised.value) and "params.yaml" in str(raised.value)


BUILD_ERRORS = {
    "model": ("{model: nlm, task", "{model: nlmm, task", "nlmm"),
    "option": ("options: {attention: nl}", "options: {atention: nl}", "unknown option 'atention' of model 'dagl'"),
    "size": ("size: common_trunk}", "size: comon_trunk}", "unknown size 'comon_trunk' in profiles.quick.models.dagl"),
    "degradation": ("{name: gaussian_noise, sigma: 25}", "{name: gausian_noise, sigma: 25}", "gausian_noise"),
    "set": ("test: [sample/test]", "test: [sampel/test]", "sampel/test"),
    "set of the study protocol": (
        "sets: [sample/test]",
        "sets: [sample/test, wieghts]",
        "profiles.quick.protocol.sets: ",
    ),
}


@pytest.mark.parametrize("case", BUILD_ERRORS)
def test_check_knows_models_options_degradations_and_sets(tmp_path, case):
    old, new, message = BUILD_ERRORS[case]
    with pytest.raises(ParamsError, match=re.escape(message)) as raised:
        check(params(tmp_path, edited(old, new)))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    with pytest.raises(ParamsError, match=r"params.yaml: not YAML"):
        params(tmp_path, "profile: [")
    with pytest.raises(ParamsError, match="No such file"):
        Params(tmp_path / "absent.yaml")


def test_a_budget_that_repeats_trains_every_experiment_of_its_task_with_all_seeds(tmp_path):
    budget = "gray_denoise_25: {steps: 950, batch: 4, crop: 20, lr: 4.0e-3, ema: 0.97"
    once = params(tmp_path)
    repeated = params(tmp_path, edited(budget, f"{budget}, repeat: true"))
    name = "dagl_gray_denoise_25-nl"
    assert once.experiment(name).seeds == (1,) and repeated.experiment(name).seeds == (1, 2, 3)
    assert repeated.experiment("edsr_sr_x2-nl").seeds == repeated.experiment("nlm_gray_denoise_25").seeds == (1,)
    assert fingerprint(once.experiment(name)) == fingerprint(repeated.experiment(name))  # each seed is trained alike


def test_a_fingerprint_follows_what_training_depends_on_only(tmp_path):
    name = "dagl_gray_denoise_25-nl"
    base = fingerprint(params(tmp_path).experiment(name))
    other_test = params(tmp_path, edited("test: [sample/test]", "test: [set12]")).experiment(name)
    other_sigma = params(tmp_path, edited("sigma: 25}", "sigma: 15}")).experiment(name)
    assert fingerprint(other_test) == base != fingerprint(other_sigma)
    assert fingerprint(params(tmp_path).experiment(name), "another code") != base
