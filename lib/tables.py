"""From per-image numbers to a study's table, its intervals and its verdicts. One rule each, here and nowhere else.

The smallest statistical unit is a photograph: crops and seeds of one photograph are averaged first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from .params import Study

#: Under these numbers a report shows every point and no interval.
MIN_PHOTOGRAPHS, MIN_SEEDS = 8, 3

#: Published numbers, keyed by our experiments' names.
PUBLISHED = Path(__file__).with_name("published.csv")

HOLDS, CONTRADICTED, UNRESOLVED = "holds", "contradicted", "not resolved at this budget"
NOT_RUN = "not run"


def collect(evaluated: Path, experiments: tuple[str, ...]) -> pd.DataFrame:
    """Per-image rows of a study's experiments: experiment, set, image, seed, psnr, ssim, ...; absent ones have none."""
    found = [
        pd.read_csv(evaluated / name / "images.csv").assign(experiment=name)
        for name in experiments
        if (evaluated / name / "images.csv").exists()
    ]
    if not found:
        return pd.DataFrame(columns=["experiment", "set", "image", "seed", "psnr", "ssim"])
    rows = pd.concat(found, ignore_index=True)
    return rows[["experiment", *rows.columns.drop("experiment")]]


def collect_costs(evaluated: Path, experiments: tuple[str, ...]) -> pd.DataFrame:
    """Parameters, multiply-adds and peak bytes per experiment, indexed by its name."""
    files = {name: evaluated / name / "cost.json" for name in experiments}
    found = {name: pd.read_json(file, typ="series") for name, file in files.items() if file.exists()}
    return pd.DataFrame(found).T.rename_axis("experiment")


def photographs(images: pd.DataFrame, metric: str = "psnr") -> pd.DataFrame:
    """Mean over seeds: a row per (set, photograph), a column per experiment."""
    return images.pivot_table(index=["set", "image"], columns="experiment", values=metric, aggfunc="mean", sort=False)


def seed_spread(images: pd.DataFrame) -> float:
    """Smallest difference of means that can mean anything, in dB: the largest range, over experiments that were trained
    with several seeds, of a seed's mean PSNR. NaN where every experiment has one seed."""
    means = images.groupby(["experiment", "seed"]).psnr.mean().groupby("experiment")
    ranges = (means.max() - means.min())[means.count() > 1]
    return float(ranges.max()) if len(ranges) else float("nan")


def interval(differences: pd.Series | np.ndarray, seeds: int, level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of per-photograph differences; None where there is too little to draw one."""
    values = np.asarray(differences, dtype=float)
    if len(values) < MIN_PHOTOGRAPHS or seeds < MIN_SEEDS:
        return None
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)


def verdict(differences: pd.Series | np.ndarray, seeds: int, spread: float, claimed: float = 1.0) -> str:
    """Whether per-photograph differences (dB) bear out a claim of the sign of `claimed`.

    They resolve it when their mean exceeds the seeds' `spread` and either its interval leaves out zero or, where there
    is no interval, every photograph agrees.
    """
    values = np.asarray(differences, dtype=float)
    bounds = interval(values, seeds) or (values.min(), values.max())
    resolved = abs(values.mean()) > spread and (bounds[0] > 0 or bounds[1] < 0)
    if not resolved:
        return UNRESOLVED
    return HOLDS if np.sign(values.mean()) == np.sign(claimed) else CONTRADICTED


def compare(images: pd.DataFrame, experiments: tuple[str, ...], reference: str | None = None) -> pd.DataFrame:
    """A study's table: one row per experiment, in order, with its means and its difference to `reference`.

    Columns: seeds, photographs, psnr, ssim, difference (dB), low, high (interval or NaN), resolved (bool). Experiments
    without numbers have `seeds` 0. `reference` is the first experiment unless named.
    """
    reference = reference or experiments[0]
    table, spread = photographs(images), seed_spread(images)
    seeds = images.groupby("experiment").seed.nunique()
    rows = []
    for name in experiments:
        row = {"experiment": name, "seeds": int(seeds.get(name, 0))}
        if name in table:
            mine = images[images.experiment == name]
            row |= {"photographs": len(table[name].dropna()), "psnr": mine.psnr.mean(), "ssim": mine.ssim.mean()}
        if name in table and reference in table and name != reference:
            change = (table[name] - table[reference]).dropna()
            fewest = min(seeds[name], seeds[reference])
            low, high = interval(change, fewest) or (np.nan, np.nan)
            resolved = verdict(change, fewest, spread) != UNRESOLVED
            row |= {"difference": change.mean(), "low": low, "high": high, "resolved": resolved}
        rows.append(row)
    columns = ["seeds", "photographs", "psnr", "ssim", "difference", "low", "high", "resolved"]
    return pd.DataFrame(rows).set_index("experiment").reindex(columns=columns)


def claims(images: pd.DataFrame, pairs: tuple[tuple[str, str], ...], published: pd.DataFrame) -> pd.DataFrame:
    """A verdict for each claim "the first of the pair restores better than the second".

    Columns: better, worse, published (dB, NaN where no number is published), measured (dB), low, high, verdict.
    """
    table, spread = photographs(images), seed_spread(images)
    seeds = images.groupby("experiment").seed.nunique()
    rows = []
    for better, worse in pairs:
        row = {"better": better, "worse": worse, "published": np.nan, "measured": np.nan, "verdict": NOT_RUN}
        if better in published.index and worse in published.index:
            row["published"] = published.psnr[better] - published.psnr[worse]
        if better in table and worse in table:
            change = (table[better] - table[worse]).dropna()
            fewest = min(seeds[better], seeds[worse])
            low, high = interval(change, fewest) or (np.nan, np.nan)
            row |= {"measured": change.mean(), "low": low, "high": high, "verdict": verdict(change, fewest, spread)}
        rows.append(row)
    columns = ["better", "worse", "published", "measured", "low", "high", "verdict"]
    return pd.DataFrame(rows).reindex(columns=columns)


def gains(images: pd.DataFrame, pairs: tuple[tuple[str, str], ...]) -> pd.DataFrame:
    """Per photograph, how much the first of each pair gains on the second, beside the photograph's self-similarity.

    Columns: set, image, self_similarity, pair, gain (dB).
    """
    table = photographs(images)
    similar = images.groupby(["set", "image"], sort=False).self_similarity.first()
    rows = [
        pd.DataFrame(
            {"self_similarity": similar, "pair": f"{label(a)} on {label(b)}", "gain": table[a] - table[b]}
        ).reset_index()
        for a, b in pairs
        if a in table and b in table
    ]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["set", "image", "pair", "gain"])


def published(path: Path = PUBLISHED) -> pd.DataFrame:
    """Published numbers of our experiments: set, psnr, ssim, source; indexed by experiment."""
    return pd.read_csv(path).set_index("experiment")


def label(experiment: str) -> str:
    """A row's name for readers: the model, and what its name says beyond model and task."""
    model, _, rest = experiment.partition("_")
    difference = rest.partition("-")[2].replace("_", " ")
    return f"{model}: {difference}" if difference else model


def text(value: float, digits: int, signed: bool = False) -> str:
    """A number for reading: with so many digits, its sign where asked for, empty where there is none."""
    return f"{value:{'+' if signed else ''},.{digits}f}" if pd.notna(value) else ""


def bounds(row: pd.Series) -> str:
    """An interval for reading, empty where there is none."""
    return f"{row.low:+.2f} to {row.high:+.2f}" if pd.notna(row.low) else ""


def for_readers(images: pd.DataFrame, costs: pd.DataFrame, study: Study, published: pd.DataFrame) -> pd.DataFrame:
    """A study's table as text: measured beside published, and what each row costs on one 96 x 96 input."""
    table = compare(images, study.experiments)
    reported = published.psnr.reindex(table.index)
    spent = costs.reindex(table.index)
    shown = pd.DataFrame(
        {
            "seeds": [count or NOT_RUN for count in table.seeds],
            "PSNR (dB)": [text(value, 2) for value in table.psnr],
            "SSIM": [text(value, 4) for value in table.ssim],
            "difference (dB)": [text(value, 2, signed=True) for value in table.difference],
            "95 % interval": [bounds(row) for _, row in table.iterrows()],
            "published (dB)": [text(value, 2) for value in reported],
            "published difference": [text(value, 2, signed=True) for value in reported - reported.iloc[0]],
            "parameters": [text(value, 0) for value in spent.parameters],
            "multiply-adds (G)": [text(value, 2) for value in spent.multiply_adds / 1e9],
            "peak MiB": [text(value, 1) for value in spent.peak_bytes / 2**20],
        },
        index=[label(name) for name in table.index],
    )
    return shown.rename_axis("row")


def claims_for_readers(verdicts: pd.DataFrame) -> pd.DataFrame:
    """A table of `claims` as text."""
    return pd.DataFrame(
        {
            "claim": [f"{label(row.better)} over {label(row.worse)}" for row in verdicts.itertuples()],
            "published (dB)": [text(value, 2, signed=True) for value in verdicts.published],
            "measured (dB)": [text(value, 2, signed=True) for value in verdicts.measured],
            "95 % interval": [bounds(row) for _, row in verdicts.iterrows()],
            "verdict": verdicts.verdict,
        },
        index=verdicts.index,
    )


def markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown, its index as the first column."""
    rows = [[table.index.name or "", *table.columns], ["---"] * (len(table.columns) + 1)]
    rows += [[name, *cells] for name, *cells in table.itertuples()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def finding(verdicts: pd.DataFrame, spread: float) -> str:
    """One sentence per kind of verdict, from a table of `claims`."""
    sentences = []
    for kind, rows in verdicts.groupby("verdict", sort=False):
        pairs = "; ".join(f"{label(row.better)} over {label(row.worse)}" for row in rows.itertuples())
        sentences.append(f"{len(rows)} of {len(verdicts)} claims {_CLAUSE[kind]}: {pairs}.")
    if np.isfinite(spread):
        sentences.append(f"Differences up to {spread:.2f} dB are within what the seed alone changes.")
    return " ".join(sentences)


_CLAUSE = {
    HOLDS: "hold",
    CONTRADICTED: "are contradicted",
    UNRESOLVED: "are not resolved at this budget",
    NOT_RUN: "were not run",
}
