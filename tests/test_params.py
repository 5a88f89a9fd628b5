"""params.yaml is checked whole: every fault is one line that names the culprit, and all are found at once."""

import importlib
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML

from lib.measuring.metrics import CHANNELS, WINDOWS
from lib.params import ROOT, Baseline, Experiment, Params, ParamsError, check, completion, fingerprint, missing, table
from lib.pipeline.resolve import evaluation

TEXT = Path(__file__).with_name("params_example.yaml").read_text()


def params(tmp_path: Path, *edits: tuple[str, str]) -> Params:
    """The example with the first occurrence of each text replaced."""
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
    assert run.task.convention.channel == "gray" and run.task.title == "denoising, sigma 25"
    assert run.seeds == (1, 2, 3) and run.title == "DAGL, single-head non-local"
    assert run.recipe.schedule.at == (0.154, 0.308) and run.recipe.clip is None
    assert run.precision == "float32" and run.budget.steps == 950


def test_a_baseline_is_not_trained(tmp_path):
    known = params(tmp_path)
    row = known.row("nlm_gray_denoise_25")
    assert isinstance(row, Baseline) and known.stage(row.name) == "baseline"
    assert isinstance(known.row("edsr_sr_x2"), Experiment) and known.stage("edsr_sr_x2") == "evaluate"
    for read, name in ((known.experiment, row.name), (known.row, "edsr_sr_x3")):
        with pytest.raises(ParamsError, match=name):
            read(name)


def test_a_public_checkpoint_is_a_baseline(tmp_path):
    entry = "dncnn_gray_denoise_25: {title: DnCNN, model: dncnn, task: gray_denoise_25, checkpoint: own/dncnn.pth}"
    row = params(tmp_path, added("baselines", entry)).row("dncnn_gray_denoise_25")
    assert (row.checkpoint, row.options, row.seeds) == ("own/dncnn.pth", {}, (1,))
    assert missing(row) == "the file own/dncnn.pth is not there"


def test_a_listed_checkpoint_is_there_where_the_profile_downloads_it(tmp_path):
    entry = "imdn_sr_x2: {title: IMDN, model: imdn, task: sr_x2, checkpoint: weights/imdn_x2.pth}"
    row = params(tmp_path, added("baselines", entry)).row("imdn_sr_x2")
    assert row.checkpoint == "data/weights/imdn_x2.pth"
    assert missing(row) == "published_numbers.sets of the profile lacks 'weights'"
    weights = ("sets: [sample/test]", "sets: [sample/test, weights]")
    row = params(tmp_path, added("baselines", entry), weights).row("imdn_sr_x2")
    assert missing(row) is None
    assert (evaluation(row)["checkpoint"] or "").startswith("740b39653592bd3f")


def test_a_size_stands_in_for_the_models_options(tmp_path):
    known = params(tmp_path)
    trunk = known.experiment("dagl_gray_denoise_25-common_trunk").options
    assert trunk["common_trunk"] is True and "stages" not in trunk
    assert "common_trunk" not in known.experiment("dagl_gray_denoise_25").options


def test_a_planned_look_is_of_all_tasks(tmp_path):
    own = ("steps: 950,", "steps: 950, seeds: [4, 5],")
    said = r"looks: training\.gray_denoise_25 has 2 seeds of its own and the profile 3; a"
    with pytest.raises(ParamsError, match=said):
        params(tmp_path, own, ("seeds: [1, 2, 3]\n", "seeds: [1, 2, 3]\n    looks: true\n"))


def test_a_budget_may_name_its_own_seeds(tmp_path):
    known = params(tmp_path, ("steps: 950,", "steps: 950, seeds: [4, 5],"))
    name = "dagl_gray_denoise_25-nl"
    assert known.experiment(name).seeds == (4, 5) and known.experiment("edsr_sr_x2").seeds == (1, 2, 3)
    assert fingerprint(known.experiment(name)) == fingerprint(params(tmp_path).experiment(name))


@pytest.mark.parametrize("name", ["panet_gray_denoise_25-common_trunk", "dagl_gray_denoise_25-common_trunk"])
def test_a_rows_rate_is_for_all_but_attention(name):
    known = Params(profile="cpu")
    common, faster = (known.experiment(row).budget for row in (name, f"{name}_rate_4"))
    assert faster == replace(common, lr=4 * common.lr, attention_lr=common.attention_lr or common.lr)


def test_a_row_takes_of_a_node_what_its_profile_says_of_its_model(tmp_path):
    says = "    resources: {default: {cpus: 2}, dagl: {gpus: 0.5}}\n"
    known = params(tmp_path, ("    precision: float32\n", says))
    taken = [known.resources(name) for name in ("edsr_sr_x2", "dagl_gray_denoise_25", "panet_demosaic")]
    assert [(each.cpus, each.gpus) for each in taken] == [(2, 0), (1, 0.5), (2, 0)]
    assert params(tmp_path).resources("edsr_sr_x2").cpus == 1


def test_what_a_row_needs_is_named_when_it_is_missing(tmp_path):
    known = params(tmp_path)
    row = known.experiment("ignn_sr_x2-vgg19_embedding")
    assert missing(replace(row, needs="own/absent.pth")) == "the file own/absent.pth is not there"
    assert missing(replace(row, needs="lib")) == "the file lib is not there"  # a folder
    assert missing(replace(row, needs="package:absent_package")) == "the package absent_package is not installed"
    assert missing(replace(row, needs="params.yaml")) is missing(replace(row, needs="package:torch")) is None
    assert missing(known.experiment("edsr_sr_x2")) is None


def test_a_file_of_the_registry_is_where_its_download_lies(tmp_path):
    old, new = "options: {embedding: vgg19}, needs: own/vgg19.pth", "weights/vgg19_first_layers.pth"
    changed = (old, f"options: {{embedding: vgg19, vgg19_weights: {new}}}, needs: {new}")
    row = params(tmp_path, changed).experiment("ignn_sr_x2-vgg19_embedding")
    assert row.needs == row.options["vgg19_weights"] == f"data/{new}"
    assert missing(row) == "published_numbers.sets of the profile lacks 'weights'"
    weights = ("sets: [sample/test], denoised", "sets: [sample/test, weights], denoised")
    assert missing(params(tmp_path, changed, weights).experiment(row.name)) is None


def test_tasks_that_nothing_is_about_are_not_used(tmp_path):
    known = params(tmp_path)
    assert "gray_denoise_15" in known.contents.tasks
    assert "gray_denoise_15" not in known.used_tasks and "sr_x2" in known.used_tasks


def test_a_fingerprint_follows_what_training_depends_on_only(tmp_path):
    name = "dagl_gray_denoise_25-nl"
    base = fingerprint(params(tmp_path).experiment(name))
    other_test = params(tmp_path, ("test: [sample/test]", "test: [set12]")).experiment(name)
    other_sigma = params(tmp_path, ("sigma: 25}", "sigma: 20}")).experiment(name)
    assert fingerprint(other_test) == base != fingerprint(other_sigma)
    assert fingerprint(params(tmp_path).experiment(name), "another code") != base


def added(section: str, entry: str) -> tuple[str, str]:
    """The edit that adds a line to a section."""
    return f"\n{section}:\n", f"\n{section}:\n  {entry}\n"


def with_options(model: str, task: str, options: str, number: int = 0) -> tuple[str, str]:
    """The edit that adds an experiment."""
    difference = f"z{number}"
    entry = f"{{title: {difference}, model: {model}, task: {task}, recipe: common, options: {options}}}"
    return added("experiments", f"{model}_{task}-{difference}: {entry}")


EDSR = "experiments.edsr_gray_denoise_25"
CLAIM = "{better: panet_demosaic, worse: panet_demosaic-scales_1"
ADAM = "{name: adam, betas: [0.9, 0.999], weight_decay: 0}"
COSINE = "{name: cosine, warm_up: 0.05}"
BUDGET, SR_BUDGET = "profiles.quick.training.gray_denoise_25", "profiles.quick.training.sr_x2"
PATH = "it must be a path below the project's folder"

#: A text in the file, its replacement, and the beginning of the line about it.
FAULTS = [
    # names and keys
    ("profile: quick", "profile: quik", "unknown profile 'quik' in profiles; did you mean 'quick'?"),
    ("\nrecipes:", "\nrecipies: {}\nrecipes:", "unknown key 'recipies' in the top level; did you mean 'recipes'?"),
    ("\nrecipes:", "\n7: 8\nrecipes:", "unknown key '7' in the top level; known: "),
    ("delta: {psnr: 0.05, ", "delta: {", "delta lacks the key 'psnr'"),
    ("model: edsr, task: gray_denoise_25", "model: edsr, task: gray_denoize_25",
     f"unknown task 'gray_denoize_25' in {EDSR}; did you mean 'gray_denoise_25'?"),
    ("recipe: common", "recipe: comon", f"unknown recipe 'comon' in {EDSR}; did you mean 'common'?"),
    ("recipe: common", "recpie: common", f"unknown key 'recpie' in {EDSR}; did you mean 'recipe'?"),
    ("recipe: common", "recipe: common, repeat: true", f"unknown key 'repeat' in {EDSR}"),
    ("{channel: gray", "{chanel: gray", "unknown key 'chanel' in tasks.gray_denoise_15.convention; did you mean"),
    ("    loss: mse", "    los: mse", "unknown key 'los' in recipes.common; did you mean 'loss'?"),
    ("size: common_trunk", "size: comon_trunk", "unknown size 'comon_trunk' in profiles.quick.models.dagl, which"),
    ("      jpeg_10: {steps", "      jpeg_11: {steps",
     "unknown task 'jpeg_11' in profiles.quick.training; did you mean"),
    ("      edsr: {width: 16", "      esdr: {}\n      edsr: {width: 16", "profiles.quick.models: unknown model 'esdr'"),
    ("      edsr: {width: 64", "      edsr: {widht: 64",
     f"{EDSR} in profile gpu: unknown option 'widht' of model 'edsr'"),
    ("denoised: sample/test", "denoised: set12", "unknown set 'set12' in profiles.quick.published_numbers.denoised"),
    ("- edsr_gray_denoise_25\n", "- edsr_gray\n", "unknown row 'edsr_gray' in studies.dagl_ablation; did you mean"),
    ("  edsr_gray_denoise_25: {title", "  ersr_gray_denoise_25: {title",
     "the name 'ersr_gray_denoise_25' must be edsr_gray_denoise_25 or that and -<difference>"),
    ("  dagl_ablation:", "  dagl_abltion:", "studies.dagl_abltion: there is no notebooks/report_dagl_abltion.ipynb"),
    ("title: EDSR trunk, ", "", f"{EDSR} lacks the key 'title'"),
    ("title: EDSR trunk, ", "title: 5, ", f"{EDSR}.title is 5; it must be a text"),
    ("title: DAGL, ", "title: EDSR trunk, ",
     "experiments.dagl_gray_denoise_25.title is 'EDSR trunk', as that of 'edsr"),
    (*added("baselines", "edsr_gray_denoise_25: {title: a, model: edsr, task: gray_denoise_25}"),
     "'edsr_gray_denoise_25' is the name of an experiment and of a baseline"),
    *(("  edsr_gray_denoise_25: {title", f"  {name!r}: {{title".replace("'", '"'), "experiments.")
      for name in ("edsr_gray_denoise_25-$(touch X)", "edsr_gray_denoise_25-a;b", "a&b", "a b", "a*", "a.b", "é", "")),
    *((f"\n{section}:\n", f"\n{section}:\n  {key}: {{}}\n", "has a list, mapping or date for a key, or an alias inside")
      for section in ("recipes", "studies") for key in ("? [a, b]\n  ", "2020-01-01")),
    ("\ndelta:", "\nmore: &more [*more]\ndelta:", "has a list, mapping or date for a key, or an alias inside"),
    ("  edsr_gray_denoise_25: {title", '  "edsr_gray_denoise_25-\\n": {title',
     "experiments.'edsr_gray_denoise_25-\\n'"),
    ("  edsr_gray_denoise_25: {title", "  edsr_gray_denoise_25-: {title",
     "the name 'edsr_gray_denoise_25-' must be edsr_gray_denoise_25 or that and -<difference>"),
    ("  dagl_ablation:", "  published_numbers:", "studies.published_numbers: that is the name of the study of"),
    *(("title: EDSR trunk, ", f"title: {title}, ", f"{EDSR}.title is ")
      for title in (
          '"a | b"', '"<b>a</b>"', '"a "', '"a\\nb"', '""', '"`a`"', '"a\\x07b"', '"a\\x9fb"', '"a\\u2028b"')),
    *(("  edsr_gray_denoise_25: {title", f"  {name}: {{title", f"experiments.{name} is '{name}'; a name is made of")
      for name in ("-x", "edsr_gray_denoise_25-" + 80 * "x")),
    *(("title: EDSR trunk, ", f"title: {title}, ", "not YAML: ") for title in ("2020-13-45", "!!bool x", "9" * 5000)),
    ("steps: 950", "steps: !!int x", "not YAML: "),
    # options that follow from the task, and rows in the wrong section
    (*with_options("edsr", "sr_x2", "{scale: 2}"), "experiments.edsr_sr_x2-z0.options: 'scale' follows from the task"),
    (*with_options("edsr", "sr_x2", "{colors: 1}"),
     "experiments.edsr_sr_x2-z0.options: 'colors' follows from the task"),
    (*added("baselines", "nlm_sr_x2: {title: a, model: nlm, task: sr_x2, options: {sigma: 25}}"),
     "baselines.nlm_sr_x2: model 'nlm' has no option 'scale', but sr_x2 is x2"),
    (*added("baselines", "edsr_sr_x2-a: {title: a, model: edsr, task: sr_x2}"),
     "baselines.edsr_sr_x2-a: model 'edsr' must be trained"),
    *(("options: {sigma: 25}", f"options: {{sigma: {sigma}}}", "baselines.nlm_gray_denoise_25: ")
      for sigma in ('"25"', "-1", "0", "yes", "300", ".nan")),
    *(("options: {sigma: 25}, needs", f"options: {{sigma: {sigma}}}, needs", "baselines.bm3d_gray_denoise_25: option")
      for sigma in ('"25"', "-1")),
    (", options: {sigma: 25}}", "}", "baselines.nlm_gray_denoise_25: model 'nlm' needs the option 'sigma'"),
    (*added("baselines", "nlm_jpeg_10: {title: a, model: nlm, task: jpeg_10}"),
     "baselines.nlm_jpeg_10: model 'nlm' needs the option 'sigma'"),
    # recipes
    *(("loss: mse", f"loss: {loss}", f"recipes.common.loss is '{loss}'; it must be l1 or mse")
      for loss in ("L1", "huber")),
    (ADAM, "{name: sgd}", "recipes.common.optimiser.name is 'sgd'; it must be adam or adamw"),
    (ADAM, "{}", "recipes.common.optimiser lacks the key 'name'"),
    (ADAM, "adam", "recipes.common.optimiser is 'adam'; it must be a mapping"),
    ("betas: [0.9, 0.999]", "beta: [0.9, 0.999]",
     "unknown key 'beta' in recipes.common.optimiser; did you mean 'betas'?"),
    ("betas: [0.9, 0.999]", "betas: [0.9]", "recipes.common.optimiser.betas is too short"),
    ("betas: [0.9, 0.999]", "betas: [0.9, 1.0]", "recipes.common.optimiser.betas[1] is 1.0; it must be below 1"),
    ("weight_decay: 0", "weight_decay: -1", "recipes.common.optimiser.weight_decay is -1; it must be at least 0"),
    (COSINE, "{name: linear}", "unknown name 'linear' in recipes.common.schedule; known: cosine, step"),
    (COSINE, "{warm_up: 0.05}", "recipes.common.schedule lacks the key 'name'"),
    (COSINE, "{name: cosine, warmup: 0.05}",
     "unknown key 'warmup' in recipes.common.schedule; did you mean 'warm_up'?"),
    (COSINE, "{name: cosine, at: [0.5]}", "unknown key 'at' in recipes.common.schedule"),
    *((COSINE, f"{{name: cosine, {key}: {value}}}", f"recipes.common.schedule.{key} is {value}; it must be")
      for key, value in (("warm_up", 500), ("warm_up", 1), ("warm_up", -0.1), ("hold", 1), ("floor", 1.5))),
    ("at: [0.154,", "at: [0.154, 1000,", "recipes.dagl.schedule.at[1] is 1000; it must be below 1"),
    ("at: [0.154,", "at: [0.5,",
     "recipes.dagl.schedule.at is [0.5, 0.308]; it must ascend"),
    ("factor: 0.5", "factor: 0", "recipes.dagl.schedule.factor is 0; it must be above 0"),
    *(("clip: 0.01", f"clip: {clip}", f"recipes.common.clip is {clip}; it must be above 0") for clip in (0, -1)),
    ("clip: 0.01", "clip: none", "recipes.common.clip is 'none'; it must be a number"),
    # budgets, seeds, sizes
    ("steps: 950", "attention_lr: 0, steps: 950", f"{BUDGET}.attention_lr is 0; it must be above 0"),
    *((old, f"{key}: {value}", f"{BUDGET}.{key} is {shown or value}; it must be {must}")
      for old, key, value, shown, must in (
        ("steps: 950", "steps", "0", "", "at least 1"), ("steps: 950", "steps", '"950"', "'950'", "a whole number"),
        ("steps: 950", "steps", "950.5", "", "a whole number"), ("batch: 4", "batch", "0", "", "at least 1"),
        ("batch: 4", "batch", "true", "True", "a whole number"), ("lr: 4.0e-3", "lr", "-1", "", "above 0"),
        ("lr: 4.0e-3", "lr", ".inf", "inf", "a finite number"), ("ema: 0.97", "ema", "1", "", "below 1"),
        ("ema: 0.97", "ema", "1.5", "", "below 1"), ("lr: 4.0e-3", "lr", "100", "", "at most 1"),
        ("crop: 20", "crop", "0", "", "at least 1"))),
    ("crop: 20, lr", "crop: 4096, lr", f"{BUDGET}.crop is 4096; the smallest training photograph has a side of "),
    ("crop: 20, lr", "crop: 4, lr", f"{BUDGET}.crop is 4, 4 input pixels; the attention of dagl needs 5 x 5"),
    *((*with_options("panet", "demosaic", "{scales: [1, 0.04]}"), f"profiles.quick.{place}; the attention of panet")
      for place in ("training.demosaic.crop is 24, 24 input pixels", "evaluation.tile is 24")),
    (*with_options("panet", "demosaic", "{scales: [0.01]}"),
     "profiles.quick.evaluation.crop is 96, 96 input pixels in demosaic; the attention of panet needs 100 x 100 input"),
    ("crop: 40, lr", "crop: 41, lr", f"{SR_BUDGET}.crop is 41; it must be a multiple of the scale 2"),
    ("crop: 40, lr", "crop: 42, half_crops: 0.5, lr",
     f"{SR_BUDGET}.crop is 42; it must be a multiple of twice the scale, for half_crops: 4"),
    ("crop: 20, lr", "crop: 8, half_crops: 0.1, lr", f"{BUDGET}.crop is 8, 4 input pixels in half_crops; the"),
    *(("crop: 20, lr", f"crop: 20, half_crops: {share}, lr", f"{BUDGET}.half_crops is {share}; it must be")
      for share in (1, -0.1)),
    ("steps: 950", "steps: 950, seeds: [1, 1]", f"{BUDGET}.seeds is [1, 1]; 1 is listed twice"),
    ("seeds: [1, 2, 3]", "seeds: [1, 1]", "profiles.quick.seeds is [1, 1]; 1 is listed twice"),
    ("seeds: [1, 2, 3]", "seeds: []", "profiles.quick.seeds is []; it must be a list that is not empty"),
    ("seeds: [1, 2, 3]", "seeds: [9223372036854775808]", "profiles.quick.seeds[0] is 9223372036854775808; it must be"),
    ("    precision: float32\n", "    recipe_search: {experiments: [edsr_sr_x2], rates: [1], steps: 1}\n",
     "profiles.quick.recipe_search.rates is [1]; it must be a list of 2 or more"),
    ("seeds: [1, 2, 3]", "seeds: 3", "profiles.quick.seeds is 3; it must be a list"),
    ("seeds: [1, 2, 3]", "seeds: [-1]", "profiles.quick.seeds[0] is -1; it must be at least 0"),
    ("seeds: [1, 2, 3]", "seeds: [1, 2, 3, 4]\n    looks: true",
     "profiles.quick: looks: 4 seeds are no planned look; the looks are at 3, 5, 10 seeds"),
    ("precision: float32", "precision: fp16", "profiles.quick.precision is 'fp16'; it must be float32 or bf16"),
    ("{psnr: 0.05", "{psnr: 0", "delta.psnr is 0; it must be above 0"),
    ("{psnr: 0.05", "{psnr: yes", "delta.psnr is 'yes'; it must be a number"),
    ("draws: 20", "draws: 1", "profiles.quick.published_numbers.draws is 1; it must be at least 2"),
    ("dagl: {common_trunk", "dagl: {heads: {}, common_trunk",
     "profiles.gpu.models.dagl.heads is a size, but an option has this name; rename it"),
    # evaluation and conventions
    ("evaluation: {crop: 96", "evaluation: {crop: 0", "profiles.quick.evaluation.crop is 0; it must be at least 1"),
    ("evaluation: {crop: 96", "evaluation: {crop: 12",
     "profiles.quick.evaluation.crop is 12; the convention of sr_x2 needs at least 15"),
    ("tile: 24, overlap: 6", "tile: 6, overlap: 6", "profiles.quick.evaluation: tile 6 must be larger than overlap 6"),
    ("tile: 24, overlap: 6", "tile: 4, overlap: 1",
     "profiles.quick.evaluation.tile is 4; the attention of dagl needs 5 x 5"),
    ("overlap: 6", "overlap: -1", "profiles.quick.evaluation.overlap is -1; it must be at least 0"),
    ("self_ensemble: false", "self_ensemble: off",
     "profiles.quick.evaluation.self_ensemble is 'off'; it must be true or"),
    ("gray: matlab", "gray: ycbcr", "tasks.gray_denoise_15.gray is 'ycbcr'; it must be matlab or opencv"),
    ("    gray: matlab\n", "", "tasks.gray_denoise_15: `gray` (matlab, opencv) belongs to tasks with colors: 1"),
    ("channel: gray", "channel: y8", "tasks.gray_denoise_15: channel 'y8' cannot be measured where colors is 1"),
    ("channel: rgb", "channel: gray", "tasks.color_denoise_30: channel 'gray' cannot be measured where colors is 3"),
    ("channel: gray", "channel: luma", "tasks.gray_denoise_15.convention.channel is 'luma'; it must be gray, rgb"),
    ("window: uniform", "window: box", "tasks.jpeg_10.convention.window is 'box'; it must be gaussian or uniform"),
    ("border: 0", "border: -1", "tasks.gray_denoise_15.convention.border is -1; it must be at least 0"),
    ("quantise: false", "quantise: no", "tasks.gray_denoise_15.convention.quantise is 'no'; it must be true or false"),
    ("colors: 1", "colors: 2", "tasks.gray_denoise_15.colors is 2; it must be 1 or 3"),
    # degradations and image sets
    ("sigma: 25}", "sigma: -25}",
     "tasks.gray_denoise_25.degradation: gaussian_noise: sigma is -25; it must be a number"),
    *(("sigma: 25}", f"{options}}}", f"tasks.gray_denoise_25.degradation: gaussian_noise: {message}")
      for options, message in (
        ('sigma: "25"', "sigma is '25'"), ("sigma: true", "sigma is True"), ("sigma: [0]", "sigma is [0]"),
        ("sigma: 25, quantise: no", "quantise is 'no'; it must be bool"), ("sigma: 0", "leaves a photograph as it is"),
        ("sigma: .nan", "sigma is "), ("sigma: 25, noise: 3", "noise is 3"))),
    *(("{name: jpeg, quality: 10}", f"{{name: {options}}}", f"tasks.jpeg_10.degradation: {message}")
      for options, message in (
        ("rain, density: yes", "rain: density is 'yes'"), ("rain, density: true", "rain: density is True"),
        ("rain, density: 0", "rain: leaves a photograph as it is"), ("blur, noise: yes", "blur: noise is 'yes'"),
        ("blur, noise: true", "blur: noise is True"), ("bicubic, scale: 2.0", "bicubic: scale is 2.0"))),
    ("{name: bayer}", "{name: bayr}", "tasks.demosaic.degradation: unknown degradation 'bayr'; known: bayer"),
    ("{name: bayer}", "{pattern: RGGB}", "tasks.demosaic.degradation: it lacks `name`"),
    ("{name: jpeg, quality: 10}", "{name: bayer}", "tasks.jpeg_10.degradation: bayer: the image has 1 channels"),
    ("train: [sample/train]", "train: [sample/test]", "profiles.quick.sets: sample/test is in train and in test"),
    ("test: [mcmaster", "test: [bsds500/train, mcmaster",
     "tasks.demosaic: bsds500/train is in train and in test (profile gpu"),
    *(("train: [sample/train]", f"train: [{path}]", f"profiles.quick.sets.train[0] is '{path}'; {PATH}")
      for path in ("own//tmp/x", "own/../x", "/tmp/x", "~/x", "own/./x", "own/$(x)", "own/ x", "own/x /y")),
    ("train: [sample/train]", "train: sample/train", "profiles.quick.sets.train is 'sample/train'; it must be a list"),
    ("train: [sample/train]", "train: []", "profiles.quick.sets.train is []; it must be a list that is not empty"),
    ("train: [sample/train]", "train: [a, a]", "profiles.quick.sets.train is ['a', 'a']; 'a' is listed twice"),
    *(("validation: []", f"validation: [{name}]", f"profiles.quick.sets.validation: {message}") for name, message in (
        ("set12", "set set12: has gray photographs alone, which "),
        ("weights", "set weights: holds files that are no images"),
        ("rain100l", "rain100l/input/1 has 320 x 480 pixels, but rain100l/target/1 has 320 x 480 pixels; task sr_x2"))),
    ("train: [sample/train]", "train: [sample/train, rain100l]",
     "profiles.quick.sets.train: rain100l has pairs, sample/train has none; train on pairs or photographs alone"),
    ("{name: bayer}", "{name: paired}",
     "profiles.quick.sets.train: set sample/train: has no pairs, which the degradation of demosaic needs"),
    ("sets: [sample/test], denoised: sample/test", "sets: [sample/test, weights], denoised: weights",
     "profiles.quick.published_numbers.denoised: set weights: holds files that are no images"),
    ("test: [sample/test]", "test: [sampel/test]", "profiles.quick.sets.test: unknown set 'sampel/test'; did you mean"),
    ("sets: [sample/test]", "sets: [sample/test, wieghts]",
     "profiles.quick.published_numbers.sets: unknown set 'wieghts'"),
    ("worse: panet_demosaic-scales_1}", "worse: panet_demosaic-scales_1, source: '<img src=x> | z'}",
     "studies.panet_scales.claims[0].source is '<img src=x> | z'; it must be a text of one line"),
    *(("  dagl_ablation:", f"  {name}:", "studies.") for name in ("'a b'", "'$(touch X)'", "a.b")),
    *(("  gray_denoise_15:", f"  {name}:", "tasks.") for name in ("'a b'", "'$(touch X)'", "a.b")),
    *(("  quick:", f"  {name}:", "profiles.") for name in ("'a b'", "'$(touch X)'", "a.b")),
    ("tile: 24, overlap: 6", "tile: 25, overlap: 24", "profiles.quick.evaluation.overlap is 24; in whole periods of"),
    # what a row needs
    ("needs: own/vgg19", "needs: own/../vgg19", "experiments.ignn_sr_x2-vgg19_embedding.needs is 'own/../vgg19"),
    ("needs: own/vgg19", "needs: weights/vgg19",
     "unknown file 'weights/vgg19.pth' in experiments.ignn_sr_x2-vgg19_embedding; did you mean 'weights/vgg19_fi"),
    ("needs: own/vgg19", "needs: data/vgg19",
     "experiments.ignn_sr_x2-vgg19_embedding.needs is 'data/vgg19.pth'; it must be a file in own/, or one that"),
    (*added("baselines", "dncnn_jpeg_10: {title: a, model: dncnn, task: jpeg_10, checkpoint: weights/a.pth}"),
     "unknown file 'weights/a.pth' in baselines.dncnn_jpeg_10"),
    (*added("baselines", "dncnn_jpeg_10: {title: a, model: dncnn, task: jpeg_10, checkpoint: data/a.pth}"),
     "baselines.dncnn_jpeg_10.checkpoint is 'data/a.pth'; it must be a file in own/, or one that the registry lists"),
    ('"package:bm3d"', '"package:bm3d; touch X"', "baselines.bm3d_gray_denoise_25.needs is 'package:bm3d; touch X'"),
    ('"package:bm3d"', '"pakage:bm3d"',
     "baselines.bm3d_gray_denoise_25.needs is 'pakage:bm3d'; it must be the path of a"),
    (*added("baselines", "dncnn_jpeg_10: {title: a, model: dncnn, task: jpeg_10, checkpoint: ../a.pth}"),
     f"baselines.dncnn_jpeg_10.checkpoint is '../a.pth'; {PATH}"),
    (*added("baselines",
     "dncnn_jpeg_10: {title: a, model: dncnn, task: jpeg_10, checkpoint: own/a, options: {depth: 3}}"),
     "baselines.dncnn_jpeg_10: a checkpoint leaves no `options`"),
    # studies
    ("      - bm3d_gray_denoise_25\n", "      - bm3d_gray_denoise_25\n" * 2,
     "studies.dagl_ablation.experiments is ["),
    (CLAIM, "{better: panet_demosaic, worse: panet_demosaic",
     "studies.panet_scales.claims[0]: 'panet_demosaic' is compared"),
    (CLAIM, "{better: panet_demosaic, worse: panet_jpeg_10",
     "studies.panet_scales.claims[0]: compares rows of two tasks"),
    (CLAIM, "{better: panet_demosaic, worse: edsr_sr_x4", "unknown row 'edsr_sr_x4' in studies.panet_scales.claims[0]"),
    ("    precision: float32\n", "    resources: {edrs: {gpus: 1}}\n", "unknown model 'edrs' in profiles.quick.res"),
    *(("    precision: float32\n", f"    attention_lr: {{{model}: 1.0e-3}}\n", f"unknown attention '{model}' in")
      for model in ("dagle", "edsr", "input")),
    ("      edsr: {width: 64", "      edsr: {wide: {widht: 99}, width: 64",
     "profiles.gpu.models.edsr.wide: unknown option 'widht' of model 'edsr'"),
    ("    precision: float32\n", "    attention_lr: {dagl: 2}\n", "profiles.quick.attention_lr.dagl is 2; it must be"),
    ("    precision: float32\n", "    resources: {edsr: {gpus: -1}}\n", "profiles.quick.resources.edsr.gpus is -1"),
    ("    precision: float32\n", "    resources: {edsr: {gpus: 1.5}}\n", "profiles.quick.resources.edsr.gpus is 1.5"),
    (CLAIM, f"{CLAIM}, published: big", "studies.panet_scales.claims[0].published is 'big'; it must be a number"),
    (CLAIM, f"{CLAIM}, size: 3", "unknown key 'size' in studies.panet_scales.claims[0]"),
    (f"- {CLAIM}}}", "- [panet_demosaic, panet_demosaic-scales_1]",
     "studies.panet_scales.claims[0] is ['panet_demosaic'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), FAULTS)
def test_a_fault_is_one_line_that_names_its_key(tmp_path, old, new, message):
    found = faults(tmp_path, (old, new))
    assert any(line.startswith(message) for line in found), found


#: Model, task, and options that it does not take, or none where it cannot do the task.
REFUSED = [
    *(("dagl", "gray_denoise_25", options) for options in (
        "heads: 0", "width: [16]", "width: 30000", "image_skip: no", "image_skip: off", "attention: [nl]",
        "attention: {a: 1}",
        "attention: nl, weights: paper", "attention: mhnl, heads: 4", "no_graph_attention: true, weights: paper")),
    *(("ignn", "sr_x2", f"embedding: random, {options}") for options in (
        "window: 0", "window: -30", "neighbours: 1, edge_weights: uniform", "neighbours: 0, adapn: false")),
    ("ignn", "sr_x2", "vgg19_weights: own/vgg19.pth"),
    *(("enlca", "sr_x2", options) for options in (
        "redraw: 1", "redraw: 2.0", "redraw: 640", "contrastive_start: 1", "contrastive_weight: 0", "margin: -1",
        "k: 1000", "width: 2", "exact: true, features: 64", "contrastive: false, contrastive_weight: 1.0e-3")),
    *(("panet", "color_denoise_30", f"positions: {places}") for places in ("0", "-1", "[]", "8", "99")),
    ("ignn", "sr_x2", "embedding: vgg19"), ("ignn", "sr_x2", "embedding: random, vgg19_weights: own/vgg19.pth"),
    *(("panet", "color_denoise_30", options) for options in (
        "patch: 4", "scales: [1, 0]", "scales: []", "scales: [1, 1]", 'scales: "1, 0.9"')),
    ("lir", "color_denoise_30", "blocks: [0, 0, 0, 0, 0]"),
    *(("enlca", "sr_x2", options) for options in ('k: "6"', "contrastive: no", "res_scale: .inf")),
    ("ignn", "sr_x2", "embedding: foo"),
    *((model, task, "") for model, task in (
        ("dagl", "sr_x2"), ("lir", "sr_x2"), ("ignn", "gray_denoise_25"), ("ignn", "color_denoise_30"),
        ("bicubic", "gray_denoise_25"), ("bicubic", "sr_x2"), ("nlm", "demosaic"))),
]  # fmt: skip


def test_options_that_a_network_does_not_take_are_refused(tmp_path):
    edits = [with_options(model, task, f"{{{options}}}", n) for n, (model, task, options) in enumerate(REFUSED)]
    found = faults(tmp_path, *edits)
    assert len(found) == len(REFUSED), found
    for number, (model, task, _) in enumerate(REFUSED):
        assert sum(line.startswith(f"experiments.{model}_{task}-z{number}: ") for line in found) == 1


#: Side of the task sr_x2 that names own/x, its files with their rows and columns, and what is said of them.
OWN = [
    ("train", {"input/a": (20, 30), "target/a": (40, 60), "input/b": (48, 20), "target/b": (96, 40)}, None),
    ("test", {"input/a": (20, 30), "target/a": (40, 60)}, None), ("test", {"a": (300, 500)}, None),
    ("train", {"input/a": (20, 30), "target/a": (40, 61)},
     "own/x/input/a.png has 20 x 30 pixels, but own/x/target/a.png has 40 x 61 pixels; task sr_x2 has scale 2"),
    ("validation", {"input/a": (99, 99), "target/a": (99, 99)},
     "own/x/input/a.png has 99 x 99 pixels, but own/x/target/a.png has 99 x 99 pixels; task sr_x2 has scale 2"),
    ("test", {"input/a": (9, 193), "target/a": (18, 386)}, None),
    ("train", {"a": (39, 60)}, "own/x/a.png has 39 x 60 pixels (rows x columns); the training crop of sr_x2 needs at"),
    ("validation", {"a": (95, 99)}, "own/x/a.png has 95 x 99 pixels (rows x columns); a validation photograph needs"),
    ("test", {"a": (15, 48)}, "own/x/a.png has 15 x 48 pixels (rows x columns); the convention of sr_x2 needs at"),
    ("test", {"gray": (40, 40)}, "set own/x: has gray photographs alone, which sr_x2 leaves out"),
    ("train", {"gray": (40, 40), "a": (40, 40)}, None),
    ("test", {"more/a": (40, 40)}, "set own/x: own/x/more is a folder; put images into own/x, or pairs into its"),
    ("test", {"input/a": (9, 9), "target/a": (18, 18), "b": (9, 9)}, "set own/x: own/x/b.png lies beside the folders"),
    ("test", {"input/a": (9, 9), "target/b": (18, 18)}, "set own/x: 'a' is not in both own/x/target and own/x/input"),
    ("test", {"y/../../a": (9, 9)}, "set own/x: there is no folder own/x; put its images there"),
]  # fmt: skip


@pytest.mark.parametrize(("side", "files", "message"), OWN)
def test_a_set_of_the_user_that_does_not_suit_a_task_is_refused_by_file(tmp_path, monkeypatch, side, files, message):
    monkeypatch.setattr(importlib.import_module("lib.params.checks"), "OWN", tmp_path / "own")
    for name, shape in files.items():
        path = Path(os.path.normpath(tmp_path / "own/x" / f"{name}.png"))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if path.stem == "gray" else "RGB", shape[::-1]).save(path)
    entry = {"train": ("[bsds500/train]", "[own/x]"), "test": ("[set5/HR]", "[own/x]"),
             "validation": ("[set5/HR]", "[set5/HR]\n    validation: [own/x]")}[side]  # fmt: skip
    task = TEXT[TEXT.index("  sr_x2:\n    title") :].partition("\n  demosaic:")[0]
    of_profile = "sets: {train: [sample/train], validation: [], test: [sample/test]}"
    edits = (task, task.replace(*entry)), (of_profile, "sets: {}")
    if message is None:
        check(params(tmp_path, *edits))
    else:
        [found] = faults(tmp_path, *edits)
        assert found.replace(f"{tmp_path}/", "").startswith(f"tasks.sr_x2.{side}: {message}")


@pytest.mark.parametrize(
    ("test", "target", "message"),
    [
        ("own/y", "../x/target/a.png", "profiles.quick.sets.test: own/y/a.png is in own/x too, for train"),
        (
            "own/x/target",
            "../x/target/a.png",
            "profiles.quick.sets.test: own/x/target/a.png is in own/x too, for train",
        ),
        ("own/z", "absent.png", "own/y/a.png: is a link to absent.png, which is not there"),
    ],
)
def test_a_link_to_nothing_or_to_a_training_photograph_is_refused(tmp_path, monkeypatch, test, target, message):
    monkeypatch.setattr(importlib.import_module("lib.params.checks"), "OWN", tmp_path / "own")
    for folder in ("x/target", "x/input", "y"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    for name in ("target", "input"):
        Image.new("RGB", (96, 96)).save(tmp_path / "own/x" / name / "a.png")
    (tmp_path / "own/y/a.png").symlink_to(target)
    found = faults(tmp_path, ("train: [sample/train]", "train: [own/x]"), ("test: [sample/test]", f"test: [{test}]"))
    assert any(line.startswith(message) for line in found), found


@pytest.mark.parametrize("section", ["profiles", "delta", "recipes", "tasks", "baselines", "experiments", "studies"])
def test_a_section_without_content_is_a_fault(tmp_path, section):
    content = re.search(rf"(?ms)^{section}:(.*?)(?=^\w|\Z)", TEXT)[1]
    [found] = faults(tmp_path, (f"\n{section}:{content}", f"\n{section}:\n"))
    assert found == f"{section} is empty; it must be a mapping"


def test_all_faults_are_found_at_once(tmp_path):
    kinds = [("loss: mse", "loss: huber"), ("steps: 950", "steps: 0"), ("      jpeg_10: {", "      jpeg_11: {")]
    assert len(faults(tmp_path, *kinds[:2])) == 2
    built = [with_options("dagl", "gray_denoise_25", "{heads: 0}"), ("{name: bayer}", "{name: bayr}"), kinds[2]]
    assert len(faults(tmp_path, *built[:2])) == 2
    assert faults(tmp_path, kinds[2])[0].startswith("unknown task 'jpeg_11'")
    # of every kind: what is no row, what names nothing, what cannot be built
    mixed = [with_options("dagl", "gray_denoise_25", "[1]"), with_options("panet", "demosaic", "{patch: 4}", 1)]
    found = faults(tmp_path, *mixed, kinds[2])
    begins = (
        "experiments.dagl_gray_denoise_25-z0.options is",
        "unknown task 'jpeg_11'",
        "experiments.panet_demosaic-z1:",
        "profiles.quick.training lacks 'jpeg_10'",
    )
    assert [line.startswith(start) for line, start in zip(found, begins, strict=True)] == [True] * 4, found


def test_editors_have_the_schema_of_today():
    assert (ROOT / "params.yaml").read_text().startswith(f"# yaml-language-server: $schema={completion.FILE.name}\n")
    assert completion.FILE.read_text() == completion.text(), "python -m lib schema writes it"
    parts = json.loads(completion.text())["$defs"]
    assert parts["ConventionEntry"]["properties"]["channel"]["enum"] == list(CHANNELS)
    assert parts["ConventionEntry"]["properties"]["window"]["enum"] == list(WINDOWS)
    assert "bayer" in parts["TaskEntry"]["properties"]["degradation"]["properties"]["name"]["enum"]
    assert all("description" in part for part in parts.values())


def test_the_file_says_the_same_once_dvc_wrote_it():
    """`dvc exp run -S` writes all of it: texts in braces unquoted, and a long one loses a blank where it breaks."""
    text = (ROOT / "params.yaml").read_text()
    yaml, written = YAML(), io.StringIO()
    yaml.dump(yaml.load(text), written)
    before, after = (json.dumps(YAML(typ="safe").load(found)) for found in (text, written.getvalue()))
    assert after.replace(" ", "") == before.replace(" ", "")


@pytest.mark.parametrize("seed", ["1.0", "true", '"1"'])
def test_a_fault_inside_of_a_list_makes_no_second_one_of_the_list(tmp_path, seed):
    [found] = faults(tmp_path, ("seeds: [1, 2, 3]", f"seeds: [{seed}]"))
    assert found.startswith("profiles.quick.seeds[0] is ") and found.endswith("; it must be a whole number")


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "params.yaml").write_text("profile: [")
    with pytest.raises(ParamsError, match=r"params.yaml: not YAML"):
        Params(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match="No such file"):
        Params(tmp_path / "absent.yaml")
