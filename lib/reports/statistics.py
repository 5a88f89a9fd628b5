"""From paired numbers to intervals and verdicts; nothing else in the project makes either.

Photographs and seeds are crossed, as cases and readers are in studies of medical images: every seed's network restores
every photograph, and seed s of two rows saw the same data, noise and initial weights. The difference of two rows is
therefore a table D, photographs x seeds. Few seeds estimate their own variance badly, so that it is moderated by the
variances of all other claims, as in limma (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3(1)):

    g  = mean of D
    s2 = variance over seeds of the seeds' means
    v  = max((MS_photograph - MS_residual) / S, 0), from the two-way table of D: I photographs, S seeds
    s~2 = (d0 s0^2 + (S - 1) s2) / (d0 + S - 1)
    SE^2 = s~2 / S + v / I, with d0 + S - 1 degrees of freedom

with d0 and s0 of `fit_prior`. Verdicts are Holm's over the claims of a study, see `verdicts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, sparse, special, stats

from ..measuring.metrics import MOST_PSNR
from ..params.schema import LOOKS as LOOKS

#: The seed of a row that nothing trains: it stands beside every seed of another row.
UNTRAINED = -1

#: Family-wise error of a study's verdicts, and level of the intervals.
ALPHA, LEVEL = 0.05, 0.95

#: With fewer claims of which none follows from others, every claim has its own variance alone.
MIN_CLAIMS = 10

#: With fewer photographs no trend is given.
MIN_TREND = 10

#: In place of a metric: the slope of the difference of PSNR against self-similarity.
TREND = "trend"

#: Of "about N more seeds": the power at which a claim counts as resolved, and the most seeds that are worth naming.
POWER, MOST_SEEDS = 0.8, 50

NOT_TESTED, EQUAL = "not tested", "equal within delta"
HOLDS, REVERSED, LEANS = "holds", "reversed here", "leans"
UNRESOLVED, NOT_RUN = "not resolved", "not run"
VERDICTS = (HOLDS, REVERSED, EQUAL, LEANS, UNRESOLVED, NOT_TESTED, NOT_RUN)

Array = NDArray[np.float64]


class NotComparable(ValueError):
    """Two rows cannot be compared: one line, which says what is missing."""


@dataclass(frozen=True)
class Differences:
    """Differences of C pairs of rows, all arrays (C,), in the metric's unit.

    seed_variance: s2, NaN with fewer than two seeds. photograph_variance: v. seeds: 0 where neither row is trained.
    """

    mean: Array
    seed_variance: Array
    photograph_variance: Array
    photographs: Array
    seeds: Array

    def __getitem__(self, which: ArrayLike) -> Differences:
        return Differences(*(values[which] for values in vars(self).values()))


@dataclass(frozen=True)
class Prior:
    """The variance over seeds in all claims of a profile: s0^2, as certain as `freedom` = d0 further seeds make it."""

    freedom: float = 0.0
    variance: float = 0.0
    most: float = np.inf  # degrees of freedom of all independent claims, which no moderated variance can exceed


@dataclass(frozen=True)
class Estimates:
    """Means of C differences, their standard errors and degrees of freedom; NaN where there is too little."""

    mean: Array
    error: Array
    freedom: Array

    def interval(self) -> tuple[Array, Array]:
        """Its two ends, at `LEVEL`."""
        half = stats.t.ppf((1 + LEVEL) / 2, self.freedom) * self.error
        return self.mean - half, self.mean + half

    def p_different(self) -> Array:
        """Two-sided p of no difference."""
        return 2 * stats.t.sf(np.abs(self.mean) / self.error, self.freedom)

    def p_not_equal(self, delta: float) -> Array:
        """p of a difference of at least delta: the larger of two one-sided tests."""
        return stats.t.sf((delta - np.abs(self.mean)) / self.error, self.freedom)


def paired(images: pd.DataFrame, better: str, worse: str, metric: str = "psnr") -> pd.DataFrame:
    """The table D of `better` minus `worse`: a row per (set, image), a column per seed, one where neither is trained.

    images: rows with experiment, set, image, seed and the metric. Raises NotComparable where a row has no numbers or
    where seeds or photographs of the two differ.
    """
    tables = {}
    for name in (better, worse):
        rows = images[images.experiment == name]
        if rows.empty:
            raise NotComparable(f"{name} has no numbers")
        values = rows.assign(value=counted(rows[metric]) if metric == "psnr" else rows[metric])
        tables[name] = values.pivot(index=["set", "image"], columns="seed", values="value").sort_index()
    first, second = tables.values()
    for name, other, mine, theirs in ((better, worse, first, second), (worse, better, second, first)):
        if missing := sorted(set(theirs.index) - set(mine.index)):
            raise NotComparable(f"{name} lacks {len(missing)} photographs of {other}, such as {'/'.join(missing[0])}")
        absent = sorted(set(theirs.columns) - set(mine.columns) - {UNTRAINED})
        if absent and UNTRAINED not in mine:
            raise NotComparable(f"{name} lacks seed{'s' * (len(absent) > 1)} {', '.join(map(str, absent))} of {other}")
        if mine.isna().any(axis=None):
            raise NotComparable(f"{name} lacks some photographs at some seeds")
    wide = first if first.shape[1] >= second.shape[1] else second  # an untrained column stands beside every seed
    return pd.DataFrame(first.to_numpy() - second.to_numpy(), index=first.index, columns=wide.columns)


def counted(psnr: pd.Series) -> pd.Series:
    """PSNR as means and differences take it: at most `MOST_PSNR`."""
    return psnr.clip(upper=MOST_PSNR)


def summarise(tables: Array, trained: bool = True) -> Differences:
    """Means and variances of tables D ``(C, I, S)``, I >= 2 photographs; S is 1 where nothing is `trained`."""
    tables = np.asarray(tables, dtype=float)
    (claims, photographs, seeds), mean = tables.shape, tables.mean((1, 2))
    by_seed, by_photograph = tables.mean(1), tables.mean(2)
    squares = seeds * by_photograph.var(1, ddof=1)
    if seeds > 1:
        squares = np.maximum(squares - residual_square(tables), 0)
    full = np.ones(claims)
    return Differences(
        mean=mean,
        seed_variance=by_seed.var(1, ddof=1) if seeds > 1 else np.full(claims, np.nan),
        photograph_variance=squares / seeds,
        photographs=photographs * full,
        seeds=(seeds if trained else 0) * full,
    )


def residual_square(tables: Array) -> Array:
    """Mean square of what is left in tables D ``(C, I, S)`` without the effects of photographs and of seeds, S > 1."""
    _, photographs, seeds = tables.shape
    of_both = tables.mean(1, keepdims=True) + tables.mean(2, keepdims=True) - tables.mean((1, 2), keepdims=True)
    return ((tables - of_both) ** 2).sum((1, 2)) / ((photographs - 1) * (seeds - 1))


def summarise_trend(table: Array, x: Array, trained: bool = True) -> Differences:
    """The least-squares slope of D ``(I, S)`` against a property x ``(I,)`` of the photographs, ready for the rule.

    The slopes of the seeds vary as their means do; the photographs' part is the error of the line through the means
    over seeds, less what the residuals of the two-way table explain. Raises NotComparable with fewer than `MIN_TREND`
    photographs or a constant x.
    """
    photographs, seeds = table.shape
    if photographs < MIN_TREND or np.ptp(x) == 0:
        raise NotComparable(f"a trend needs {MIN_TREND} photographs that differ, not {photographs}")
    centred = x - x.mean()
    squares = (centred**2).sum()
    slopes = centred @ table / squares
    means = table.mean(1)
    off_line = ((means - means.mean() - slopes.mean() * centred) ** 2).sum() / (photographs - 2)
    if seeds > 1:
        off_line = max(off_line - residual_square(table[None])[0] / seeds, 0.0)
    return Differences(
        mean=np.array([slopes.mean()]),
        seed_variance=np.array([slopes.var(ddof=1) if seeds > 1 else np.nan]),
        photograph_variance=np.array([off_line / squares * photographs]),
        photographs=np.array([float(photographs)]),
        seeds=np.array([float(seeds if trained else 0)]),
    )


def independent(pairs: Sequence[tuple[str, str]]) -> int:
    """How many differences of pairs of rows do not follow from the others: A over C does from A over B and B over C."""
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    ends = np.array([[names.index(name) for name in pair] for pair in pairs], dtype=int).reshape(-1, 2)
    graph = sparse.coo_array((np.ones(len(ends)), ends.T), (len(names), len(names)))
    return len(names) - int(sparse.csgraph.connected_components(graph, directed=False)[0]) if len(ends) else 0


def fit_prior(differences: Differences, independent: int | None = None) -> Prior:
    """d0 and s0^2 by the moments of log s2 over all claims of a profile (limma's fitFDist); none where few of these are
    `independent`, which all are unless told."""
    known = differences[np.isfinite(differences.seed_variance)]
    count = len(known.mean) if independent is None else independent
    if count < MIN_CLAIMS or not known.seed_variance.any():
        return Prior()
    half = (known.seeds - 1) / 2
    variance = np.maximum(known.seed_variance, 1e-5 * np.median(known.seed_variance))  # a zero has no logarithm
    logs = np.log(variance) - special.digamma(half) + np.log(half)
    beyond_chance = logs.var(ddof=1) - special.polygamma(1, half).mean()
    most = 2 * half.mean() * count
    if beyond_chance <= 0:  # no more different than one variance explains
        return Prior(np.inf, float(variance.mean()), most)
    d0 = 2 * _inverse_trigamma(beyond_chance)
    return Prior(d0, float(np.exp(logs.mean() + special.digamma(d0 / 2) - np.log(d0 / 2))), most)


def _inverse_trigamma(value: float) -> float:
    """x > 0 with trigamma(x) = value, by bisection over its logarithm."""
    return float(
        np.exp(optimize.brentq(lambda t: np.log(special.polygamma(1, np.exp(t)) / value), -40, 40, xtol=1e-14))
    )


def estimate(differences: Differences, prior: Prior) -> Estimates:
    """The differences with their standard errors. A pair that nothing trains has photographs alone as its sample."""
    s2, seeds = np.nan_to_num(differences.seed_variance), differences.seeds
    own = np.maximum(seeds - 1, 0)
    freedom = np.maximum(np.minimum(prior.freedom + own, prior.most), own)
    if np.isinf(prior.freedom):
        moderated = np.full_like(s2, prior.variance)
    else:
        with np.errstate(invalid="ignore"):  # 0 / 0: one seed, no prior
            moderated = (prior.freedom * prior.variance + own * s2) / (prior.freedom + own)
    untrained = seeds == 0
    of_seeds = np.where(untrained, 0, moderated / np.maximum(seeds, 1))
    error = np.sqrt(of_seeds + differences.photograph_variance / differences.photographs)
    freedom = np.where(untrained, differences.photographs - 1, np.where(freedom > 0, freedom, np.nan))
    return Estimates(differences.mean, np.maximum(error, np.finfo(float).tiny), freedom)


def holm(p: ArrayLike) -> Array:
    """Holm's adjusted p values; NaN counts as 1."""
    values = np.nan_to_num(np.asarray(p, dtype=float), nan=1.0)
    order = np.argsort(values)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    return adjusted


def verdicts(estimates: Estimates, delta: float, alpha: float = ALPHA) -> NDArray[np.str_]:
    """Verdicts of a study's claims that a mean is positive, in this order.

    equal within delta: two one-sided tests, Holm's p at most alpha; holds, reversed here: so is Holm's p of no
    difference; leans: the interval leaves out 0; else not resolved.
    """
    low, high = estimates.interval()
    different = holm(estimates.p_different()) <= alpha
    cases = {
        EQUAL: holm(estimates.p_not_equal(delta)) <= alpha,
        HOLDS: different & (estimates.mean > 0),
        REVERSED: different & (estimates.mean < 0),
        LEANS: (low > 0) | (high < 0),
    }
    return np.select([*cases.values()], [*cases], UNRESOLVED)


def power(differences: Differences, prior: Prior, seeds: Array | int, delta: float, level: float) -> Array:
    """Chance that `seeds` seeds show, in a two-sided test at `level`, differences as large as those seen (or delta)."""
    planned = estimate(replace(differences, seeds=np.full(differences.mean.shape, seeds, dtype=float)), prior)
    now = estimate(differences, prior)
    moderated = (now.error**2 - differences.photograph_variance / differences.photographs) * differences.seeds
    error = np.sqrt(moderated / seeds + differences.photograph_variance / differences.photographs)
    effect = np.maximum(np.abs(differences.mean), delta) / error
    freedom = np.minimum(planned.freedom, 1e6)  # scipy has no noncentral t of infinite freedom
    return stats.nct.sf(stats.t.isf(level / 2, freedom), freedom, effect)


def more_seeds(differences: Differences, prior: Prior, delta: float, level: float) -> Array:
    """The fewest further seeds with which `power` is at least `POWER`; inf above `MOST_SEEDS`, NaN where no variance
    over seeds is known."""
    found = np.full(differences.mean.shape, np.inf)
    for extra in range(MOST_SEEDS, 0, -1):
        found[power(differences, prior, differences.seeds + extra, delta, level) >= POWER] = extra
    return np.where((differences.seeds > 0) & ~np.isnan(estimate(differences, prior).freedom), found, np.nan)


def level_at(seeds: int, looks: bool) -> float:
    """Family-wise error that verdicts at `seeds` seeds may spend: all of it where this is the only look, else that of
    the look, which `params.yaml` has checked."""
    return LOOKS[seeds] if looks else ALPHA


def differences_of(
    images: pd.DataFrame, pairs: Sequence[tuple[str, str]], metric: str
) -> tuple[Differences, list[str]]:
    """Differences of pairs of rows, NaN where they cannot be compared, and for each pair the reason or "".

    metric: a column of `images`, or `TREND`: the slope of the difference of PSNR (dB) against self-similarity.
    """
    made, reasons = [], []
    for better, worse in pairs:
        try:
            table = paired(images, better, worse, "psnr" if metric == TREND else metric)
            trained = (*table.columns,) != (UNTRAINED,)
            if metric == TREND:
                similar = images[images.experiment == better].groupby(["set", "image"]).self_similarity.first()
                made.append(summarise_trend(table.to_numpy(), similar[table.index].to_numpy(), trained))
            else:
                made.append(summarise(table.to_numpy()[None], trained))
            reasons.append("")
        except NotComparable as error:
            made.append(Differences(*np.full((5, 1), np.nan)))
            reasons.append(str(error))
    parts = zip(*(vars(one).values() for one in made), strict=True)
    return Differences(*map(np.concatenate, parts)) if made else Differences(*np.empty((5, 0))), reasons


def judge(
    images: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    acts: Mapping[str, bool],
    priors: Mapping[str, Prior],
    deltas: Mapping[str, float],
    alpha: float = ALPHA,
) -> pd.DataFrame:
    """A study's claims "the first of the pair restores better than the second" with their verdicts.

    acts: whether the attention of a row acts, for the rows of which it is known. priors, deltas: per metric, psnr
    first. Columns: better, worse, reason (why there is no verdict, or ""), more_seeds (inf: more than are worth
    naming) and per metric difference, low, high, p (Holm's), verdict; those of SSIM begin with `ssim_`.
    """
    table = pd.DataFrame(pairs, columns=["better", "worse"])
    for metric, delta in deltas.items():
        prefix, prior = "" if metric == "psnr" else f"{metric}_", priors[metric]
        differences, reasons = differences_of(images, pairs, metric)
        idle = [[name for name in pair if not acts.get(name, True)] for pair in pairs]
        run = np.array([not reason for reason in reasons], dtype=bool)
        tested = run & np.array([not names for names in idle], dtype=bool)
        low, high = estimate(differences, prior).interval()
        table[prefix + "difference"], table[prefix + "low"], table[prefix + "high"] = differences.mean, low, high
        table[prefix + "p"], table[prefix + "verdict"] = np.nan, np.where(run, NOT_TESTED, NOT_RUN)
        if metric == "psnr":
            table["reason"] = [
                reason or (f"the attention of {' and of '.join(names)} does not act" if names else "")
                for reason, names in zip(reasons, idle, strict=True)
            ]
            table["more_seeds"] = np.nan
        if tested.any():
            chosen = differences[tested]
            found = estimate(chosen, prior)
            table.loc[tested, prefix + "p"] = holm(found.p_different())
            table.loc[tested, prefix + "verdict"] = verdicts(found, delta, alpha)
            if metric == "psnr":
                needed = more_seeds(chosen, prior, delta, alpha / tested.sum())
                open_ = np.isin(table.loc[tested, "verdict"], (UNRESOLVED, LEANS))
                table.loc[tested, "more_seeds"] = np.where(open_, needed, np.nan)
    return table


def growth(numbers: Sequence[float], logarithms: Sequence[float]) -> dict[str, float | bool]:
    """Whether values with these natural logarithms grow exponentially in the numbers (at least four).

    factor: growth per unit by a straight line through all logarithms; r2: share of their variance that it explains;
    factor_low, factor_high: the same by lines through the lower and the upper half of them; exponential: whether the
    slope of the upper half is positive and at least half of the lower's.
    """
    x, y = np.asarray(numbers, float), np.asarray(logarithms, float)
    half = len(x) // 2
    whole = stats.linregress(x, y)
    low, high = (stats.linregress(x[part], y[part]).slope for part in (slice(half), slice(-half, None)))
    return {
        "factor": float(np.exp(whole.slope)),
        "r2": float(whole.rvalue**2),
        "factor_low": float(np.exp(low)),
        "factor_high": float(np.exp(high)),
        "exponential": bool(high > 0 and high >= low / 2),
    }
