"""Differences of rows along the training, on the validation photographs: growing, settled or shrinking.

The averaged weights of every seed were measured at log-spaced steps. The last doubling of the steps says how a
difference goes on; the interval of its change takes the seeds for the sample, with their variance moderated over the
rows of the study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from . import statistics

#: Of a row, per seed and step.
COLUMNS = ["experiment", "seed", "step", "psnr"]

OUTCOMES = GROWING, TURNED, SETTLED, SHRINKING, OPEN = (
    "grows", "changes sign", "has settled", "shrinks", "may grow or shrink"
)  # fmt: skip


def differences(curves: pd.DataFrame, rows: Sequence[str], reference: str) -> dict[str, pd.DataFrame]:
    """For each of the rows that was validated as the reference was, its difference (dB): a line per step, a column per
    seed that both have."""
    tables = {name: of.pivot(index="step", columns="seed", values="psnr") for name, of in curves.groupby("experiment")}
    if reference not in tables:
        return {}
    found = {name: (tables[name] - tables[reference]).dropna(axis=1, how="all") for name in rows if name in tables}
    found = {name: table.dropna() for name, table in found.items()}
    return {name: table for name, table in found.items() if len(table) > 1}


def outcomes(found: Mapping[str, pd.DataFrame], delta: float) -> pd.DataFrame:
    """What each difference did from half of the steps to all of them: half, end (dB, means over seeds), outcome.

    The change's interval lies within delta: it has settled; the interval leaves out zero: it grows, shrinks (comes
    nearer to zero) or changes sign; else it is open.
    """
    if not found:
        return pd.DataFrame(columns=["half", "end", "outcome"])
    ends, halves = {}, {}
    for name, table in found.items():
        last = table.index[-1]
        ends[name], halves[name] = table.loc[last], table.iloc[np.abs(table.index - last / 2).argmin()]
    changes = [(ends[name] - halves[name]).to_numpy() for name in found]
    seeds = np.array([len(change) for change in changes], dtype=float)
    variance = [change.var(ddof=1) if len(change) > 1 else np.nan for change in changes]
    mean, none = np.array([change.mean() for change in changes]), np.zeros(len(changes))
    seen = statistics.Differences(mean, np.array(variance), none, none + 1, seeds)
    low, high = statistics.estimate(seen, statistics.fit_prior(seen)).interval()
    table = pd.DataFrame(
        {
            "half": {name: half.mean() for name, half in halves.items()},
            "end": {n: end.mean() for n, end in ends.items()},
        }
    )
    settled, moved = (low > -delta) & (high < delta), (low > 0) | (high < 0)
    turned, nearer = table.end * table.half < 0, table.end.abs() < table.half.abs()
    cases = [settled, moved & turned, moved & nearer, moved]
    table["outcome"] = np.select(cases, [SETTLED, TURNED, SHRINKING, GROWING], OPEN)
    return table.sort_values("outcome", key=lambda found: found.map(OUTCOMES.index), kind="stable")
