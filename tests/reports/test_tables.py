"""From made-up evaluations to the tables of a study."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lib.reports import plan, statistics, tables

DAGL, NL, EDSR = "dagl_gray_denoise_25", "dagl_gray_denoise_25-nl", "edsr_gray_denoise_25"


def test_where_seeds_may_follow_a_verdict_spends_a_part_of_the_error(made, monkeypatch):
    made.row(DAGL, 30.0, acts=0.3, noise=0.04)
    made.row(NL, 29.8, acts=0.3, noise=0.04)
    study = made.params.study("dagl_ablation")
    alone = tables.read(made.params).claims(study).iloc[0]
    assert alone.verdict == statistics.HOLDS and 0.01 < alone.p < 0.05
    monkeypatch.setattr(made.params, "settings", replace(made.params.settings, looks=True))
    first = tables.read(made.params).claims(study).iloc[0]
    assert first.verdict == statistics.LEANS and first.p == alone.p


def test_a_study_gets_its_folder(made):
    made.row(DAGL, 30.0, acts=0.3)
    made.row(NL, 29.0)
    made.row("nlm_gray_denoise_25", 28.0, seeds=(1,))
    (made.params.results("evaluate", "bm3d_gray_denoise_25")).mkdir()
    made.params.results("evaluate", "bm3d_gray_denoise_25", "not_run.txt").write_text("the package is not there\n")
    counts = tables.gather(made.params)
    assert counts.loc["dagl_ablation"].tolist() == [3, 8, 24 * 7]
    folder = made.params.results("tables", "dagl_ablation")
    rows = pd.read_csv(folder / "rows.csv", index_col=0)
    assert rows.seeds[[DAGL, NL, "nlm_gray_denoise_25", EDSR]].tolist() == [3, 3, 0, 0]
    assert rows.photographs["nlm_gray_denoise_25"] == 24 and np.isnan(rows.psnr[EDSR])
    assert rows.difference[NL] == pytest.approx(-1, abs=0.05) and rows.low[NL] < rows.difference[NL] < rows.high[NL]
    assert rows.difference["nlm_gray_denoise_25"] == pytest.approx(-2, abs=0.05)
    verdicts = pd.read_csv(folder / "verdicts.csv")
    first = verdicts.iloc[0]
    assert (first.better, first.worse, first.published) == (DAGL, NL, 0.66) and "Table 5" in first.source
    assert set(verdicts.verdict[1:]) == {statistics.NOT_RUN}
    assert pd.read_csv(folder / "not_run.csv").reason.tolist() == ["the package is not there"]
    assert pd.read_csv(folder / "costs.csv", index_col=0).parameters[DAGL] == 1234
    images = pd.read_csv(folder / "images.csv")
    assert set(images[images.experiment == "nlm_gray_denoise_25"].seed) == {statistics.UNTRAINED}


def test_acts_are_gathered(made):
    made.row(DAGL, 30.0, acts=0.3)
    made.row(f"{DAGL}-mhnl", 30.0, acts=0.0)
    made.row(NL, 30.0)
    made.row(EDSR, 30.0, acts=())
    found = tables.collect_acts(made.params.results("evaluate"), [DAGL, f"{DAGL}-mhnl", NL, EDSR, "absent"])
    assert found.acts.tolist() == ["yes", "no", tables.NOT_RECORDED, ""]
    assert found.tested.tolist() == [True, False, True, True]


def test_a_study_that_was_not_run_has_its_tables(made):
    report = made.report("lir_parts")
    assert set(report.verdicts.verdict) == {statistics.NOT_RUN} and report.run_claims().empty
    assert "*Not run for deraining*" in report.table().data and "None of the rows" in report.answer().data


def test_gains_stand_beside_self_similarity_and_by_quartile(made):
    made.row(DAGL, 30.0, similarity=2.0)
    made.row(EDSR, 29.0)
    made.row(NL, 29.0, seeds=(1,))
    report = made.report("dagl_ablation")
    found = tables.gains(report.images, DAGL, EDSR)
    assert found.gain.mean() == pytest.approx(1, abs=0.05)
    quarters = tables.by_quartile(found)
    assert list(quarters.index) == ["least", "second", "third", "most"]
    assert quarters.iloc[-1] - quarters.iloc[0] == pytest.approx(2.0 * 0.375, abs=0.1)
    slope, low, high = report.trend(DAGL, EDSR)
    assert low < 2 < high and slope == pytest.approx(2, abs=0.2)
    assert tables.gains(report.images, DAGL, NL).empty and report.trend(DAGL, NL) is None


def test_the_plan_adds_seeds_where_they_resolve_most(made, capsys):
    for name, psnr in ((DAGL, 30.0), (NL, 29.9), (EDSR, 30.0)):
        made.row(name, psnr, noise=0.06)
    gathered = tables.read(made.params)
    found = plan.steps(made.params, gathered, 10, {})
    assert found and all(3 < step.seeds <= 10 for step in found)
    assert {name for step in found for name in step.rows} <= {DAGL, NL, EDSR}
    assert len({pair for step in found for pair in step.claims}) == sum(len(step.claims) for step in found)
    assert found[0].cost == sum(step_seeds - 3 for step_seeds in [found[0].seeds] * len(found[0].rows))
    hours = plan.steps(made.params, gathered, 10, dict.fromkeys((DAGL, NL, EDSR), 3600.0))
    assert [step.cost for step in hours] == [step.cost for step in found]
    assert plan.steps(made.params, gathered, 3, {}) == []
