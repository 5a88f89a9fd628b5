"""Tables and figures of notebooks/benchmark.ipynb, made from the csv of one machine."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.figures import WIDTH

from .cases import CASES
from .parts import FEWEST, MACHINE

MODES = {"forward": "forward", "both": "forward + backward"}

NOT_MEASURED = "Not measured on this machine yet: `make benchmark PART={part}`."

#: Memory of single calls differs by a few percent.
ALIKE = 0.95

#: What the bounded networks may hold, bytes.
IN_ONE_PIECE = 3e9


def load(folder: Path, machine: str) -> tuple[dict, pd.DataFrame]:
    """The machine and its records (`parts.Record`)."""
    about = json.loads((folder / f"{machine}.json").read_text())
    return about, pd.read_csv(folder / f"{machine}.csv", keep_default_na=False)


def wide(records: pd.DataFrame, part: str, quantity: str, *index: str) -> pd.DataFrame:
    """One quantity of a part, a column for each form."""
    chosen = records[(records.part == part) & (records.quantity == quantity)]
    return chosen.pivot(index=list(index), columns="form", values="value")


def ratios(seconds: pd.DataFrame, over: str = "reference", form: str = "ours") -> pd.DataFrame:
    """Median, first and third quartile of the rounds' ratios `over` / `form`, from `wide` seconds whose last index is
    the round."""
    ratio = (seconds[over] / seconds[form]).dropna()
    return ratio.groupby(level=list(range(seconds.index.nlevels - 1)), sort=False).quantile([0.25, 0.5, 0.75]).unstack()


def modules(records: pd.DataFrame, about: dict, dtype: str = "float32") -> pd.DataFrame:
    """Every module and mode: times, ratios, memory, agreement, share of a large product's FLOP/s; on a CPU the bars,
    too, which are promised for these."""
    of_type = records[records.dtype == dtype]
    index = ("case", "mode")
    seconds = wide(of_type, "modules", "seconds", *index, "repeat")
    held = wide(of_type, "memory", "bytes", *index)
    counts, apart = (wide(of_type, "modules", quantity, *index) for quantity in ("flops", "difference"))
    rate = _rate(of_type, "flop/s")
    middle = seconds.groupby(level=[0, 1], sort=False).median()
    against, short = ratios(seconds), ratios(seconds, "short")
    rows = []
    for case, mode in itertools.product(CASES, MODES):
        if (case, mode) not in middle.index:
            continue
        key, bars = (case, mode), CASES[case].bars
        speed, memory = against.loc[key], held.loc[key] if key in held.index else None
        bar = bars[list(MODES).index(mode)]
        row = {
            "module": case,
            "pass": MODES[mode],
            "reference (ms)": f"{1e3 * middle.reference[key]:.1f}",
            "ours (ms)": f"{1e3 * middle.ours[key]:.1f}",
            "ratio": f"{speed[0.5]:.2f} ({speed[0.25]:.2f} to {speed[0.75]:.2f})",
            "bar": f"{bar:g}",
            "to the short form": f"{short.loc[key, 0.5]:.2f}" if key in short.index else "",
            "memory (MiB)": "not run"
            if memory is None
            else f"{memory.reference / 2**20:.0f} / {memory.ours / 2**20:.0f}",
            "fewest scores (MiB)": "" if memory is None else f"{memory[FEWEST] / 2**20:.0f}",
            "memory ratio": "" if memory is None else f"{memory.reference / memory.ours:.1f}",
            "memory bar": f"{bars[2]:g}",
            "relative difference": f"{apart.ours[key]:.0e}",
            "share of peak": f"{counts.ours[key] / middle.ours[key] / rate:.0%}",
            "missed": " ".join(_missed(speed[0.5] >= bar, memory is None or memory.reference / memory.ours >= bars[2])),
        }
        rows.append(row)
    table = pd.DataFrame(rows).set_index(["module", "pass"])
    return table if about["device"] == "cpu" else table.drop(columns=["bar", "memory bar", "missed"])


def _missed(time: bool, memory: bool) -> list[str]:
    return [word for word, held in (("time", time), ("memory", memory)) if not held]


def modules_finding(table: pd.DataFrame) -> str:
    ratio = table.ratio.str.split().str[0].astype(float)
    slower = [f"{module}, {mode}" for module, mode in table.index[ratio < 1]]
    said = f"The references take {ratio.min():.2f} to {ratio.max():.2f} times as long as our forms. "
    said += f"Ours are slower in: {'; '.join(slower)}. " if slower else ""
    if "missed" not in table:
        return said
    missed = [f"{module}, {mode}: {row.missed}" for (module, mode), row in table.iterrows() if row.missed]
    return said + (f"Bars missed: {'; '.join(missed)}." if missed else "Every bar is reached.")


def bounds(records: pd.DataFrame) -> pd.DataFrame:
    """What our forms could not go below if each operation ran at the best rate measured: matrix products at that of a
    large one, exponentials at that of a small array's softmax, all other passes over scores at that of additions of
    arrays as large as a block. `from memory` takes the rate of additions of arrays that no cache holds for these."""
    rows = records[(records.form == "ours") & (records.part == "modules") & (records.dtype == "float32")]
    found = rows.groupby(["case", "mode", "quantity"], sort=False).value.median().unstack()
    products = found.flops / _rate(records[records.dtype == "float32"], "flop/s")
    exponentials = found.exponentials / _rate(records, "exponential/s")
    cached, passes = (found.moved / _rate(records, rate) for rate in ("byte/s", "byte/s beyond cache"))
    table = pd.DataFrame(
        {
            "matrix products": products,
            "exponentials": exponentials,
            "passes": cached,
            "all": products + exponentials + cached,
            "from memory": products + exponentials + passes,
            "measured": found.seconds,
        }
    )
    shown = (1e3 * table).add_suffix(" (ms)").round(1)
    shown["bound / measured"] = (table["all"] / table.measured).round(2)
    return shown.rename(index=MODES, level=1)


def spent(records: pd.DataFrame) -> pd.DataFrame:
    """Where the time of our forms went, medians of several calls: `least / spent` for each kind of operation.
    The least of other operations is that of `bounds` from the last cache and from memory."""
    rows = records[records.quantity.str.startswith("spent, ") & (records.dtype == "float32")]
    where = rows.assign(where=rows.quantity.str.removeprefix("spent, "))
    found = 1e3 * where.groupby(["case", "mode", "where"], sort=False).value.median().unstack()
    found, least = found.rename(index=MODES, level=1), bounds(records)
    passes = least["from memory (ms)"] - least["matrix products (ms)"] - least["exponentials (ms)"]
    shown = {
        "matrix products (ms)": (least["matrix products (ms)"], found["matrix products"]),
        "exponentials (ms)": (least["exponentials (ms)"], found["exponentials"]),
        "other operations (ms)": (least["passes (ms)"], passes, found["other operations"]),
        "between operations (ms)": (found["between"],),
    }
    return pd.DataFrame(
        {
            title: [" / ".join(f"{round(part[key], 1) + 0.0:.1f}" for part in parts) for key in found.index]
            for title, parts in shown.items()
        },
        index=found.index,
    )


def spent_finding(records: pd.DataFrame) -> str:
    """How much of the time of our forms lies between their operations."""
    rows = records[records.quantity.str.startswith("spent, ") & (records.dtype == "float32")]
    spent = rows.pivot_table(index=["case", "mode"], columns="quantity", values="value", aggfunc="median")
    share = spent["spent, between"] / spent.sum(axis=1)
    most = share.idxmax()
    return (
        f"A median of {share.median():.0%} of the time lies between the operations, at most {share[most]:.0%} "
        f"({most[0]}, {MODES[most[1]]})."
    )


def memory_finding(modules: pd.DataFrame) -> str:
    """How much of what the modules that miss their bar of memory hold does not depend on the scores; where no bar is
    promised, the same of those that hold more than their reference."""
    promised = "missed" in modules
    more = pd.to_numeric(modules["memory ratio"], errors="coerce") < 1
    chosen = modules[modules.missed.str.contains("memory") if promised else more]
    said = [
        f"{module}, {mode}: reference / ours {row['memory (MiB)']} MiB, {row['fewest scores (MiB)']} of it without the "
        f"scores of a block{', for a bar of 1/' + row['memory bar'] if promised else ''}"
        for (module, mode), row in chosen.iterrows()
    ]
    if not said:
        return "No bar of memory is missed." if promised else ""
    return f"{'Behind the missed bars of memory' if promised else 'More than the reference hold'}: {'; '.join(said)}."


def bounds_finding(bounds: pd.DataFrame, modules: pd.DataFrame) -> str:
    """How far the modules that miss their bar of time are from what bounds them; nothing where no bar is promised."""
    if "missed" not in modules:
        return ""
    missed = bounds.loc[[key for key in bounds.index if "time" in modules.missed[key]]]
    said = [
        f"{module}, {mode}: {row['measured (ms)']:.0f} ms, of which PyTorch's operations need {row['all (ms)']:.0f} at "
        f"their best, {row['from memory (ms)']:.0f} if every pass went to memory"
        for (module, mode), row in missed.iterrows()
    ]
    return f"Behind the missed bars of time: {'; '.join(said)}." if said else "No bar of time is missed."


def blocks(records: pd.DataFrame) -> pd.DataFrame:
    """Ratios reference / ours of time, with quartiles, and of memory, against the bound of the scores held at a time;
    empty before they were measured."""
    rows = records[records.part == "blocks"]
    if rows.empty:
        return pd.DataFrame()
    seconds, held = wide(records, "blocks", "seconds", "case", "repeat"), wide(records, "blocks", "bytes", "case")
    found = []
    for case, form in rows[rows.form != "reference"][["case", "form"]].drop_duplicates().itertuples(index=False):
        speed = ratios(seconds.loc[[case]], form=form).loc[case]
        found.append(
            {
                "module": case,
                "max_scores": form.removeprefix("ours").strip(", ").removesuffix(" scores") or "own",
                "time": speed[0.5],
                "from": speed[0.25],
                "to": speed[0.75],
                "memory": held.reference[case] / held[form][case],
            }
        )
    return pd.DataFrame(found).set_index(["module", "max_scores"])


def against_blocks(table: pd.DataFrame, about: dict) -> Figure | None:
    """`blocks` as a curve for each module, on a CPU with its bars; None before they were measured."""
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
            time, _, memory = CASES[module].bars
            axis.axhline(time, color="C3", linestyle="--", linewidth=1)
            axis.axvline(memory, color="C3", linestyle="--", linewidth=1)
        axis.set(title=module, xlabel="memory, reference / ours", ylabel="time, reference / ours")
        axis.margins(0.15)
    return figure


def blocks_finding(table: pd.DataFrame, about: dict) -> str:
    """Which `max_scores` reach both bars of a forward pass, and what the least memory costs; nothing where no bar is
    promised."""
    if table.empty:
        return NOT_MEASURED.format(part="blocks")
    if about["device"] != "cpu":
        return ""
    said = []
    for module, rows in table.groupby(level=0, sort=False):
        rows = rows.droplevel(0)
        time, _, memory = CASES[module].bars
        both = ", ".join(rows.index[(rows.time >= time) & (rows.memory >= memory)]) or "none"
        least = rows[rows.memory >= ALIKE * rows.memory.max()]
        fastest = least.loc[least.time.idxmax()]
        said.append(
            f"{module}, max_scores that reach both bars (time {time:g}, memory {memory:g}): {both}; least memory "
            f"1/{fastest.memory:.1f} of the reference's, with {fastest.name} at {fastest.time:.2f} times its speed."
        )
    return " ".join(said)


def _rate(records: pd.DataFrame, quantity: str, part: str = "modules") -> float:
    return records[(records.part == part) & (records.case == MACHINE) & (records.quantity == quantity)].value.item()


def dtypes(records: pd.DataFrame) -> list[str]:
    return list(records[records.part == "modules"].dtype.unique())


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


def networks(records: pd.DataFrame) -> pd.DataFrame:
    """Full-size networks on one whole image; empty before they were measured."""
    if not (records.part == "networks").any():
        return pd.DataFrame()
    rows = records[records.part == "networks"].pivot(index=["case", "side"], columns="quantity", values="value")
    return pd.DataFrame(
        {
            "pixels": [f"{side} x {side}" for _, side in rows.index],
            "seconds": rows.seconds.round(1).to_numpy(),
            "resident memory (GB)": (rows.resident / 1e9).round(2).to_numpy(),
        },
        index=pd.Index(rows.index.get_level_values("case"), name="network"),
    )


def networks_finding(table: pd.DataFrame) -> str:
    if table.empty:
        return NOT_MEASURED.format(part="networks")
    most = table["resident memory (GB)"]
    within = "all of them within" if most.max() < IN_ONE_PIECE / 1e9 else "not all of them within"
    return f"At most {most.max():.2f} GB ({most.idxmax()}): {within} {IN_ONE_PIECE / 1e9:g} GB."


def steps(records: pd.DataFrame) -> pd.DataFrame:
    """One training step of every experiment's network, and its images per second; empty before it was measured."""
    if not (records.part == "steps").any():
        return pd.DataFrame()
    seconds = wide(records, "steps", "seconds", "case", "repeat")
    images, count = (
        records[(records.part == "steps") & (records.quantity == quantity)].set_index("case").value
        for quantity in ("images", "steps")
    )
    flops = wide(records, "steps", "flops", "case").ours
    middle, against = seconds.groupby(level=0, sort=False).median(), ratios(seconds)
    table = pd.DataFrame(
        {
            "reference (ms)": 1e3 * middle.reference,
            "ours (ms)": 1e3 * middle.ours,
            "ratio": against[0.5],
            "from": against[0.25],
            "to": against[0.75],
            "images/s": images / middle.ours,
            "share of peak": flops / middle.ours / _rate(records, "flop/s", "steps"),
            "saved in all trainings (s)": count * (middle.reference - middle.ours),
        }
    )
    return table.round(2)


def steps_finding(table: pd.DataFrame) -> str:
    if table.empty:
        return NOT_MEASURED.format(part="steps")
    slower = table[table.ratio < 1 / 1.05]
    mean = np.exp(np.log(table.ratio).mean())
    total = table["saved in all trainings (s)"].sum()
    return (
        f"A step is {mean:.2f} times as fast as with reference modules on (geometric) average; "
        f"more than 5 % slower: {len(slower)} of {len(table)} networks"
        f"{': ' + ', '.join(slower.index) if len(slower) else ''}. All their trainings together take "
        f"{total:.0f} s less."
    )
