"""PSNR on each test set, beside what is published for that set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .tables import label, task_of, text


def table(images: pd.DataFrame, experiments: Sequence[str], published: pd.DataFrame) -> pd.DataFrame:
    """Mean PSNR (dB) of each experiment on each test set as text, in brackets what is published for that set.

    images: rows of `tables.collect`; published: as `tables.published` reads it. The head counts a set's photographs.
    """
    counts = images.groupby("set", sort=False).image.nunique()
    means = images.groupby(["experiment", "set"]).psnr.mean()
    rows = {}
    for name in experiments:
        numbers = {of: text(means.get((name, of), np.nan), 2) for of in counts.index}
        if name in published.index and numbers.get(place := published["set"][name]):
            numbers[place] += f" ({text(published.psnr[name], 2)})"
        rows[name] = {"row": label(name), "task": task_of(name).replace("_", " ")} | {
            f"{of} ({counts[of]})": number for of, number in numbers.items()
        }
    return pd.DataFrame.from_dict(rows, orient="index").set_index("row")
