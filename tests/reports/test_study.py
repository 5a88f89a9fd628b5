"""Reports change their words with the numbers."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from lib.params import ROOT, Params
from lib.reports import answers, readme, statistics, text

DAGL, EDSR = "dagl_gray_denoise_25", "edsr_gray_denoise_25"
NL = f"{DAGL}-nl"


@pytest.mark.parametrize(
    ("nl", "said"),
    [
        (29.0, "DAGL's graph restores 1.00 dB better than plain non-local attention"),
        (31.0, "DAGL's graph restores 1.00 dB worse than plain non-local attention"),
        (30.0, "DAGL's graph and plain non-local attention with one head in its place restore equally well"),
    ],
)
def test_the_answer_follows_the_numbers(made, nl, said):
    made.row(DAGL, 30.0, noise=0.002)
    made.row(NL, nl, noise=0.002)
    answer = made.report("dagl_ablation").answer().data
    assert said in answer and "have not been compared yet" in answer


def test_the_answer_counts_what_is_resolved_as_published(made):
    for name, psnr in ((DAGL, 30.0), (NL, 29.0), (f"{DAGL}-mhnl", 31.0), (EDSR, 30.5)):
        made.row(name, psnr)
    said = made.report("dagl_ablation").said()
    table_5 = "Of the 3 differences between rows of the paper's Table 5,"
    assert f"{table_5} 3 are resolved here, 2 of these in the paper's direction. 8 of 12 claims were not run." in said


def test_the_answer_says_that_nothing_is_resolved_and_what_is_not_tested(made):
    made.row(DAGL, 30.0, acts=0.3)
    made.row(NL, 30.0, acts=0.3)
    made.row(f"{DAGL}-mhnl", 30.0, acts=0.0)
    said = made.report("dagl_ablation").said()
    assert "Of the 3 differences between rows of the paper's Table 5, none is resolved here; 2 are not tested." in said


def test_limits_say_what_verdicts_of_fewer_seeds_had_spent(made, monkeypatch):
    made.row(DAGL, 30.0)
    made.row(NL, 29.0)
    monkeypatch.setattr(made.params, "settings", replace(made.params.settings, spent_before=0.05))
    told = "a chance of 10% at most, 5% of it spent by verdicts of fewer seeds"
    assert told in made.report("dagl_ablation").limits().data


def test_attention_that_does_not_act_is_named_by_task_and_marked_in_the_figure(made, monkeypatch):
    made.row(EDSR, 29.0)
    made.row(f"{EDSR}-nl", 29.1, acts=0.3)
    for name, acts in (("edsr_sr_x2", None), ("edsr_sr_x2-nl", 0.0), ("panet_sr_x2-common_trunk", 0.0)):
        made.row(name, 30.0, acts=acts)
    report = made.report("across_systems")
    assert answers.who_does_not_act(report) == "attention does not act in any row on super-resolution x2"
    monkeypatch.setattr(report, "show", lambda figure, *_: figure)
    marked = [
        " (does not act)" in label.get_text().replace("\n", " ")
        for axis in report.differences().axes
        for label in axis.get_yticklabels()
    ]
    assert marked == [False, True, True]


def test_why_claims_are_not_tested_or_not_run_is_said_in_titles(made):
    made.row(DAGL, 30.0, acts=0.0)
    made.row(NL, 29.0, acts=0.3)
    made.row(EDSR, 29.0, seeds=(1,))
    report = made.report("dagl_ablation")
    assert "attention that does not act is not tested" in report.said()
    assert report.said().startswith("Whether Table 5's order holds cannot be said after 800 steps: in every pair")
    assert "Attention does not act in DAGL. 11 of 12 claims were not run." in report.said()
    assert "not tested: the attention of DAGL does not act" in report.claims().data
    assert "DAGL over EDSR trunk (EDSR trunk lacks seeds 2, 3 of DAGL)" in report.claims().data
    assert "| DAGL | reference |  | 31.15 | no |" in report.table().data


def test_what_each_module_does_is_shown_in_every_seed(made):
    made.row(DAGL, 30.0, acts=0.3)
    made.row(EDSR, 29.0, acts=())
    file = made.params.results("evaluate", DAGL, "acts.csv")
    acts = pd.read_csv(file).assign(effective_keys=[1000, 2, 16])
    other = acts.assign(module="b", head=np.nan, psnr_lost_mean=[-0.004, 0.1, 0.2], effective_keys=np.nan)
    pd.concat([acts, acts.assign(head=1, effective_keys=[2000, 4, 16]), other]).to_csv(file, index=False)
    shown = made.report("dagl_ablation").attention().data
    assert "| DAGL, module 1 of 2 | 0.30; 0.30; 0.30 | 1,500; 3; 16 |" in shown
    assert "| DAGL, module 2 of 2 | 0.00; 0.10; 0.20 |  |" in shown and "EDSR" not in shown
    file.unlink()
    assert made.report("dagl_ablation").attention().data == "No row with attention was run in this profile."


def test_the_field_is_drawn_where_it_was_recorded(made):
    made.row(DAGL, 30.0)
    assert "did not record" in made.report("dagl_ablation").field().data
    made.field(DAGL, {24: 30.0, 48: 30.2})
    assert made.report("dagl_ablation").field().data[:4] == b"\x89PNG"


def test_differences_along_the_training_are_drawn_and_told(made):
    for name in (EDSR, DAGL, NL, f"{DAGL}-mhnl"):
        made.row(name, 30.0)
    report = made.report("dagl_ablation")
    assert "no validation curve" in report.along_training().data and report.still_moving().data == ""
    gains_of = {DAGL: (0, 0, 0), NL: (0.4, 0.2, 0.3), EDSR: (0.3, 0.5, 0.25), f"{DAGL}-mhnl": (0, 0, 0)}
    for name, gains in gains_of.items():
        made.curve(name, {250: 28 + gains[0], 500: 29 + gains[1], 1000: 30 + gains[2]})
    report = made.report("dagl_ablation")
    assert report.along_training().data[:4] == b"\x89PNG"
    said = report.still_moving().data
    assert "the difference to DAGL grows for DAGL, single-head non-local (+0.20 to +0.30 dB)" in said
    assert "it has settled for DAGL, multi-head non-local (+0.00 to +0.00 dB)" in said
    assert "it shrinks for EDSR trunk (+0.50 to +0.25 dB)" in said
    tested = "bsds500/validation; on the test photographs DAGL, single-head non-local differs by +0.00 dB on "
    assert tested in said


@pytest.mark.parametrize("study", sorted(answers.ANSWERS))
def test_no_cell_of_a_report_fails_where_nothing_was_run(made, study):
    report = made.report(study)
    cells = (
        "answer", "differences", "compared", "table", "attention", "strip", "beside_published", "claims",
        "along_training", "still_moving", "per_set", "gain_per_set", "gain_against_similarity", "similarity", "field",
        "cost", "limits",
    )  # fmt: skip
    for cell in cells:
        assert isinstance(getattr(report, cell)().data, str)  # a sentence, no figure


def test_one_photograph_is_shown_as_every_row_restores_it(made):
    made.row(EDSR, 30.0)
    assert "No photograph" in made.report("dagl_ablation").strip().data
    clean = np.random.default_rng(0).integers(0, 256, (96, 96), dtype=np.uint8)
    for name in ("input_gray_denoise_25", EDSR, DAGL):
        folder = made.params.results("evaluate", name)
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(clean).save(folder / "restored.png")
    assert "No photograph" in made.report("dagl_ablation").strip().data
    PIL.Image.fromarray(clean).save(made.params.results("evaluate", "input_gray_denoise_25", "clean.png"))
    shown = made.report("dagl_ablation").strip()
    assert shown.data[:2] == b"\xff\xd8" and "degraded input, DAGL and EDSR trunk" in shown.alt


@pytest.mark.parametrize("made", ["quick"], indirect=True)
def test_the_smoke_run_draws_no_conclusions(made):
    made.row(DAGL, 30.0)
    made.row(NL, 29.0)
    report = made.report("dagl_ablation")
    assert "draws no conclusions" in report.said() and "dB" not in report.said()
    assert "which draws no conclusions" in report.limits().data


def test_limits_name_the_rate_of_attention_that_has_its_own(made):
    for name, acts in ((DAGL, 0.3), (f"{DAGL}-no_threshold", 0.3), (NL, 0.3), (EDSR, None)):
        made.row(name, 30.0, acts=acts)
    limits = made.report("dagl_ablation").limits().data
    assert "peak rate 0.001, 0.0004 for the attention of *DAGL* and *DAGL, 16 fixed neighbours*" in limits
    assert "single-head" not in limits.partition("0.0004")[2].partition(";")[0]


def test_the_best_module_is_told_with_the_trend_of_its_gain(made):
    made.row(EDSR, 30.0)
    made.row("panet_gray_denoise_25-common_trunk", 30.5, similarity=1.0)
    made.row("enlca_gray_denoise_25-common_trunk", 29.5)
    made.row("dagl_gray_denoise_25-common_trunk", 30.0, noise=0.5)
    said = made.report("across_systems").said()
    assert "over a pyramid (+0.50 dB" in said and "restores better than the trunk alone" in said
    assert "ENLCA (-0.50 dB" in said and "restores worse" in said
    assert "DAGL's graph (" in said and "shows no resolved difference from the trunk alone" in said
    assert "a wider trunk" not in said
    made.row(f"{EDSR}-as_many_parameters", 30.25)
    wide = "a wider trunk (1 times the trunk's parameters) gains +0.26 (+0.24 to +0.27) dB"
    assert wide in made.report("across_systems").said()
    assert "The gain of PANet's pyramid is +0.5" in said
    assert "; it grows from +0." in said and "least self-similar quarter" in said


def test_rows_at_a_rate_of_their_own_are_compared_with_the_trunk_at_that_rate(made):
    panet = "panet_gray_denoise_25-common_trunk"
    for name, psnr in ((EDSR, 30.0), (panet, 30.5), (f"{EDSR}-rate_4", 30.3), (f"{panet}_rate_4", 30.4)):
        made.row(name, psnr)
    report = made.report("across_systems")
    task = report.resolved[EDSR].task.title
    assert [*report.tasks][:2] == [f"{task}, 4 times the rate", task]
    assert report.rows.difference[[panet, f"{panet}_rate_4"]].round(1).tolist() == [0.5, 0.1]
    first, second, *_ = answers.answer(report)
    assert first.startswith(f"On {task}, 4 times the rate, PANet's blocks over a pyramid (+0.10 dB")
    assert "; the rate alone gains +0.30 (" in first
    assert second.startswith(f"On {task} at the common rate, PANet's blocks over a pyramid (+0.50 dB")


def test_a_difference_that_the_field_decides_is_told(made):
    for name, psnr, sides in ((DAGL, 30.1, {32: 30.0, 96: 30.1}), (NL, 30.0, {32: 30.1, 96: 30.0})):
        made.row(name, psnr, noise=0.002)
        made.field(name, sides)
    told = "this goes from -0.10 dB in a field of 32 x 32 pixels to +0.10 in one of 96 x 96"
    assert told in made.report("dagl_ablation").said()
    made.field(NL, {32: 29.9, 96: 30.0})
    assert "in a field of" not in made.report("dagl_ablation").said()


def test_costs_are_those_of_compared_rows_beside_the_trunk(made):
    for name, adds, acts in ((DAGL, 12e9, 0.3), (NL, 2e9, 0.3), (EDSR, 1e9, ())):
        made.row(name, 30.0, acts=acts)
        cost = made.params.results("evaluate", name, "cost.json")
        cost.write_text(json.dumps(json.loads(cost.read_text()) | {"multiply_adds": adds, "peak_bytes": 2 * adds}))
    told = "**At what cost.** On gray denoising, sigma 25, times the multiply-adds and the memory of EDSR trunk: "
    told += "DAGL (12 and 12); DAGL, single-head non-local (2.0 and 2.0)."
    assert told in made.report("dagl_ablation").answer().data


def test_attention_that_began_in_some_seeds_alone_is_named(made):
    made.row(DAGL, 30.0, acts=0.3)
    made.row(NL, 29.0, acts=0.3)
    file = made.params.results("evaluate", NL, "acts.csv")
    pd.read_csv(file).assign(psnr_lost_mean=[0.03, 1.9, 0.09]).to_csv(file, index=False)
    told = "What the strongest module is worth depends on the seed in DAGL, single-head non-local (0.03 to 1.90 dB)."
    assert told in made.report("dagl_ablation").said()


def test_a_task_of_which_nothing_was_trained_is_one_line(made):
    made.row("edsr_sr_x2", 30.0, acts=())
    made.row("bicubic_sr_x2", 28.0, seeds=(1,))
    report = made.report("enlca_amplification")
    table = report.table().data
    assert "30." not in table and "Not run for super-resolution x2*: ENLCN and ENLCN, no" in table
    assert "super-resolution x2" not in report.limits().data and "|" not in report.per_set().data


def test_an_open_difference_that_ssim_decides_is_told():
    row = {"verdict": statistics.UNRESOLVED, "difference": 0.04, "low": -0.01, "high": 0.1, "ssim_verdict": "holds",
           "ssim_difference": 0.0034, "ssim_low": 0.0019, "ssim_high": 0.0048}  # fmt: skip
    told = "; by SSIM it restores better (+0.0034, +0.0019 to +0.0048)"
    assert text.sentence(row, "a", "b", 0.05).endswith(told)
    assert "SSIM" not in text.sentence(row | {"verdict": statistics.HOLDS}, "a", "b", 0.05)


@pytest.mark.parametrize("study", sorted(answers.ANSWERS))
def test_every_study_has_an_answer_when_all_its_rows_are_run(made, study):
    for place, name in enumerate(made.params.study(study).experiments):
        made.row(name, 30.0 + place / 10, seeds=(1, 2, 3) if name in made.params.experiments else (1,))
    said = made.report(study).said()
    assert said.endswith(".") and "nan" not in said and len(said.split()) < 220
    assert not any(name in said for name in made.params.study(study).experiments if "_" in name)


def test_tables_have_at_most_six_columns_and_titles_for_names(made):
    made.row("bicubic_sr_x2", 28.0, seeds=(1,))
    made.row("edsr_sr_x2", 30.0)
    made.row("edsr_sr_x2-nl", 30.2)
    report = made.report("across_systems")
    for shown in (report.table(), report.claims(), report.per_set(), report.beside_published(), report.compared()):
        tables = [line for line in shown.data.splitlines() if line.startswith("|")]
        assert all(line.count("|") <= 7 for line in tables) and "_sr_x2" not in shown.data
    made.params.results("evaluate", "edsr_sr_x2-nl", "evaluate.ipynb").touch()
    link = "| [EDSR trunk, non-local](../../evaluate/edsr_sr_x2-nl/evaluate.ipynb) | attention: nl |"
    assert link in report.compared().data
    assert "| EDSR trunk, non-local | better |" in report.table().data


def test_the_readme_shows_counts_answer_figure_and_table(made):
    made.row(DAGL, 30.0)
    made.row(NL, 29.0)
    report = made.report("dagl_ablation")
    assert f"{report.study.title} |" in readme.results([made.params])  # no report to link to
    made.params.results("report", "dagl_ablation").mkdir(parents=True, exist_ok=True)
    made.params.results("report", "dagl_ablation", "report_dagl_ablation.ipynb").touch()
    shown = readme.results([made.params])
    link = f"[{report.study.title}](results/cpu/report/dagl_ablation/report_dagl_ablation.ipynb)"
    short = "DAGL's graph restores 1.00 dB better than plain non-local attention with one head in its place"
    assert f"{link} | {short}" in shown and "| cpu | 1 holds, 11 not run" in shown
    assert f"{link} | cpu | 1 holds, 11 not run" in readme.counts([made.params])
    last = made.report("across_systems")
    assert f"### {last.study.title} (profile `cpu`)\n\n{last.said()}" in shown
    assert "(results/cpu/report/across_systems/differences.png)" in shown and "published numbers" not in shown
    numbers = made.params.results("report/published_numbers", "numbers.csv")
    numbers.parent.mkdir(parents=True)
    numbers.write_text("\n".join(["verdict", *["agrees"] * 5, "differs", "no reference", "not run"]))
    assert "(profile `cpu`): 5 of 6 agree." in readme.results([made.params])
    assert "Fewer than 10 claims" in readme.trust(made.params)
    assert "### " + report.study.title in readme.verdicts(made.params).data


def test_titles_of_reports_are_those_of_their_studies():
    for name, study in Params().studies.items():
        first = json.loads((ROOT / "notebooks" / f"report_{name}.ipynb").read_text())["cells"][0]
        assert "".join(first["source"]).splitlines()[0] == f"# {study.title}"


def test_numbers_are_read_as_a_person_writes_them():
    assert text.number(-0.001, 2, signed=True) == "+0.00" and text.number(float("nan")) == ""
    assert text.interval(-0.1, 0.25) == "-0.10 to +0.25" and text.listed(["a", "b", "c"]) == "a, b and c"
    assert text.seeds(1) == "about 1 more seed" and text.seeds(float("inf")) == "more than 50 more seeds"
    assert text.relation(statistics.LEANS, -0.1, 0.05) == "leans worse"
    tasks = {"edsr_sr-x2": "sr-x2", "carn_m_sr-x2": "sr-x2", "edsr_sr-x4": "sr-x4"}  # not to be told by the names
    assert text.grouped(tasks) == {"sr-x2": ["edsr_sr-x2", "carn_m_sr-x2"], "sr-x4": ["edsr_sr-x4"]}
    rows = map(Params().row, (f"{DAGL}-nl", DAGL, EDSR, "panet_sr_x2", "nlm_gray_denoise_25"))
    assert [*map(text.module_of, rows)] == ["nl", "dagl", "none", "panet", "other"]
