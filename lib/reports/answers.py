"""The Answer of each study's report: two or three sentences made of its verdicts.

An answer changes with the numbers and names no claim by its key. A study without a function here is answered by
`in_general`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..measuring.evaluation import CURVE_PHOTOGRAPHS
from . import statistics, tables, text
from .statistics import EQUAL, HOLDS, LEANS, NOT_RUN, NOT_TESTED, REVERSED, UNRESOLVED

if TYPE_CHECKING:
    from .study import Report

SMOKE = (
    "This is a smoke run: profile `{profile}` proves that every row trains, is measured and is reported, and draws no "
    "conclusions. Its networks are too small and trained too briefly."
)

#: dB; where the modules of a seed lose less than this without attention, and those of another ten times as much or
#: more, seeds differ in whether attention has begun.
HARDLY = 0.1

#: Rows whose cost an answer tells without choosing.
MOST_COSTS = 8


def answer(report: Report) -> list[str]:
    """The sentences for a study in the profile of the report."""
    if not report.conclusive:
        return [SMOKE.format(profile=report.params.profile)]
    if report.run_claims().empty:
        return [f"None of the rows that would answer this has been run in profile `{report.params.profile}`."]
    sentences = [*filter(None, ANSWERS.get(report.study.name, in_general)(report))] or in_general(report)
    if report.study.name != across_systems.__name__:  # which says it task by task
        sentences.append(who_does_not_act(report))
    sentences += [who_acts_in_part(report), _not_run(report)]
    return [f"{text.capital(sentence)}." for sentence in sentences if sentence]


def _not_run(report: Report) -> str:
    """How many claims nothing is said about."""
    run = {report.task_title(better) for better in report.run_claims().better}
    missing = report.verdicts[report.verdicts.verdict == NOT_RUN]
    if missing.empty:
        return ""
    said = f"{len(missing)} of {len(report.verdicts)} claims {'were' if len(missing) > 1 else 'was'} not run"
    titles = dict.fromkeys(map(report.task_title, missing.better))
    whole = [title for title in titles if title not in run]
    return f"{said}, {'' if len(whole) == len(titles) else 'among them '}all on {text.listed(whole)}" if whole else said


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
        (LEANS, 1): "seem{s} to restore better than {reference}, though not surely",
        (LEANS, -1): "seem{s} to restore worse than {reference}, though not surely",
        UNRESOLVED: "show{s} no resolved difference from {reference}",
        NOT_TESTED: "{is_} not tested, for attention that does not act",
    }
    said = []
    for case, clause in clauses.items():
        verdict, sign = case if isinstance(case, tuple) else (case, 0)
        rows = claims[(claims.verdict == verdict) & (sign * claims.difference >= 0)]
        if rows.empty:
            continue
        called = [(row, names.get(row.better, report.labels[row.better])) for row in rows.itertuples()]
        shown = [
            name if verdict == NOT_TESTED else _with_difference(row, name, _mostly_idle(report, row.better))
            for row, name in called
        ]
        one = len(shown) == 1
        words = {"s": "s" if one else "", "is_": "is" if one else "are"}
        said.append(f"{text.listed(shown)} {clause.format(reference=reference, **words)}")
    return "; ".join(said)


def sides_exchanged(claims: pd.DataFrame) -> pd.DataFrame:
    """Claims with their two rows exchanged."""
    of_worse = claims.assign(
        better=claims.worse, worse=claims.better, difference=-claims.difference, low=-claims.high, high=-claims.low
    )
    return of_worse.assign(verdict=claims.verdict.replace({HOLDS: REVERSED, REVERSED: HOLDS}))


def _with_difference(row: Any, name: str, more: str = "") -> str:
    bounds = text.interval(row.low, row.high)
    return f"{name} ({text.number(row.difference, 2, True)} dB, {bounds}{more})" if bounds else name


def _mostly_idle(report: Report, row: str) -> str:
    """How many of a row's modules act, where it is half of them at most but the row is tested."""
    acting, of, modules = str(report.acts.get(row, "")).partition(" of ")
    return f"; {acting} of {modules} modules act" if of and 2 * int(acting) <= int(modules) else ""


def at_what_cost(report: Report) -> str:
    """Multiply-adds and memory of the compared rows beside the cheapest row of their task without attention, its
    reference where all have it; where claims are about many rows, of those that are decided or lean."""
    run = report.run_claims()
    decided = run[run.verdict.isin((HOLDS, REVERSED, EQUAL, LEANS))]
    chosen = {*run.better, *run.worse}
    if len(chosen) > MOST_COSTS and len(decided):
        chosen = {*decided.better, *decided.worse}
    said = []
    for task, names in report.tasks.items():
        costs = report.costs.reindex(names)[["multiply_adds", "peak_bytes"]].dropna()
        costs = costs[[name in report.params.experiments for name in costs.index]]
        plain = [name for name in costs.index if not report.attends(name)] or names[:1]
        base = costs.reindex(plain).multiply_adds.idxmin() if len(costs.index.intersection(plain)) else ""
        shown = [name for name in costs.index if name in chosen and name != base]
        if not base or not shown:
            continue
        ratios = costs.loc[shown] / costs.loc[base]
        ratios = ratios.map(lambda ratio: f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}")
        rows = [f"{report.labels[name]} ({adds} and {memory})" for name, adds, memory in ratios.itertuples()]
        said.append(f"on {task}, times the multiply-adds and the memory of {report.labels[base]}: {'; '.join(rows)}")
    return text.capital(". ".join(map(text.capital, said)))


def open_claims(report: Report) -> str:
    """How many claims are open, and what the cheapest of them needs."""
    run = report.run_claims()
    left = run[run.verdict.isin((UNRESOLVED, LEANS))]
    if left.empty:
        return "every claim that was run is resolved"
    fewest = left.more_seeds.min()
    said = f"by PSNR {len(left)} of {len(run)} claims are not decided"
    if fewest < np.inf:
        return f"{said}; the nearest needs {text.seeds(fewest)}"
    return f"{said} and would stay so with {statistics.MOST_SEEDS} more seeds"


def with_similarity(report: Report, better: str, worse: str, name: str) -> str:
    """How a gain goes with the self-similarity of photographs; nothing where the trend's interval holds zero."""
    line = report.trend(better, worse)
    if line is None or line[1] <= 0 <= line[2]:
        return ""
    quarters = tables.by_quartile(tables.gains(report.images, better, worse))
    verb = "grows" if line[0] > 0 else "shrinks"
    return (
        f"{name} {verb} from {text.number(quarters.iloc[0], 2, True)} dB on the least self-similar quarter of the "
        f"photographs to {text.number(quarters.iloc[-1], 2, True)} dB on the most"
    )


def with_field(report: Report, better: str, worse: str) -> str:
    """How a difference goes with the field that attention sees, where it moves by more than it is; nothing where the
    evaluation did not measure several."""
    measured = report.fields[report.fields.experiment.isin((better, worse))]
    psnr = measured.pivot_table(index="side", columns="experiment", values="psnr").dropna()
    if len(psnr) < 2 or psnr.shape[1] < 2:
        return ""
    gain = psnr[better] - psnr[worse]
    least, most = gain.index[0], gain.index[-1]
    if abs(gain[most] - gain[least]) <= max(abs(gain[least]), report.params.delta.psnr):
        return ""
    mine, other = (text.number(psnr[row][most] - psnr[row][least], 2, True) for row in (better, worse))
    return (
        f"on {CURVE_PHOTOGRAPHS} photographs this goes from {text.number(gain[least], 2, True)} dB in a field "
        f"of {least:.0f} x {least:.0f} pixels to {text.number(gain[most], 2, True)} in one of {most:.0f} x {most:.0f}; "
        f"{report.labels[better]} itself changes by {mine} dB there, the other by {other}"
    )


def from_how_far(report: Report) -> str:
    """How much the rows whose attention acts gain from the smallest to the largest field that was measured."""
    fields = report.fields[report.fields.experiment.map(report.tested).eq(True)]
    psnr = fields.pivot_table(index="side", columns="experiment", values="psnr").dropna()
    if len(psnr) < 2:
        return ""
    near, far = (f"{side:.0f} x {side:.0f}" for side in (psnr.index[0], psnr.index[-1]))
    changes = (psnr.iloc[-1] - psnr.iloc[0]).sort_values()
    ends = " to ".join(dict.fromkeys(text.number(change, 2, True) for change in changes.iloc[[0, -1]]))
    best = report.labels[str(changes.index[-1])]
    says = (
        f"{best} gains most from afar" if changes.iloc[-1] > report.params.delta.psnr
        else "what attention gains comes from nearby"
    )  # fmt: skip
    return (
        f"{says}: with a field of {far} pixels in place of {near}, rows whose attention acts change by {ends} dB on "
        f"{CURVE_PHOTOGRAPHS} photographs"
    )


def who_does_not_act(report: Report) -> str:
    """Which rows' attention does not act, by task; nothing where all do or no evaluation recorded it."""
    still: dict[str, list[str]] = {}
    all_rows = Counter(report.task_title(row) for row in _measured(report))
    for row in _measured(report):
        if not report.tested[row]:
            still.setdefault(report.task_title(row), []).append(report.labels[row])
    where = [
        f"in {'any row' if 1 < len(rows) == all_rows[task] else text.listed(rows)}{_task(report, task)}"
        for task, rows in still.items()
    ]
    return f"attention does not act {'; '.join(where)}" if where else ""


def who_acts_in_part(report: Report) -> str:
    """In which rows a part of the modules acts, and in which little depends on them in some seeds."""
    acts = {row: acts for row, acts in _measured(report).items() if report.tested[row]}
    partly = [f"{_on_task(report, row)} ({share})" for row, share in acts.items() if share != "yes"]
    said = [f"of the modules of all seeds only a part acts in {text.listed(partly)}"] if partly else []
    lost = report.of_modules.groupby(["experiment", "seed"]).lost.max().groupby("experiment").agg(["min", "max"])
    lost = lost[(lost["min"] < HARDLY) & (lost["max"] >= HARDLY) & (lost["max"] > 10 * lost["min"])]
    uneven = [
        f"{_on_task(report, str(row))} ({text.number(low)} to {text.number(high)} dB)"
        for row, (low, high) in zip(lost.index, lost.to_numpy(), strict=True)
    ]
    if uneven:
        said.append(f"what the strongest module is worth depends on the seed in {text.listed(uneven)}")
    return "; ".join(said)


def _measured(report: Report) -> dict[str, str]:
    """Whether the modules of rows act, of the rows whose evaluation recorded it."""
    found = report.acts[report.acts.str.fullmatch(r"yes|no|\d+ of \d+")]
    return {str(row): acts for row, acts in found.items()}


def _on_task(report: Report, name: str) -> str:
    """A row's title, with its task where several of the study were run."""
    return report.labels[name] + _task(report, report.resolved[name].task.title)


def _task(report: Report, title: str) -> str:
    several = len({report.task_title(better) for better in report.run_claims().better}) > 1
    return f" on {title}" if several else ""


def dagl_ablation(report: Report) -> list[str]:
    full, trunk = "dagl_gray_denoise_25", "edsr_gray_denoise_25"
    wide = f"{trunk}-as_many_parameters"
    published = report.verdicts[report.verdicts.published.notna()]
    run = published[published.verdict != NOT_RUN]
    resolved = run[run.verdict.isin((HOLDS, REVERSED))]
    same = (resolved.difference > 0) == (resolved.published > 0)
    untested = run.verdict == NOT_TESTED
    none_acts = len(run) > 0 and untested.all()
    of_these = "" if len(same) == 1 and same.all() else "all " if same.all() else f"{same.sum()} of these "
    agreeing = f", {of_these}in the paper's direction" if len(resolved) else ""
    not_tested = f"; {_is_or_are(untested.sum())} not tested" if untested.any() else ""
    return [
        f"whether Table 5's order holds cannot be said after {report.params.experiment(full).budget.steps:,} steps: in "
        "every pair a row has attention that does nothing" if none_acts else "",
        report.outcome(full, f"{full}-nl", ("DAGL's graph", "plain non-local attention with one head in its place")),
        with_field(report, full, f"{full}-nl"),
        report.outcome(full, trunk, ("DAGL", "the EDSR trunk without attention")),
        f"this difference is {report.by_set(full, trunk)}" if trunk in {*report.run_claims().worse} else "",
        report.outcome(full, wide, ("DAGL", f"a wider EDSR trunk{_parameters(report, wide, full, 'DAGL')}")),
        f"of the {len(run)} differences between rows of the paper's Table 5, {_is_or_are(len(resolved))} resolved here"
        f"{agreeing}{not_tested}"
        if len(run) and not none_acts else "",
        _kept(report, full),
    ]  # fmt: skip


def _parameters(report: Report, name: str, other: str, called: str) -> str:
    """How many times another row's parameters a row has, in brackets."""
    counts = report.costs.parameters.reindex([name, other])
    return f" ({counts.iloc[0] / counts.iloc[1]:.2g} times {called}'s parameters)" if counts.notna().all() else ""


def _kept(report: Report, name: str) -> str:
    """How many neighbours DAGL's graph keeps, where it keeps most of them."""
    seen = report.all_seen([name]).get(name, {})
    if "kept" not in seen or not (share := seen["kept"].mean() / seen["photograph"].size) > 0.5:
        return ""
    return (
        f"on one photograph the threshold of its graph removes {1 - share:.1%} of all neighbours, so that its weights "
        "choose, and against fixed neighbours nearly all are compared with few"
    )


def _is_or_are(count: int) -> str:
    """none is, 1 is, 2 are."""
    return f"{count or 'none'} {'are' if count > 1 else 'is'}"


def dagl_structure(report: Report) -> list[str]:
    names = {"dagl_gray_denoise_25-no_threshold_64": "a graph of 64 fixed neighbours"}
    full = report.verdicts[report.verdicts.better == "dagl_gray_denoise_25"]
    against = {row.worse: report.labels[row.worse].removeprefix("DAGL, ") for row in full.itertuples()}
    fixed = report.verdicts[report.verdicts.better.isin(names)]
    return [
        grouped(report, sides_exchanged(full), "the full network", against),
        grouped(report, fixed, "one of 4", names),
    ]


def panet_scales(report: Report) -> list[str]:
    scales = report.verdicts[report.verdicts.worse.str.endswith("scales_1")]
    tasks = {row.better: report.task_title(row.better).partition(",")[0] for row in scales.itertuples()}
    on = {row: f"the pyramid on {task}" for row, task in tasks.items()}
    trunk = "panet_gray_denoise_25-common_trunk"
    on[trunk] = "the pyramid in the common trunk on gray denoising"
    pixels = report.verdicts[report.verdicts.worse.str.endswith("pixel_wise")]
    alone = report.verdicts[report.verdicts.worse.str.startswith("edsr_")]
    return [
        grouped(report, scales, "one scale", on),
        grouped(report, alone, "the trunk without attention", on),
        grouped(report, pixels, "a pyramid of single pixels", on),
    ]


def enlca_amplification(report: Report) -> list[str]:
    trunk, said = "enlca_gray_denoise_25-common_trunk", []
    for start, place in ((f"{trunk}_exact", "by softmax, in the common trunk"), ("enlca_sr_x4", "in ENLCN")):
        claims = report.run_claims()
        of_k = claims[(claims.better == start) & claims.worse.str.fullmatch(rf"{start}[-_]k\d+")]
        names = {row.worse: f"k = {report.resolved[row.worse].options['k']:g}" for row in of_k.itertuples()}
        if clause := grouped(report, sides_exchanged(of_k), "k = 6", names):
            said.append(f"{place}, {clause}")
    pairs = {
        (f"{trunk}_exact", f"{trunk}_no_contrastive_loss"): ("the softmax", "the random features in its place"),
        (f"{trunk}_m512", f"{trunk}_no_contrastive_loss"): ("ENLCA with 512 random features", "with 128"),
        (trunk, f"{trunk}_no_contrastive_loss"): ("ENLCA with the contrastive loss", "ENLCA without"),
        (f"{trunk}_exact", "edsr_gray_denoise_25"): ("ENLCA by softmax", "the trunk without attention"),
        ("enlca_sr_x4", "edsr_sr_x4"): ("ENLCN", "its trunk without attention"),
    }
    run = {*report.run_claims()[["better", "worse"]].itertuples(index=False, name=None)}
    told = (report.outcome(*pair, names) for pair, names in pairs.items() if pair in run)
    return [*said, *told]


def ignn_aggregation(report: Report) -> list[str]:
    graph = report.verdicts[report.verdicts.worse.str.endswith("no_graph")]
    parts = report.verdicts[~report.verdicts.worse.str.endswith("no_graph")]
    on = {row.better: f"IGNN on {report.task_title(row.better)}" for row in graph.itertuples()}
    return [grouped(report, graph, "the same network without its graph", on), _one_by_one(report, parts)]


def _one_by_one(report: Report, claims: pd.DataFrame) -> str:
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
    left = run[run.verdict.isin((UNRESOLVED, LEANS))]
    still = (run.verdict == NOT_TESTED).sum()
    open_ = [
        _with_difference(row, f"{report.labels[row.better]} over {report.labels[row.worse]}")
        for row in left.itertuples()
    ]
    said += [f"{_is_or_are(len(open_))} not decided: {text.listed(open_)}"] * bool(open_)
    return "; ".join(said + [f"{_is_or_are(still)} not tested"] * bool(still))


def lir_parts(report: Report) -> list[str]:
    run = report.run_claims()
    without = {
        row.worse: f"on {report.task_title(row.worse)}, {report.labels[row.worse].removeprefix('LIR, ')}"
        for row in run.itertuples()
    }
    by_ssim = run.assign(**{key: run[f"ssim_{key}"] for key in ("difference", "low", "high", "verdict")})
    resolved = by_ssim[by_ssim.verdict.isin((HOLDS, REVERSED))]
    said = [
        f"{without[row.name]} is {text.number(abs(row.difference), 4)} "
        f"{'better' if row.difference > 0 else 'worse'} than LIR ({text.interval(row.low, row.high, 4)})"
        for row in sides_exchanged(resolved).assign(name=resolved.worse).itertuples()
    ]
    return [
        grouped(report, sides_exchanged(run), "LIR", without),
        f"by SSIM {text.listed(said)}" if said else "",
        open_claims(report),
    ]


def across_systems(report: Report) -> list[str]:
    sentences = []
    short = {
        "nl": "plain non-local attention", "dagl": "DAGL's graph", "enlca": "ENLCA", "ignn": "IGNN's graph",
        "panet": "PANet's blocks over a pyramid",
    }  # fmt: skip
    best = None
    for task, rows in report.tasks.items():
        claims = report.verdicts[report.verdicts.worse == rows[0]]
        names = {
            row.better: short.get(report.modules[row.better], report.labels[row.better])
            + " without contrastive loss" * ("_no_contrastive_loss" in row.better)
            for row in claims.itertuples()
        }
        if claims.verdict.eq(NOT_TESTED).all() and len(claims):
            said = "no attention acts, so that none is tested"
        else:
            said = grouped(report, claims, "the trunk alone", names)
        if said:
            run = [other for other, others in report.tasks.items() if report.rows.photographs[others[0]]]
            faster = any(other.startswith(f"{task}, ") for other in run)  # where the trunk is not held back
            more = "" if faster else _control(report, rows, names) + _by_its_rate(report, rows[0])
            sentences.append(f"on {task}{' at the common rate' * faster}, {said}{more}")
        held = claims[claims.verdict == HOLDS]
        if best is None and len(held):
            best = held.loc[held.difference.idxmax()]
    if best is None:
        return ["no module is shown to restore better than the trunk alone", *sentences]
    gain = f"the gain of {report.labels[best.better]} is {report.by_set(best.better, best.worse)}"
    says = [gain, with_similarity(report, best.better, best.worse, "it")]
    return [*sentences, "; ".join(filter(None, says)), from_how_far(report)]


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
        for worse in (report.study.experiments[0], dense, near)
    ]


def graph_prior(report: Report) -> list[str]:
    none, told = "graph_prior_gray_denoise_25", []
    for first, stages in ((none, "DAGL's stages"), (f"{none}-blocks", "PANet's blocks")):
        row = f"{first}{'_' if first != none else '-'}{{}}".format
        names = {
            row("gate"): "matching anew with a gated prior",
            row("reuse"): "the first stage's graph reused",
            row("reuse_wider"): f"the first graph of {stages} reused in a wider trunk",
        }
        claims = report.run_claims()
        of_both = pd.concat([claims[claims.worse == first], sides_exchanged(claims[claims.better == first])])
        is_wider = of_both.better == row("reuse_wider")
        if said := grouped(report, of_both[~is_wider], "matching anew alone", names):
            told.append(f"in {stages}, {said}")
        if said := grouped(report, of_both[is_wider], "matching anew alone", names):
            gains = of_both[is_wider].verdict.isin((HOLDS, LEANS)).any()
            told.append(said + ": its width alone may be why" * bool(gains))
        told.append(report.outcome(row("gate"), row("random"), (f"the gated prior in {stages}", "a random one")))
    ends = ("a prior of the most dependent neighbours in DAGL's stages", "one of the least")
    told.append(report.outcome(f"{none}-most", f"{none}-least", ends))
    return [*told, _efficient(report, none)]


def _efficient(report: Report, none: str) -> str:
    """What stages that hold every score take beside DAGL's own form."""
    adds = report.costs.multiply_adds.reindex([f"{none}-reuse", none, "dagl_gray_denoise_25"]) / 1e9
    if adds.isna().any():
        return ""
    reuse, held, own = (f"{value:.3g} G" for value in adds)
    return (
        f"DAGL's stages without a prior take {held} multiply-adds here, where they hold every score, and {reuse} "
        f"with the first graph reused; DAGL's own form takes {own} and matches twice"
    )


def _by_its_rate(report: Report, trunk: str) -> str:
    """What a trunk with a rate of its own gains on the same at the common one."""
    if not getattr(report.params.entry(trunk), "rate", None):
        return ""
    own = report.resolved[trunk]
    alike = (row for row in report.resolved.values() if (row.task, row.options) == (own.task, own.options))
    gain = report.difference(trunk, next(row.name for row in alike if row.name != trunk))
    return f"; the rate alone gains {gain} dB" if gain else ""


def _control(report: Report, rows: Sequence[str], names: Mapping[str, str]) -> str:
    """What more channels in place of attention gain on a task's trunk, and how the modules compare with that."""
    wide = next((name for name in rows if "-as_many_parameters" in name), rows[0])
    if wide == rows[0] or not (gain := report.difference(wide, rows[0])):
        return ""
    size = _parameters(report, wide, rows[0], "the trunk")
    claims = report.verdicts[report.verdicts.worse == wide]
    beside = [
        f", {words} {text.listed([names.get(row, report.labels[row]) for row in compared])}"
        for verdict, words in ((HOLDS, "less than"), (REVERSED, "more than"), (EQUAL, "as much as"))
        if len(compared := claims[claims.verdict == verdict].better)
    ]
    return f"; a wider trunk{size} gains {gain} dB{''.join(beside)}"


ANSWERS: dict[str, Callable[[Report], list[str]]] = {
    function.__name__: function
    for function in (
        dagl_ablation, dagl_structure, panet_scales, enlca_amplification, ignn_aggregation, lir_parts,
        sparse_competitors, graph_prior, across_systems,
    )
}  # fmt: skip
