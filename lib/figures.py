"""Figures of the notebooks: one style, colour-blind safe, units on the axes, legible at a code host's width."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Photographs are shown as JPEG: a noisy crop costs a seventh of its PNG.
JPEG_QUALITY = 75

#: Other figures as PNG with so many colours, which lines, dots and colour maps get by with.
PALETTE = 256

WIDTH = 9.0  # inches; 900 pixels at the notebooks' resolution


def style() -> None:
    """Set the look of every figure, and of tables; called once by each notebook that draws."""
    pd.set_option("display.max_colwidth", None)
    sns.set_theme(style="whitegrid", palette="colorblind", font_scale=0.95)
    plt.rcParams.update({"figure.dpi": 100, "savefig.dpi": 100, "figure.constrained_layout.use": True})


def show(figure: Figure, save: Path | None = None, photographs: bool = False) -> Image:
    """The figure as an image for the notebook (JPEG where it holds photographs) and, with `save`, as a file too."""
    form = "jpeg" if photographs else "png"
    drawn, data = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    plt.close(figure)
    with PIL.Image.open(drawn) as opened:
        pixels = opened.convert("RGB")
    if photographs:
        pixels.save(data, format=form, quality=JPEG_QUALITY)
    else:  # a quarter of the bytes of full colour
        pixels.quantize(PALETTE, dither=PIL.Image.Dither.NONE).save(data, format=form, optimize=True)
    if save:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.with_suffix(".jpg" if photographs else ".png").write_bytes(data.getvalue())
    return Image(data.getvalue(), format=form)


def gallery(pictures: Mapping[str, np.ndarray], columns: int = 4, side: float = 2.2) -> Figure:
    """Images (H, W[, 3]) in [0, 1], each under its title, without axes."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(side * columns, (side + 0.35) * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, picture) in zip(axes.flat, pictures.items(), strict=False):
        axis.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=9)
    return figure


def training_curves(logs: Mapping[str, pd.DataFrame]) -> Figure:
    """PSNR of the training crops against the step, one line per seed."""
    figure, axis = plt.subplots(figsize=(WIDTH, 2.8))
    for label, log in logs.items():
        axis.plot(log.step, log.psnr, marker=".", label=label)
    axis.set(xlabel="step", ylabel="PSNR of training crops (dB)")
    axis.legend(frameon=False)
    return figure


def differences(changes: Mapping[str, pd.DataFrame], bounds: pd.DataFrame, labels: Mapping, spreads: Mapping) -> Figure:
    """Per-photograph differences to the reference: every point, the mean, its interval where there is one.

    changes: for each title of a panel a row per photograph, a column per experiment, dB. bounds: `low`, `high` per
    experiment (NaN: no interval). spreads: per title, what two trainings of one network differ by, shown as a band.
    """
    heights = [max(len(table.columns), 1) for table in changes.values()]
    size = (WIDTH, 0.42 * sum(heights) + 0.9 * len(heights))
    figure, axes = plt.subplots(len(heights), 1, figsize=size, height_ratios=heights, squeeze=False)
    for axis, (title, table) in zip(axes.flat, changes.items(), strict=True):
        axis.set_title(title.replace("_", " "), fontsize=10, loc="left")
        _difference_panel(axis, table, bounds, labels, spreads[title])
    figure.supxlabel(
        "difference of PSNR (dB); dots: photographs, diamond: mean, bar: 95 % interval, band: spread over seeds",
        fontsize=9,
    )
    return figure


def _difference_panel(
    axis: Axes, changes: pd.DataFrame, bounds: pd.DataFrame, labels: Mapping[str, str], spread: float
) -> None:
    names = list(changes.columns)
    if np.isfinite(spread):
        axis.axvspan(-spread, spread, color="0.88", zorder=0)
    axis.axvline(0, color="0.4", linewidth=1)
    for row, name in enumerate(names):
        values = changes[name].dropna()
        axis.plot(values, np.full(len(values), row), "o", color="C0", alpha=0.45, markersize=5)
        axis.plot(values.mean(), row, "D", color="C3", markersize=7, zorder=3)
        low, high = bounds.loc[name, ["low", "high"]]
        if np.isfinite(low):
            axis.plot([low, high], [row, row], color="C3", linewidth=2.5, zorder=2)
    axis.set_yticks(range(len(names)), [labels[name] for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)


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
        axes[number].set_title(f"pixel {number}: {places_holding(weights)} hold 90 %", fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    return figure


def _lay(axis: Axes, photograph: np.ndarray, grid: tuple[int, int], alpha: float = 1.0) -> None:
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
    """The smallest number of places of a map that hold that share of its weight."""
    held = np.cumsum(np.sort(weights, axis=None)[::-1]) / max(weights.sum(), 1e-12)
    return int(1 + np.searchsorted(held, share))


def influences(photograph: np.ndarray, points: Sequence[tuple[int, int]], maps: Mapping[str, np.ndarray]) -> Figure:
    """For each module a row: where what it adds at the points comes from, maps (points, H, W) from 1 (the most) to
    a thousandth on a logarithmic scale; circles mark the points."""
    columns = len(points)
    size = (WIDTH, WIDTH / (columns + 1) * len(maps))
    figure, axes = plt.subplots(len(maps), columns + 1, figsize=size, squeeze=False)
    for line, (label, shown) in zip(axes, maps.items(), strict=True):
        line[0].imshow(photograph, cmap="gray", vmin=0, vmax=1)
        line[0].set_title(label, fontsize=9, loc="left")
        for axis, (row, column), values in zip(line[1:], points, shown, strict=True):
            relative = np.log10(np.maximum(values / max(values.max(), 1e-12), 1e-3))
            drawn = axis.imshow(relative, cmap="viridis", vmin=-3, vmax=0)
            axis.plot(column, row, "o", color="C1", markersize=11, fillstyle="none", markeredgewidth=2)
            axis.set_title(f"{places_holding(values)} pixels hold 90 %", fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.colorbar(drawn, ax=axes, shrink=0.5, aspect=40, label="influence, log10 of its share of the largest")
    return figure


def quality_against_cost(rows: pd.DataFrame, labels: Mapping[str, str], tasks: Mapping[str, str]) -> Figure:
    """PSNR (dB) against multiply-adds on one input, a panel per task; the area of a dot grows with the parameters.

    rows: psnr, multiply_adds, parameters per experiment. tasks: title of the panel per experiment.
    """
    titles = list(dict.fromkeys(tasks.values()))
    figure, axes = plt.subplots(1, len(titles), figsize=(WIDTH, 3.6), squeeze=False)
    for axis, title in zip(axes.flat, titles, strict=True):
        mine = rows[[tasks[name] == title for name in rows.index]].sort_values("multiply_adds")
        axis.scatter(mine.multiply_adds / 1e9, mine.psnr, s=20 + 200 * mine.parameters / rows.parameters.max())
        for number, row in enumerate(mine.itertuples()):
            axis.annotate(labels[row.Index], (row.multiply_adds / 1e9, row.psnr), (6, 6 if number % 2 else -12),
                          textcoords="offset points", fontsize=8)  # fmt: skip
        axis.set(title=title, xlabel="multiply-adds (G)", ylabel="PSNR (dB)", xscale="log")
        axis.margins(x=0.25, y=0.15)
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


def against_similarity(gains: pd.DataFrame) -> Figure:
    """Per-photograph gain (dB) against self-similarity, one colour per pair, with the rank correlation."""
    figure, axis = plt.subplots(figsize=(WIDTH * 0.75, 3.4))
    axis.axhline(0, color="0.4", linewidth=1)
    for pair, rows in gains.groupby("pair", sort=False):
        correlation = rows.self_similarity.corr(rows.gain, method="spearman")
        axis.plot(rows.self_similarity, rows.gain, "o", label=f"{pair} (rank correlation {correlation:+.2f})")
        if len(rows) <= 12:
            for row in rows.itertuples():
                axis.annotate(
                    row.image, (row.self_similarity, row.gain), fontsize=7, xytext=(3, 3), textcoords="offset points"
                )
    axis.set(xlabel="self-similarity of the photograph", ylabel="gain (dB)")
    figure.legend(loc="outside upper left", frameon=False, fontsize=8)
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
    """What chosen pixels attend to at each level of a pyramid: a row per point, a column per level with its share.

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
    a line across a bar is what uniform attention would give."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2))
    scales = sorted({scale for share in shares.values() for scale in share.index}, reverse=True)
    color = {scale: f"C{number}" for number, scale in enumerate(scales)}
    step = 0.85 / len(scales)
    for group, (name, share) in enumerate(shares.items()):
        places = group + step * (np.arange(len(share)) - (len(share) - 1) / 2)
        axis.bar(places, share, step * 0.9, color=[color[scale] for scale in share.index])
        axis.hlines(uniform[name], places - step * 0.45, places + step * 0.45, color="0.1", linewidth=2)
    for scale in scales:
        axis.bar(0, 0, color=color[scale], label=f"scale {scale:g}")
    axis.hlines([], 0, 0, color="0.1", linewidth=2, label="uniform attention")
    axis.set_xticks(range(len(shares)), list(shares), fontsize=8)
    axis.set(ylabel="share of the attention")
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def along(panels: Mapping[str, pd.DataFrame], ylabel: str, spread: float = np.nan) -> Figure:
    """Values per photograph (rows) against a number (columns), a panel per meaning of that number: photographs as
    points, their mean as a line. spread: what two trainings of one network differ by, as a band around the mean."""
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 3.2), squeeze=False, sharey=True)
    for axis, (xlabel, table) in zip(axes.flat, panels.items(), strict=True):
        mean = table.mean()
        axis.axhline(0, color="0.4", linewidth=1)
        axis.plot(table.columns, table.T, "o", color="C0", alpha=0.45, markersize=5)
        axis.plot(mean.index, mean, "D-", color="C3", markersize=6)
        if np.isfinite(spread):
            axis.fill_between(mean.index, mean - spread, mean + spread, color="0.85", zorder=0)
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
    """What each choice changes, as bars: a row of panels per number, PSNR and SSIM side by side, a colour per group.

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
