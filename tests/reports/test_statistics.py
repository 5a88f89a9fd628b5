"""The rule of verdicts: worked by hand, on committed numbers, and against a known truth."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.measuring.metrics import MOST_PSNR
from lib.reports import simulation, statistics
from lib.reports.statistics import (
    EQUAL,
    HOLDS,
    LEANS,
    NOT_RUN,
    NOT_TESTED,
    REVERSED,
    UNRESOLVED,
    UNTRAINED,
    Differences,
    Estimates,
    Prior,
)  # fmt: skip

#: The claims of profile `cpu` at commit 914374f: mean differences (dB) and variance components from its images.csv.
CPU = pd.read_csv(Path(__file__).with_name("cpu_claims.csv"))

DELTAS, NO_PRIOR = {"psnr": 0.05, "ssim": 0.001}, {"psnr": Prior(), "ssim": Prior()}


def rows(tables: dict[str, np.ndarray], seeds=None) -> pd.DataFrame:
    """Rows of images.csv: per experiment a table (photographs, seeds) of PSNR."""
    return pd.DataFrame(
        {"experiment": name, "set": "s", "image": f"p{i}", "seed": seed, "psnr": value, "ssim": 0.9}
        for name, table in tables.items()
        for i, line in enumerate(np.asarray(table, float))
        for seed, value in zip((seeds or {}).get(name, range(1, len(line) + 1)), line, strict=True)
    )


def differences(mean, variance=0.01, of_photographs=0.0, seeds=3) -> Differences:
    return Differences(*map(np.array, np.broadcast_arrays(*map(np.atleast_1d, map(np.asarray, (
        np.asarray(mean, float), variance, of_photographs, 100.0, float(seeds)
    ))))))  # fmt: skip


def test_two_photographs_and_two_seeds_by_hand():
    # mean 3; seeds' means 2 and 4, variance 2; photographs' means 1.5 and 4.5, mean square 2 * 4.5 = 9; residuals +-0.5
    found = statistics.summarise([[[1, 2], [3, 6]]])
    assert (found.mean, found.seed_variance, found.photograph_variance) == (3, 2, (9 - 1) / 2)
    estimated = statistics.estimate(found, Prior())
    assert estimated.error == pytest.approx([3**0.5]) and estimated.freedom == [1]
    low, high = estimated.interval()
    assert (low[0], high[0]) == pytest.approx((3 - 12.7062047 * 3**0.5, 3 + 12.7062047 * 3**0.5))


def test_the_prior_moderates_by_hand():
    found = statistics.estimate(differences(0.2, variance=0.04, of_photographs=1.0), Prior(4, 0.01))
    assert found.error[0] ** 2 == pytest.approx((4 * 0.01 + 2 * 0.04) / 6 / 3 + 1 / 100)
    assert found.freedom == [6]
    assert statistics.estimate(differences(0.2), Prior(np.inf, 0.01, most=20)).freedom == [20]


def test_the_prior_is_found_again():
    rng = np.random.default_rng(0)
    variance = 4 * 0.1**2 / rng.chisquare(4, 40_000) * rng.chisquare(2, 40_000) / 2
    found = statistics.fit_prior(differences(np.zeros(40_000), variance))
    assert found.freedom == pytest.approx(4, rel=0.05) and found.variance**0.5 == pytest.approx(0.1, rel=0.02)


def test_equal_variances_have_an_infinite_prior_and_few_claims_none():
    found = statistics.fit_prior(differences(np.zeros(12), 0.01))
    assert found == Prior(np.inf, pytest.approx(0.01), 24)
    assert statistics.fit_prior(differences(np.zeros(9), np.arange(1, 10))) == Prior()


def test_claims_that_follow_from_others_make_no_prior():
    pairs = [(a, b) for place, a in enumerate("abcdef") for b in "abcdef"[place + 1 :]]
    assert statistics.independent(pairs) == 5 and statistics.independent([]) == 0
    assert statistics.independent([("a", "b"), ("c", "d"), ("b", "e")]) == 3
    found = differences(np.zeros(len(pairs)), 0.01)
    assert statistics.fit_prior(found, statistics.independent(pairs)) == Prior()
    assert statistics.fit_prior(found, 10) == Prior(np.inf, pytest.approx(0.01), 20)


@pytest.mark.parametrize("value", [1e-4, 0.3, 1.6449340668, 50.0])
def test_trigamma_is_inverted(value):
    from scipy.special import polygamma

    assert polygamma(1, statistics._inverse_trigamma(value)) == pytest.approx(value)


def test_holm_by_hand():
    np.testing.assert_allclose(statistics.holm([0.04, 0.01, np.nan, 0.03]), [0.09, 0.04, 1, 0.09])


@pytest.mark.parametrize(
    ("mean", "error", "others", "verdict"),
    [
        (0.01, 0.01, 0, EQUAL),
        (0.5, 0.05, 9, HOLDS),
        (-0.5, 0.05, 9, REVERSED),
        (0.2, 0.08, 0, HOLDS),
        (0.2, 0.08, 4, LEANS),
        (-0.2, 0.08, 4, LEANS),
        (0.2, 0.2, 0, UNRESOLVED),
    ],
)
def test_verdicts_in_their_order(mean, error, others, verdict):
    claims = Estimates(np.r_[mean, np.zeros(others)], np.r_[error, np.ones(others)], np.full(others + 1, 30.0))
    assert statistics.verdicts(claims, delta=0.05)[0] == verdict
    assert set(statistics.verdicts(claims, delta=0.05)[1:]) <= {UNRESOLVED}


def test_more_seeds_by_hand():
    # with a known variance: (1.96 + 0.84)^2 * (0.1 / 0.1)^2 = 7.85, 8 seeds, five more than three
    known = Prior(np.inf, 0.01)
    assert statistics.more_seeds(differences(0.1), known, 0.05, 0.05) == [5]
    assert statistics.more_seeds(differences(0.0), known, 0.1, 0.05) == [5]  # delta stands for what is smaller
    assert statistics.more_seeds(differences(0.1, seeds=8), known, 0.05, 0.05) == [1]
    assert statistics.more_seeds(differences(0.0), known, 0.02, 0.05) == [np.inf]  # 196 seeds
    assert statistics.more_seeds(differences(0.1, of_photographs=1.0), known, 0.05, 0.05) == [np.inf]
    assert np.isnan(statistics.more_seeds(differences(0.1, np.nan, seeds=1), Prior(), 0.05, 0.05)[0])


def test_the_power_is_that_of_a_simulated_test():
    rng, size = np.random.default_rng(0), 20_000
    found = statistics.power(differences(0.15, 0.01), Prior(), 4, 0.05, 0.05)[0]
    samples = rng.normal(0.15, 0.1, (size, 4))
    assert found == pytest.approx((stats.ttest_1samp(samples, 0, axis=1).pvalue <= 0.05).mean(), abs=0.01)


def test_an_untrained_row_stands_at_every_seed():
    mine, fixed = np.array([[1.0, 2], [3, 6], [5, 4]]), np.array([[1.0], [1], [2]])
    images = rows({"a": mine, "b": fixed}, {"b": [UNTRAINED]})
    np.testing.assert_array_equal(statistics.paired(images, "a", "b"), mine - fixed)
    np.testing.assert_array_equal(statistics.paired(images, "b", "a"), fixed - mine)


def test_two_untrained_rows_are_compared_by_their_photographs():
    a, b = np.random.default_rng(0).normal(size=(2, 12, 1))
    found, _ = statistics.differences_of(rows({"a": a, "b": b}, {"a": [-1], "b": [-1]}), [("a", "b")], "psnr")
    low, high = statistics.estimate(found, Prior(3, 1.0)).interval()
    expected = stats.ttest_rel(a[:, 0], b[:, 0])
    assert (low[0], high[0]) == pytest.approx(tuple(expected.confidence_interval()))
    assert statistics.estimate(found, Prior()).p_different()[0] == pytest.approx(expected.pvalue)


def test_one_seed_has_no_interval_without_a_prior():
    found, _ = statistics.differences_of(rows({"a": np.ones((9, 1)), "b": np.zeros((9, 1))}), [("a", "b")], "psnr")
    estimated = statistics.estimate(found, Prior())
    assert np.isnan(estimated.interval()).all() and statistics.verdicts(estimated, 0.05) == [UNRESOLVED]
    assert statistics.estimate(found, Prior(4, 0.01)).freedom == [4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[t.experiment != "b"], "b has no numbers"),
        (lambda t: t[(t.experiment != "b") | (t.seed == 1)], "b lacks seeds 2, 3 of a"),
        (lambda t: t[(t.experiment != "a") | (t.image != "p1")], "a lacks 1 photographs of b, such as s/p1"),
        (lambda t: t.drop(t[(t.experiment == "b") & (t.seed == 2)].index[0]), "b lacks some photographs at some seeds"),
    ],
)
def test_rows_that_differ_in_seeds_or_photographs_are_not_compared(change, message):
    images = change(rows({"a": np.ones((4, 3)), "b": np.zeros((4, 3))}))
    with pytest.raises(statistics.NotComparable, match=message):
        statistics.paired(images, "a", "b")
    judged = statistics.judge(images, [("a", "b")], {}, NO_PRIOR, DELTAS)
    assert judged.verdict[0] == NOT_RUN and judged.reason[0] == message and np.isnan(judged.difference[0])


def test_an_exactly_restored_photograph_counts_the_most_that_any_counts():
    images = rows({"a": [[np.inf], [30]], "b": [[np.inf], [150]]})
    assert statistics.paired(images, "a", "b").iloc[:, 0].tolist() == [0, 30 - MOST_PSNR]


def test_a_claim_about_a_module_that_does_not_act_is_not_tested():
    rng = np.random.default_rng(0)
    images = rows({"a": 31 + rng.normal(0, 0.01, (20, 3)), "b": 30 + rng.normal(0, 0.01, (20, 3))})
    claims = [("a", "b"), ("a", "c")]
    judged = statistics.judge(images, claims, {"a": True}, NO_PRIOR, DELTAS)
    assert judged.verdict.tolist() == [HOLDS, NOT_RUN] and judged.ssim_verdict[0] == EQUAL
    judged = statistics.judge(images, claims, {"a": True, "b": False}, NO_PRIOR, DELTAS)
    assert judged.verdict.tolist() == [NOT_TESTED, NOT_RUN] and judged.difference[0] == pytest.approx(1, abs=0.01)
    assert judged.reason.tolist() == ["the attention of b does not act", "c has no numbers"]


def test_looks_spend_the_error_between_them():
    assert sum(statistics.LOOKS.values()) == pytest.approx(statistics.ALPHA)
    assert [statistics.level_at(n, looks=True) for n in (3, 5, 10)] == [0.01, 0.015, 0.025]
    assert statistics.level_at(4, looks=False) == 0.05


def test_a_trend_is_judged_over_seeds_too():
    x = np.linspace(0, 1, 11)
    slopes, off = np.array([1.0, 2, 3]), np.tile([0.1, -0.1], 6)[:11]
    found = statistics.summarise_trend(x[:, None] * slopes + off[:, None], x)
    assert (found.mean[0], found.seed_variance[0]) == pytest.approx((2, 1))
    line = stats.linregress(x, 2 * x + off)
    residual = (x - 0.5)[:, None] * (slopes - 2)
    of_seeds = (residual**2).sum() / (10 * 2) / 3
    assert found.photograph_variance[0] / 11 == pytest.approx(max(line.stderr**2 - of_seeds / 1.1, 0))
    alone = statistics.summarise_trend((2 * x + off)[:, None], x, trained=False)
    assert statistics.estimate(alone, Prior()).error[0] == pytest.approx(line.stderr)
    for few in (x[:9], np.ones(12)):
        with pytest.raises(statistics.NotComparable, match="a trend needs 10 photographs"):
            statistics.summarise_trend(np.ones((len(few), 3)), few)


def test_growth_is_exponential_where_the_logarithm_keeps_growing():
    k = [1, 2, 4, 6, 8, 10]
    found = statistics.growth(k, [0.5 * x for x in k])
    assert found["factor"] == pytest.approx(np.exp(0.5)) == found["factor_low"] == found["factor_high"]
    assert found["r2"] == pytest.approx(1) and found["exponential"]
    flattens = statistics.growth(k, [-1.5, -0.7, -0.3, -0.2, -0.15, -0.12])
    assert flattens["factor_low"] > flattens["factor"] > flattens["factor_high"] > 1
    assert not flattens["exponential"] and not statistics.growth(k, [-x for x in k])["exponential"]


def test_the_claims_of_profile_cpu_get_the_verdicts_that_were_worked_out():
    found = Differences(*CPU[["mean", "seed", "photograph", "photographs", "seeds"]].to_numpy(float).T)
    prior = statistics.fit_prior(found)
    assert (round(prior.freedom, 2), round(prior.variance**0.5, 3)) == (2.63, 0.085)
    estimated = statistics.estimate(found, prior)
    low, high = estimated.interval()
    said = {}
    for _, claims in CPU.groupby("study"):
        of_study = Estimates(*(values[claims.index] for values in vars(estimated).values()))
        for place, verdict in zip(claims.index, statistics.verdicts(of_study, 0.05), strict=True):
            if verdict != UNRESOLVED:
                numbers = estimated.mean[place], low[place], high[place]
                said[CPU.better[place]] = (verdict, *(f"{number:+.2f}" for number in numbers))
    assert said == {
        "panet_gray_denoise_25-common_trunk": (HOLDS, "+0.50", "+0.35", "+0.66"),
        "dagl_gray_denoise_25-no_threshold": (LEANS, "-0.16", "-0.27", "-0.04"),
        "enlca_sr_x2-common_trunk": (LEANS, "-0.13", "-0.24", "-0.01"),
    }


def test_the_rule_keeps_its_promises_on_made_up_claims():
    found = simulation.table(CPU, repetitions=250, photographs=30)
    assert found["coverage of the interval"].between(0.93, 0.97).all()
    assert found["family-wise error"].max() <= 0.07
    assert (found["with seeds taken for fixed"] < found["coverage of the interval"]).all()


@pytest.mark.slow
def test_the_rule_keeps_its_promises_at_full_size():
    found = simulation.table(CPU, repetitions=1500)
    assert found["coverage of the interval"].between(0.93, 0.97).all()
    assert found["family-wise error"].max() <= 0.07
    np.testing.assert_allclose(found["power at 0.2 dB"], [0.56, 0.77, 0.92], atol=0.03)
    np.testing.assert_allclose(found["with seeds taken for fixed"], [0.40, 0.44, 0.50], atol=0.05)
