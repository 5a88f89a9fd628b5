"""`python -m lib verdicts`: every claim with its verdict, and which rows to train with more seeds."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from ..params import Params, ParamsError
from . import statistics, tables, text


@dataclass(frozen=True)
class Step:
    """Train these rows up to a number of seeds: hours (or trainings, where no times are recorded), and the claims that
    this is likely to resolve with their power."""

    rows: tuple[str, ...]
    seeds: int
    cost: float
    claims: dict[tuple[str, str], float]


def show(profile: str | None, seeds: int | None) -> int:
    """Print the claims of every study with their verdicts; with `seeds`, the steps of `steps` too."""
    params = Params(profile=profile)
    if seeds and not _looks(seeds):
        raise ParamsError(f"verdicts: {seeds} seeds are fewer than the first planned look has, {min(statistics.LOOKS)}")
    gathered = tables.read(params)
    for study in params.studies.values():
        print(f"{study.title} ({study.name}, profile {params.profile})")
        for row in gathered.claims(study).to_dict("records"):
            words = f"{row['better']} over {row['worse']}: {text.verdict(row)}"
            print(f"  {words}" + (f"; {text.difference(row)} dB" if not np.isnan(row["difference"]) else ""))
    if seeds:
        seconds = seconds_per_seed(params)
        unit = "h" if seconds else "trainings (no times are recorded in this profile)"
        found = steps(params, gathered, seeds, seconds)
        print(f"Seeds to add, most claims per cost first, with looks at {', '.join(map(str, _looks(seeds)))} seeds:")
        for step in found:
            print(f"  {', '.join(step.rows)} up to {step.seeds} seeds, {step.cost:.1f} {unit}:")
            for (better, worse), power in step.claims.items():
                print(f"    {better} over {worse}, power {power:.0%}")
        if not found:
            print(f"  no open claim is likely to be resolved by {seeds} seeds")
    return 0


def seconds_per_seed(params: Params) -> dict[str, float]:
    """Seconds of training and measuring one seed of each row, as far as this machine's records say; empty where any
    trained row that was measured lacks its own."""
    found = {}
    for name in params.experiments:
        if not params.results("evaluate", name, "images.csv").exists():
            continue
        files = [params.results("machine", f"{stage}@{name}.json") for stage in ("train", "evaluate")]
        if not all(file.exists() for file in files):
            return {}
        total = sum(json.loads(file.read_text())["seconds"] for file in files)
        found[name] = total / len(params.experiment(name).seeds)
    return found


def _looks(seeds: int) -> list[int]:
    return [look for look in statistics.LOOKS if look <= seeds]


def steps(params: Params, gathered: tables.Gathered, seeds: int, seconds: dict[str, float]) -> list[Step]:
    """Which rows to train up to which planned look, at most `seeds`, chosen greedily by expected claims per cost.

    A claim counts with its power at the look's level over the study's tested claims, where that is at least
    `statistics.POWER`. Rows of an earlier step cost nothing again.
    """
    wanted: dict[tuple[str, str], tuple[int, float]] = {}
    for study in params.studies.values():
        verdicts = gathered.claims(study)
        tested = ~verdicts.verdict.isin((statistics.NOT_RUN, statistics.NOT_TESTED))
        for row in verdicts[verdicts.verdict.isin((statistics.UNRESOLVED, statistics.LEANS))].itertuples():
            pair, prior = (row.better, row.worse), gathered.priors["psnr"]
            differences, _ = statistics.differences_of(gathered.images, [pair], "psnr")
            for look in (look for look in _looks(seeds) if look > differences.seeds[0] > 0):
                level = statistics.level_at(look, looks=True) / tested.sum()
                power = statistics.power(differences, prior, look, gathered.deltas["psnr"], level)[0]
                if power >= statistics.POWER:
                    wanted.setdefault(pair, (look, power))
                    break
    have = gathered.images[gathered.images.seed != statistics.UNTRAINED].groupby("experiment").seed.nunique().to_dict()
    found: list[Step] = []
    while wanted:
        options = []
        for pair, (look, _) in wanted.items():
            rows = tuple(name for name in pair if have.get(name, look) < look)
            cost = sum((look - have[name]) * (seconds[name] / 3600 if seconds else 1.0) for name in rows)
            reached = have | dict.fromkeys(rows, look)
            free = {
                other: power
                for other, (needed, power) in wanted.items()
                if all(reached.get(name, needed) >= needed for name in other)
            }
            options.append(Step(rows, look, cost, free))
        best = max(options, key=lambda step: sum(step.claims.values()) / max(step.cost, 1e-9))
        found.append(best)
        have |= dict.fromkeys(best.rows, best.seeds)
        wanted = {pair: needed for pair, needed in wanted.items() if pair not in best.claims}
    return found
