"""From per-image numbers to a study's table, its intervals and its verdicts. One rule each, here and nowhere else.

The smallest statistical unit is a photograph: crops and seeds of one photograph are averaged first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ..params import Claim, Study

#: Under these numbers a report shows every point and no interval.
MIN_PHOTOGRAPHS, MIN_SEEDS = 8, 3

#: Published numbers, keyed by our experiments' names.
PUBLISHED = Path(__file__).with_name("published.csv")

HOLDS, CONTRADICTED, UNRESOLVED = "holds", "contradicted", "not resolved at this budget"
NOT_RUN = "not run"
VERDICTS = (HOLDS, CONTRADICTED, UNRESOLVED, NOT_RUN)


#: What a row costs, on one 96 x 96 input.
COSTS = ["parameters", "multiply_adds", "peak_bytes"]


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
    return pd.DataFrame(found).T.reindex(columns=COSTS).rename_axis("experiment")


def collect_reasons(evaluated: Path, experiments: tuple[str, ...]) -> pd.DataFrame:
    """Why rows were not run, as far as they say: experiment, reason."""
    files = {name: evaluated / name / "not_run.txt" for name in experiments}
    found = {name: file.read_text().strip() for name, file in files.items() if file.exists()}
    return pd.DataFrame({"experiment": found.keys(), "reason": found.values()})


def collect_mechanisms(evaluated: Path, experiments: tuple[str, ...]) -> pd.DataFrame:
    """What a study's reports show of the attention of its experiments, by content: experiment, sha256."""
    files = {name: evaluated / name / "mechanism.npz" for name in experiments}
    found = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.exists()}
    return pd.DataFrame({"experiment": found.keys(), "sha256": found.values()})


def reasons(gathered: Path) -> list[str]:
    """A line for each row of a study's folder that says why it was not run."""
    return [
        f"{label(row.experiment)}: {NOT_RUN}, {row.reason}"
        for row in pd.read_csv(gathered / "not_run.csv").itertuples()
    ]


def photographs(images: pd.DataFrame, metric: str = "psnr") -> pd.DataFrame:
    """Mean over seeds: a row per (set, photograph), a column per experiment."""
    return images.pivot_table(index=["set", "image"], columns="experiment", values=metric, aggfunc="mean", sort=False)


def task_of(experiment: str) -> str:
    """The task in an experiment's name, <model>_<task>[-<difference>]."""
    return experiment.partition("_")[2].partition("-")[0]


def of_task(experiments: Iterable[str], task: str) -> list[str]:
    """Those of the experiments that are about a task; the first is what the others are compared with."""
    return [name for name in experiments if task_of(name) == task]


def tasks_of(experiments: Iterable[str]) -> list[str]:
    """The tasks of a study, in the order of its experiments."""
    return list(dict.fromkeys(map(task_of, experiments)))


def seed_spreads(images: pd.DataFrame) -> pd.Series:
    """Smallest difference of means that can mean anything, in dB, per task: the largest range, over experiments that
    were trained with several seeds, of a seed's mean PSNR. NaN where every experiment of the task has one seed."""
    means = images.groupby(["experiment", "seed"]).psnr.mean().groupby("experiment")
    ranges = (means.max() - means.min()).where(means.count() > 1).astype(float)
    return ranges.groupby(task_of).max().rename("spread")


def changes(images: pd.DataFrame, experiments: Sequence[str]) -> pd.DataFrame:
    """Per-photograph difference (dB) of each experiment with numbers to the first of its task, which is left out."""
    table = photographs(images)
    first = {task: of_task(experiments, task)[0] for task in tasks_of(experiments)}
    pairs = {name: first[task_of(name)] for name in experiments if name not in first.values()}
    found = {name: table[name] - table[other] for name, other in pairs.items() if {name, other} <= set(table)}
    return pd.DataFrame(found, index=table.index)


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


def compare(images: pd.DataFrame, experiments: Sequence[str]) -> pd.DataFrame:
    """A study's table: one row per experiment, in order, with its means and its difference to the first of its task.

    Columns: seeds, photographs, psnr, ssim, difference (dB), low, high (interval or NaN), resolved (bool). Experiments
    without numbers have `seeds` 0.
    """
    table, spreads, differences = photographs(images), seed_spreads(images), changes(images, experiments)
    seeds = images.groupby("experiment").seed.nunique()
    rows = []
    for name in experiments:
        row = {"experiment": name, "seeds": int(seeds.get(name, 0))}
        if name in table:
            mine = images[images.experiment == name]
            row |= {"photographs": len(table[name].dropna()), "psnr": mine.psnr.mean(), "ssim": mine.ssim.mean()}
        if name in differences:
            change = differences[name].dropna()
            fewest = min(seeds[name], seeds[of_task(experiments, task_of(name))[0]])
            low, high = interval(change, fewest) or (np.nan, np.nan)
            resolved = verdict(change, fewest, spreads[task_of(name)]) != UNRESOLVED
            row |= {"difference": change.mean(), "low": low, "high": high, "resolved": resolved}
        rows.append(row)
    columns = ["seeds", "photographs", "psnr", "ssim", "difference", "low", "high", "resolved"]
    return pd.DataFrame(rows).set_index("experiment").reindex(columns=columns)


def claims(images: pd.DataFrame, asked: Sequence[Claim], published: pd.DataFrame) -> pd.DataFrame:
    """A verdict for each claim "the first of the pair restores better than the second".

    Columns: better, worse, published (dB, NaN where no number is published), measured (dB), low, high, verdict.
    """
    table, spreads = photographs(images), seed_spreads(images)
    seeds = images.groupby("experiment").seed.nunique()
    rows = []
    for claim in asked:
        better, worse = claim.better, claim.worse
        row = {"better": better, "worse": worse, "published": np.nan, "measured": np.nan, "verdict": NOT_RUN}
        if better in published.index and worse in published.index:
            row["published"] = published.psnr[better] - published.psnr[worse]
        if better in table and worse in table:
            change = (table[better] - table[worse]).dropna()
            fewest = min(seeds[better], seeds[worse])
            low, high = interval(change, fewest) or (np.nan, np.nan)
            row |= {
                "measured": change.mean(),
                "low": low,
                "high": high,
            }
            row["verdict"] = verdict(change, fewest, spreads[task_of(better)])
        rows.append(row)
    columns = ["better", "worse", "published", "measured", "low", "high", "verdict"]
    return pd.DataFrame(rows).reindex(columns=columns)


def gains(images: pd.DataFrame, pairs: tuple[tuple[str, str], ...]) -> pd.DataFrame:
    """Per photograph, how much the first of each pair gains on the second, beside the photograph's self-similarity.

    Columns: set, image, self_similarity, pair, gain (dB).
    """
    table = photographs(images)
    columns, rows = ["set", "image", "self_similarity", "pair", "gain"], []
    for a, b in pairs:
        if a in table and b in table:
            similar = images[images.experiment == a].groupby(["set", "image"]).self_similarity.first()
            gain = pd.DataFrame({"self_similarity": similar, "gain": table[a] - table[b]}).dropna()
            rows.append(gain.assign(pair=f"{label(a)} on {label(b)} ({task_of(a).replace('_', ' ')})").reset_index())
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def published(path: Path = PUBLISHED) -> pd.DataFrame:
    """Published numbers of our experiments: set, psnr, ssim, source; indexed by experiment."""
    return pd.read_csv(path).set_index("experiment")


def panels(differences: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A table of `changes` by task."""
    return {task: differences[of_task(differences, task)].dropna(how="all") for task in tasks_of(differences)}


def label(experiment: str) -> str:
    """A row's name for readers: the model, and what its name says beyond model and task."""
    model, _, rest = experiment.partition("_")
    difference = rest.partition("-")[2].replace("_", " ")
    return f"{model}: {difference}" if difference else model


def claim(better: str, worse: str) -> str:
    """A claim for readers."""
    return f"{label(better)} over {label(worse)} ({task_of(better).replace('_', ' ')})"


def growth(numbers: Sequence[float], logarithms: Sequence[float]) -> dict[str, float | str]:
    """Whether what has these natural logarithms grows exponentially in the numbers (at least four).

    factor: growth per unit by a straight line through all logarithms; r2: share of their variance that it explains;
    factor_low, factor_high: the same by lines through the lower and the upper half of them; verdict: holds where the
    slope of the upper half is positive and at least half of the lower's, else contradicted.
    """
    numbers, logarithms = np.asarray(numbers, float), np.asarray(logarithms, float)
    half = len(numbers) // 2
    whole = stats.linregress(numbers, logarithms)
    low, high = (stats.linregress(numbers[part], logarithms[part]).slope for part in (slice(half), slice(-half, None)))
    return {
        "factor": np.exp(whole.slope),
        "r2": whole.rvalue**2,
        "factor_low": np.exp(low),
        "factor_high": np.exp(high),
        "verdict": HOLDS if high > 0 and high >= low / 2 else CONTRADICTED,
    }


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
    firsts = [of_task(table.index, task_of(name))[0] for name in table.index]
    spent = costs.reindex(table.index)
    shown = pd.DataFrame(
        {
            "task": [task_of(name).replace("_", " ") for name in table.index],
            "seeds": [count or NOT_RUN for count in table.seeds],
            "PSNR (dB)": [text(value, 2) for value in table.psnr],
            "SSIM": [text(value, 4) for value in table.ssim],
            "difference (dB)": [text(value, 2, signed=True) for value in table.difference],
            "95 % interval": [bounds(row) for _, row in table.iterrows()],
            "published (dB)": [text(value, 2) for value in reported],
            "published difference": [text(value, 2, signed=True) for value in reported - reported[firsts].values],
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
            "claim": [claim(row.better, row.worse) for row in verdicts.itertuples()],
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


def finding(verdicts: pd.DataFrame, spreads: pd.Series) -> str:
    """One sentence per kind of verdict, from a table of `claims`."""
    sentences = []
    for kind, rows in verdicts.groupby("verdict", sort=False):
        pairs = "; ".join(claim(row.better, row.worse) for row in rows.itertuples())
        sentences.append(f"{len(rows)} of {len(verdicts)} claims {_CLAUSE[kind]}: {pairs}.")
    for task, spread in spreads.dropna().items():
        sentences.append(f"On {task.replace('_', ' ')}, the seed alone changes up to {spread:.2f} dB.")
    return " ".join(sentences)


_CLAUSE = {
    HOLDS: "hold",
    CONTRADICTED: "are contradicted",
    UNRESOLVED: "are not resolved at this budget",
    NOT_RUN: "were not run",
}
