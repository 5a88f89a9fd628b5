"""A study's report: each standard cell of its notebook is one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
from IPython.display import Image, Markdown
from matplotlib.figure import Figure

from .. import figures
from ..params import Params
from ..params import text as in_words
from . import answers, curves, plots, statistics, tables, text

#: The profile that proves that everything runs, and draws no conclusions.
SMOKE_RUN = "quick"


class NotRun(LookupError):
    """The results to be shown were not computed in this profile."""


class Report:
    """The tables of a study in the words and figures of its report.

    labels: title of each row; tasks: title of each task of the study, and of its rows at a rate of their own
    (`Params.group`), with its rows, of which the first is the reference. Numbers are read from `tables/<study>/`,
    figures saved in `report/<study>/`.
    """

    def __init__(self, study: str, params: Params | None = None):
        plots.style()
        self.params = params or Params()
        self.study = self.params.study(study)
        source, self.out = self.params.results("tables", study), self.params.results("report", study)
        self.images = pd.read_csv(source / "images.csv")
        self.rows = pd.read_csv(source / "rows.csv", index_col=0)
        self.costs = pd.read_csv(source / "costs.csv", index_col=0)
        acting = pd.read_csv(source / "acts.csv", index_col=0, keep_default_na=False)
        self.acts, self.tested = acting.acts, acting.tested
        self.of_modules = pd.read_csv(source / "modules.csv")
        self.verdicts = pd.read_csv(source / "verdicts.csv", dtype={"reason": str, "source": str})
        self.verdicts = self.verdicts.fillna({"reason": "", "source": ""})
        self.fields = pd.read_csv(source / "field.csv")
        self.curves = pd.read_csv(source / "curve.csv")
        self.not_run = pd.read_csv(source / "not_run.csv", index_col=0)
        fitted = pd.read_csv(source / "prior.csv", index_col=0)
        self.priors = {metric: statistics.Prior(*fitted.loc[metric]) for metric in fitted.index}
        self.resolved = {name: self.params.row(name) for name in self.study.experiments}
        self.labels = {name: row.title for name, row in self.resolved.items()}
        self.modules = {name: text.module_of(row) for name, row in self.resolved.items()}
        self.tasks = text.grouped({name: self.params.group(name) for name in self.resolved})
        self.published = tables.published()

    # -- what was found ------------------------------------------------------------------------------------------------

    @property
    def conclusive(self) -> bool:
        """Whether the profile draws conclusions."""
        return self.params.profile != SMOKE_RUN

    def said(self) -> str:
        """Two or three sentences that answer the study's question."""
        return " ".join(answers.answer(self))

    def answer(self) -> Markdown:
        """`said` for the notebook."""
        cost = answers.at_what_cost(self) if self.conclusive else ""
        return Markdown(f"**Answer.** {self.said()}" + f"\n\n**At what cost.** {cost}." * bool(cost))

    def outcome(self, better: str, worse: str, names: tuple[str, str]) -> str:
        """A claim's outcome in words (`text.sentence`), `names` standing for its rows; nothing where the study does not
        make the claim."""
        rows = self.verdicts[(self.verdicts.better == better) & (self.verdicts.worse == worse)]
        return "" if rows.empty else text.sentence(rows.iloc[0].to_dict(), *names, self.params.delta.psnr)

    def name(self, claim: Any) -> str:
        """A claim for readers: "A over B", and the task where the study has several."""
        names = self.labels[claim.better], self.labels[claim.worse]
        task = f" ({self.task_title(claim.better)})" if len(self.tasks) > 1 else ""
        return f"{names[0]} over {names[1]}{task}"

    def claims(self) -> Markdown:
        """The study's claims with their verdicts, differences in dB; those that were not run in a sentence."""
        rows = {
            (row.better, row.worse): {
                "verdict": text.verdict(row._asdict() | {"reason": self._titled(row.reason)}),
                "difference (95 % interval)": text.difference(row._asdict()),
                "published": text.number(row.published, 2, signed=True),
                "SSIM": f"{text.difference(row._asdict(), 'ssim_', 4)} {row.ssim_verdict}",
                "claimed by": row.source,
            }
            for row in self.run_claims().itertuples()
        }
        missing = self.verdicts[self.verdicts.verdict == statistics.NOT_RUN]
        said = [self.name(row) + self._why(row.reason) for row in missing.itertuples()]
        shown = [self._by_claim(rows).data] if rows else []
        return Markdown("\n\n".join(shown + [f"*Not run*: {text.listed(said)}."] * bool(said)))

    def _by_claim(self, rows: Mapping[tuple[str, str], Mapping[str, str]]) -> Markdown:
        """Cells of claims (better, worse) as a table for each task."""
        parts = []
        for task, names in self.tasks.items():
            cells = {f"{self.labels[a]} over {self.labels[b]}": row for (a, b), row in rows.items() if a in names}
            if cells:
                parts += [f"**{task}**", text.table(cells, "claim")]
        return Markdown("\n\n".join(parts))

    def _why(self, reason: str) -> str:
        """Why a claim was not run, in brackets, where it is not that a row was not."""
        return "" if reason.endswith("has no numbers") else f" ({self._titled(reason)})"

    def _titled(self, reason: str) -> str:
        """A claim's reason with titles for names."""
        for name in sorted(self.labels, key=len, reverse=True):
            reason = reason.replace(name, self.labels[name])
        return reason

    # -- tables --------------------------------------------------------------------------------------------------------

    def compared(self) -> Markdown:
        """The options of each task's reference, and those in which the other rows differ from it; titles are links to
        the rows' own notebooks. Tasks that were run, all where none was."""
        parts = []
        for task, names in [(task, self.tasks[task]) for task, _ in self._run_by_task()] or self.tasks.items():
            full = self.resolved[names[0]].options
            differing = {
                self._linked(name): in_words(
                    {key: value for key, value in self.resolved[name].options.items() if full.get(key) != value}
                )
                for name in names[1:]
            }
            head = f"**{task}**: {self._linked(names[0])}, {in_words(full) if full else 'with its default options'}"
            parts += [
                head,
                text.markdown(pd.Series(differing, name="options that differ").rename_axis("row").to_frame()),
            ]
        return Markdown("\n\n".join(parts))

    def _linked(self, name: str) -> str:
        """A row's title, as a link to the notebook of its evaluation where there is one."""
        notebook = self.params.results("evaluate", name, "evaluate.ipynb")
        return (
            f"[{self.labels[name]}](../../evaluate/{name}/evaluate.ipynb)" if notebook.exists() else self.labels[name]
        )

    def table(self) -> Markdown:
        """The main table, a part per task; rows that were not run in a sentence."""
        parts = [
            f"**{task}**, {self._measured_on(names)}\n\n{self._part(names, self.tasks[task][0])}"
            for task, names in self._run_by_task()
        ]
        for task, names in self.tasks.items():
            if missing := [name for name in names if not self.rows.photographs[name]]:
                said = [self.labels[name] + self._why_not_run(name) for name in missing]
                parts.append(f"*Not run for {task}*: {text.listed(said)}.")
        return Markdown("\n\n".join(parts))

    def _run_by_task(self) -> list[tuple[str, list[str]]]:
        """The tasks with a row of their own that was run, the reference or one with attention, and all that were."""
        found = []
        for task, names in self.tasks.items():
            run = [name for name in names if self.rows.photographs[name]]
            if any(name in self.params.experiments and (name == names[0] or self.attends(name)) for name in run):
                found.append((task, run))
        return found

    def _why_not_run(self, name: str) -> str:
        return f" ({self.not_run.reason[name]})" if name in self.not_run.index else ""

    def _part(self, names: Sequence[str], reference: str) -> str:
        rows = {}
        for name in names:
            row, cost = self.rows.loc[name], self.costs.reindex([name]).iloc[0]
            spent = (  # what a method without weights takes is not counted
                f"{text.number(cost.parameters, 0)}; {text.number(cost.multiply_adds / 1e9, 1)} G; "
                f"{text.number(cost.peak_bytes / 2**20, 0)} MiB"
            )
            rows[self.labels[name]] = {
                "verdict": "reference" if name == reference else self._relation(name, reference),
                "difference (95 % interval), dB": text.difference(row) if name != reference else "",
                "PSNR (dB)": text.number(row.psnr),
                "attention acts": self.acts.get(name, ""),
                "parameters; multiply-adds; memory": spent if cost.parameters > 0 else "",
            }
        return text.table(rows)

    def _relation(self, name: str, reference: str) -> str:
        """Verdict on a row against its reference, by the claim about the two in either direction; empty without one."""
        for row in self.verdicts.itertuples():
            if {row.better, row.worse} == {name, reference}:
                sign = 1 if row.better == name else -1
                return text.relation(row.verdict, sign * row.difference, self.params.delta.psnr)
        return ""

    def attention(self) -> Markdown:
        """What each attention module does, in every seed, a part per task."""
        parts = []
        for task, names in self.tasks.items():
            rows = {}
            for name in names:
                modules = [*self.of_modules[self.of_modules.experiment == name].groupby("module", sort=False)]
                for number, (_, seeds) in enumerate(modules, 1):
                    of_several = f", module {number} of {len(modules)}" if len(modules) > 1 else ""
                    rows[self.labels[name] + of_several] = {
                        "dB lost, by seed": "; ".join(text.number(value) for value in seeds.lost),
                        "effective keys, by seed": "; ".join(text.number(value, 0) for value in seeds["keys"].dropna()),
                    }
            if rows:
                parts.append(f"**{task}**\n\n{text.table(rows)}")
        return Markdown("\n\n".join(parts) or "No row with attention was run in this profile.")

    def _measured_on(self, names: Sequence[str]) -> str:
        counts = self.images[self.images.experiment.isin(names)].drop_duplicates(["set", "image"])
        counts = counts.groupby("set", sort=False).size()
        return f"{counts.sum()} photographs of {text.listed([*counts.index])}"

    def beside_published(self) -> Markdown:
        """Published numbers beside ours on the same set, where there are any."""
        ours = self.images.assign(psnr=statistics.counted(self.images.psnr)).groupby(["experiment", "set"]).psnr.mean()
        rows = [
            {
                "row": f"{self.labels[name]} ({task})",
                "set": row["set"],
                "published PSNR (dB)": text.number(row.psnr),
                "ours (dB)": text.number(ours.get((name, row["set"]), np.nan)),
                "source": row.source,
            }
            for task, names in self._run_by_task()
            for name in names
            if name in self.published.index
            for row in [self.published.loc[name]]
        ]
        if not rows:
            return Markdown("No published number of these rows was found.")
        return Markdown(text.markdown(pd.DataFrame(rows).set_index("row")))

    def per_set(self) -> Markdown:
        """Mean PSNR (dB) of each row on each set, with how many photographs the set has."""
        parts = []
        for task, names in self._run_by_task():
            images = self.images[self.images.experiment.isin(names)]
            counts = images.groupby("set", sort=False).image.nunique()
            means = images.assign(psnr=statistics.counted(images.psnr)).groupby(["experiment", "set"]).psnr.mean()
            heads = {of: f"{of} ({count})" for of, count in counts.items()}
            shown = {
                self.labels[name]: {head: text.number(means.get((name, of), np.nan)) for of, head in heads.items()}
                for name in names
            }
            parts += [f"**{task}**", text.table(shown)]
        return Markdown("\n\n".join(parts) or "Nothing has been run.")

    def gain_per_set(self) -> Markdown:
        """The difference (dB) of every tested claim on each set; without intervals, for seeds vary more on few
        photographs than the profile's variance over seeds, which is of all, says."""
        rows = {}
        for claim in self.tested_claims().itertuples():
            of_set = tables.gains(self.images, claim.better, claim.worse).groupby("set", sort=False).gain.mean()
            rows[claim.better, claim.worse] = {str(name): text.number(gain, 2, True) for name, gain in of_set.items()}
        return self._by_claim(rows)

    def difference(self, name: str, other: str) -> str:
        """How much a row gains on another one, dB with its interval; nothing where they cannot be compared."""
        found, (reason,) = statistics.differences_of(self.images, [(name, other)], "psnr")
        low, high = statistics.estimate(found, self.priors["psnr"]).interval()
        return "" if reason else text.difference({"difference": found.mean[0], "low": low[0], "high": high[0]})

    def run_claims(self) -> pd.DataFrame:
        """The verdicts of claims whose rows could be compared."""
        return self.verdicts[self.verdicts.verdict != statistics.NOT_RUN]

    def tested_claims(self) -> pd.DataFrame:
        """The verdicts of claims about rows without attention or with one that acts."""
        return self.verdicts[~self.verdicts.verdict.isin((statistics.NOT_RUN, statistics.NOT_TESTED))]

    def trend(self, better: str, worse: str) -> tuple[float, float, float] | None:
        """Slope of a gain (dB) against self-similarity and its interval; None with too few photographs or seeds."""
        found, _ = statistics.differences_of(self.images, [(better, worse)], statistics.TREND)
        low, high = statistics.estimate(found, self.priors[statistics.TREND]).interval()
        return None if np.isnan(low[0]) else (found.mean[0], low[0], high[0])

    def similarity(self) -> Markdown:
        """The gain of each tested claim against self-similarity: trend per 0.1 and mean gain per quarter, in dB."""
        rows = {}
        for claim in self.tested_claims().itertuples():
            if (line := self.trend(claim.better, claim.worse)) is None:
                continue
            slope, low, high = (value / 10 for value in line)
            trend = text.difference({"difference": slope, "low": low, "high": high})
            quarters = tables.by_quartile(tables.gains(self.images, claim.better, claim.worse))
            ends = quarters.iloc[[0, -1]].items()
            shown = {f"{name} similar quarter": text.number(gain, 2, True) for name, gain in ends}
            rows[claim.better, claim.worse] = {"trend per 0.1 (95 % interval)": trend, **shown}
        return self._by_claim(rows)

    def limits(self) -> Markdown:
        """Limits of these numbers: profile, training, field, photographs, seeds, attention that does not act."""
        parts = [f"Profile `{self.params.profile}`" + ("" if self.conclusive else ", which draws no conclusions") + "."]
        for task, names in self._run_by_task():
            trained = [name for name in names if name in self.params.experiments]
            row = self.params.experiment(trained[0])
            budget, how = row.budget, row.evaluation
            side = how.crop and how.crop // row.task.degradation.scale
            tiled = how.tile and (side is None or how.tile < side)
            seen = f"tiles of {how.tile} pixels, beyond which attention sees nothing" if tiled else "one piece each"
            size = f"the central {how.crop} x {how.crop} pixels" if how.crop else "whole photographs"
            half = f" (the first {budget.half_crops:.0%}: four times as many of half the side)"
            small = half if budget.half_crops else ""
            parts.append(
                f"*{task}*: {budget.steps:,} steps of {budget.batch} crops of {budget.crop} pixels{small}, "
                f"{self._rates(trained)}; measured on {size} of {self._measured_on(names)}, in {seen}; "
                f"seeds {text.listed([*map(str, row.seeds)])}."
            )
        if still := [f"*{self.labels[name]}* ({self.task_title(name)})" for name in self.tested.index[~self.tested]]:
            parts.append(
                f"Attention does not act in {text.listed(still)}: why it may not begin, and what was tried, stands in "
                "[how networks are trained](../../../../docs/training.md)."
            )
        parts += [self._spent()] if self.conclusive else []
        parts.append("Networks of published size, trained for as long as the papers did, may behave differently.")
        return Markdown("\n\n".join(parts))

    def _spent(self) -> str:
        """What these verdicts spend of the error, and what they would have spent were more seeds to come."""
        seeds = len(self.params.settings.seeds)
        resolved = self.verdicts.verdict.isin((statistics.HOLDS, statistics.REVERSED))
        before = self.params.settings.spent_before
        level = statistics.level_at(seeds, self.params.settings.looks) + before
        kinds = f"*{statistics.HOLDS}* or *{statistics.REVERSED}*"
        said = f"A false {kinds} by PSNR anywhere in this study, and one by SSIM, has a chance of {level:.0%} at most, "
        said += f"{before:.0%} of it spent by verdicts of fewer seeds that were read before, " if before else ""
        if self.params.settings.looks:
            return f"{said}at {seeds} seeds, one of the planned looks."
        said += "if no seeds are added now that these have been read."
        if seeds not in statistics.LOOKS or not resolved.any():
            return said
        strict = (self.verdicts.p[resolved] <= statistics.LOOKS[seeds]).sum()
        return (
            f"{said} As the first of several planned looks, at {statistics.LOOKS[seeds]:.0%}, {strict} of the "
            f"{resolved.sum()} claims that hold or are reversed would still do so."
        )

    def _rates(self, names: list[str]) -> str:
        """The peak rate of rows of one group, and those of attention modules that have another."""
        rates, budgets = dict[float, list[str]](), {name: self.params.experiment(name).budget for name in names}
        for name, budget in budgets.items():
            if budget.attention_lr and self.attends(name):
                rates.setdefault(budget.attention_lr, []).append(f"*{self.labels[name]}*")
        others = [f", {rate:g} for the attention of {text.listed(labels)}" for rate, labels in rates.items()]
        return f"peak rate {budgets[names[0]].lr:g}{''.join(others)}"

    # -- figures -------------------------------------------------------------------------------------------------------

    def show(self, figure: Figure, name: str, alt: str, photographs: bool = False) -> Image:
        """A figure for the notebook; alt says what it shows. Saved under a name in the report's folder too, unless it
        holds photographs, which are large: of these `strip` alone, for the README."""
        if photographs:
            return figures.show(figure, self.out / name if name == "strip" else None, photographs=True, alt=alt)
        return plots.show(figure, self.out / name, alt)

    def differences(self) -> Image | Markdown:
        """Per-photograph differences of every trained row to its task's reference."""
        psnr, panels = tables.photographs(self.images), {}
        for task, names in self.tasks.items():
            shown = [n for n in names[1:] if pd.notna(self.rows.difference[n]) and n in self.params.experiments]
            if shown:
                panels[self._against(task)] = psnr[shown].sub(psnr[names[0]], axis=0).dropna()
        if not panels:
            return Markdown("No two rows can be compared yet.")
        alt = "Differences of PSNR on single photographs, row by row; the numbers are in the table below."
        titles = {name: self._marked(name) for name in self.labels}
        return self.show(plots.differences(panels, self.rows, titles, self.modules), "differences", alt)

    def _against(self, task: str) -> str:
        return f"{task}: difference to {self._marked(self.tasks[task][0])}"

    def _marked(self, name: str) -> str:
        """A row's title where it stands beside others: a difference of attention that does not act is none of it."""
        return self.labels[name] + ("" if self.tested.get(name, True) else plots.IDLE)

    def along_training(self) -> Image | Markdown:
        """Differences to the reference on the validation photographs against training steps, with the range of the
        seeds as a band."""
        panels = {}
        for task, found in self._curves().items():
            bands = {name: table.agg(["mean", "min", "max"], axis=1) for name, table in found.items()}
            panels[self._against(task)] = {
                self._marked(name): (self.modules[name], band.rename(columns={"min": "low", "max": "high"}))
                for name, band in bands.items()
            }
        if not panels:
            return Markdown("The trainings behind these numbers kept no validation curve.")
        alt = "Differences to the first row against the training step; the sentences below say how they end."
        return self.show(plots.along_training(panels), "along_training", alt)

    def still_moving(self) -> Markdown:
        """A sentence per task: which differences grew, settled or vanished over the last doubling of the steps."""
        said = []
        for task, found in self._curves().items():
            clauses, moved = [], curves.outcomes(found, self.params.delta.psnr)
            for outcome, rows in moved.groupby("outcome", sort=False):
                shown = [
                    f"{self.labels[row.Index]} ({text.number(row.half, 2, True)} to {text.number(row.end, 2, True)} dB)"
                    for row in rows.itertuples()
                ]
                clauses.append(f"{outcome} for {text.listed(shown)}")
            steps = max(table.index[-1] for table in found.values())
            reference = self.labels[self.tasks[task][0]]
            said.append(
                f"*{task}*, on the validation photographs: from {steps // 2:,} to {steps:,} steps the difference to "
                f"{reference} "
                f"{'; it '.join(clauses)}.{self._on_test(task, moved.end)}"
            )
        return Markdown("\n\n".join(said))

    def _on_test(self, task: str, end: pd.Series) -> str:
        """The row whose difference on the test photographs is farthest from that at the end of the training, and on
        which set; nothing where all are near."""
        test = self.rows.difference.reindex(end.index)
        if not (apart := (test - end).abs()).max() > self.params.delta.psnr:
            return ""
        name, reference = apart.idxmax(), self.tasks[task][0]
        return (
            f" The validation photographs are of {text.listed(self.resolved[name].task.validation)}; on the test "
            f"photographs {self.labels[name]} differs by {self.by_set(name, reference)}."
        )

    def by_set(self, name: str, other: str) -> str:
        """How much a row gains on another one on the test photographs of each set, dB."""
        of_set = tables.gains(self.images, name, other).groupby("set", sort=False).gain.mean()
        return text.listed([f"{text.number(gain, 2, True)} dB on {of}" for of, gain in of_set.items()])

    def _curves(self) -> dict[str, dict[str, pd.DataFrame]]:
        """For each task with validation curves the differences of its rows to the reference (`curves.differences`)."""
        found = {task: curves.differences(self.curves, names[1:], names[0]) for task, names in self.tasks.items()}
        return {task: tables for task, tables in found.items() if tables}

    def cost(self) -> Image | Markdown:
        """PSNR against multiply-adds and peak memory."""
        drawn = self.rows[["psnr"]].join(self.costs[["multiply_adds", "peak_bytes", "parameters"]]).dropna()
        drawn = drawn[[name in self.params.experiments for name in drawn.index]].astype(float)
        if drawn.empty:
            return Markdown("No trained row was measured in this profile.")
        titles = {name: self.task_title(name) for name in drawn.index}
        alt = "PSNR against multiply-adds and peak memory of every trained row; the numbers are in the main table."
        marked = {name: self._marked(name) for name in drawn.index}
        return self.show(plots.quality_against_cost(drawn, marked, titles, self.modules), "cost", alt)

    def gain_against_similarity(self) -> Image | Markdown:
        """Gain against self-similarity, a panel per tested claim."""
        panels = {
            self.name(claim): (self.modules[claim.better], tables.gains(self.images, *pair), self.trend(*pair))
            for claim in self.tested_claims().itertuples()
            for pair in [(claim.better, claim.worse)]
        }
        if not any(trend for *_, trend in panels.values()):
            return Markdown("No trend is shown: of no tested claim there are enough photographs and seeds.")
        alt = (
            "Gain on each photograph against its self-similarity, a panel per claim; the trends are in the table below."
        )
        return self.show(plots.against_similarity(panels), "self_similarity", alt)

    def field(self) -> Image | Markdown:
        """PSNR against the field that attention sees, the mean over seeds, relative to the smallest field."""
        means = {name: rows.groupby("side").psnr.mean() for name, rows in self.fields.groupby("experiment")}
        several = {name: psnr for name, psnr in means.items() if len(psnr) > 1}
        panels = {
            task: {self._marked(name): (self.modules[name], several[name]) for name in names if name in several}
            for task, names in self.tasks.items()
        }
        panels = {task: rows for task, rows in panels.items() if rows}
        if not panels:
            return Markdown("The evaluations of this profile did not record it for more than one side.")
        alt = "Change of PSNR against the side of the field for every row with attention."
        return self.show(plots.fields(panels), "field", alt)

    def strip(self) -> Image | Markdown:
        """One photograph as every row of a task restores it, the degraded input first and baselines before networks: of
        the first of the tasks of which most rows with attention were run."""
        for names in sorted(self.tasks.values(), key=self._run_of, reverse=True):
            files = {name: self.params.results("evaluate", name, "restored.png") for name in names}
            kept = [name for name in names if files[name].exists()]
            rank = {"input": -2, "bicubic": -2}
            shown = sorted(kept, key=lambda name: rank.get(self.resolved[name].model, name in self.params.experiments))
            clean = [file for name in shown if (file := files[name].with_name("clean.png")).exists()]
            if clean and shown[-1] in self.params.experiments:
                restored = {self._marked(name): _photograph(files[name]) for name in shown}
                alt = f"The busiest part of one photograph by {text.listed([*restored])}, above maps of their errors"
                return self.show(plots.strip(_photograph(clean[0]), restored), "strip", alt, photographs=True)
        return Markdown("No photograph of these rows was kept.")

    def _run_of(self, names: Sequence[str]) -> int:
        """How many of the rows with attention were run."""
        return sum(self.attends(name) and bool(self.rows.photographs[name]) for name in names)

    def influence(self, task: str) -> Image | Markdown:
        """Where the modules of the rows of a task look, by one measure for all kinds of attention."""
        kept = self.all_seen([name for name, row in self.resolved.items() if row.task.name == task])
        seen = {self._marked(name): one for name, one in kept.items() if "influence" in one}
        if not seen:
            return Markdown("None of these rows was run in this profile.")
        one = next(iter(seen.values()))
        maps = {label: kept["influence"] for label, kept in seen.items()}
        still = [label for label, shown in maps.items() if not shown.any()]
        alt = f"Which pixels move what {text.listed([*maps])} add at three pixels" + (
            f"; no pixel moves what {text.listed(still)} adds." if still else "."
        )
        drawn = plots.influences(one["photograph"] / 255, [tuple(point) for point in one["points"]], maps)
        return self.show(drawn, "influence", alt, photographs=True)

    def seen(self, name: str) -> dict[str, np.ndarray]:
        """The attention of a row on one photograph, as its evaluation kept it; raises NotRun where it kept none."""
        file = self.params.results("evaluate", name, "mechanism.npz")
        if not file.exists():
            raise NotRun(f"{self.labels[name]} was not run in this profile.")
        kept = dict(np.load(file))
        return {key: values.astype(float) if values.dtype.kind == "f" else values for key, values in kept.items()}

    def all_seen(self, names: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
        """`seen` of the rows that have it."""
        kept = [name for name in names if self.params.results("evaluate", name, "mechanism.npz").exists()]
        return {name: self.seen(name) for name in kept}

    def attends(self, name: str) -> bool:
        """Whether a row's network has attention: what its evaluation found, its model where there is none."""
        return bool(self.acts.get(name)) if name in self.acts.index else self.modules[name] not in ("none", "other")

    def task_title(self, name: str) -> str:
        """The title of a row's task, as a key of `tasks`."""
        return self.params.group(name)


def _photograph(file: Path) -> np.ndarray:
    with PIL.Image.open(file) as opened:
        return np.asarray(opened) / 255
