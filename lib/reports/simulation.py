"""How often the verdicts would be right: made-up claims whose truth is known, judged by the rule of `statistics`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import stats

from . import statistics

#: Claims of a profile that has been run whole, which share the moderated variance, and of the study whose family-wise
#: error is measured.
CLAIMS, FAMILY = 50, 10

COMPONENTS = ["seed", "photograph", "residual"]

#: Differences (dB) whose power `table` gives.
EFFECTS = (0.05, 0.1, 0.2)


def components(tables: Iterable[np.ndarray]) -> pd.DataFrame:
    """Variances over seeds, photographs and the rest, of tables of differences (photographs, seeds >= 2)."""
    rows = []
    for table in tables:
        found = statistics.summarise(table[None])
        rows.append([found.seed_variance[0], found.photograph_variance[0], statistics.residual_square(table[None])[0]])
    return pd.DataFrame(rows, columns=COMPONENTS)


def simulate(
    drawn_from: pd.DataFrame,
    seeds: int,
    effect: float,
    repetitions: int,
    photographs: int = 180,
    claims: int = CLAIMS,
    start: int = 0,
) -> pd.Series:
    """Made-up profiles of `claims` claims with the true difference `effect` (dB) and variance components that are drawn
    from those of real claims.

    Returns shares of the claims, of which the first `FAMILY` are a study: coverage of the interval, old_coverage of an
    interval that takes seeds for fixed, resolved (holds or reversed; the power where there is an effect), and of the
    studies any_resolved (the family-wise error where there is none).
    """
    rng = np.random.default_rng(start)
    found = []
    for _ in range(repetitions):
        chosen = drawn_from.iloc[rng.integers(len(drawn_from), size=claims)]
        seed, photograph, rest = np.sqrt(chosen[COMPONENTS].to_numpy()).T[:, :, None, None]
        tables = effect + seed * rng.standard_normal((claims, 1, seeds))
        tables = tables + photograph * rng.standard_normal((claims, photographs, 1))
        tables = tables + rest * rng.standard_normal((claims, photographs, seeds))
        differences = statistics.summarise(tables)
        estimates = statistics.estimate(differences, statistics.fit_prior(differences))
        low, high = estimates.interval()
        per_photograph = tables.mean(2)
        half = stats.t.ppf(0.975, photographs - 1) * per_photograph.std(1, ddof=1) / photographs**0.5
        study = statistics.Estimates(*(values[:FAMILY] for values in vars(estimates).values()))
        resolved = statistics.holm(study.p_different()) <= statistics.ALPHA
        found.append(
            {
                "coverage": ((low <= effect) & (effect <= high)).mean(),
                "old_coverage": (np.abs(estimates.mean - effect) <= half).mean(),
                "resolved": resolved.mean(),
                "any_resolved": resolved.any(),
            }
        )
    return pd.DataFrame(found).astype(float).mean()


def table(drawn_from: pd.DataFrame, repetitions: int, photographs: int = 180, claims: int = CLAIMS) -> pd.DataFrame:
    """Coverage, family-wise error and power of the rule at each of `EFFECTS`, per number of seeds of a look."""
    rows = {}
    for seeds in statistics.LOOKS:
        null = simulate(drawn_from, seeds, 0.0, repetitions, photographs, claims)
        real = {
            effect: simulate(drawn_from, seeds, effect, repetitions, photographs, claims, start=1) for effect in EFFECTS
        }
        rows[seeds] = {
            "coverage of the interval": (null.coverage + real[EFFECTS[-1]].coverage) / 2,
            "with seeds taken for fixed": (null.old_coverage + real[EFFECTS[-1]].old_coverage) / 2,
            "family-wise error": null.any_resolved,
            **{f"power at {effect} dB": found.resolved for effect, found in real.items()},
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("seeds")
