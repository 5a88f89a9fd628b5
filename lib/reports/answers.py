"""The Answer of each study's report: two or three sentences made of its verdicts.

An answer changes with the numbers and names no claim by its key. A study without a function here is answered by
`in_general`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import curves, statistics, tables, text
from .statistics import EQUAL, HOLDS, LEANS, NOT_RUN, NOT_TESTED, REVERSED, UNRESOLVED

if TYPE_CHECKING:
    from .study import Report

SMOKE = (
    "This is a smoke run: profile `{profile}` proves that every row trains, is measured and is reported, and draws no "
    "conclusions. Its networks are too small and trained too briefly."
)


def answer(report: Report) -> list[str]:
    """The sentences for a study in the profile of the report."""
    if not report.conclusive:
        return [SMOKE.format(profile=report.params.profile)]
    if report.run_claims().empty:
        return [f"None of the rows that would answer this has been run in profile `{report.params.profile}`."]
    sentences = [*filter(None, ANSWERS.get(report.study.name, in_general)(report))] or in_general(report)
    return [f"{text.capital(sentence)}." for sentence in sentences if sentence]


def in_general(report: Report) -> list[str]:
    """The claims of a study by verdict."""
    return [grouped(report, report.verdicts, "the row that it is compared with"), open_claims(report)]


def grouped(report: Report, claims: pd.DataFrame, reference: str, names: Mapping[str, str] | None = None) -> str:
    """One sentence about claims of one reference: which rows are better, worse, equal or open, in this order.

    names: what stands for the better row of a claim, by its key; its title where nothing does.
    """
    names = names or {}
    clauses = {
        HOLDS: "restore{s} better than {reference}",
        REVERSED: "restore{s} worse than {reference}",
        EQUAL: "restore{s} as well as {reference}",
        (LEANS, 1): "seem{s} to restore better, though not surely",
        (LEANS, -1): "seem{s} to restore worse, though not surely",
        UNRESOLVED: "show{s} no resolved difference to {reference}",
        NOT_TESTED: "do{es} not act and {is_} not tested",
    }
    said = []
    for case, clause in clauses.items():
        verdict, sign = case if isinstance(case, tuple) else (case, 0)
        rows = claims[(claims.verdict == verdict) & (sign * claims.difference >= 0)]
        if rows.empty:
            continue
        called = [(row, names.get(row.better, report.labels[row.better])) for row in rows.itertuples()]
        shown = [name if verdict == NOT_TESTED else _named(row, name) for row, name in called]
        one = len(shown) == 1
        words = {"s": "s" if one else "", "es": "es" if one else "", "is_": "is" if one else "are"}
        said.append(f"{text.listed(shown)} {clause.format(reference=reference, **words)}")
    return "; ".join(said)


def turned(claims: pd.DataFrame) -> pd.DataFrame:
    """Claims with their two rows exchanged."""
    of_worse = claims.assign(
        better=claims.worse, worse=claims.better, difference=-claims.difference, low=-claims.high, high=-claims.low
    )
    return of_worse.assign(verdict=claims.verdict.replace({HOLDS: REVERSED, REVERSED: HOLDS}))


def _named(row: Any, name: str) -> str:
    bounds = text.interval(row.low, row.high)
    return f"{name} ({text.number(row.difference, 2, True)} dB, {bounds})" if bounds else name


def at_what_cost(report: Report) -> str:
    """What rows with attention take of their task's reference's multiply-adds and memory."""
    said = []
    for task, rows in report.tasks.items():
        costs = report.costs.reindex(rows)[["multiply_adds", "peak_bytes"]]
        attending = [name for name in rows[1:] if report.attends(name)]
        adds, memory = (_between(ratios.dropna()) for _, ratios in (costs / costs.iloc[0]).loc[attending].items())
        if adds:
            said.append(
                f"on {task} a row with attention takes {adds} times the multiply-adds and {memory} times the memory of "
                f"{report.labels[rows[0]]}"
            )
    return text.capital("; ".join(said))


def _between(ratios: pd.Series) -> str:
    """The least and the most of them, once where they are alike; nothing for none."""
    ends = [f"{ratio:.2g}" for ratio in (ratios.min(), ratios.max())]
    return " to ".join(dict.fromkeys(ends)) if len(ratios) else ""


def open_claims(report: Report) -> str:
    """How many claims are open, and what the cheapest of them needs."""
    run = report.run_claims()
    left = run[run.verdict.isin((UNRESOLVED, LEANS))]
    if left.empty:
        return "every claim that was run is resolved"
    fewest = left.more_seeds.min()
    return f"{len(left)} of {len(run)} claims are open; the nearest needs {text.seeds(fewest)}" if fewest < 1e9 else (
        f"{len(left)} of {len(run)} claims are open and would stay so with {statistics.MOST_SEEDS} more seeds"
    )  # fmt: skip


def with_similarity(report: Report, better: str, worse: str, name: str) -> str:
    """How a gain goes with the self-similarity of photographs; nothing where the trend's interval holds zero."""
    line = report.trend(better, worse)
    if line is None or line[1] <= 0 <= line[2]:
        return ""
    quarters = tables.by_quartile(tables.gains(report.images, better, worse))
    verb = "grows" if line[0] > 0 else "shrinks"
    return (
        f"{name} {verb} from {text.number(quarters.iloc[0], 2, True)} dB on the quarter of the photographs that repeat "
        f"themselves least to {text.number(quarters.iloc[-1], 2, True)} dB on the quarter that do most"
    )


def over_training(report: Report, better: str, task: str, name: str) -> str:
    """Where a row's gain on its task's reference is going at the end of the training; nothing where it is open or
    was not recorded."""
    found = report.outcomes(task)
    if better not in found.index or found.outcome[better] == curves.OPEN:
        return ""
    row = found.loc[better]
    half, end = (text.number(value, 2, True) for value in (row.half, row.end))
    moved = {curves.GROWING: "grew", curves.SHRINKING: "shrank", curves.SETTLED: "went"}[row.outcome]
    settled = ": it has settled" if row.outcome == curves.SETTLED else ""
    by_set = report.by_set(better, report.tasks[task][0])
    return (
        f"over the second half of the training {name} {moved} from {half} to {end} dB on the validation photographs"
        f"{settled}; on the test photographs it is {by_set}"
    )


def over_field(report: Report, better: str, name: str) -> str:
    """How much of a row's PSNR a small field costs; nothing where the evaluation did not measure several."""
    psnr = report.fields[report.fields.experiment == better].groupby("side").psnr.mean()
    if len(psnr) < 2:
        return ""
    least, best = psnr.index[0], psnr.idxmax()
    if best == least:
        return f"{name} needs no field larger than {least:.0f} x {least:.0f} pixels, the smallest that was tried"
    gained = text.number(psnr[best] - psnr[least], 2, True)
    return (
        f"a field of {best:.0f} x {best:.0f} pixels, the best of those tried, is worth {gained} dB over one of "
        f"{least:.0f} x {least:.0f}"
    )


def who_acts(report: Report) -> str:
    """Which rows' attention acts and which does not, with the share of modules over all seeds where it is a part of
    them; nothing where no evaluation recorded it."""
    measured = report.acts[report.acts.str.fullmatch(r"yes|no|\d+ of \d+")]
    if measured.empty:
        return ""
    shares = {row: f" ({acts} modules of all seeds)" if " of " in acts else "" for row, acts in measured.items()}
    named = {
        acts: [f"{report.labels[row]}{share}" for row, share in shares.items() if bool(report.tested[row]) == acts]
        for acts in (True, False)
    }
    subject = "it" if named[True] else "attention"
    clauses = {True: "attention acts in {}", False: subject + " does not act in {}"}
    return "; ".join(clauses[acts].format(text.listed(rows)) for acts, rows in named.items() if rows)


def dagl_ablation(report: Report) -> list[str]:
    full = "dagl_gray_denoise_25"
    published = report.verdicts[report.verdicts.published.notna()]
    run = published[published.verdict != NOT_RUN]
    resolved = run[run.verdict.isin((HOLDS, REVERSED))]
    same = (resolved.difference > 0) == (resolved.published > 0)
    untested = run.verdict == NOT_TESTED
    none_acts = len(run) > 0 and untested.all()
    agreeing = f", {same.sum()} in the paper's direction" if len(resolved) else ""
    not_tested = f"; {_is_or_are(untested.sum())} not tested" if untested.any() else ""
    return [
        f"whether Table 5's order holds cannot be said after {report.params.experiment(full).budget.steps:,} steps: in "
        "every pair a row has attention that does nothing" if none_acts else "",
        report.outcome(full, f"{full}-nl", ("DAGL's graph", "plain non-local attention with one head in its place")),
        report.outcome(full, "edsr_gray_denoise_25", ("DAGL", "the EDSR trunk without attention")),
        report.outcome(full, "edsr_gray_denoise_25-as_many_parameters", ("DAGL", "a wider EDSR trunk")),
        f"of the {len(run)} differences that the paper's Table 5 implies, {_is_or_are(len(resolved))} resolved here"
        f"{agreeing}{not_tested}"
        if len(run) and not none_acts else "",
        _order(report, full),
        who_acts(report),
    ]  # fmt: skip


def _is_or_are(count: int) -> str:
    """none is, 1 is, 2 are."""
    return f"{count or 'none'} {'are' if count > 1 else 'is'}"


def _order(report: Report, full: str) -> str:
    """The rows of a task with attention by their PSNR, and which do not restore better than the trunk without."""
    rows = report.tasks[report.task_title(full)]
    psnr = report.rows.psnr.reindex([name for name in rows if report.attends(name)]).dropna()
    trunk = report.rows.psnr.get("edsr_gray_denoise_25", np.nan)
    if len(psnr) < 2 or np.isnan(trunk):
        return ""
    named = [f"{report.labels[name]} ({value:.2f} dB)" for name, value in psnr.sort_values(ascending=False).items()]
    place = f"the trunk without attention ({trunk:.2f} dB) would stand in place {(psnr > trunk).sum() + 1}"
    return f"from best to worst: {text.listed(named)}; {place}"


def dagl_structure(report: Report) -> list[str]:
    names = {"dagl_gray_denoise_25-no_threshold_64": "64 fixed neighbours"}
    full = report.verdicts[report.verdicts.better == "dagl_gray_denoise_25"]
    against = {row.worse: report.labels[row.worse].removeprefix("DAGL, ") for row in full.itertuples()}
    fixed = report.verdicts[report.verdicts.better.isin(names)]
    return [
        grouped(report, turned(full), "the full network", against),
        grouped(report, fixed, "4 of them", names),
        _order(report, "dagl_gray_denoise_25"),
    ]


def panet_scales(report: Report) -> list[str]:
    scales = report.verdicts[report.verdicts.worse.str.endswith("scales_1")]
    on = {row.better: f"on {report.task_title(row.better)} the pyramid" for row in scales.itertuples()}
    trunk = "panet_gray_denoise_25-common_trunk"
    on[trunk] = "in the common trunk the pyramid"
    run = report.run_claims()
    pixels = f"{trunk}_pixel_wise" if f"{trunk}_pixel_wise" in set(run.worse) else ""
    return [
        report.outcome(trunk, pixels, ("in the common trunk, block matching", "pixel matching")),
        grouped(report, scales, "one scale", on),
        report.outcome(trunk, "edsr_gray_denoise_25", ("PANet's pyramid in the common trunk", "the trunk alone")),
    ]


def enlca_amplification(report: Report) -> list[str]:
    trunk, said = "enlca_gray_denoise_25-common_trunk", []
    for start, place in ((f"{trunk}_exact", "in the common trunk with exact attention"), ("enlca_sr_x4", "in ENLCN")):
        claims = report.run_claims()
        of_k = claims[(claims.better == start) & claims.worse.str.fullmatch(rf"{start}[-_]k\d+")]
        names = {row.worse: f"amplification {report.options(row.worse)['k']:g}" for row in of_k.itertuples()}
        if clause := grouped(report, turned(of_k), "amplification 6", names):
            said.append(f"{place}, {clause}")
    pairs = {
        (f"{trunk}_exact", f"{trunk}_no_contrastive_loss"): ("exact attention", "the random features in its place"),
        (f"{trunk}_exact", "edsr_gray_denoise_25"): ("exact attention", "the trunk without attention"),
        ("enlca_sr_x4", "edsr_sr_x4"): ("ENLCN", "its trunk without attention"),
    }
    run = {*report.run_claims()[["better", "worse"]].itertuples(index=False, name=None)}
    return [*said, *(report.outcome(*pair, names) for pair, names in pairs.items() if pair in run), who_acts(report)]


def ignn_aggregation(report: Report) -> list[str]:
    graph = report.verdicts[report.verdicts.worse.str.endswith("no_graph")]
    parts = report.verdicts[(report.verdicts.better == "ignn_sr_x2") & ~report.verdicts.worse.str.endswith("no_graph")]
    on = {row.better: f"IGNN on {report.task_title(row.better)}" for row in graph.itertuples()}
    return [grouped(report, graph, "the same network without its graph", on), _each(report, parts), open_claims(report)]


def _each(report: Report, claims: pd.DataFrame) -> str:
    """A clause for each claim that is resolved; that none is, where none is."""
    run = claims[claims.verdict != NOT_RUN]
    delta = report.params.delta.psnr
    done = run[run.verdict.isin((HOLDS, REVERSED, EQUAL))]
    said = [
        text.sentence(row._asdict(), report.labels[row.better], report.labels[row.worse], delta)
        for row in done.itertuples()
    ]
    if run.empty:
        return ""
    return "; ".join(said) or f"none of the other {len(run)} comparisons is resolved"


def lir_parts(report: Report) -> list[str]:
    run = report.run_claims()
    without = {row.worse: f"on {report.task_title(row.worse)} {report.labels[row.worse]}" for row in run.itertuples()}
    by_ssim = run.assign(**{key: run[f"ssim_{key}"] for key in ("difference", "low", "high", "verdict")})
    resolved = by_ssim[by_ssim.verdict.isin((HOLDS, REVERSED))]
    said = [
        f"{without[row.worse]} is {text.number(abs(row.difference), 4)} "
        f"{'worse' if row.difference > 0 else 'better'} than LIR"
        for row in resolved.itertuples()
    ]
    return [
        grouped(report, turned(run), "LIR", without),
        f"by SSIM {text.listed(said)}" if said else "",
        open_claims(report),
    ]


def across_systems(report: Report) -> list[str]:
    sentences = []
    short = {
        "nl": "plain non-local attention", "dagl": "DAGL's graph", "panet": "PANet's pyramid", "enlca": "ENLCA",
        "ignn": "IGNN's graph",
    }  # fmt: skip
    best: tuple[float, tuple] | None = None
    for task, rows in report.tasks.items():
        claims = report.verdicts[report.verdicts.worse == rows[0]]
        names = {
            row.better: short.get(report.modules[row.better], report.labels[row.better])
            + " without its contrastive loss" * row.better.endswith("_no_contrastive_loss")
            for row in claims.itertuples()
        }
        if said := grouped(report, claims, "the same trunk without attention", names):
            sentences.append(f"on {task}, {said}" + _control(report, rows, names))
        for row in claims[claims.verdict == HOLDS].itertuples():
            if best is None or row.difference > best[0]:
                best = (row.difference, (row.better, row.worse, f"the gain of {names[row.better]} on {task}", task))
    if best is None:
        return ["no module is shown to restore better than the trunk alone", *sentences]
    better, worse, name, task = best[1]
    return [
        *sentences,
        with_similarity(report, better, worse, name),
        over_field(report, better, report.labels[better]),
        over_training(report, better, task, name),
    ]


def sparse_competitors(report: Report) -> list[str]:
    dense, near = "edsr_gray_denoise_25-nl", "sparse_gray_denoise_25-common_trunk_window_12"
    names = {
        "sparse_gray_denoise_25-common_trunk_best_16": "attention to the 16 best matches",
        "nlsa_gray_denoise_25-common_trunk": "NLSA",
        near: "attention within windows",
        dense: "attention to every pixel",
        "panet_gray_denoise_25-common_trunk_scales_1": "PANet's matching of blocks of 3 x 3 pixels",
    }
    names[report.study.experiments[0]] = "the trunk without attention"
    return [
        grouped(report, report.verdicts[report.verdicts.worse == worse], names[worse], names)
        for worse in (report.study.experiments[0], near)
    ]


def graph_prior(report: Report) -> list[str]:
    none, told = "graph_prior_gray_denoise_25", []
    for first, stages in ((none, "DAGL's graphs"), (f"{none}-blocks", "PANet's blocks")):
        row = f"{first}{'_' if first != none else '-'}{{}}".format
        cheaper = 1 - report.costs.multiply_adds.get(row("reuse"), np.nan) / report.costs.multiply_adds.get(
            first, np.nan
        )
        names = {
            row("gate"): "matching anew with a gated prior",
            row("reuse"): "the shallow graph as it is",
            row("reuse_wider"): "the shallow graph as it is in a wider trunk",
        }
        claims = report.run_claims()
        of_both = pd.concat([claims[claims.worse == first], turned(claims[claims.better == first])])
        if said := grouped(report, of_both, "matching anew alone", names):
            saved = f"; taking it as it is saves {cheaper:.0%} of the multiply-adds" if cheaper > 0 else ""
            told.append(f"in stages of {stages}, {said}{saved}")
    return [
        *told,
        report.outcome(f"{none}-gate", f"{none}-random", ("the prior", "a random one")),
        report.outcome(
            f"{none}-most", f"{none}-least", ("a prior of the most dependent neighbours", "one of the least")
        ),
    ]


def _control(report: Report, rows: Sequence[str], names: Mapping[str, str]) -> str:
    """What more channels in place of attention gain, and how the modules compare with that."""
    wide = report.rows.loc[[name for name in rows if name.endswith("-as_many_parameters")]]
    if wide.empty or pd.isna(wide.difference.iloc[0]):
        return ""
    claims = report.verdicts[report.verdicts.worse == wide.index[0]]
    beside = [
        f", {words} {text.listed([names.get(row, report.labels[row]) for row in rows])}"
        for verdict, words in ((HOLDS, "less than"), (REVERSED, "more than"), (EQUAL, "as much as"))
        if len(rows := claims[claims.verdict == verdict].better)
    ]
    return f"; a wider trunk without attention gains {text.difference(wide.iloc[0])} dB{''.join(beside)}"


ANSWERS: dict[str, Callable[[Report], list[str]]] = {
    function.__name__: function
    for function in (
        dagl_ablation,
        dagl_structure,
        panet_scales,
        enlca_amplification,
        ignn_aggregation,
        lir_parts,
        sparse_competitors,
        graph_prior,
        across_systems,
    )
}
