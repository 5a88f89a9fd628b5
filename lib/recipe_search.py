"""Which peak learning rate suits each row? Short trainings, measured on validation photographs.

Every row gets the same search: the same rates, the same number of steps, its profile's recipe, batch and crop, seed 1.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .images import sets
from .insights import health
from .params import ROOT, Experiment, Params
from .tasks import experiment as experiments
from .training import Trained, Validation, train

SEED = 1

#: Validation photographs on which it is measured whether a module acts.
PHOTOGRAPHS = 4


def search(params: Params, name: str, rate: float, steps: int) -> pd.DataFrame:
    """Train row `name` for `steps` steps at the peak `rate`.

    A row for each attention module and head, or one row: experiment, rate, psnr (dB on the validation photographs),
    seconds per step, and what `lib.insights.health.measure` finds, its means over photographs.
    """
    torch.set_num_threads(1)
    run = params.experiment(name)
    run = dataclasses.replace(run, budget=dataclasses.replace(run.budget, steps=steps, lr=rate))
    validation = experiments.validation(run.task, _items("validation", run))
    if validation is None:
        raise sets.SetError(f"task {run.task.name}: a search needs validation photographs, and profile "
                            f"{params.profile} has none")  # fmt: skip
    crops = experiments.crops(run.task, _items("train", run), run.budget.crop, "cpu")
    network = experiments.network(run, SEED)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trained = train(
            network, crops, run.recipe, run.budget, SEED, Path(folder) / "checkpoint.pt",
            validation=validation, precision=run.precision, clock=time.monotonic, save_every=float("inf"),
        )  # fmt: skip
    seconds = (time.process_time() - began) / steps
    found = {
        "experiment": name,
        "title": run.title,
        "task": run.task.title,
        "rate": rate,
        "steps": steps,
        "psnr": trained.curve[-1]["psnr"],
    }
    return _acts(run, trained, validation).assign(**found, seconds=seconds)


def _items(side: str, run: Experiment) -> list[sets.Item]:
    return sets.read(ROOT / "data" / side / f"{run.task.name}.csv", side == "validation" and not run.task.validation)


def _acts(run: Experiment, trained: Trained, validation: Validation) -> pd.DataFrame:
    network = experiments.network(run, SEED)
    network.load_state_dict(trained.weights)
    network.eval()
    tables = []
    for index in range(0, len(validation.clean), -(-len(validation.clean) // PHOTOGRAPHS)):
        degraded, clean = (images[index : index + 1] for images in (validation.degraded, validation.clean))
        psnr = partial(_psnr, run, clean)
        with torch.inference_mode():
            tables.append(health.measure(network, partial(network, degraded), psnr))
    found = health.over_photographs(tables)
    return found if len(found) else pd.DataFrame([{}])


def _psnr(run: Experiment, clean: Tensor, restored: Tensor) -> float:
    return run.task.convention.measure(restored, clean)["psnr"]


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """One row per experiment and rate of the rows of `search`: PSNR, seconds per step, whether its attention acts, and
    of its modules the largest loss without variation and the smallest share of one key."""
    rows = []
    for (name, rate), group in found.groupby(["experiment", "rate"], sort=False):
        attends = "module" in group and group.module.notna().all()
        first = group.iloc[0]
        rows.append({
            "experiment": name, "task": first.task, "title": first.title, "rate": rate, "psnr": first.psnr,
            "seconds": first.seconds, "acts": health.describe(group.assign(seed=SEED)) if attends else "no attention",
            "psnr_lost_mean": group.psnr_lost_mean.max() if attends else float("nan"),
            "same_largest": group.same_largest.min() if attends else float("nan"),
        })  # fmt: skip
    return pd.DataFrame(rows)


def figure(table: pd.DataFrame) -> Figure:
    """PSNR against the rate, a panel per task, a line per row, marks filled where its attention acts."""
    tasks = table.task.unique()
    drawn, axes = plt.subplots(1, len(tasks), figsize=(4.4 * len(tasks), 4.4), squeeze=False)
    for axis, task in zip(axes.flat, tasks, strict=True):
        for title, rows in table[table.task == task].groupby("title", sort=False):
            (line,) = axis.plot(rows.rate, rows.psnr, "o-", mfc="white", label=title)
            full = rows[rows.acts != "no"]
            axis.plot(full.rate, full.psnr, "o", color=line.get_color())
        axis.set(xscale="log", xlabel="peak learning rate", ylabel="PSNR, dB", title=task)
        axis.legend(frameon=False, fontsize=8)
    return drawn
