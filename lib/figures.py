"""Figures of the notebooks: one style, colour-blind safe, units on the axes, legible at a code host's width."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython.display import Image
from matplotlib.figure import Figure

#: Photographs are shown as JPEG: a noisy crop costs a seventh of its PNG.
JPEG_QUALITY = 50

#: Colours of other figures, as PNG: enough for lines, dots and colour maps.
PALETTE = 64

WIDTH = 9.0  # inches; 900 pixels at the notebooks' resolution


def style(dpi: int = 100, font_scale: float = 0.95) -> None:
    """Set the look of every figure, and of tables; called once by each notebook that draws."""
    pd.set_option("display.max_colwidth", None)
    sns.set_theme(style="whitegrid", palette="colorblind", font_scale=font_scale)
    plt.rcParams.update({"figure.dpi": dpi, "savefig.dpi": dpi, "figure.constrained_layout.use": True})


def show(figure: Figure, save: Path | None = None, photographs: bool = False, alt: str | None = None) -> Image:
    """The figure as an image for the notebook (JPEG where it holds photographs) and, with `save`, as a file too; `alt`
    says what it shows to those who cannot see it."""
    form = "jpeg" if photographs else "png"
    drawn, data = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    plt.close(figure)
    with PIL.Image.open(drawn) as opened:
        pixels = opened.convert("RGB")
    if photographs:
        pixels.save(data, format=form, quality=JPEG_QUALITY, optimize=True, progressive=True)
    else:  # a quarter of the bytes of full colour
        pixels.quantize(PALETTE, dither=PIL.Image.Dither.NONE).save(data, format=form, optimize=True)
    if save:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.with_suffix(".jpg" if photographs else ".png").write_bytes(data.getvalue())
    return Image(data.getvalue(), format=form, alt=alt)


def gallery(pictures: Mapping[str, np.ndarray], columns: int = 4, side: float = 2.2) -> Figure:
    """Images (H, W[, 3]) in [0, 1], each under its title, without axes."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(side * columns, (side + 0.35) * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, picture) in zip(axes.flat, pictures.items(), strict=False):
        axis.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(textwrap.fill(title, int(14 * side)), fontsize=9)
    return figure


def training_curves(logs: Mapping[str, pd.DataFrame]) -> Figure:
    """PSNR of the training crops against the step, one line per seed."""
    figure, axis = plt.subplots(figsize=(WIDTH, 2.8))
    for label, log in logs.items():
        axis.plot(log.step, log.psnr, marker=".", label=label)
    axis.set(xlabel="step", ylabel="PSNR of training crops (dB)")
    axis.legend(frameon=False)
    return figure
