"""The pipeline itself, in a temporary clone with a tiny profile: run twice, extended, broken, switched."""

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from clones import KEPT, Clone
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from lib.__main__ import main
from lib.images import sets
from lib.measuring.inference import restore
from lib.models import build
from lib.params import ROOT, Params
from lib.pipeline import repro
from lib.pipeline.runner import REPORT_PUBLISHED_NUMBERS, body, notebook_of


def begin_training_with(clone: Clone, statement: str) -> None:
    """Have the function `train` of a clone begin with a statement."""
    path = clone.folder / "lib/training.py"
    head, signature, rest = path.read_text().partition("def train(")
    documented, _, body = rest.partition('    """\n')
    path.write_text(f'{head}{signature}{documented}    """\n    {statement}\n{body}')


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    clone = Clone(tmp_path_factory.mktemp("clone"))
    ran = clone.repro()
    assert {f"train@{name}" for name in KEPT} <= set(ran) and "report@dagl_ablation" in ran and "summary" in ran
    clone.commit("results")
    return clone


@pytest.fixture(autouse=True)
def left_as_it_was(request):
    """The next test does not see the changes that a test makes in the clone."""
    yield
    if "clone" in request.fixturenames:
        request.getfixturevalue("clone").shell("git checkout -q . && git clean -fdq")


def test_one_command_makes_every_result(clone):
    results = clone.folder / "results/tiny"
    for name in KEPT:
        files = (results / "evaluate" / name / "images.csv", results / "weights" / name / "seed_1.safetensors")
        assert len({file.stat().st_mode & 0o044 for file in files}) == 1  # whoever may read the one may read the other
    assert (results / "weights" / KEPT[2] / "seed_2.safetensors").exists()
    report = json.loads((results / "report/dagl_ablation/report_dagl_ablation.ipynb").read_text())
    assert any("image/png" in output.get("data", {}) for cell in report["cells"] for output in cell.get("outputs", []))
    numbers = pd.read_csv(results / "report/published_numbers/numbers.csv")
    assert (numbers.verdict == "agrees").sum() == 3 and "differs" not in set(
        numbers.verdict
    )  # the sample's noisy inputs
    assert (results / "pins/dvc.lock").read_text() == (clone.folder / "dvc.lock").read_text()
    assert not list((clone.folder / "checkpoints").glob("*"))


def test_a_second_run_runs_nothing_and_leaves_git_clean(clone):
    assert clone.repro() == []
    assert clone.shell("git status --porcelain").stdout == ""


def test_git_holds_results_but_neither_images_nor_weights(clone):
    tracked = clone.shell("git ls-files").stdout
    assert "results/tiny/evaluate/edsr_gray_denoise_25/images.csv" in tracked
    assert "safetensors" not in tracked and ".npy" not in tracked and "machine/" not in tracked


def test_the_lock_vouches_for_results_without_images_or_weights(clone, tmp_path):
    clone.shell(f"git -c core.autocrlf=true clone -q . {tmp_path / 'bare'}")  # as on Windows
    bare = Clone.at(tmp_path / "bare")
    assert "Running stage" not in bare.shell("dvc repro --allow-missing --dry").stdout
    (bare.folder / "lib/training.py").write_text((bare.folder / "lib/training.py").read_text() + "\n")
    ended = bare.shell("dvc repro --allow-missing --dry", check=False)  # wants the images for what must run
    assert ended.returncode != 0 and "train@edsr_gray_denoise_25" in ended.stderr


def test_kept_networks_come_back_without_training(clone, tmp_path):
    name, photograph = KEPT[2], np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    weights = clone.folder / "results/tiny/weights" / name
    before = {path.name: path.read_bytes() for path in weights.glob("*")}
    clone.shell(f"python -m lib keep {name}")
    assert clone.shell("git status --porcelain").stdout == "?? results/tiny/networks/\n"
    clone.commit("kept")
    clone.shell(f"git clone -q . {tmp_path / 'fresh'}")
    fresh = Clone.at(tmp_path / "fresh")
    Image.fromarray(photograph).save(fresh.folder / "own.png")
    asked = f"python -m lib restore own.png --by {name} --into restored.png"
    ended = fresh.shell(asked, check=False)
    assert ended.stderr.endswith(f"is not there; `python -m lib pull {name} --profile tiny` brings it\n")
    ended = fresh.shell(f"python -m lib pull {KEPT[0]}", check=False)
    assert ended.stderr == f"error: {KEPT[0]}: profile tiny keeps no such network; it keeps {name}\n"

    kept = fresh.folder / "results/tiny/networks" / name / "seed_1.safetensors"
    sound = kept.read_bytes()
    kept.write_bytes(sound[:-4] + bytes(4))
    ended = fresh.shell(f"python -m lib pull {name}", check=False)
    assert ended.returncode == 1 and "is not what the lock of profile tiny states; `git checkout " in ended.stderr
    kept.write_bytes(sound)
    fresh.shell(f"python -m lib pull {name} {name}")
    assert "changed outs" not in fresh.shell(f"dvc status train@{name}").stdout
    assert {path.name: path.read_bytes() for path in (fresh.folder / "results/tiny/weights" / name).glob("*")} == before
    fresh.shell(asked)
    gray = sets.to_gray(photograph, "matlab").astype(np.float32) / 255
    network = build("edsr", colors=1, width=4, blocks=1, image_skip=True)
    network.load_state_dict(load(before["seed_1.safetensors"]))
    expected = restore(network.eval(), torch.from_numpy(gray)[None, None], 24, 4)[0, 0].clamp(0, 1) * 255
    found = np.asarray(Image.open(fresh.folder / "restored.png"))
    assert found.shape == (30, 40) and np.array_equal(found, expected.round().byte().numpy())
    assert fresh.shell("git status --porcelain").stdout == "?? own.png\n?? restored.png\n"
    weights = fresh.folder / "results/tiny/weights" / name / "seed_1.safetensors"
    weights.unlink()  # a link into DVC's cache
    weights.write_bytes(sound[:-4] + bytes(4))
    ended = fresh.shell(asked, check=False)
    assert ended.returncode == 1 and f"results/tiny/weights/{name}: is not what dvc.lock states" in ended.stderr


def test_weights_of_another_version_are_neither_used_nor_kept(clone):
    name, photograph = KEPT[2], clone.folder / "own.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(photograph)
    clone.edit("params.yaml", "edsr: {width: 4", "edsr: {width: 5")
    ended = clone.shell(f"python -m lib restore own.png --by {name} --into out.png", check=False)
    says = f"error: {name}: its weights were trained with other values in params.yaml; `make repro` trains it anew"
    assert ended.returncode == 1 and ended.stderr == f"{says}\n"
    ended = clone.shell(f"python -m lib keep {name}", check=False)
    assert ended.returncode == 1 and ended.stderr == f"{says}\n"
    clone.shell("git checkout -q . && git clean -qf .")
    ended = clone.shell("python -m lib keep input_gray_denoise_25", check=False)
    assert ended.stderr == "error: input_gray_denoise_25: is not trained; there is nothing to keep\n"
    ended = clone.shell("python -m lib pull --profile gpu", check=False)
    assert ended.stderr == "error: profile gpu keeps no networks; `make repro` trains them\n"
    assert clone.shell("git status --porcelain").stdout == ""  # the profile in force stays


def test_the_readme_shows_the_largest_profile_first_and_the_others_that_draw_conclusions(clone):
    text = (clone.folder / "README.md").read_text()
    published = "[published numbers](results/tiny/report/published_numbers/report_published_numbers.ipynb)"
    assert published in text and " | tiny | " in text and "### DAGL (profile `tiny`)" in text
    shutil.copytree(clone.folder / "results/tiny/tables", clone.folder / "results/cpu/tables")
    shutil.copytree(clone.folder / "results/tiny/tables", clone.folder / "results/quick/tables")
    clone.shell("python -c 'from lib.pipeline import repro; repro.write_readme()'")
    text = (clone.folder / "README.md").read_text()
    assert re.findall(r"\| (tiny|quick|cpu) \| ", text) == ["cpu", "tiny"]  # quick is a smoke run
    assert "### DAGL (profile `cpu`)" in text and published in text


def test_training_again_gives_the_same_results(clone):
    clone.shell("dvc repro --force --single-item train@edsr_gray_denoise_25")
    clone.shell("dvc repro --force --single-item evaluate@edsr_gray_denoise_25")
    assert clone.shell("git status --porcelain").stdout == ""


def test_neither_threads_nor_paths_of_the_users_shell_change_a_training(clone):
    """No activated environment, more threads, a strict umask: the same weights, for whoever may read the rest."""
    weights = clone.folder / "results/tiny/weights/edsr_gray_denoise_25/seed_1.safetensors"
    before = weights.read_bytes()
    clone.shell(f"rm -r {weights.parent} && mv .dvc/cache .dvc/aside")
    try:
        ended = clone.shell(
            "umask 027; env PATH=/usr/bin:/bin OMP_NUM_THREADS=2 MKL_NUM_THREADS=2"
            f" {sys.executable} -m lib repro --study dagl_ablation"
        )
    finally:
        clone.shell("rm -rf .dvc/cache && mv .dvc/aside .dvc/cache")
    assert "Running stage 'train@edsr_gray_denoise_25'" in ended.stdout
    assert weights.read_bytes() == before and weights.stat().st_mode & 0o777 == 0o640


def test_a_user_without_a_name_may_run(monkeypatch, capsys):
    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    assert main(["restore", "absent.png", "--by", "input_gray_denoise_25", "--into", "x.png"]) == 1
    assert capsys.readouterr().err == "error: absent.png: No such file or directory\n"
    assert default_cache_dir().endswith(f"_{os.getuid()}")  # PyTorch's


def test_inside_another_clone_the_installed_one_refuses(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone.folder / "lib")
    assert main(["check"]) == 1
    assert f"lies in {clone.folder}, but `lib` is that of {ROOT}; `cd {clone.folder}` first" in capsys.readouterr().err
    monkeypatch.chdir(ROOT / "notebooks")
    assert main(["schema"]) == 0


def test_run_says_which_stage_it_lacks(monkeypatch, capsys):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert main(["run"]) == 1
    assert capsys.readouterr().err == "error: run: lacks the name of the stage, such as `train edsr_gray_denoise_25`\n"


@pytest.mark.parametrize("seconds", [0.2, 0.5, 1.0])
def test_ctrl_c_while_programs_load_is_no_traceback(seconds):
    running = subprocess.Popen([sys.executable, "-m", "lib", "check"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    running.send_signal(signal.SIGINT)
    assert len(running.communicate()[1].splitlines()) <= 1


def test_a_name_of_a_row_is_never_run_as_a_command(clone):
    """Not even where `check` is left out: no stage of DVC runs without the values that `resolve` writes for it."""
    name = "edsr_gray_denoise_25-$(touch here)"
    row = f'  "{name}": {{title: x, model: edsr, task: gray_denoise_25, recipe: common}}\n'
    clone.edit("params.yaml", "\nexperiments:\n", "\nexperiments:\n" + row)
    for stages in ("", f"--single-item 'train@{name}'", f"--single-item --force 'train@{name}'"):
        assert clone.shell(f"dvc repro {stages}", check=False).returncode != 0
    assert not (clone.folder / "here").exists()


@pytest.mark.parametrize(
    ("edited", "touched"),
    [
        ("lib/models/dagl/graph_attention.py", {"resolve", "train@dagl", "train@dagl-no_graph_attention"}),
        ("lib/models/edsr/__init__.py", {"resolve", "train@edsr"}),
        ("lib/insights/dagl.py", {"resolve"}),
        (
            "lib/measuring/evaluation.py",
            {"evaluate@dagl", "evaluate@dagl-no_graph_attention", "evaluate@edsr", "baseline@input"},
        ),
        ("lib/reports/tables.py", {"tables", "report@dagl_ablation", REPORT_PUBLISHED_NUMBERS, "summary"}),
        ("lib/figures.py", {"report@dagl_ablation", REPORT_PUBLISHED_NUMBERS}),
        ("notebooks/report_dagl_ablation.ipynb", {"report@dagl_ablation"}),
        ("own/README.md", {"resolve", "download"}),
    ],
)
def test_an_edit_reaches_the_stages_that_use_it_and_no_others(clone, edited, touched):
    path = clone.folder / edited
    before = path.read_bytes()
    path.write_bytes(before + b"\n")
    changed = {stage.replace("_gray_denoise_25", "") for stage in clone.changed()}
    path.write_bytes(before)
    models = {
        stage for stage in changed if stage.startswith("evaluate@") and stage.replace("evaluate", "train") in changed
    }
    assert changed - models == touched


def test_a_new_model_makes_nothing_else_stale(clone):
    shutil.copytree(clone.folder / "lib/models/edsr", clone.folder / "lib/models/other")
    clone.edit(
        "params.yaml",
        "\nexperiments:\n",
        "\nexperiments:\n  other_gray_denoise_25:  # a comment\n"
        "    {title: another, model: other, task: gray_denoise_25, recipe: common, options: {width: 4, blocks: 1}}\n",
    )
    clone.edit("params.yaml", "title: DAGL, model", "title: 'DAGL, named otherwise', model")
    clone.shell("dvc repro -q resolve")
    own = {"train@other_gray_denoise_25", "evaluate@other_gray_denoise_25"}
    assert clone.changed() - {"report@dagl_ablation", "tables", "summary"} == own
    values = clone.folder / "results/tiny/parameters/train/other_gray_denoise_25.json"
    before = json.loads(values.read_text())
    clone.edit("lib/models/other/__init__.py", "\nnetwork", "\nfrom ..panet.resize import resize as resize\n\nnetwork")
    clone.shell("dvc repro -q resolve")
    borrowed = json.loads(values.read_text())
    assert set(borrowed) - set(before) == {"borrowed"} and set(borrowed["borrowed"]) == {"panet"}
    clone.edit("lib/models/panet/resize.py", "\nfrom torch", "\n\nfrom torch")
    clone.shell("dvc repro -q resolve")
    assert json.loads(values.read_text())["borrowed"] != borrowed["borrowed"]


@pytest.mark.parametrize(
    ("stage", "unused"),
    [
        ("train", {"lib.measuring", "lib.measuring.metrics"}),
        ("evaluate", {"lib.training"}),
        ("published_numbers", {"lib.training", "lib.measuring"}),
        ("report_published_numbers", {"lib.measuring"}),
    ],
)
def test_what_a_notebook_imports_is_what_its_stage_depends_on(stage, unused):
    """Every module of lib that the notebook loads is a dependency, hands on values that DVC tracks, or draws."""
    handing_on = ("lib.params", "lib.pipeline", "lib.insights", "lib.figures")
    source = json.loads(notebook_of(stage, None).read_text())
    imports = [line for cell in source["cells"] for line in cell["source"] if line.startswith(("import ", "from "))]
    code = "".join(imports) + "\nimport sys; print(*[m for m in sys.modules if m.startswith('lib.')])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    depends = body(YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage])["deps"]
    files = {re.sub(r"(/__init__)?\.py", "", name).replace("/", ".") for name in depends}
    for module in {*loaded.split()} - {"lib.images", *unused}:
        assert module.startswith(handing_on) or module in files or module.rpartition(".")[0] in files, module


def test_adding_an_experiment_runs_it_alone(clone):
    new = f"{KEPT[2]}-nl"
    how = "--set attention=nl --set image_skip=true"
    clone.shell(f"python -m lib new {new} --from {KEPT[2]} {how} --study dagl_ablation")
    assert f"  not run     {new}" in clone.shell("python -m lib list dagl_ablation").stdout
    expected = [f"train@{new}", f"evaluate@{new}", "tables", "report@dagl_ablation", "summary"]
    assert sorted(clone.repro()) == sorted(expected)
    assert new in (clone.folder / "results/tiny/tables/dagl_ablation/rows.csv").read_text()
    listed = clone.shell("python -m lib list").stdout.splitlines()
    assert [line.split()[:3] for line in listed if new in line] == [["up", "to", "date"]]
    assert f"psnr.{new}" in clone.shell("dvc metrics show").stdout
    clone.shell("dvc plots show training -o plots")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)).save(clone.folder / "a.png")
    given = f"{{photograph: a.png, profile: tiny, rows: [{new}], into: build/own}}"
    clone.shell(f"python -m papermill notebooks/own_photograph.ipynb own.ipynb -y '{given}' --log-level ERROR")
    shown = [out for cell in json.loads((clone.folder / "own.ipynb").read_text())["cells"][4:]
             for out in cell.get("outputs", []) if "image/jpeg" in out.get("data", {})]  # fmt: skip
    assert len(shown) == 2 and (clone.folder / f"build/own/{new}.png").exists()


def test_a_public_checkpoint_is_measured_and_tracked(clone):
    name, file = "dncnn_gray_denoise_25-official", clone.folder / "own/dncnn.pth"
    entry = f"{name}: {{title: DnCNN, model: dncnn, task: gray_denoise_25, checkpoint: own/dncnn.pth}}"
    clone.edit("params.yaml", "\nbaselines:\n", f"\nbaselines:\n  {entry}\n")
    clone.shell(f"dvc repro -q resolve && dvc repro -q --single-item baseline@{name}")
    results = clone.folder / "results/tiny/evaluate" / name
    assert "the file own/dncnn.pth is not there" in (results / "not_run.txt").read_text()
    torch.save(build("dncnn", width=4, depth=3).state_dict(), file)
    assert "resolve" in clone.changed()
    clone.shell(f"dvc repro -q resolve && dvc repro -q --single-item baseline@{name}")
    assert (results / "images.csv").exists() and not (results / "not_run.txt").exists()
    file.unlink()


def test_a_mistake_is_reported_before_anything_runs(clone):
    clone.edit("params.yaml", "model: edsr, task: gray_denoise_25", "model: edsr, task: gray_denoize_25")
    ended = clone.shell("python -m lib repro", check=False)
    assert ended.returncode == 1 and "Running stage" not in ended.stdout
    assert ended.stderr.startswith("error: params.yaml: unknown task 'gray_denoize_25'")
    assert clone.shell("dvc repro", check=False).returncode != 0
    assert clone.shell("git status --short").stdout == " M params.yaml\n"


def test_a_lock_with_marks_of_a_merge_is_named(clone):
    clone.edit("dvc.lock", "schema", "<<<<<<< HEAD\nschema")
    ended = clone.shell("python -m lib list", check=False)
    assert ended.returncode == 1 and ended.stderr.startswith("error: dvc.lock: is damaged; copy results/tiny/pins/")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run train nosuch", "unknown experiment 'nosuch' in params.yaml; known: "),
        ("run train input_gray_denoise_25", "unknown experiment 'input_gray_denoise_25' in params.yaml; did you mean"),
        ("run evaluate nosuch", "unknown row 'nosuch' in params.yaml; known: "),
        ("run report nosuch", "unknown study 'nosuch' in params.yaml; known: "),
        ("run train", "run train: lacks the name of the experiment"),
        ("run tables x", "run tables x: it takes no name; leave 'x' out"),
        ("compare nosuch", "compare: git knows no revision 'nosuch'"),
        ("compare ", "compare: git knows no revision ''"),
        ("repro --profile cpu --study nosuch", "params.yaml: unknown study 'nosuch' in studies; known: "),
        ("verdicts --seeds 2", "verdicts: 2 seeds are fewer than the first planned look has, 3"),
    ],
)
def test_what_a_verb_does_not_know_is_named(capsys, arguments, message):
    before = (ROOT / "params.yaml").read_bytes()
    assert main(arguments.split(" ")) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert (ROOT / "params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *((["verdicts", "--seeds", seeds], f"'{seeds}' is not a whole number above 0") for seeds in ("0", "-1", "x")),
        (["repro", "--cluster", "head"], "'head' is neither `auto`, this machine, nor HOST:PORT, a cluster's head"),
        (["restore", "", "--by", "x", "--into", "a.png"], "'' names no file or folder"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_a_failing_notebook_prints_one_line_and_keeps_its_traceback(clone):
    begin_training_with(clone, "raise TrainingError('the loss is nan')")
    ended = clone.shell("python -m lib run train edsr_gray_denoise_25", check=False)
    [error] = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    notebook = "results/tiny/train/edsr_gray_denoise_25/train.ipynb"
    assert ended.returncode == 1 and error == f"error: TrainingError: the loss is nan (traceback in {notebook})"
    assert "Traceback" in (clone.folder / notebook).read_text()


@pytest.mark.parametrize("edited", ["lib/tasks/degradations.py", "params.yaml"])
def test_a_stage_whose_code_or_values_change_while_it_runs_fails(clone, edited):
    text = (clone.folder / edited).read_text().replace("lr: 1.0e-3", "lr: 2.0e-3") + "\n"
    begin_training_with(clone, f"open({edited!r}, 'w').write({text!r})")
    ended = clone.shell("python -m lib run train edsr_gray_denoise_25", check=False)
    assert ended.returncode == 1 and ("changed while it ran" in ended.stderr) == (edited != "params.yaml")
    assert ("params.yaml: says something else than results/tiny" in ended.stderr) == (edited == "params.yaml")


@pytest.mark.parametrize("line", ["profile: quick # a", "profile:  quick", "profile: 'quick'", '"profile" : "quick"'])
def test_the_profiles_line_is_known_however_it_is_written(line):
    text, changed = repro._PROFILE_LINE.subn(r"\g<1>gpu", f"# profile: a\n{line}\nprofiles:\n  profile: b\n")
    assert changed == 1 and YAML(typ="safe").load(text) == {"profile": "gpu", "profiles": {"profile": "b"}}


def test_without_git_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(repro, "ROOT", tmp_path)
    message = "is no git repository, which DVC needs; run `git init` there"
    with pytest.raises(repro.PipelineError, match=message), repro.alone():
        raise AssertionError
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", repro.PINS)
@pytest.mark.parametrize(
    "content",
    [
        "",
        "a: [",
        "schema: '2.0'\n",
        "stages:\nouts:\n",
        "[]",
        "7",
        "\0",
        "outs: []\nstages: {}",
        "outs: [{psth: a, md5: b}]\nstages: {a: {cmd: b, deps: [{path: a, mdt: b}]}}",
        *(  # cut within a hash, which may leave a number
            f"outs: [{{path: a, md5: {left}}}]\nstages: {{a: {{cmd: b, outs: [{{path: a, md5: {left}}}]}}}}"
            for left in ("6219", "62e1", "6219a0")
        ),
    ],
)
def test_a_damaged_pin_is_never_kept_and_what_to_put_in_its_place_is_said(tmp_path, monkeypatch, name, content):
    monkeypatch.setattr(repro, "ROOT", tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(repro.PipelineError, match=rf"^{name}: is damaged; `git checkout {name}` and run again$"):
        repro.check_pins("tiny", tmp_path)
    kept = tmp_path / "results/tiny/pins" / name
    kept.parent.mkdir(parents=True)
    kept.write_text((ROOT / name).read_text())
    with pytest.raises(repro.PipelineError, match=rf"^{name}: is damaged; copy results/tiny/pins/{name} there and run"):
        repro.check_pins("tiny", tmp_path)


def test_a_failing_row_stops_no_other_and_is_named(monkeypatch):
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(repro, "dvc", lambda *arguments: 0)
    monkeypatch.setattr(repro, "_start", lambda *a: started.append(a) or subprocess.Popen(["false"]))
    monkeypatch.setattr(repro, "_outdated", lambda: {"train@edsr_gray_denoise_25", "tables"})
    with pytest.raises(repro.PipelineError, match=r"^not done: train@edsr_gray_denoise_25; the reasons stand above$"):
        repro._rows_or_say(["edsr_gray_denoise_25"], Params(), 1, None)
    assert "--keep-going" in started[0]


def test_profiles_switch_there_and_back(clone):
    path = clone.folder / "params.yaml"
    kept = path.read_text()
    lock = (clone.folder / "dvc.lock").read_text()
    code = "from lib.pipeline import repro; repro.switch({!r})"
    clone.shell(f'python -c "{code.format("quick")}"')
    assert "profile: quick" in path.read_text() and not (clone.folder / "dvc.lock").exists()
    clone.shell(f'python -c "{code.format("tiny")}"')
    assert path.read_text() == kept and (clone.folder / "dvc.lock").read_text() == lock
    assert clone.repro() == []


def test_one_study_alone(clone):
    shutil.rmtree(clone.folder / "results/tiny/report/dagl_ablation")
    assert set(clone.repro("--study dagl_ablation")) <= {"report@dagl_ablation"}  # DVC's run cache may have it
    assert (clone.folder / "results/tiny/report/dagl_ablation/differences.png").exists()
    assert clone.repro("--study published_numbers") == []
    assert clone.shell("git status --porcelain").stdout == ""


def test_results_of_another_machine_are_compared_in_db(clone):
    path = clone.folder / "results/tiny/evaluate/edsr_gray_denoise_25/images.csv"
    text = path.read_text()
    first = re.search(r",(\d+\.\d+),", text)[1]
    path.write_text(text.replace(first, f"{float(first) + 0.5:.4f}", 1))
    shown = clone.shell("python -m lib compare").stdout
    assert "edsr_gray_denoise_25: mean +0.0312 dB, largest 0.5000 dB" in shown
    assert "dagl_gray_denoise_25: mean +0.0000 dB" in shown
    path.unlink()
    ended = clone.shell("python -m lib compare", check=False)
    assert ended.returncode == 1 and "edsr_gray_denoise_25: in HEAD alone" in ended.stdout
