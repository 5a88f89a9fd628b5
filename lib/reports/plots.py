"""Figures of the reports: units on the axes, one colour per module everywhere, legible at 390 px.

Photographs are arrays (H, W[, 3]) in [0, 1]; points are (row, column).
"""

from __future__ import annotations

import io
import itertools
import textwrap
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
from matplotlib.ticker import MaxNLocator

from .. import figures
from ..measuring.metrics import MOST_PSNR

#: Inches: on a phone 350 pixels, where letters of 9 points are 8 pixels high.
WIDTH = 5.4

#: One colour per attention module in every figure, safe for colour-blind readers; other rows are gray.
_COLORBLIND = sns.color_palette("colorblind")
COLORS = {
    "none": (0.35, 0.35, 0.35),
    "other": (0.65, 0.65, 0.65),
    "dagl": _COLORBLIND[0],
    "nl": _COLORBLIND[1],
    "panet": _COLORBLIND[2],
    "enlca": _COLORBLIND[3],
    "ignn": _COLORBLIND[4],
    "lir": _COLORBLIND[5],
    "nlsa": _COLORBLIND[6],
    "sparse": _COLORBLIND[9],
}

#: With fewer photographs every one is a dot; a violin would invent a shape.
FEW = 20

#: The rows of one module are told apart by these, in their order.
MARKERS = "osD^vP*X<>"

#: Ends the label of a row whose attention does not act; such rows have open marks in place of it where marks are drawn.
IDLE = " (does not act)"

#: Of 1; white in the maps of `strip`.
LARGEST_ERROR = 0.15

#: Letters that fit a panel of half the width.
HALF = 30

#: Height of a line of a legend, inches.
LINE = 0.2


def style() -> None:
    """The look of the reports' figures and tables: called once by each report."""
    figures.style(dpi=150, font_scale=0.82)


def show(figure: Figure, save: Path | None = None, alt: str | None = None) -> Image:
    """A figure without photographs as PNG for the notebook and, with `save`, as a file too; alt says what it shows.

    Of 256 colours, by an octree: a third of the bytes, and shades that a legend tells apart stay apart.
    """
    drawn, data = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    plt.close(figure)
    with PIL.Image.open(drawn) as opened:
        few = opened.convert("RGB").quantize(256, PIL.Image.Quantize.FASTOCTREE, dither=PIL.Image.Dither.NONE)
    few.save(data, format="png", optimize=True)
    if save:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.with_suffix(".png").write_bytes(data.getvalue())
    return Image(data.getvalue(), format="png", alt=alt)


def _panels(count: int, height: float, most: int = 2, **options) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of a height in inches, at most so many side by side."""
    columns = min(most, count)
    lines = -(-count // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(WIDTH, height * lines), squeeze=False, **options)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, [*axes.flat[:count]]


def _looks(modules: Mapping[str, str]) -> dict[str, dict]:
    """Colour and marker of each label: a shade of its module's colour; a label looks the same in every panel of a
    figure, but for its mark, which is open where it is `IDLE`."""
    labels: dict[str, dict[str, None]] = {}  # in their order, once
    for label, module in modules.items():
        labels.setdefault(module, {})[label.removesuffix(IDLE)] = None
    looks = {
        label: {"color": shade, "marker": MARKERS[number % len(MARKERS)]}
        for module, group in labels.items()
        for number, (label, shade) in enumerate(zip(group, _shades(COLORS[module], len(group)), strict=True))
    }
    is_open = {"markerfacecolor": "white", "markeredgewidth": 1.5}
    return {name: looks[name.removesuffix(IDLE)] | (is_open if name.endswith(IDLE) else {}) for name in modules}


def _shades(color: tuple[float, float, float], count: int) -> list:
    """A colour for one, shades of it from dark to light for several."""
    dark, light = (sns.blend_palette([color, end], 9)[part] for end, part in (("black", 3), ("white", 4)))
    return [color] if count == 1 else [*sns.blend_palette([dark, color, light], count)]


def _legend(figure: Figure, looks: Mapping[str, dict]) -> None:
    """One legend under all panels; the figure grows by the lines that it takes beyond two."""
    shown = {label.removesuffix(IDLE): look | {"markerfacecolor": look["color"]} for label, look in looks.items()}
    if idle := [look for label, look in looks.items() if label.endswith(IDLE)]:
        shown["open: does not act"] = idle[0] | {"color": "0.4", "marker": "o"}
    labels = [textwrap.fill(label, HALF) for label in shown]
    marks = [plt.Line2D([], [], markersize=6, label=t, **look) for t, look in zip(labels, shown.values(), strict=True)]
    columns = min(2, len(marks))
    figure.legend(
        handles=marks, loc="outside lower center", ncols=columns, frameon=False, handlelength=1.3, columnspacing=1.0
    )
    in_column = -(-len(labels) // columns)
    lines = max(
        sum(text.count("\n") + 1 for text in labels[i : i + in_column]) for i in range(0, len(labels), in_column)
    )
    figure.set_figheight(figure.get_figheight() + LINE * max(lines - 2, 0))


def _label(axes: Sequence[Axes], xlabel: str, ylabel: str) -> None:
    """Names of axes that are the same in all panels: under the lowest, and once on the left."""
    tops = [axis.get_position().y1 for axis in axes]
    for axis, top in zip(axes, tops, strict=True):
        if top == min(tops):
            axis.set_xlabel(xlabel)
    axes[0].figure.supylabel(ylabel, fontsize=9)


def differences(
    changes: Mapping[str, pd.DataFrame], bounds: pd.DataFrame, labels: Mapping[str, str], modules: Mapping[str, str]
) -> Figure:
    """Per-photograph differences to the reference: their shape (dots where they are few), the mean and its interval.

    changes: for each title of a panel a row per photograph, a column per row of the study, dB. bounds: `difference`,
    `low`, `high` of each, NaN where there is no interval. Shapes leave out the outermost hundredth on either side.
    """
    heights = [max(len(table.columns), 1) for table in changes.values()]
    names = {name: textwrap.fill(labels[name], 24) for table in changes.values() for name in table.columns}
    most = max((name.count("\n") + 1 for name in names.values()), default=1)
    size = (WIDTH, max(0.42, 0.15 * most + 0.05) * sum(heights) + 0.62 * len(heights) + 0.4)
    figure, axes = plt.subplots(len(heights), 1, figsize=size, height_ratios=heights, sharex=True, squeeze=False)
    for axis, (title, table) in zip(axes.flat, changes.items(), strict=True):
        axis.set_title(textwrap.fill(title, 50), loc="left", fontsize=9)
        axis.axvline(0, color="0.4", linewidth=1)
        for row, name in enumerate(table.columns):
            values, color = table[name].dropna().to_numpy(), COLORS[modules[name]]
            if len(values) < FEW:
                axis.plot(values, np.full(len(values), row), "o", color=color, alpha=0.6, markersize=5)
            else:
                low, high = np.quantile(values, [0.01, 0.99])
                inner = values[(low <= values) & (values <= high)]
                drawn = axis.violinplot(inner, [row], orientation="horizontal", widths=0.85, showextrema=False)
                drawn["bodies"][0].set(facecolor=color, alpha=0.5)
            mean, low, high = bounds.loc[name, ["difference", "low", "high"]].astype(float)
            axis.plot([low, high], [row, row], color="k", linewidth=2)
            axis.plot(mean, row, "D", color="k", markersize=4.5)
        axis.set_yticks(range(len(table.columns)), [names[name] for name in table.columns], fontsize=8.5)
        axis.set_ylim(len(table.columns) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
    figure.supxlabel("difference of PSNR (dB): 98 % of the photographs, mean, 95 % interval", fontsize=9)
    return figure


def attention(photograph: np.ndarray, points: Sequence[tuple[int, int]], maps: np.ndarray, shown: int = 60) -> Figure:
    """Where chosen pixels look: the photograph with the points, then per point the `shown` largest weights of its map
    (H, W), as dots of that area, and how many places hold nine tenths of the weight.

    The map's grid, in which the points are given, may be coarser than the photograph."""
    figure, axes = _panels(len(points) + 1, WIDTH / 2 + 0.2)
    _lay(axes[0], photograph, maps.shape[1:])
    axes[0].set_title("photograph")
    for number, ((row, column), weights) in enumerate(zip(points, maps, strict=True), 1):
        seen = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        axes[0].text(column, row, str(number), weight="bold", fontsize=8, ha="center", va="center", bbox=seen)
        _lay(axes[number], photograph, weights.shape, alpha=0.5)
        _dots(axes[number], weights, shown)
        axes[number].plot(column, row, "o", color="C2", markersize=14, fillstyle="none", markeredgewidth=2)
        axes[number].set_title(f"pixel {number}: {holding(weights)}")
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


def places_holding(weights: np.ndarray) -> int:
    """The smallest number of places of a map that hold nine tenths of its weight; 0 of a map without weight."""
    if (total := weights.sum()) <= 0:
        return 0
    held = np.cumsum(np.sort(weights, axis=None)[::-1]) / total
    return int(1 + np.searchsorted(held, 0.9).clip(0, weights.size - 1))


def holding(weights: np.ndarray) -> str:
    """How many places of a map hold nine tenths of its weight, in words."""
    places = places_holding(weights)
    return f"{places} hold{'s' if places == 1 else ''} 90 %" if places else "no weight anywhere"


def strip(clean: np.ndarray, restored: Mapping[str, np.ndarray]) -> Figure:
    """A photograph with a box, and its busiest part as each row restores it, above how far that is from the clean one.

    All errors have one scale: black for none, white for `LARGEST_ERROR` and more.
    """
    side = min(clean.shape[:2]) * 3 // 8
    top, left = busiest(clean, side)
    window = np.s_[top : top + side, left : left + side]
    cells = {"clean, and the\npart shown": (clean, None), "clean": (clean[window], None)}
    for label, picture in restored.items():
        error = np.abs(picture[window] - clean[window]).reshape(side, side, -1).mean(2)
        psnr = -10 * np.log10(max(np.square(picture - clean).mean(), 10 ** (-MOST_PSNR / 10)))
        cells[f"{textwrap.fill(label, 18)}\n{psnr:.2f} dB"] = (picture[window], error)
    columns = 4
    lines = -(-len(cells) // columns)
    figure, axes = plt.subplots(2 * lines, columns, figsize=(WIDTH, 3.15 * lines), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (title, (picture, error)) in enumerate(cells.items()):
        above, below = (axes[2 * (number // columns) + part, number % columns] for part in (0, 1))
        above.imshow(picture, cmap="gray", vmin=0, vmax=1)
        above.set_title(title, fontsize=8)
        if picture is clean:
            above.add_patch(plt.Rectangle((left, top), side, side, fill=False, color=_COLORBLIND[3]))
        if error is not None:
            below.imshow(error, cmap="gray", vmin=0, vmax=LARGEST_ERROR)
    return figure


def busiest(image: np.ndarray, side: int) -> tuple[int, int]:
    """Top left corner of the square of a photograph with the most detail (gradients)."""
    gray = image.reshape(*image.shape[:2], -1).mean(2)
    down, right = np.abs(np.diff(gray, axis=0, append=gray[-1:])), np.abs(np.diff(gray, axis=1, append=gray[:, -1:]))
    sums = np.pad((down + right).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return int(top), int(left)


def influences(
    photograph: np.ndarray,
    points: Sequence[tuple[int, int]],
    maps: Mapping[str, np.ndarray],
    what: str = "influence",
) -> Figure:
    """For each module a row: which pixels move its term at the points, maps (points, H, W) over the photograph,
    from 1 (the most) to a thousandth (nothing drawn) on a logarithmic scale; circles mark the points, which are on the
    maps' grid. A module that no pixel moves is named as such."""
    columns = len(points)
    size = (WIDTH, (WIDTH / columns + 0.38) * len(maps) + 0.6)
    figure, axes = plt.subplots(len(maps), columns, figsize=size, squeeze=False)
    for line, (label, shown) in zip(axes, maps.items(), strict=True):
        for axis, (row, column), values in zip(line, points, shown, strict=True):
            _lay(axis, photograph, values.shape, alpha=0.6)
            relative = np.log10(np.maximum(values / max(values.max(), 1e-12), 1e-3))
            drawn = axis.imshow(relative, cmap="plasma", vmin=-3, vmax=0, alpha=((relative + 3) / 3) ** 0.5)
            axis.plot(column, row, "o", color="C2", markersize=13, fillstyle="none", markeredgewidth=2)
            places = places_holding(values)
            axis.set_title(f"{places} pixels hold 90 %" if places else f"no {what}", fontsize=8, loc="left")
        line[0].set_title(f"{label}\n{line[0].get_title('left')}", fontsize=8, loc="left")
    for axis in axes.flat:
        axis.set_axis_off()
    scale = plt.cm.ScalarMappable(drawn.norm, drawn.cmap)
    label = f"{what}, log10 of its share of the largest"
    figure.colorbar(scale, ax=axes, location="bottom", shrink=0.8, aspect=40, label=label)
    return figure


def quality_against_cost(
    rows: pd.DataFrame, labels: Mapping[str, str], tasks: Mapping[str, str], modules: Mapping[str, str]
) -> Figure:
    """PSNR (dB) against multiply-adds and peak memory on one input, a line of panels per task; the area of a mark grows
    with the parameters. A dB is as high in one panel as in another.

    rows: psnr, multiply_adds, peak_bytes, parameters per row of the study. tasks: title of the panels of each.
    """
    titles = list(dict.fromkeys(tasks.values()))
    figure, axes = _panels(2 * len(titles), 2.7)
    looks = _looks({labels[name]: modules[name] for name in rows.index})
    by_task = {title: rows[[tasks[name] == title for name in rows.index]] for title in titles}
    reach = max(found.psnr.max() - found.psnr.min() for found in by_task.values()) * 0.65 + 0.02
    spent = [("multiply_adds", 1e9, "multiply-adds (G)"), ("peak_bytes", 2**20, "peak memory (MiB)")]
    for axis, ((title, found), (cost, unit, label)) in zip(
        axes, itertools.product(by_task.items(), spent), strict=True
    ):
        for name, row in found.iterrows():
            size = (30 + 150 * row.parameters / rows.parameters.max()) ** 0.5
            axis.plot(row[cost] / unit, row.psnr, markersize=size, alpha=0.8, linestyle="", **looks[labels[name]])
        axis.set(title=title, xlabel=label, ylabel="PSNR (dB)", xscale="log")
        middle = (found.psnr.max() + found.psnr.min()) / 2
        axis.set_ylim(middle - reach, middle + reach)
        axis.margins(x=0.2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    for look in looks.values():
        look["linestyle"] = ""
    _legend(figure, looks)
    return figure


def heat(values: np.ndarray, label: str, photograph: np.ndarray) -> Figure:
    """A map with its colour bar, beside the photograph that it belongs to."""
    figure, axes = _panels(2, WIDTH / 2 + 0.6)
    axes[0].imshow(photograph, cmap="gray", vmin=0, vmax=1)
    drawn = axes[1].imshow(values, cmap="viridis")
    for axis in axes:
        axis.set_axis_off()
    figure.colorbar(drawn, ax=axes[1], label=label, location="bottom", shrink=0.9).locator = MaxNLocator(4)
    return figure


#: Of `fields`, dB: where the axis ends below, and the least it reaches to either side of zero.
MOST_LOSS, LEAST_RANGE = 0.6, 0.05


def fields(panels: Mapping[str, Mapping[str, tuple[str, pd.Series]]]) -> Figure:
    """Change of PSNR (dB) from the smallest field to larger ones: a panel per title, a line per label with its module
    and its PSNR by the side of the field. A loss of more than `MOST_LOSS` is written at the lower end of the axis."""
    figure, axes = _panels(len(panels), 2.1, sharey=True)
    looks = _looks({label: module for rows in panels.values() for label, (module, _) in rows.items()})
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        axis.axhline(0, color="0.4", linewidth=1)
        changes = pd.DataFrame({label: psnr - psnr.iloc[0] for label, (_, psnr) in rows.items()})
        for label, change in changes.items():
            axis.plot(change.dropna(), markersize=5, **looks[str(label)])
        for side, lost in changes.min(axis=1)[lambda lowest: lowest < -MOST_LOSS].items():
            axis.text(side, -MOST_LOSS, f"↓ {lost:.1f}", ha="center", va="bottom", fontsize=8)
        sides = sorted({side for _, psnr in rows.values() for side in psnr.index})
        axis.set_xticks(sides, [f"{side:g}" for side in sides])
        axis.set_title(title, loc="left", fontsize=9)
    least, most = axes[0].get_ylim()  # of all panels
    axes[0].set_ylim(max(min(least, -LEAST_RANGE), -MOST_LOSS), max(most, LEAST_RANGE))
    _label(axes, "side of the field (input pixels)", "change of PSNR (dB)")
    _legend(figure, looks)
    return figure


def along_training(panels: Mapping[str, Mapping[str, tuple[str, pd.DataFrame]]]) -> Figure:
    """Difference (dB) to the reference on the validation photographs against the step: a panel per title, a line per
    label with its module and a table by step: mean, low, high, the band of which is filled."""
    figure, axes = _panels(len(panels), 2.6, most=1)
    looks = _looks({label: module for rows in panels.values() for label, (module, _) in rows.items()})
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        axis.axhline(0, color="0.4", linewidth=1)
        for label, (_, curve) in rows.items():
            axis.plot(curve.index, curve["mean"], markersize=5, **looks[label])
            axis.fill_between(curve.index, curve.low, curve.high, color=looks[label]["color"], alpha=0.15, linewidth=0)
        steps = sorted({step for _, curve in rows.values() for step in curve.index})
        axis.set_xscale("log", base=2)
        axis.set_xticks(steps[::-2], [f"{step:,}" for step in steps[::-2]])
        axis.minorticks_off()
        axis.set_title(textwrap.fill(title, 50), loc="left", fontsize=9)
    _label(axes, "training step", "difference of PSNR (dB)")
    _legend(figure, looks)
    return figure


def against_similarity(panels: Mapping[str, tuple[str, pd.DataFrame, tuple[float, float, float] | None]]) -> Figure:
    """Per-photograph gain (dB) against self-similarity, a panel per title with the gaining row's module, its `gains`,
    and the slope of a line with the ends of its interval (dotted), or None."""
    figure, axes = _panels(len(panels), 2.0, sharex=True, sharey=True)
    for axis, (title, (module, found, slopes)) in zip(axes, panels.items(), strict=True):
        axis.axhline(0, color="0.4", linewidth=1)
        axis.plot(found.self_similarity, found.gain, "o", color=COLORS[module], alpha=0.5, markersize=3)
        lines = title.replace(" (", "\n(").split("\n")  # the task on a line of its own
        axis.set_title("\n".join(textwrap.fill(line, HALF) for line in lines), fontsize=8, loc="left")
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.tick_params(labelbottom=True)
        x = np.array([found.self_similarity.min(), found.self_similarity.max()])
        for slope, style in zip(slopes or (), ("-", ":", ":"), strict=False):
            axis.plot(x, found.gain.mean() + slope * (x - found.self_similarity.mean()), style, color="k")
    _label(axes, "self-similarity", "gain (dB)")
    return figure


def points(values: Mapping[str, tuple[str, Sequence[float]]], label: str) -> Figure:
    """A few numbers for each label, every one a dot in the colour of its module."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.7 + 0.32 * len(values)))
    for place, (module, numbers) in enumerate(values.values()):
        axis.plot(numbers, [place] * len(numbers), "o", color=COLORS[module], alpha=0.6)
    axis.set_yticks(range(len(values)), [textwrap.fill(name, 24) for name in values], fontsize=8.5)
    axis.invert_yaxis()
    axis.set(xlabel=label, xscale="log")
    return figure


def pyramid(
    photograph: np.ndarray, points: Sequence[tuple[int, int]], levels: Mapping[str, np.ndarray], shown: int = 20
) -> Figure:
    """Attention of chosen pixels at each level of a pyramid: a row per point, a column per level with its share.

    levels: per title of a level its weights (points, h, w) on its own grid; over all levels they sum to 1. Points are
    on the first level's grid. Dots of one row are in proportion.
    """
    size = (WIDTH, (WIDTH / len(levels) + 0.25) * len(points))
    figure, axes = plt.subplots(len(points), len(levels), figsize=size, squeeze=False)
    grid = next(iter(levels.values())).shape[1:]
    for line, (index, point) in zip(axes, enumerate(points), strict=True):
        largest = max(maps[index].max() for maps in levels.values())
        for axis, (title, maps) in zip(line, levels.items(), strict=True):
            _lay(axis, photograph, maps.shape[1:], alpha=0.5)
            _dots(axis, maps[index], shown, largest)
            row, column = ((p + 0.5) * n / full - 0.5 for p, n, full in zip(point, maps.shape[1:], grid, strict=True))
            axis.plot(column, row, "o", color="C2", markersize=10, fillstyle="none", markeredgewidth=1.5)
            axis.set_title(f"x {title}: {maps[index].sum():.0%}", fontsize=8)
            axis.set_axis_off()
    return figure


def masses(shares: Mapping[str, pd.Series], uniform: Mapping[str, pd.Series]) -> Figure:
    """A group of bars per network: the share of the attention that each level of its pyramid gets, indexed by scale;
    a line across a bar is the share that uniform attention would give."""
    figure, axis = plt.subplots(figsize=(WIDTH, 1.2 + 0.13 * sum(len(share) + 1.5 for share in shares.values())))
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
    axis.set_yticks(ticks, [textwrap.fill(name, 24) for name in shares], fontsize=8)
    axis.set_ylim(top - 1, -1)
    axis.set(xlabel="share of the attention")
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def along(panels: Mapping[str, pd.DataFrame], ylabel: str, module: str) -> Figure:
    """Values per photograph (rows) against a number (columns), a panel per meaning of that number: the mean as a line,
    photographs as points or, from twenty on, their quartiles as a band, in the colour of a module."""
    figure, axes = _panels(len(panels), 2.5, sharey=True)
    color = COLORS[module]
    for axis, (xlabel, table) in zip(axes, panels.items(), strict=True):
        mean = table.mean()
        axis.axhline(0, color="0.4", linewidth=1)
        if len(table) < FEW:
            axis.plot(table.columns, table.T, "o", color=color, alpha=0.45, markersize=4)
        else:
            axis.fill_between(mean.index, *table.quantile([0.25, 0.75]).to_numpy(), color=color, alpha=0.25)
        axis.plot(mean.index, mean, "D-", color="k", markersize=5)
        axis.set(xlabel=textwrap.fill(xlabel, 30), xscale="log")
        axis.set_xticks(table.columns, [f"{x:g}" for x in table.columns])
        axis.minorticks_off()
    axes[0].set_ylabel(ylabel)
    return figure


def quartiles(
    panels: Mapping[str, Mapping[str, Mapping]], xlabel: str, ylabel: str, limit: tuple[str, float], module: str
) -> Figure:
    """Median and quartiles of many values against a number: a panel per title, a line per label, values per number;
    the first label black, the second in the colour of a module.

    limit: name and height of a line across all panels.
    """
    figure, axes = _panels(len(panels), 2.4, most=3, sharey=True)
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        axis.axhline(limit[1], color="0.4", linestyle="--", linewidth=1, label=limit[0])
        for number, (label, values) in enumerate(lines.items()):
            low, middle, high = np.array([np.percentile(v, [25, 50, 75]) for v in values.values()]).T
            bars = [middle - low, high - middle]
            places = np.array(list(values)) * (1 + 0.03 * number)  # bars side by side
            color = COLORS[module] if number else "k"
            axis.errorbar(places, middle, bars, fmt="o-", markersize=4, capsize=2, color=color, label=label)
        axis.set(title=title)
        axis.set_xticks(list(values), [f"{x:g}" for x in values], fontsize=8)
    _label(axes, xlabel, ylabel)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=3)
    return figure


def curves(panels: Mapping[str, pd.DataFrame], xlabel: str, ylabel: str, legend: str, **axis_options) -> Figure:
    """Lines against a number: a panel per title, a line per column of its table, points where it was measured; one
    colour and marker per name of a column, from dark to light."""
    figure, axes = _panels(len(panels), 3.1, most=3, sharey=True)
    names = list(dict.fromkeys(name for table in panels.values() for name in table))
    color = dict(zip(names, sns.color_palette("viridis", len(names)), strict=True))
    words, lines = any(len(str(name)) > 8 for name in names), {}
    for axis, (title, table) in zip(axes, panels.items(), strict=True):
        for name, values in table.items():
            marker = MARKERS[names.index(name)]
            [lines[str(name)]] = axis.plot(table.index, values, marker=marker, markersize=4, color=color[name])
        axis.set(**axis_options)
        axis.set_title(textwrap.fill(title, 22 if len(panels) > 2 else HALF), fontsize=8.5)
        axis.set_xticks(table.index, [f"{x:g}" for x in table.index], fontsize=8)
        if max(table.index) >= 1000:  # three digits do not fit side by side
            axis.tick_params(axis="x", rotation=90)
        axis.minorticks_off()
    _label(axes, xlabel, ylabel)
    figure.legend(
        lines.values(), lines, title=legend, loc="outside lower center", frameon=False, ncols=2 if words else 4
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
    lines = -(-(found.shape[1] + 1) // 3)
    figure = plt.figure(figsize=(WIDTH, len(queries) * lines * WIDTH / 5 * 1.15))
    grid_of = figure.add_gridspec(len(queries) * lines, 5)
    for place, (query, several, texts) in enumerate(zip(queries, found, titles, strict=True)):
        boxes = [
            (query, 3, "C2", "query"),
            *((corner, side, "C3", text) for corner, text in zip(several, texts, strict=True)),
        ]
        top_line = place * lines
        whole = figure.add_subplot(grid_of[top_line : top_line + lines, :2])
        whole.imshow(photograph, cmap="gray", vmin=0, vmax=1)
        whole.set_axis_off()
        for cell, ((row, column), pixels, color, title) in enumerate(boxes):
            top, left, width = (int(grid * number) for number in (row, column, pixels))
            whole.add_patch(plt.Rectangle((left - 0.5, top - 0.5), width, width, fill=False, color=color))
            axis = figure.add_subplot(grid_of[top_line + cell // 3, 2 + cell % 3])
            axis.imshow(photograph[top : top + width, left : left + width], cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=8, color=color)
            axis.set_axis_off()
    return figure


def by_rank(panels: Mapping[str, np.ndarray], uniform: float) -> Figure:
    """Numbers of the k nearest neighbours ``(P, k)`` against their rank: a panel per name, a line per query; `uniform`
    is drawn where the numbers of a query sum to 1."""
    figure, axes = _panels(len(panels), 2.3, most=3)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        ranks = np.arange(1, values.shape[1] + 1)
        for number, line in enumerate(values, 1):
            shade, marker = str(0.25 * (number - 1)), MARKERS[number - 1]
            axis.plot(ranks, line, color=shade, marker=marker, markersize=4, label=f"pixel {number}")
        if np.allclose(values.sum(1), 1, atol=1e-2):
            axis.axhline(uniform, color="0.4", linestyle="--", linewidth=1)
        axis.set(xticks=ranks, ylim=(0, 1.15 * values.max()))
        axis.set_title(textwrap.fill(title, 18), fontsize=9)
    _label(axes, "rank", "")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def mixtures(alpha: np.ndarray, beta: np.ndarray, rows: Sequence[str], operators: Sequence[str]) -> Figure:
    """Learned numbers of adaptive filters, a row each: what `alpha` (N, operators) and `beta` (N,) are, and by colour
    how far they have moved from where they start, 1 and 0."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 1.2 + 0.27 * len(rows)), width_ratios=[len(operators), 1])
    alpha, beta = alpha.round(2) + 0.0, beta.round(2) + 0.0  # no -0.00
    reach = max(np.abs(alpha - 1).max(), np.abs(beta).max())
    how = {"annot": True, "fmt": ".2f", "cmap": "vlag", "annot_kws": {"fontsize": 8}, "cbar": False}
    sns.heatmap(alpha, ax=axes[0], vmin=1 - reach, vmax=1 + reach, xticklabels=operators, yticklabels=rows, **how)
    sns.heatmap(beta[:, None], ax=axes[1], vmin=-reach, vmax=reach, xticklabels=["identity"], yticklabels=False, **how)
    for axis, title in zip(axes, ("alpha, which starts at 1", "beta"), strict=True):
        axis.set_title(title, fontsize=8.5, loc="left")
        axis.tick_params(axis="x", rotation=45)
        axis.tick_params(axis="y", rotation=0)
    return figure


def deviations(rows: pd.DataFrame) -> Figure:
    """How far numbers are from what they must be: a line per `label`, a dot per row, over a bar of its tolerance.

    rows: label, metric (psnr or ssim), deviation, tolerance, agrees (bool). A panel for dB and, where there is any, one
    for SSIM.
    """
    labels = list(dict.fromkeys(rows.label))
    panels = {metric: text for metric, text in UNITS.items() if (rows.metric == metric).any()}
    names = [textwrap.fill(label, 30) for label in labels]
    size = (WIDTH, 1.0 + 0.14 * sum(1.6 + name.count("\n") for name in names))
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (metric, unit) in zip(axes.flat, panels.items(), strict=True):
        shown = rows[rows.metric == metric]
        line = shown.label.map(labels.index)
        axis.barh(line, 2 * shown.tolerance, left=-shown.tolerance, height=0.7, color="0.88", zorder=1)
        axis.axvline(0, color="0.4", linewidth=1, zorder=2)
        for agrees, color, marker in ((True, "C0", "o"), (False, "C3", "D")):
            of_kind = shown.agrees == agrees
            axis.plot(shown.deviation[of_kind], line[of_kind], marker, color=color, alpha=0.7, markersize=5)
        axis.set_xlabel(unit)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.grid(axis="y", visible=False)
    figure.supxlabel("measured - reference", fontsize=9)
    axes[0, 0].set_yticks(range(len(labels)), names, fontsize=8)
    axes[0, 0].set_ylim(len(labels) - 0.4, -0.6)
    return figure


UNITS = {"psnr": "dB", "ssim": "SSIM"}

#: dB; of `worth`.
LINEAR = 0.01


def worth(choices: pd.DataFrame) -> Figure:
    """The effect of each choice, as bars: a row of panels per number, PSNR and SSIM side by side, a colour per group.

    choices: number, group, choice, difference (dB), ssim_difference and, for what was drawn several times, low and high
    (dB). PSNR is linear up to `LINEAR` dB and logarithmic beyond.
    """
    parts = [rows.reset_index(drop=True) for _, rows in choices.groupby("number", sort=False)]
    colors = {group: f"C{number}" for number, group in enumerate(dict.fromkeys(choices.group))}
    figure, axes = plt.subplots(
        len(parts), 2, figsize=(WIDTH, 1.2 + 0.31 * len(choices)), sharex="col", sharey="row", squeeze=False,
        height_ratios=[len(rows) + 1 for rows in parts], width_ratios=[1.9, 1.6],
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
        names = (rows.group + ": " + rows.choice).map(lambda name: textwrap.fill(name, 28))
        left.set_yticks(rows.index, names, fontsize=8)
        left.set_ylim(len(rows) - 0.4, -0.6)
        left.set_title(rows.number[0], fontsize=9, loc="left")
    left, right = axes[-1]
    reach, ssim_reach = choices.difference.abs().max(), choices.ssim_difference.abs().max()
    left.set_xscale("symlog", linthresh=LINEAR)
    left.set(xlim=(-1e4 * reach, 1e4 * reach), xlabel=f"PSNR (dB), logarithmic beyond {LINEAR:g}")  # room for numbers
    left.set_xticks([-1, 0, 1])
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.set(xlim=(-3.2 * ssim_reach, 3.2 * ssim_reach), xlabel="SSIM")
    right.xaxis.set_major_locator(MaxNLocator(3))
    return figure
