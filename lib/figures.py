"""Figures of the notebooks: one style, colour-blind safe, units on the axes, legible at a code host's width."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Photographs are shown as JPEG: a noisy crop costs a seventh of its PNG.
JPEG_QUALITY = 75

WIDTH = 9.0  # inches; 900 pixels at the notebooks' resolution


def style() -> None:
    """Set the look of every figure; called once by each notebook that draws."""
    sns.set_theme(style="whitegrid", palette="colorblind", font_scale=0.95)
    plt.rcParams.update({"figure.dpi": 100, "savefig.dpi": 100, "figure.constrained_layout.use": True})


def show(figure: Figure, save: Path | None = None, photographs: bool = False) -> Image:
    """The figure as an image for the notebook (JPEG where it holds photographs) and, with `save`, as a file too."""
    form = "jpeg" if photographs else "png"
    data = io.BytesIO()
    options = {"pil_kwargs": {"quality": JPEG_QUALITY}} if photographs else {"metadata": {"Software": None}}
    figure.savefig(data, format=form, **options)
    plt.close(figure)
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
        axis.set_title(title, fontsize=10, loc="left")
        _difference_panel(axis, table, bounds, labels, spreads[title])
    axes.flat[-1].set_xlabel(
        "difference of PSNR (dB); dots: photographs, diamond: mean, bar: 95 % interval, band: spread over seeds"
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
    axis.invert_yaxis()


def attention(photograph: np.ndarray, points: Sequence[tuple[int, int]], maps: np.ndarray, shown: int = 60) -> Figure:
    """Where chosen pixels look: the photograph with the points, then per point the `shown` largest weights of its map
    (H, W), as dots of that area, and how many places hold nine tenths of the weight."""
    columns = len(points) + 1
    figure, axes = plt.subplots(1, columns, figsize=(WIDTH, WIDTH / columns + 0.4))
    axes[0].imshow(photograph, cmap="gray", vmin=0, vmax=1)
    axes[0].set_title("photograph", fontsize=9)
    for number, ((row, column), weights) in enumerate(zip(points, maps, strict=True), 1):
        axes[0].text(column, row, str(number), color="C1", weight="bold", ha="center", va="center")
        order = np.argsort(weights, axis=None)[::-1]
        largest = order[:shown][weights.flat[order[:shown]] > 0]
        rows, places = np.unravel_index(largest, weights.shape)
        axes[number].imshow(photograph, cmap="gray", vmin=0, vmax=1, alpha=0.5)
        axes[number].scatter(places, rows, s=80 * weights.flat[largest] / weights.max(initial=1e-12), color="C3")
        axes[number].plot(column, row, "o", color="C2", markersize=14, fillstyle="none", markeredgewidth=2)
        axes[number].set_title(f"pixel {number}: {places_holding(weights)} hold 90 %", fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    return figure


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
    axis.legend(frameon=False, fontsize=8)
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
