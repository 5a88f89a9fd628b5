"""Figures of the reports: units on the axes, one colour per module everywhere, legible at 390 px.

Photographs are arrays (H, W[, 3]) in [0, 1]; points are (row, column).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..figures import WIDTH
from .text import module_of

#: One colour per attention module in every figure, safe for colour-blind readers; baselines and no attention are gray.
_COLORBLIND = sns.color_palette("colorblind")
COLORS = {
    "none": (0.35, 0.35, 0.35),
    "baseline": (0.65, 0.65, 0.65),
    "dagl": _COLORBLIND[0],
    "nl": _COLORBLIND[1],
    "panet": _COLORBLIND[2],
    "enlca": _COLORBLIND[3],
    "ignn": _COLORBLIND[4],
    "lir": _COLORBLIND[5],
}

#: With fewer photographs every one is a dot; a violin would invent a shape.
FEW = 20

#: The rows of one module are told apart by these, in their order.
MARKERS = "osD^vP*X<>"


def differences(changes: Mapping[str, pd.DataFrame], bounds: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Per-photograph differences to the reference: their shape (dots where they are few), the mean and its interval.

    changes: for each title of a panel a row per photograph, a column per row of the study, dB. bounds: `difference`,
    `low`, `high` of each, NaN where there is no interval.
    """
    heights = [max(len(table.columns), 1) for table in changes.values()]
    size = (WIDTH, 0.45 * sum(heights) + 0.8 * len(heights) + 0.3)
    figure, axes = plt.subplots(len(heights), 1, figsize=size, height_ratios=heights, sharex=True, squeeze=False)
    for axis, (title, table) in zip(axes.flat, changes.items(), strict=True):
        axis.set_title(title, fontsize=11, loc="left")
        axis.axvline(0, color="0.4", linewidth=1)
        for row, name in enumerate(table.columns):
            values, color = table[name].dropna().to_numpy(), COLORS[module_of(name)]
            if len(values) < FEW:
                axis.plot(values, np.full(len(values), row), "o", color=color, alpha=0.6, markersize=5)
            else:
                shape = axis.violinplot(values, [row], orientation="horizontal", widths=0.8, showextrema=False)[
                    "bodies"
                ][0]
                shape.set(facecolor=color, alpha=0.45)
            mean, low, high = bounds.loc[name, ["difference", "low", "high"]].astype(float)
            axis.plot([low, high], [row, row], color="k", linewidth=2.5)
            axis.plot(mean, row, "D", color="k", markersize=6)
        axis.set_yticks(range(len(table.columns)), [labels[name] for name in table.columns])
        axis.set_ylim(len(table.columns) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
    figure.supxlabel("difference of PSNR (dB); diamond: mean, bar: its 95 % interval", fontsize=10)
    return figure


def attention(photograph: np.ndarray, points: Sequence[tuple[int, int]], maps: np.ndarray, shown: int = 60) -> Figure:
    """Where chosen pixels look: the photograph with the points, then per point the `shown` largest weights of its map
    (H, W), as dots of that area, and how many places hold nine tenths of the weight.

    The map's grid, in which the points are given, may be coarser than the photograph."""
    columns = len(points) + 1
    figure, axes = plt.subplots(1, columns, figsize=(WIDTH, WIDTH / columns + 0.4))
    _lay(axes[0], photograph, maps.shape[1:])
    axes[0].set_title("photograph", fontsize=9)
    for number, ((row, column), weights) in enumerate(zip(points, maps, strict=True), 1):
        axes[0].text(column, row, str(number), color="C1", weight="bold", ha="center", va="center")
        _lay(axes[number], photograph, weights.shape, alpha=0.5)
        _dots(axes[number], weights, shown)
        axes[number].plot(column, row, "o", color="C2", markersize=14, fillstyle="none", markeredgewidth=2)
        axes[number].set_title(f"pixel {number}: {holding(weights)}", fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    return figure


def _lay(axis: Axes, photograph: np.ndarray, grid: tuple[int, ...], alpha: float = 1.0) -> None:
    """Draw a photograph in the coordinates of the pixels of a grid that covers it."""
    height, width = grid
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axis.imshow(photograph, cmap="gray", vmin=0, vmax=1, alpha=alpha, extent=extent)


def _dots(axis: Axes, weights: np.ndarray, shown: int, largest_weight: float | None = None) -> None:
    """The `shown` largest weights of a map as dots, their area in proportion to its largest weight or that given."""
    places = np.argsort(weights, axis=None)[::-1][:shown]
    places = places[weights.flat[places] > 0]
    rows, columns = np.unravel_index(places, weights.shape)
    axis.scatter(
        columns, rows, s=80 * weights.flat[places] / (largest_weight or weights.max(initial=1e-12)), color="C3"
    )


def places_holding(weights: np.ndarray, share: float = 0.9) -> int:
    """The smallest number of places of a map that hold that share of its weight; 0 of a map without weight."""
    total = weights.sum()
    if total <= 0:
        return 0
    return int(
        1 + np.searchsorted(np.cumsum(np.sort(weights, axis=None)[::-1]) / total, share).clip(0, weights.size - 1)
    )


def holding(weights: np.ndarray) -> str:
    """How many places of a map hold nine tenths of its weight, in words."""
    places = places_holding(weights)
    return f"{places} hold{'s' if places == 1 else ''} 90 %" if places else "no weight anywhere"


def influences(photograph: np.ndarray, points: Sequence[tuple[int, int]], maps: Mapping[str, np.ndarray]) -> Figure:
    """For each module a row: which pixels move its term at the points, maps (points, H, W) over the photograph,
    from 1 (the most) to a thousandth (nothing drawn) on a logarithmic scale; circles mark the points, which are on the
    maps' grid. A module that no pixel moves is named as such."""
    columns = len(points)
    size = (WIDTH, (WIDTH / columns + 0.4) * len(maps) + 0.7)
    figure, axes = plt.subplots(len(maps), columns, figsize=size, squeeze=False)
    for line, (label, shown) in zip(axes, maps.items(), strict=True):
        for axis, (row, column), values in zip(line, points, shown, strict=True):
            _lay(axis, photograph, values.shape, alpha=0.6)
            relative = np.log10(np.maximum(values / max(values.max(), 1e-12), 1e-3))
            drawn = axis.imshow(relative, cmap="plasma", vmin=-3, vmax=0, alpha=((relative + 3) / 3) ** 0.5)
            axis.plot(column, row, "o", color="C2", markersize=13, fillstyle="none", markeredgewidth=2)
            places = places_holding(values)
            axis.set_title(f"{places} pixels hold 90 %" if places else "no pixel moves it", fontsize=9)
        line[0].set_title(f"{label}\n{line[0].get_title()}", fontsize=9, loc="left")
        line[0].set_title("")
    for axis in axes.flat:
        axis.set_axis_off()
    scale = plt.cm.ScalarMappable(drawn.norm, drawn.cmap)
    label = "influence, log10 of its share of the largest"
    figure.colorbar(scale, ax=axes, location="bottom", shrink=0.6, aspect=40, label=label)
    return figure


def quality_against_cost(rows: pd.DataFrame, labels: Mapping[str, str], tasks: Mapping[str, str]) -> Figure:
    """PSNR (dB) against multiply-adds on one input, a panel per task; the area of a mark grows with the parameters.

    rows: psnr, multiply_adds, parameters per row of the study. tasks: title of the panel of each.
    """
    titles = list(dict.fromkeys(tasks.values()))
    figure, axes = plt.subplots(1, len(titles), figsize=(WIDTH, 4.4), squeeze=False)
    used: dict[str, int] = {}
    look = {}
    for name in rows.index:
        if labels[name] not in look:  # a title stands for the same module in every panel
            module = module_of(name)
            look[labels[name]] = (COLORS[module], MARKERS[used.setdefault(module, 0) % len(MARKERS)])
            used[module] += 1
    for axis, title in zip(axes.flat, titles, strict=True):
        for name, row in rows[[tasks[name] == title for name in rows.index]].iterrows():
            color, marker = look[labels[name]]
            area = 40 + 240 * row.parameters / rows.parameters.max()
            axis.scatter(row.multiply_adds / 1e9, row.psnr, s=area, color=color, marker=marker, alpha=0.8)
        axis.set(title=title, xlabel="multiply-adds (G)", ylabel="PSNR (dB)", xscale="log")
        axis.margins(x=0.15, y=0.15)
    marks = [plt.Line2D([], [], color=c, marker=m, linestyle="", markersize=8, label=t) for t, (c, m) in look.items()]
    figure.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def heat(values: np.ndarray, label: str, photograph: np.ndarray | None = None) -> Figure:
    """A map with its colour bar, beside the photograph that it belongs to."""
    figure, axes = plt.subplots(1, 2 if photograph is not None else 1, figsize=(WIDTH * 0.7, 3.2), squeeze=False)
    if photograph is not None:
        axes[0, 0].imshow(photograph, cmap="gray", vmin=0, vmax=1)
    drawn = axes[0, -1].imshow(values, cmap="viridis")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.colorbar(drawn, ax=axes[0, -1], label=label)
    return figure


def fields(panels: Mapping[str, Mapping[str, tuple[str, pd.Series]]]) -> Figure:
    """Change of PSNR (dB) from the smallest field to larger ones: a panel per title, a line per label with its row's
    name and its PSNR by the side of the field."""
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 4.0), squeeze=False, sharey=True)
    for axis, (title, rows) in zip(axes.flat, panels.items(), strict=True):
        used: dict[str, int] = {}
        axis.axhline(0, color="0.4", linewidth=1)
        for label, (row, psnr) in rows.items():
            module = module_of(row)
            marker = MARKERS[used.setdefault(module, 0) % len(MARKERS)]
            used[module] += 1
            change = psnr - psnr.iloc[0]
            axis.plot(psnr.index, change, marker=marker, color=COLORS[module], label=label)
        axis.set(title=title, xlabel="side of the field (input pixels)")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False, fontsize=8)
    axes[0, 0].set_ylabel("change of PSNR (dB)")
    return figure


def against_similarity(panels: Mapping[str, tuple[str, pd.DataFrame, tuple[float, float, float] | None]]) -> Figure:
    """Per-photograph gain (dB) against self-similarity, a panel per title with the gaining row's name, its `gains`, and
    the slope of a line with the ends of its interval (dotted), or None."""
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(WIDTH * (0.6 if columns == 1 else 1), 2.9 * lines), squeeze=False, sharey=True
    )
    for axis, (title, (row, found, slopes)) in zip(axes.flat, panels.items(), strict=False):
        axis.axhline(0, color="0.4", linewidth=1)
        axis.plot(found.self_similarity, found.gain, "o", color=COLORS[module_of(row)], alpha=0.5, markersize=4)
        axis.set_title(textwrap.fill(title, 34 if columns > 1 else 70), fontsize=9)
        x = np.array([found.self_similarity.min(), found.self_similarity.max()])
        for slope, style in zip(slopes or (), ("-", ":", ":"), strict=False):
            axis.plot(x, found.gain.mean() + slope * (x - found.self_similarity.mean()), style, color="k")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    figure.supxlabel("self-similarity of the photograph", fontsize=10)
    figure.supylabel("gain (dB)", fontsize=10)
    return figure


def points(values: Mapping[str, Sequence[float]], label: str, log: bool = False) -> Figure:
    """A few numbers for each row, every one a dot."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.8 + 0.36 * len(values)))
    for row, numbers in enumerate(values.values()):
        axis.plot(numbers, [row] * len(numbers), "o", color="C0", alpha=0.6)
    axis.set_yticks(range(len(values)), list(values))
    axis.invert_yaxis()
    axis.set(xlabel=label, xscale="log" if log else "linear")
    return figure


def pyramid(
    photograph: np.ndarray, points: Sequence[tuple[int, int]], levels: Mapping[str, np.ndarray], shown: int = 20
) -> Figure:
    """Attention of chosen pixels at each level of a pyramid: a row per point, a column per level with its share.

    levels: per title of a level its weights (points, h, w) on its own grid; over all levels they sum to 1. Points are
    on the first level's grid. Dots of one row are in proportion.
    """
    size = (WIDTH, WIDTH / len(levels) * len(points) + 0.3 * len(points))
    figure, axes = plt.subplots(len(points), len(levels), figsize=size, squeeze=False)
    grid = next(iter(levels.values())).shape[1:]
    for line, (index, point) in zip(axes, enumerate(points), strict=True):
        largest = max(maps[index].max() for maps in levels.values())
        for axis, (title, maps) in zip(line, levels.items(), strict=True):
            _lay(axis, photograph, maps.shape[1:], alpha=0.5)
            _dots(axis, maps[index], shown, largest)
            row, column = ((p + 0.5) * n / full - 0.5 for p, n, full in zip(point, maps.shape[1:], grid, strict=True))
            axis.plot(column, row, "o", color="C2", markersize=12, fillstyle="none", markeredgewidth=2)
            axis.set_title(f"scale {title}: {maps[index].sum():.0%}", fontsize=9)
            axis.set_axis_off()
    return figure


def masses(shares: Mapping[str, pd.Series], uniform: Mapping[str, pd.Series]) -> Figure:
    """A group of bars per network: the share of the attention that each level of its pyramid gets, indexed by scale;
    a line across a bar is the share that uniform attention would give."""
    figure, axis = plt.subplots(figsize=(WIDTH, 1.2 + 0.16 * sum(len(share) + 1.5 for share in shares.values())))
    scales = sorted({scale for share in shares.values() for scale in share.index}, reverse=True)
    color = dict(zip(scales, sns.color_palette("viridis", len(scales)), strict=True))
    top, ticks = 0.0, []
    for name, share in shares.items():
        places = top + np.arange(len(share))
        axis.barh(places, share, 0.9, color=[color[scale] for scale in share.index])
        axis.vlines(uniform[name], places - 0.45, places + 0.45, color="C3", linewidth=2)
        ticks.append(places.mean())
        top += len(share) + 1.5
    for scale in scales:
        axis.barh(0, 0, color=color[scale], label=f"scale {scale:g}")
    axis.vlines([], 0, 0, color="C3", linewidth=2, label="uniform attention")
    axis.set_yticks(ticks, [textwrap.fill(name, 36) for name in shares], fontsize=8)
    axis.set_ylim(top - 1, -1)
    axis.set(xlabel="share of the attention")
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def along(panels: Mapping[str, pd.DataFrame], ylabel: str) -> Figure:
    """Values per photograph (rows) against a number (columns), a panel per meaning of that number: the mean as a line,
    photographs as points or, from twenty on, their quartiles as a band."""
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 3.2), squeeze=False, sharey=True)
    for axis, (xlabel, table) in zip(axes.flat, panels.items(), strict=True):
        mean = table.mean()
        axis.axhline(0, color="0.4", linewidth=1)
        if len(table) < FEW:
            axis.plot(table.columns, table.T, "o", color="C0", alpha=0.45, markersize=5)
        else:
            axis.fill_between(mean.index, *table.quantile([0.25, 0.75]).to_numpy(), color="C0", alpha=0.25)
        axis.plot(mean.index, mean, "D-", color="k", markersize=6)
        axis.set(xlabel=xlabel, xscale="log")
        axis.set_xticks(table.columns, [f"{x:g}" for x in table.columns])
        axis.minorticks_off()
    axes[0, 0].set_ylabel(ylabel)
    return figure


def quartiles(
    panels: Mapping[str, Mapping[str, Mapping]], xlabel: str, ylabel: str, limit: tuple[str, float]
) -> Figure:
    """Median and quartiles of many values against a number: a panel per title, a line per label, values per number.

    limit: name and height of a line across all panels.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 3.0), squeeze=False, sharey=True)
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=True):
        axis.axhline(limit[1], color="0.4", linestyle="--", linewidth=1, label=limit[0])
        for number, (label, values) in enumerate(lines.items()):
            low, middle, high = np.array([np.percentile(v, [25, 50, 75]) for v in values.values()]).T
            bars = [middle - low, high - middle]
            places = np.array(list(values)) * (1 + 0.03 * number)  # bars side by side
            axis.errorbar(places, middle, bars, fmt="o-", markersize=5, capsize=3, color=f"C{number}", label=label)
        axis.set(title=title, xlabel=xlabel)
        axis.set_xticks(list(values), [f"{x:g}" for x in values])
    axes[0, 0].set_ylabel(ylabel)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def curves(panels: Mapping[str, pd.DataFrame], xlabel: str, ylabel: str, legend: str, **axis_options) -> Figure:
    """Lines against a number: a panel per title, a line per column of its table, points where it was measured; one
    colour per name of a column, from dark to light where the names are numbers."""
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 3.2), squeeze=False, sharey=True)
    names = list(dict.fromkeys(name for table in panels.values() for name in table))
    palette = "colorblind" if any(isinstance(name, str) for name in names) else "viridis"
    color = dict(zip(names, sns.color_palette(palette, len(names)), strict=True))
    lines = {}
    for axis, (title, table) in zip(axes.flat, panels.items(), strict=True):
        for name, values in table.items():
            [lines[str(name)]] = axis.plot(table.index, values, "o-", markersize=4, color=color[name])
        axis.set(title=title, xlabel=xlabel, **axis_options)
        axis.set_xticks(table.index, [f"{x:g}" for x in table.index], fontsize=8)
        axis.minorticks_off()
    axes[0, 0].set_ylabel(ylabel)
    figure.legend(
        lines.values(), lines, title=legend, loc="outside right upper", frameon=False, fontsize=8, title_fontsize=8
    )
    return figure


def matches(
    photograph: np.ndarray,
    queries: np.ndarray,
    found: np.ndarray,
    titles: Sequence[Sequence[str]],
    grid: int,
    side: int,
) -> Figure:
    """Patches and their larger matches in one photograph: a row per query with the photograph, in which boxes mark
    them, the query, and each match under its title.

    queries ``(P, 2)``, found ``(P, k, 2)``: top left corners (row, column) of 3 x 3 and of side x side pixels of an
    image of which a pixel is `grid` pixels of the photograph, k the nearest first.
    """
    count = found.shape[1]
    size = (WIDTH, 1.45 * len(queries))
    figure, axes = plt.subplots(len(queries), count + 2, figsize=size, width_ratios=[1.6, *[1] * (count + 1)])
    for line, query, several, texts in zip(np.atleast_2d(axes), queries, found, titles, strict=True):
        boxes = [
            (query, 3, "C2", "query"),
            *((corner, side, "C3", text) for corner, text in zip(several, texts, strict=True)),
        ]
        line[0].imshow(photograph, cmap="gray", vmin=0, vmax=1)
        for axis, ((row, column), pixels, color, title) in zip(line[1:], boxes, strict=True):
            top, left, width = (int(grid * number) for number in (row, column, pixels))
            line[0].add_patch(plt.Rectangle((left - 0.5, top - 0.5), width, width, fill=False, color=color))
            axis.imshow(photograph[top : top + width, left : left + width], cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=8, color=color)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def by_rank(panels: Mapping[str, np.ndarray], uniform: float) -> Figure:
    """Numbers of the k nearest neighbours ``(P, k)`` against their rank: a panel per name, a line per query; `uniform`
    is drawn where the numbers of a query sum to 1."""
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 3.0))
    for axis, (title, values) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        ranks = np.arange(1, values.shape[1] + 1)
        for number, line in enumerate(values, 1):
            axis.plot(ranks, line, "o-", markersize=5, label=f"pixel {number}")
        if np.allclose(values.sum(1), 1, atol=1e-2):
            axis.axhline(uniform, color="0.4", linestyle="--", linewidth=1)
        axis.set(title=title, xlabel="rank of the neighbour", xticks=ranks, ylim=(0, 1.15 * values.max()))
    axis.legend(frameon=False, fontsize=8)
    return figure


def mixtures(alpha: np.ndarray, beta: np.ndarray, rows: Sequence[str], operators: Sequence[str]) -> Figure:
    """Learned numbers of adaptive filters, a row each: what `alpha` (N, operators) and `beta` (N,) are, and by colour
    how far they have moved from where they start, 1 and 0."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 1.2 + 0.27 * len(rows)), width_ratios=[len(operators), 1])
    reach = max(np.abs(alpha - 1).max(), np.abs(beta).max())
    how = {"annot": True, "fmt": ".2f", "cmap": "vlag", "annot_kws": {"fontsize": 8}, "cbar": False}
    sns.heatmap(alpha, ax=axes[0], vmin=1 - reach, vmax=1 + reach, xticklabels=operators, yticklabels=rows, **how)
    sns.heatmap(beta[:, None], ax=axes[1], vmin=-reach, vmax=reach, xticklabels=["identity"], yticklabels=False, **how)
    for axis, title in zip(axes, ("alpha, which starts at 1", "beta, at 0"), strict=True):
        axis.set_title(title, fontsize=10)
        axis.tick_params(axis="x", rotation=35)
        axis.tick_params(axis="y", rotation=0)
    return figure


def deviations(rows: pd.DataFrame) -> Figure:
    """How far numbers are from what they must be: a line per `label`, a dot per row, over a bar of its tolerance.

    rows: label, metric (psnr or ssim), deviation, tolerance, agrees (bool). A panel for dB and, where there is any, one
    for SSIM.
    """
    labels = list(dict.fromkeys(rows.label))
    panels = {metric: text for metric, text in UNITS.items() if (rows.metric == metric).any()}
    size = (WIDTH, 1.0 + 0.25 * len(labels))
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (metric, unit) in zip(axes.flat, panels.items(), strict=True):
        shown = rows[rows.metric == metric]
        line = shown.label.map(labels.index)
        axis.barh(line, 2 * shown.tolerance, left=-shown.tolerance, height=0.7, color="0.88", zorder=1)
        axis.axvline(0, color="0.4", linewidth=1, zorder=2)
        for agrees, color, marker in ((True, "C0", "o"), (False, "C3", "D")):
            of_kind = shown.agrees == agrees
            axis.plot(shown.deviation[of_kind], line[of_kind], marker, color=color, alpha=0.7, markersize=5)
        axis.set_xlabel(f"measured - reference ({unit})")
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(labels)), labels, fontsize=9)
    axes[0, 0].set_ylim(len(labels) - 0.4, -0.6)
    return figure


UNITS = {"psnr": "dB", "ssim": "SSIM"}


def worth(choices: pd.DataFrame, linear: float = 0.01) -> Figure:
    """The effect of each choice, as bars: a row of panels per number, PSNR and SSIM side by side, a colour per group.

    choices: number, group, choice, difference (dB), ssim_difference and, for what was drawn several times, low and high
    (dB). PSNR is linear up to `linear` dB and logarithmic beyond.
    """
    parts = [rows.reset_index(drop=True) for _, rows in choices.groupby("number", sort=False)]
    colors = {group: f"C{number}" for number, group in enumerate(dict.fromkeys(choices.group))}
    figure, axes = plt.subplots(
        len(parts), 2, figsize=(WIDTH, 1.2 + 0.26 * len(choices)), sharex="col", sharey="row", squeeze=False,
        height_ratios=[len(rows) + 1 for rows in parts], width_ratios=[3, 1.3],
    )  # fmt: skip
    for (left, right), rows in zip(axes, parts, strict=True):
        left.hlines(rows.index, rows.low, rows.high, color="0.2", linewidth=2, zorder=3)
        for axis, column, digits in ((left, "difference", 3), (right, "ssim_difference", 4)):
            axis.barh(rows.index, rows[column].fillna(0), color=rows.group.map(colors), height=0.7)
            axis.axvline(0, color="0.4", linewidth=1)
            axis.grid(axis="y", visible=False)
            for place, value in rows[column].dropna().items():
                text = f"{value:+.{digits}f}" if round(abs(value), digits) else "0"
                ends = [value, *(rows.loc[place, ["low", "high"]].dropna() if axis is left else ())]
                end, side, align = (max(ends), 5, "left") if value >= 0 else (min(ends), -5, "right")
                axis.annotate(
                    text, (end, place), (side, 0), textcoords="offset points", ha=align, va="center", fontsize=8
                )
        left.set_yticks(rows.index, rows.group + ": " + rows.choice, fontsize=8)
        left.set_ylim(len(rows) - 0.4, -0.6)
        left.set_title(rows.number[0], fontsize=10, loc="left")
    left, right = axes[-1]
    reach, ssim_reach = choices.difference.abs().max(), choices.ssim_difference.abs().max()
    left.set_xscale("symlog", linthresh=linear)
    left.set(xlim=(-12 * reach, 12 * reach), xlabel="difference of PSNR (dB)")
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.set(xlim=(-2.6 * ssim_reach, 2.6 * ssim_reach), xlabel="difference of SSIM")
    return figure
