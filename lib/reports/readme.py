"""Results as the README and the summary show them, from the tables and the answers of the reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from IPython.display import Markdown

from ..params import Params
from . import simulation, statistics, text
from .study import Report

#: Simulated profiles behind the numbers of `trust`.
REPETITIONS = 200


def results(studies: Sequence[str] = (), shown: Sequence[Params] | None = None) -> str:
    """The README's results as Markdown: how many claims of each study got which verdict, then answer, table and figure
    of some studies; each of the largest profile in which the study was run."""
    profiles = shown or [Params(profile=name) for name in Params().profiles]
    return "\n\n".join([counts(profiles), *(_study(name, profiles) for name in studies)])


def _largest_run(study: str, profiles: Sequence[Params]) -> Params:
    """The last of the profiles in which a claim of the study was run, else the first."""
    for params in reversed(profiles):
        file = params.results("tables", study, "verdicts.csv")
        if file.exists() and (pd.read_csv(file).verdict != statistics.NOT_RUN).any():
            return params
    return profiles[0]


def counts(profiles: Sequence[Params]) -> str:
    """How many claims of each study got which verdict, each study a link to its report."""
    rows = {}
    for name, study in profiles[0].studies.items():
        params = _largest_run(name, profiles)
        file = params.results("tables", name, "verdicts.csv")
        found = pd.read_csv(file).verdict.value_counts() if file.exists() else {statistics.NOT_RUN: len(study.claims)}
        report = f"results/{params.profile}/report/{name}/report_{name}.ipynb"
        many = {kind: int(found.get(kind, 0)) for kind in statistics.VERDICTS}
        said = ", ".join(f"{number} {kind}" for kind, number in many.items() if number)
        rows[f"[{study.title}]({report})"] = {"profile": params.profile, "claims": said}
    return text.markdown(pd.DataFrame.from_dict(rows, orient="index").rename_axis("study"))


def _study(name: str, profiles: Sequence[Params]) -> str:
    params = _largest_run(name, profiles)
    if not params.results("tables", name, "verdicts.csv").exists():
        return f"### {params.study(name).title}\n\nNot run."
    report = Report(name, params)
    figure = f"![{report.study.title}](results/{params.profile}/report/{name}/differences.png)"
    said = f"### {report.study.title} (profile `{params.profile}`)"
    return "\n\n".join([said, report.said(), figure, report.table().data])


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
