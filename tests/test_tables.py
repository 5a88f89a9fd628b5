"""Numbers to tables, intervals and verdicts."""

import numpy as np
import pandas as pd
import pytest

from lib.params import Claim, Study
from lib.reports import per_set, tables


def images(means: dict[str, float], photographs=8, seeds=(1, 2, 3), noise=0.0, spread=0.0) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "experiment": name,
            "set": "set",
            "image": f"image{photograph}",
            "seed": seed,
            "psnr": mean + photograph + spread * seed + noise * rng.standard_normal(),
            "ssim": 0.9,
            "self_similarity": photograph / 10,
        }
        for name, mean in means.items()
        for seed in seeds
        for photograph in range(photographs)
    )


def test_a_clear_difference_holds_or_contradicts():
    rows = images({"a": 30.0, "b": 29.0}, noise=0.05)
    found = tables.claims(rows, (Claim("a", "b"), Claim("b", "a")), pd.DataFrame({"psnr": {"a": 31.0, "b": 30.5}}))
    assert list(found.verdict) == [tables.HOLDS, tables.CONTRADICTED]
    assert found.measured[0] == pytest.approx(1, abs=0.1) and found.published[0] == pytest.approx(0.5)
    assert found.low[0] < found.measured[0] < found.high[0]


def test_a_difference_within_the_seeds_spread_is_not_resolved():
    rows = images({"a": 30.0, "b": 29.8}, spread=0.2)
    assert tables.seed_spreads(rows).item() == pytest.approx(0.4)
    assert list(tables.claims(rows, (Claim("a", "b"),), pd.DataFrame({"psnr": {}})).verdict) == [tables.UNRESOLVED]


def test_photographs_that_disagree_leave_a_claim_unresolved():
    rows = images({"a": 30.0, "b": 29.9}, noise=1.0)
    assert list(tables.claims(rows, (Claim("a", "b"),), pd.DataFrame({"psnr": {}})).verdict) == [tables.UNRESOLVED]


@pytest.mark.parametrize(("photographs", "seeds"), [(7, 3), (8, 2)])
def test_too_little_draws_no_interval_and_asks_every_photograph(photographs, seeds):
    assert tables.interval(np.ones(photographs), seeds) is None
    assert tables.verdict(np.full(photographs, 0.5), seeds, spread=0.1) == tables.HOLDS
    assert tables.verdict([*np.full(photographs - 1, 0.5), -0.1], seeds, spread=0.1) == tables.UNRESOLVED


def test_the_interval_is_students():
    values = np.arange(10.0)
    low, high = tables.interval(values, seeds=3)
    half = 2.2621571628 * values.std(ddof=1) / 10**0.5
    assert (low, high) == pytest.approx((4.5 - half, 4.5 + half))


def test_seeds_of_a_photograph_are_averaged_first():
    rows = images({"a": 30.0}, photographs=2, spread=1.0)
    assert tables.photographs(rows)["a"].tolist() == pytest.approx([32, 33])


def test_rows_that_were_not_run_stay_in_the_table():
    rows = images({"a": 30.0})
    table = tables.compare(rows, ("a", "b"))
    assert list(table.index) == ["a", "b"] and table.seeds["b"] == 0 and np.isnan(table.psnr["b"])
    found = tables.claims(rows, (Claim("a", "b"),), pd.DataFrame({"psnr": {}}))
    assert list(found.verdict) == [tables.NOT_RUN]
    assert "were not run: a over b" in tables.finding(found, tables.seed_spreads(rows))


def test_rows_are_compared_with_the_first_of_their_task():
    rows = images({"a_t": 30.0, "a_t-x": 29.5, "a_u": 20.0, "a_u-x": 21.0})
    table = tables.compare(rows, ("a_t", "a_t-x", "a_u", "a_u-x"))
    assert table.difference.dropna().round(6).to_dict() == {"a_t-x": -0.5, "a_u-x": 1.0}
    differences = tables.panels(tables.changes(rows, ("a_t", "a_t-x", "a_u", "a_u-x")))
    assert {task: list(panel) for task, panel in differences.items()} == {"t": ["a_t-x"], "u": ["a_u-x"]}


def test_spreads_are_of_one_task():
    rows = pd.concat([images({"a_t": 30.0}, spread=0.2), images({"a_u": 30.0}, seeds=(1,))])
    assert tables.seed_spreads(rows).round(6).to_dict() == pytest.approx({"t": 0.4, "u": np.nan}, nan_ok=True)


def test_reasons_are_gathered(tmp_path):
    (tmp_path / "a_t-x").mkdir()
    (tmp_path / "a_t-x" / "not_run.txt").write_text("the file f is not there\n")
    tables.collect_reasons(tmp_path, ("a_t", "a_t-x")).to_csv(tmp_path / "not_run.csv", index=False)
    assert tables.reasons(tmp_path) == ["a: x: not run, the file f is not there"]


def test_collecting_reads_what_exists(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    images({"a": 30.0}).drop(columns="experiment").to_csv(folder / "images.csv", index=False)
    (folder / "cost.json").write_text('{"parameters": 5}')
    assert set(tables.collect(tmp_path, ("a", "b")).experiment) == {"a"}
    assert tables.collect_costs(tmp_path, ("a", "b")).parameters.to_dict() == {"a": 5}
    assert tables.collect(tmp_path, ("b",)).empty


def test_a_study_that_was_not_run_has_its_table(tmp_path):
    study = Study("s", "", ("a_t", "a_t-x"), (Claim("a_t", "a_t-x"),))
    tables.collect(tmp_path, study.experiments).to_csv(tmp_path / "images.csv", index=False)
    tables.collect_costs(tmp_path, study.experiments).to_csv(tmp_path / "costs.csv")
    rows, costs = pd.read_csv(tmp_path / "images.csv"), pd.read_csv(tmp_path / "costs.csv", index_col=0)
    shown = tables.for_readers(rows, costs, study, tables.published())
    assert list(shown.seeds) == [tables.NOT_RUN] * 2 and set(shown["PSNR (dB)"]) == {""}


def test_each_test_set_has_its_column_and_its_published_number():
    rows = images({"a_t": 30.0, "b_t": 29.0})
    rows.loc[rows.image.isin(["image0", "image1"]), "set"] = "other"
    published = pd.DataFrame({"set": {"a_t": "set"}, "psnr": {"a_t": 31.5}})
    found = per_set.table(rows, ("a_t", "b_t", "c_t"), published)
    assert list(found.columns) == ["task", "other (2)", "set (6)"]
    assert found.loc["a"].tolist() == ["t", "30.50", "34.50 (31.50)"]
    assert found.loc["b"].tolist() == ["t", "29.50", "33.50"] and found.loc["c"].tolist() == ["t", "", ""]


def test_gains_stand_beside_self_similarity():
    rows = images({"a_t-x": 30.0, "b_t": 29.0})
    found = tables.gains(rows, (("a_t-x", "b_t"), ("a_t-x", "absent")))
    assert found.gain.tolist() == pytest.approx([1.0] * 8) and found.self_similarity[3] == 0.3


def test_labels_are_for_readers():
    assert tables.label("dagl_gray_denoise_25-no_threshold") == "dagl: no threshold"
    assert tables.label("edsr_gray_denoise_25") == "edsr"


def test_growth_is_exponential_where_the_logarithm_keeps_growing():
    k = [1, 2, 4, 6, 8, 10]
    found = tables.growth(k, [0.5 * x for x in k])
    assert found["factor"] == found["factor_low"] == found["factor_high"] == pytest.approx(np.exp(0.5))
    assert found["r2"] == pytest.approx(1)
    assert found["verdict"] == tables.HOLDS
    flattens = tables.growth(k, [-1.5, -0.7, -0.3, -0.2, -0.15, -0.12])
    assert flattens["factor_low"] > flattens["factor"] > flattens["factor_high"] > 1
    assert flattens["verdict"] == tables.CONTRADICTED
    assert tables.growth(k, [-x for x in k])["verdict"] == tables.CONTRADICTED
