"""Words of the reports: numbers, names, verdicts and sentences that a person would say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..params import Row
from . import statistics
from .statistics import EQUAL, HOLDS, LEANS, NOT_RUN, NOT_TESTED, REVERSED, UNRESOLVED

#: Models with an attention module of their own.
MODULES = ("dagl", "panet", "enlca", "ignn", "lir", "nlsa", "sparse")


def number(value: float, digits: int = 2, signed: bool = False) -> str:
    """A number with `digits` digits, its sign where asked for; empty where there is none, and never -0."""
    if pd.isna(value):
        return ""
    rounded = round(float(value), digits) + 0.0
    return f"{rounded:{'+' if signed else ''},.{digits}f}"


def interval(low: float, high: float, digits: int = 2) -> str:
    """An interval with signs, empty where there is none."""
    return "" if pd.isna(low) else f"{_bound(low, digits)} to {_bound(high, digits)}"


def _bound(value: float, digits: int) -> str:
    """A bound with its sign, and one digit more where it would round to zero: on which side it is matters."""
    return number(value, digits + (abs(value) < 0.5 * 10**-digits and value != 0), True)


def difference(row: Mapping, prefix: str = "", digits: int = 2) -> str:
    """A signed difference and its interval: "+0.50 (+0.35 to +0.66)"."""
    bounds = interval(row[f"{prefix}low"], row[f"{prefix}high"], digits)
    return number(row[f"{prefix}difference"], digits, True) + (f" ({bounds})" if bounds else "")


def relation(verdict: str, difference: float, delta: float) -> str:
    """A verdict on "row over reference", said of the row."""
    side = "better" if difference > 0 else "worse"
    words = {HOLDS: side, REVERSED: side, LEANS: f"leans {side}", EQUAL: f"equal within {delta:g} dB"}
    return words.get(verdict, verdict)


def verdict(row: Mapping) -> str:
    """A claim's verdict with the seeds needed to resolve it, or the reason why there is none."""
    said, needed = row["verdict"], row["more_seeds"]
    if said in (NOT_RUN, NOT_TESTED):
        return f"{said}: {row['reason']}" if row["reason"] else said
    if said == LEANS:
        said = f"leans {'towards' if row['difference'] > 0 else 'against'} it"
    if pd.isna(needed):
        return f"{said}: one seed" if said == UNRESOLVED else said
    return f"{said}; {seeds(needed)}"


def seeds(needed: float) -> str:
    """How many more seeds would resolve a claim."""
    if np.isinf(needed):
        return f"more than {statistics.MOST_SEEDS} more seeds"
    return f"about {needed:.0f} more seed{'s' if needed > 1 else ''}"


def sentence(row: Mapping, better: str, worse: str, delta: float) -> str:
    """A claim's outcome as a sentence without its full stop; it names the two `better` and `worse`."""
    size = f"{abs(row['difference']):.2f} dB"
    bounds = f"95 % interval {interval(row['low'], row['high'])}"
    side = "better" if row["difference"] > 0 else "worse"
    says = {
        HOLDS: f"{better} restores {size} better than {worse} ({bounds})",
        REVERSED: f"{better} restores {size} worse than {worse} ({bounds})",
        EQUAL: f"{better} and {worse} restore equally well, within {delta:g} dB",
        LEANS: f"{better} seems to restore {size} {side} than {worse} ({bounds}), but not surely",
        NOT_TESTED: f"{better} and {worse} cannot be compared: attention that does not act is not tested",
        NOT_RUN: f"{better} and {worse} have not been compared yet",
    }
    opened = (
        f"whether {better} restores better than {worse} is open ({number(row['difference'], 2, True)} dB, {bounds})"
    )
    said = capital(says.get(row["verdict"], opened))
    by_ssim = {HOLDS: "better", REVERSED: "worse"}.get(row.get("ssim_verdict", ""))
    if by_ssim is None or row["verdict"] not in (UNRESOLVED, LEANS):
        return said
    of_ssim = f"{number(row['ssim_difference'], 4, True)}, {interval(row['ssim_low'], row['ssim_high'], 4)}"
    return f"{said}; by SSIM it restores {by_ssim} ({of_ssim})"


def capital(words: str) -> str:
    """The words with a capital at their start."""
    return words[:1].upper() + words[1:]


def listed(words: Sequence[str]) -> str:
    """a, b and c; semicolons where a word has a comma of its own, but for those in brackets: a, b; c; and d."""
    if len(words) > 2 and any(", " in re.sub(r"\(.*?\)", "", word) for word in words):
        return "; ".join([*words[:-1], f"and {words[-1]}"])
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def module_of(row: Row) -> str:
    """The attention module of a row: nl, a model with attention, `none` for the trunk alone, or `other`."""
    if row.model == "graph_prior":
        return "panet" if row.options.get("attention") == "blocks" else "dagl"
    if row.options.get("attention") in ("nl", "mhnl"):
        return "nl"
    return row.model if row.model in MODULES else "none" if row.model == "edsr" else "other"


def grouped(groups: Mapping[str, str]) -> dict[str, list[str]]:
    """Rows by group, both in their order, from the group of each; the first is what the others are compared with."""
    return {group: [name for name in groups if groups[name] == group] for group in groups.values()}


def table(rows: Mapping[str, Mapping], name: str = "row") -> str:
    """Cells by row and column as `markdown`, without the columns in which every cell is empty."""
    cells = pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis(name)
    return markdown(cells.loc[:, (cells != "").any()])


def markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown, its index as the first column."""
    rows = [[table.index.name or "", *table.columns], ["---"] * (len(table.columns) + 1)]
    rows += [[name, *cells] for name, *cells in table.itertuples()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
