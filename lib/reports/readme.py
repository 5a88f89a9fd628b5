"""Results as the README and the summary show them, from the tables and the answers of the reports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from IPython.display import Markdown

from ..params import Params
from . import simulation, statistics, text
from .answers import answer as all_sentences
from .study import Report

#: The study of conventions, which has no rows and no claims.
PUBLISHED_NUMBERS = "published_numbers"

#: Simulated profiles behind the numbers of `trust`.
REPETITIONS = 200


def results(shown: Sequence[Params] | None = None) -> str:
    """The README's results as Markdown: three sentences of the answer and the figure of the last study, in the largest
    profile in which it was run, then every study with the first sentence of its answer and how many claims got which
    verdict."""
    profiles = shown or [Params(profile=name) for name in Params().profiles]
    last = [*profiles[0].studies][-1]
    params = runs(last, profiles)[0]
    parts = [counts(profiles, answers_of=[*profiles[0].studies][:-1]), _published_numbers(profiles)]
    if not _verdicts(params, last).empty:
        report = Report(last, params)
        alt = "Differences of each module to the trunk without attention, photograph by photograph"
        figure = f"![{alt}](results/{params.profile}/report/{last}/differences.png)"
        parts = [
            f"### {report.study.title} (profile `{params.profile}`)",
            " ".join(all_sentences(report)[:3]),
            figure,
            "### Every study",
            *parts,
        ]
    return "\n\n".join(filter(None, parts))


def runs(study: str, profiles: Sequence[Params]) -> list[Params]:
    """The profiles in which a claim of the study was run, the largest first; smoke runs only where there is no other,
    and the first profile where there is none at all."""
    found = [params for params in reversed(profiles) if (_verdicts(params, study) != statistics.NOT_RUN).any()]
    conclusive = [params for params in found if Report(study, params).conclusive]
    return conclusive or found[:1] or [profiles[0]]


def counts(profiles: Sequence[Params], answers_of: Sequence[str] = (), root: str = "") -> str:
    """How many claims of each study got which verdict, a line for each of its `runs`, with a link to its report and
    some with the first sentence of their answers. root: the way to the project's root."""
    rows = []
    for name, study in profiles[0].studies.items():
        for params in runs(name, profiles):
            found = _verdicts(params, name).value_counts().to_dict() or {statistics.NOT_RUN: len(study.claims)}
            report = f"report/{name}/report_{name}.ipynb"
            link = (
                f"[{study.title}]({root}results/{params.profile}/{report})"
                if params.results(report).exists()
                else study.title
            )
            many = {kind: int(found.get(kind, 0)) for kind in statistics.VERDICTS}
            said = ", ".join(f"{number} {kind}" for kind, number in many.items() if number)
            short = {"in short": in_short(name, params) if name in answers_of else "see above"} if answers_of else {}
            rows.append({"study": link, **short, "profile": params.profile, "claims": said})
    return text.markdown(pd.DataFrame(rows).set_index("study"))


def _verdicts(params: Params, study: str) -> pd.Series:
    """The verdict of each claim of a study; empty before it was run."""
    file = params.results("tables", study, "verdicts.csv")
    return pd.read_csv(file).verdict if file.exists() else pd.Series(dtype=str)


def in_short(study: str, params: Params) -> str:
    """The first clause of a study's answer, without its intervals; of a smoke run that it is one."""
    if _verdicts(params, study).empty:
        return "not run"
    report = Report(study, params)
    if not report.conclusive:
        return "a smoke run, which draws no conclusions"
    said = re.sub(r"( dB), \S+ to [^\s;)]+", r"\1", all_sentences(report)[0])
    return re.split(r"; (?!\d+ of)", said)[0].removesuffix(".")


def _published_numbers(profiles: Sequence[Params]) -> str:
    """What came out of comparing our numbers with published ones, in the largest profile in which it was run."""
    folder = f"report/{PUBLISHED_NUMBERS}"
    for params in reversed(profiles):
        if (numbers := params.results(folder, "numbers.csv")).exists():
            verdicts = pd.read_csv(numbers).verdict
            agree, differ = ((verdicts == verdict).sum() for verdict in ("agrees", "differs"))
            link = f"[published numbers](results/{params.profile}/{folder}/report_{PUBLISHED_NUMBERS}.ipynb)"
            checked = f"How we measure is checked against {link} (profile `{params.profile}`)"
            return f"{checked}: {agree} of {agree + differ} agree."
    return ""


def answers(params: Params) -> str:
    """Question and answer of every study in a profile."""
    reports = (Report(name, params) for name in params.studies)
    return "\n\n".join(f"**{report.study.title}** {report.said()}" for report in reports)


def verdicts(params: Params) -> Markdown:
    """Every claim of every study with its verdict; kept in `summary/verdicts.csv` too."""
    reports = {name: Report(name, params) for name in params.studies}
    out = params.results("summary", "verdicts.csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    pd.concat([one.verdicts.assign(study=name) for name, one in reports.items()]).to_csv(out, index=False)
    return Markdown("\n\n".join(f"### {one.study.title}\n\n{one.claims().data}" for one in reports.values()))


def metrics(params: Params) -> dict[str, dict[str, float]]:
    """For `dvc metrics`: PSNR (dB) of every row that was measured, its difference to the first of its task by study,
    and how many claims got which verdict; kept in `summary/metrics.json` too."""
    found: dict[str, dict[str, float]] = {"claims": {}, "psnr": {}}
    for name in params.studies:
        report = Report(name, params)
        found["psnr"] |= report.rows.psnr.dropna().round(3).to_dict()
        found[f"difference in {name}"] = report.rows.difference.dropna().round(3).to_dict()
        for verdict, count in report.verdicts.verdict.value_counts().items():
            found["claims"][str(verdict)] = found["claims"].get(str(verdict), 0) + int(count)
    out = params.results("summary", "metrics.json")
    out.write_text(json.dumps({name: values for name, values in found.items() if values}, indent=1) + "\n")
    return found


def trust(params: Params) -> str:
    """The simulation of `simulation.table` with the variances of the profile's own claims, as percentages."""
    found = simulation.components(_differences(params))
    if len(found) < statistics.MIN_CLAIMS:
        return f"Fewer than {statistics.MIN_CLAIMS} claims with several seeds have been run in this profile."
    table = simulation.table(found, REPETITIONS, claims=len(found))
    return text.markdown(table.map(lambda share: f"{share:.0%}")) + (
        f"\n\n{REPETITIONS} simulated profiles of {len(found)} claims, as many as were run; a study has "
        f"{simulation.FAMILY} of them."
    )


def _differences(params: Params) -> Iterator[np.ndarray]:
    """Tables of the differences of all claims that were run with several seeds."""
    done = set()
    for name, study in params.studies.items():
        images = pd.read_csv(params.results("tables", name, "images.csv"))
        for claim in study.claims:
            if (pair := (claim.better, claim.worse)) in done:
                continue
            done.add(pair)
            try:
                table = statistics.paired(images, *pair)
            except statistics.NotComparable:
                continue
            if table.shape[1] > 1:
                yield table.to_numpy()
