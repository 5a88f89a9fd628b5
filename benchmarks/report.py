"""Tables and figures of notebooks/benchmark.ipynb, made from the csv of one machine."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.figures import WIDTH

from .cases import CASES
from .parts import MACHINE

MODES = {"forward": "forward", "both": "forward + backward"}


def load(folder: Path, machine: str) -> tuple[dict, pd.DataFrame]:
    """The machine and its records (`parts.Record`). Older files call the definition "reference"."""
    about = json.loads((folder / f"{machine}.json").read_text())
    records = pd.read_csv(folder / f"{machine}.csv", keep_default_na=False)
    return about, records.replace({"form": {"reference": "definition"}})


def wide(records: pd.DataFrame, part: str, quantity: str, *index: str) -> pd.DataFrame:
    """One quantity of a part, a column for each form."""
    chosen = records[(records.part == part) & (records.quantity == quantity)]
    return chosen.pivot(index=list(index), columns="form", values="value")


def ratios(seconds: pd.DataFrame, form: str = "ours") -> pd.DataFrame:
    """Median and quartiles of the rounds' ratios definition / `form`, from `wide` seconds with the rounds last."""
    ratio = (seconds.definition / seconds[form]).dropna().groupby(level=seconds.index.names[:-1], sort=False)
    return ratio.quantile([0.5, 0.25, 0.75]).unstack().set_axis(["ratio", "from", "to"], axis=1)


def modules(records: pd.DataFrame, about: dict, dtype: str = "float32") -> pd.DataFrame:
    """Every module and mode: times, ratios, memory, agreement, share of a large product's FLOP/s; on a CPU the missed
    targets, too."""
    of_type, index = records[records.dtype == dtype], ["case", "mode"]
    seconds = wide(of_type, "modules", "seconds", *index, "repeat")
    middle, against = seconds.groupby(level=index, sort=False).median(), ratios(seconds)
    held, counts, difference = (
        wide(of_type, part, quantity, *index).reindex(index=middle.index, columns=["definition", "ours"])
        for part, quantity in (("memory", "bytes"), ("modules", "flops"), ("modules", "difference"))
    )
    table = pd.DataFrame(
        {
            "definition (ms)": (1e3 * middle.definition).round(1),
            "ours (ms)": (1e3 * middle.ours).round(1),
            "time, definition / ours": against.ratio.round(2),
            "quartiles": [f"{low:.2f} to {high:.2f}" for low, high in against[["from", "to"]].to_numpy()],
            "definition (MiB)": (held.definition / 2**20).round(),
            "ours (MiB)": (held.ours / 2**20).round(),
            "memory, definition / ours": (held.definition / held.ours).round(1),
            "relative difference": [f"{value:.0e}" for value in difference.ours],
            "share of peak": (counts.ours / middle.ours / _rate(of_type, "modules")).round(2),
        }
    )
    if about["device"] == "cpu":
        table["missed"] = [_missed(row, *key) for key, row in table.iterrows()]
    order = [key for key in itertools.product(CASES, MODES) if key in table.index]
    return table.loc[order].rename_axis(["module", "pass"]).rename(index=MODES, level=1)


def _missed(row: pd.Series, case: str, mode: str) -> str:
    """The ratios that are below a target, each with it."""
    targets = {"time": CASES[case].targets[list(MODES).index(mode)], "memory": CASES[case].targets[2]}
    ratios = {what: row[f"{what}, definition / ours"] for what in targets}
    return ", ".join(f"{what} {ratios[what]:g} < {least:g}" for what, least in targets.items() if ratios[what] < least)


def modules_finding(table: pd.DataFrame) -> str:
    """The range of the ratios, and the modules that are slower, larger, or miss a target, in a line."""
    said = []
    for what, definition, ours in (
        ("time", "takes {} as long as", "slower"),
        ("memory", "holds {} as much as", "larger"),
    ):
        ratio = table[f"{what}, definition / ours"].dropna()
        if len(ratio):
            said.append(
                f"By its definition a module {definition.format(f'{ratio.min():g} to {ratio.max():g} times')} ours."
            )
        if (ratio < 1).any():
            said.append(f"Ours are {ours} in {listed(ratio.index[ratio < 1])}.")
    if "missed" in table:
        missed = table.missed[table.missed != ""]
        said.append(f"Targets missed: {listed(missed.index, missed)}." if len(missed) else "Every target is reached.")
    return " ".join(said)


def listed(index: pd.Index, details: Sequence[str] = ()) -> str:
    """Modules and passes in a line, each with its detail."""
    details = [f": {detail}" for detail in details] or [""] * len(index)
    return "; ".join(f"{module}, {mode}{detail}" for (module, mode), detail in zip(index, details, strict=True))


def blocks(records: pd.DataFrame) -> pd.DataFrame:
    """Ratios definition / ours of time, with quartiles, and of memory, against the bound of the scores held at a time;
    empty before they were measured."""
    seconds, held = wide(records, "blocks", "seconds", "case", "repeat"), wide(records, "blocks", "bytes", "case")
    found = [
        ratios(seconds, form).assign(memory=held.definition / held[form], max_scores=form)
        for form in seconds.columns.drop("definition", errors="ignore")
    ]
    if not found:
        return pd.DataFrame()
    table = pd.concat(found).rename(columns={"ratio": "time"}).set_index("max_scores", append=True)
    own = table.index.levels[1].map(lambda form: form.removeprefix("ours").strip(", ").removesuffix(" scores") or "own")
    table.index = table.index.set_levels(own, level=1)
    return table.sort_index(ascending=[True, False]).rename_axis(["module", "max_scores"])


def against_blocks(table: pd.DataFrame, about: dict) -> Figure | None:
    """`blocks` as a curve for each module, on a CPU with its targets; None before they were measured."""
    if table.empty:
        return None
    modules = list(table.index.unique(0))
    figure, axes = plt.subplots(1, len(modules), figsize=(WIDTH, 3.4), squeeze=False)
    for axis, module in zip(axes.flat, modules, strict=True):
        rows = table.loc[module]
        spread = [rows.time - rows["from"], rows.to - rows.time]
        axis.errorbar(rows.memory, rows.time, spread, fmt="o-", markersize=4, elinewidth=1)
        for max_scores, row in rows.iterrows():
            label = max_scores if max_scores == "own" else f"$2^{{{max_scores[2:]}}}$"
            axis.annotate(label, (row.memory, row.time), xytext=(5, 3), textcoords="offset points", fontsize=9)
        if about["device"] == "cpu":
            time, _, memory = CASES[module].targets
            axis.axhline(time, color="C3", linestyle="--", linewidth=1)
            axis.axvline(memory, color="C3", linestyle="--", linewidth=1)
        axis.set(title=module, xlabel="memory, definition / ours", ylabel="time, definition / ours")
        axis.margins(0.15)
    return figure


def against_size(records: pd.DataFrame) -> Figure | None:
    """Time and memory of a forward pass against the side of the image, a column for each module; None before they were
    measured."""
    rows = records[records.part == "sizes"]
    if rows.empty:
        return None
    cases = list(rows.case.unique())
    figure, axes = plt.subplots(2, len(cases), figsize=(WIDTH * 1.4, 4.6), squeeze=False, sharex=True, sharey="row")
    units = {"seconds": ("seconds", 1.0), "bytes": ("memory (MiB)", 2.0**-20)}
    for column, case in enumerate(cases):
        for axis, (quantity, (label, unit)) in zip(axes[:, column], units.items(), strict=True):
            for form, line in rows[(rows.case == case) & (rows.quantity == quantity)].groupby("form", sort=False):
                axis.plot(line.side, unit * line.value.clip(lower=1e-9), marker=".", label=form)
            axis.set(xscale="log", yscale="log")
            axis.set_xticks([32, 64, 128, 256], labels=["32", "64", "128", "256"])
            axis.minorticks_off()
            if column == 0:
                axis.set_ylabel(label)
        axes[0, column].set_title(case, fontsize=9)
        axes[1, column].set_xlabel("side (pixels)")
    handles = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def steps(records: pd.DataFrame) -> pd.DataFrame:
    """One training step of every experiment's network; empty before it was measured."""
    seconds = wide(records, "steps", "seconds", "case", "repeat")
    if seconds.empty:
        return pd.DataFrame()
    flops, middle = wide(records, "steps", "flops", "case").ours, seconds.groupby(level=0, sort=False).median()
    table = pd.DataFrame(
        {
            "definition (ms)": 1e3 * middle.definition,
            "ours (ms)": 1e3 * middle.ours,
            **ratios(seconds),
            "share of peak": flops / middle.ours / _rate(records, "steps"),
        }
    )
    return table.loc[middle.index].round(2)


def steps_finding(table: pd.DataFrame) -> str:
    if table.empty:
        return ""
    slower = table.index[table.ratio < 1 / 1.05]
    said = f"By the definitions a training step takes {np.exp(np.log(table.ratio).mean()):.2f} times as long as ours"
    slowest = f"more than 5 % less: {', '.join(slower)}" if len(slower) else "nowhere 5 % less"
    return f"{said} (geometric mean of {len(table)} networks; {slowest})."


def dtypes(records: pd.DataFrame) -> list[str]:
    return list(records[records.part == "modules"].dtype.unique())


def _rate(records: pd.DataFrame, part: str) -> float:
    """FLOP/s of a large matrix product."""
    return records[(records.part == part) & (records.case == MACHINE) & (records.quantity == "flop/s")].value.item()
