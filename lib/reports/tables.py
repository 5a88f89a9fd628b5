"""From the per-image numbers of rows to the basis of each study's report: a folder of csv files per study."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..insights import health
from ..params import Params, Study
from . import curves, statistics, text

#: Published numbers, keyed by our rows' names.
PUBLISHED = Path(__file__).with_name("published.csv")

#: Of a row, per photograph and seed.
IMAGES = ["experiment", "set", "image", "seed", "psnr", "ssim", "self_similarity"]

#: PSNR (dB) of a row with attention against the side of the field, input pixels.
FIELDS = ["experiment", "seed", "side", "psnr"]

#: Costs of a row, on one 96 x 96 input.
COSTS = ["parameters", "multiply_adds", "peak_bytes"]

#: What an evaluation keeps for the reports to show, beside numbers.
SHOWN = ("mechanism.npz", "restored.png", "clean.png")

#: The column *acts* of a row whose evaluation did not measure it.
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Gathered:
    """The numbers of a profile: per-image rows of every study, whether attention acts (`collect_acts`), how much seeds
    vary over all claims, per metric and for trends, and the error that a study's verdicts may spend."""

    images: pd.DataFrame
    acts: pd.DataFrame
    priors: dict[str, statistics.Prior]
    deltas: dict[str, float]
    alpha: float

    def of(self, study: Study) -> pd.DataFrame:
        """The per-image rows of a study."""
        return self.images[self.images.experiment.isin(study.experiments)]

    def claims(self, study: Study) -> pd.DataFrame:
        """The table of `statistics.judge` for a study's claims with who makes each: source, published (dB, or NaN)."""
        pairs = [(claim.better, claim.worse) for claim in study.claims]
        table = statistics.judge(
            self.of(study), pairs, self.acts.tested.to_dict(), self.priors, self.deltas, self.alpha
        )
        published = pd.Series([claim.published for claim in study.claims], dtype=float)
        return table.assign(source=[claim.source for claim in study.claims], published=published)


def read(params: Params) -> Gathered:
    """The numbers of the rows of every study that were measured in a profile."""
    evaluated, studies = params.results("evaluate"), params.studies.values()
    names = list(dict.fromkeys(name for study in studies for name in study.experiments))
    images, deltas = collect(evaluated, names, params.baselines), asdict(params.delta)
    pairs = list(dict.fromkeys((claim.better, claim.worse) for study in studies for claim in study.claims))
    priors = {}
    for metric in (*deltas, statistics.TREND):
        found, _ = statistics.differences_of(images, pairs, metric)
        known = [pair for pair, variance in zip(pairs, found.seed_variance, strict=True) if np.isfinite(variance)]
        priors[metric] = statistics.fit_prior(found, statistics.independent(known))
    alpha = statistics.level_at(len(params.settings.seeds), params.settings.looks)
    return Gathered(images, collect_acts(evaluated, names), priors, deltas, alpha)


def gather(params: Params) -> pd.DataFrame:
    """Write `tables/<study>/` of every study; returns how much each has.

    images.csv: a row per photograph and seed; costs.csv, rows.csv: a row per row of the study, rows.csv with its
    difference to the first of its group; verdicts.csv: the study's claims; acts.csv: whether attention acts;
    modules.csv: what each module does; shown.csv: attention and pictures as `evaluate` kept them, by content;
    not_run.csv: why rows have no numbers; prior.csv: the variance over seeds of all claims of the profile; field.csv:
    PSNR against the field that attention sees; curve.csv: PSNR on the validation photographs against the training step.
    """
    evaluated, gathered, counts = params.results("evaluate"), read(params), []
    priors = pd.DataFrame({metric: asdict(prior) for metric, prior in gathered.priors.items()}).T
    for name, study in params.studies.items():
        folder, images = params.results("tables", name), gathered.of(study)
        folder.mkdir(parents=True, exist_ok=True)
        images.to_csv(folder / "images.csv", index=False)
        collect_costs(evaluated, study.experiments).to_csv(folder / "costs.csv")
        groups = {row: params.group(row) for row in study.experiments}
        compare(images, groups, gathered.priors).round(6).to_csv(folder / "rows.csv")
        gathered.claims(study).round(6).to_csv(folder / "verdicts.csv", index=False)
        gathered.acts[gathered.acts.index.isin(study.experiments)].to_csv(folder / "acts.csv")
        collect_modules(evaluated, study.experiments).to_csv(folder / "modules.csv", index=False)
        collect_shown(evaluated, study.experiments).to_csv(folder / "shown.csv", index=False)
        collect_reasons(evaluated, study.experiments).to_csv(folder / "not_run.csv", index=False)
        priors.to_csv(folder / "prior.csv")
        of_rows(evaluated, study.experiments, "field.csv", FIELDS).to_csv(folder / "field.csv", index=False)
        along = of_rows(params.results("train"), study.experiments, "validation.csv", curves.COLUMNS)
        along.to_csv(folder / "curve.csv", index=False)
        run = images.experiment.nunique()
        missing = len(study.experiments) - run
        counts.append({"study": name, "rows run": run, "rows not run": missing, "images measured": len(images)})
    return pd.DataFrame(counts).set_index("study")


def of_rows(folder: Path, names: Iterable[str], file: str, columns: Sequence[str]) -> pd.DataFrame:
    """The tables in `file` of those rows that have one, below one another: `columns`, of which `experiment` is a row's
    name."""
    files = {name: folder / name / file for name in names}
    tables = [pd.read_csv(path).assign(experiment=name) for name, path in files.items() if path.exists()]
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True)[[*columns]] if tables else pd.DataFrame(columns=columns)


def collect(evaluated: Path, experiments: Sequence[str], baselines: Iterable[str]) -> pd.DataFrame:
    """Per-image numbers of rows that have any, `IMAGES`; the seed of a baseline, which nothing trains, is
    `statistics.UNTRAINED`."""
    rows = of_rows(evaluated, experiments, "images.csv", IMAGES)
    rows.loc[rows.experiment.isin([*baselines]), "seed"] = statistics.UNTRAINED
    return rows


def collect_costs(evaluated: Path, experiments: Sequence[str]) -> pd.DataFrame:
    """Parameters, multiply-adds and peak bytes per row, indexed by its name."""
    files = {name: evaluated / name / "cost.json" for name in experiments}
    found = {name: pd.read_json(file, typ="series") for name, file in files.items() if file.exists()}
    return pd.DataFrame(found).T.reindex(columns=COSTS).rename_axis("experiment")


def collect_acts(evaluated: Path, experiments: Sequence[str]) -> pd.DataFrame:
    """Whether the attention of rows that were measured acts: acts (text) and tested, indexed by experiment.

    A row without attention has an empty text; one whose evaluation did not measure it, `NOT_RECORDED`. tested says
    whether a claim about the row is tested, which only a row that is known not to act prevents.
    """
    rows = {}
    for name in experiments:
        if not (evaluated / name / "images.csv").exists():
            continue
        file = evaluated / name / "acts.csv"
        table = pd.read_csv(file) if file.exists() else None
        if table is None:
            rows[name] = (NOT_RECORDED, True)
        else:
            rows[name] = ("", True) if table.empty else (health.describe(table), health.tested(table))
    found = pd.DataFrame.from_dict(rows, orient="index", columns=["acts", "tested"])
    return found.rename_axis("experiment").astype({"tested": bool})


def collect_modules(evaluated: Path, experiments: Sequence[str]) -> pd.DataFrame:
    """What each attention module of each seed does: experiment, module, seed, lost (dB, with a constant in its place)
    and keys (effective, the mean of its heads; NaN for a module without weights)."""
    measured = ["experiment", "module", "seed", "psnr_lost_mean", "effective_keys"]
    modules = of_rows(evaluated, experiments, "acts.csv", measured).groupby(measured[:3], sort=False)
    return modules.agg(lost=("psnr_lost_mean", "first"), keys=("effective_keys", "mean")).round(6).reset_index()


def collect_reasons(evaluated: Path, experiments: Sequence[str]) -> pd.DataFrame:
    """Why rows were not run: experiment, reason."""
    files = {name: evaluated / name / "not_run.txt" for name in experiments}
    found = {name: file.read_text().strip() for name, file in files.items() if file.exists()}
    return pd.DataFrame({"experiment": found.keys(), "reason": found.values()})


def collect_shown(evaluated: Path, experiments: Sequence[str]) -> pd.DataFrame:
    """What reports show of rows beside numbers, attention and pictures, by content: experiment, file, sha256."""
    files = [(name, evaluated / name / file) for name in experiments for file in SHOWN]
    found = [(name, file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for name, file in files if file.exists()]
    return pd.DataFrame(found, columns=["experiment", "file", "sha256"])


def compare(images: pd.DataFrame, groups: Mapping[str, str], priors: Mapping[str, statistics.Prior]) -> pd.DataFrame:
    """One row per row of a study, in order, from the group of each: seeds (0: not run, or not trained), photographs,
    psnr, ssim and the difference (dB) to the first of its group with its interval, low and high; NaN where there is
    none."""
    first = {name: names[0] for names in text.grouped(groups).values() for name in names}
    others = [name for name in groups if first[name] != name]
    differences, _ = statistics.differences_of(images, [(name, first[name]) for name in others], "psnr")
    low, high = statistics.estimate(differences, priors["psnr"]).interval()
    beside = pd.DataFrame({"difference": differences.mean, "low": low, "high": high}, index=others)
    by_row = images.assign(psnr=statistics.counted(images.psnr)).groupby("experiment")
    means = by_row[["psnr", "ssim"]].mean()
    counts = pd.DataFrame(
        {
            "seeds": images[images.seed != statistics.UNTRAINED].groupby("experiment").seed.nunique(),
            "photographs": images.drop_duplicates(["experiment", "set", "image"]).groupby("experiment").size(),
        }
    )
    table = pd.concat([counts, means, beside], axis=1).reindex([*groups]).rename_axis("experiment")
    return table.fillna({"seeds": 0, "photographs": 0}).astype({"seeds": int, "photographs": int})


def photographs(images: pd.DataFrame) -> pd.DataFrame:
    """PSNR (dB), the mean over seeds: a row per (set, image), a column per experiment."""
    values = images.assign(psnr=statistics.counted(images.psnr))
    return values.pivot_table(index=["set", "image"], columns="experiment", values="psnr", aggfunc="mean", sort=False)


def gains(images: pd.DataFrame, better: str, worse: str) -> pd.DataFrame:
    """Per photograph, how much one row gains on another: set, image, self_similarity, gain (dB), the mean over seeds.

    Empty where the two cannot be compared, see `statistics.paired`.
    """
    try:
        statistics.paired(images, better, worse)
    except statistics.NotComparable:
        return pd.DataFrame(columns=["set", "image", "self_similarity", "gain"]).astype({"gain": float})
    table = photographs(images)
    similar = images[images.experiment == better].groupby(["set", "image"], sort=False).self_similarity.first()
    gain = table[better] - table[worse]
    return pd.DataFrame({"self_similarity": similar, "gain": gain}).dropna().reset_index()


def by_quartile(found: pd.DataFrame) -> pd.Series:
    """Mean gain (dB) on each quarter of the photographs by self-similarity, from the least to the most."""
    ranks = found.self_similarity.rank(method="first")
    quarter = pd.qcut(ranks, 4, labels=["least", "second", "third", "most"])
    return found.groupby(quarter, observed=True).gain.mean()


def published() -> pd.DataFrame:
    """Published numbers of our rows: set, psnr, ssim, source; indexed by experiment."""
    return pd.read_csv(PUBLISHED).set_index("experiment")
