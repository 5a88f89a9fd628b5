"""Which peak learning rate suits each row, and when does its attention die? Short trainings, measured on validation
photographs.

Every row gets the same search: the same rates, the same number of steps, its profile's recipe, batch and crop, seed 1;
crops of half the side only where that is asked for.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from .flops import flops
from .images import sets
from .insights import health
from .models.blocks import Attention, Network, Trunk
from .params import ROOT, Experiment, Params
from .params.schema import Cosine
from .tasks import experiment as experiments
from .training import HALVINGS, PRECISIONS, Trained, Validation, train

SEED = 1

#: Validation photographs on which it is measured whether a module acts.
PHOTOGRAPHS = 4


def search(params: Params, name: str, rate: float, steps: int) -> pd.DataFrame:
    """Train row `name` for `steps` steps at the peak `rate`.

    A row for each attention module and head, or one row: experiment, title, task, rate, steps, psnr (dB on the
    validation photographs), seconds per step, and what `lib.insights.health.measure` finds, its means over photographs.
    """
    run, validation = _prepared(params, name, rate, steps)
    began = time.process_time()
    trained = _trained(run, experiments.network(run, SEED), validation)
    seconds = (time.process_time() - began) / steps
    network = experiments.network(run, SEED)
    network.load_state_dict(trained.weights)
    of_row = {"experiment": name, "title": run.title, "task": run.task.title, "rate": rate, "steps": steps}
    found = _acts(run, network.eval(), validation)
    return found.assign(**of_row, psnr=trained.curve[-1]["psnr"], seconds=seconds)


def course(
    params: Params,
    name: str,
    rate: float,
    steps: int,
    prepare: Callable[[Network], object] = lambda network: None,
    half_crops: float = 0.0,
    attention_lr: float | None = None,
    warm_up: float | None = None,
) -> pd.DataFrame:
    """What `lib.insights.health.measure` finds before the first step of such a training and whenever the steps have
    doubled, by the weights of the moment: its columns and step. prepare: changes the network before it is trained;
    half_crops, attention_lr: of the budget; warm_up: of the schedule, the recipe's where None.
    """
    run, validation = _prepared(params, name, rate, steps, attention_lr, half_crops)
    if warm_up is not None:
        changed = dataclasses.replace(run.recipe.schedule, warm_up=warm_up)
        run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, schedule=changed))
    network = experiments.network(run, SEED)
    prepare(network)
    moments, calls, tables = {0, *(steps >> k for k in range(1, HALVINGS + 1))}, itertools.count(), []

    def look(network: nn.Module, inputs: object) -> None:
        if network.training and (step := next(calls)) in moments:
            with torch.autocast("cpu", enabled=False):
                tables.append(_acts(run, network.eval(), validation).assign(step=step))
            network.train()

    network.register_forward_pre_hook(look)
    _trained(run, network, validation)
    return pd.concat([*tables, _acts(run, network.eval(), validation).assign(step=steps)], ignore_index=True)


def trained_trunk(params: Params, name: str, rate: float, steps: int) -> Trunk:
    """Row `name`, a trunk without attention, after such a training at a rate that does not fall: its averaged weights,
    for `course` to start from by `start_from`."""
    run, validation = _prepared(params, name, rate, steps)
    flat = dataclasses.replace(run.recipe, schedule=Cosine("cosine", warm_up=run.recipe.schedule.warm_up, floor=1.0))
    network = experiments.network(run, SEED)
    network.load_state_dict(_trained(dataclasses.replace(run, recipe=flat), network, validation).weights)
    assert isinstance(network, Trunk)
    return network


def start_from(trunk: Trunk, network: Trunk) -> None:
    """Give all layers of `network` the weights of `trunk` that it shares with it: all but its attention."""
    for part in ("head", "upsampler", "tail"):
        getattr(network, part).load_state_dict(getattr(trunk, part).state_dict())
    shared = [layer for layer in network.body if not isinstance(layer, Attention)]
    for layer, trained in zip(shared, trunk.body, strict=True):
        layer.load_state_dict(trained.state_dict())


def precision(params: Params, name: str, seed: int, kind: str, steps: int) -> dict:
    """One training of row `name` in the precision `kind`: PSNR (dB) of the averaged weights on the validation
    photographs, seconds of one thread per step, and the operations of a step per second."""
    budget = params.experiment(name).budget
    run, validation = _prepared(params, name, budget.lr, steps, budget.attention_lr, budget.half_crops)
    run = dataclasses.replace(run, precision=kind)
    network = experiments.network(run, seed)
    counted = _operations(run, network)
    began = time.process_time()
    trained = _trained(run, network, validation, seed)
    seconds = (time.process_time() - began) / steps
    of_row = {"experiment": name, "title": run.title, "seed": seed, "precision": kind, "steps": steps}
    return of_row | {"psnr": trained.curve[-1]["psnr"], "seconds": seconds, "operations": counted / seconds}


def _operations(run: Experiment, network: Network) -> int:
    """Floating-point operations of the forward and backward pass of a step, a multiply-add being two."""
    image = torch.rand(run.budget.batch, run.task.colors, *[run.budget.crop // run.task.degradation.scale] * 2)
    _, counted = flops(lambda: network(image).square().mean().backward())
    network.zero_grad(set_to_none=True)
    return counted


def peak(kind: str, side: int = 2048, repeats: int = 8) -> float:
    """Operations per second of one thread in a large matrix product or convolution, the fastest of some: a ceiling."""
    torch.set_num_threads(1)
    dtype = PRECISIONS[kind] or torch.float32
    a, x = torch.rand(side, side).to(dtype), torch.rand(4, 128, 64, 64).to(dtype, memory_format=torch.channels_last)
    layer = nn.Conv2d(128, 128, 3, padding=1, dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    jobs = ((2 * side**3, lambda: a @ a), (2 * 9 * 128 * x.numel(), lambda: layer(x)))
    found = []
    with torch.inference_mode():
        for (operations, work), _ in itertools.product(jobs, range(1 + repeats)):
            began = time.process_time()
            work()
            found.append(operations / (time.process_time() - began))
    return max(found)


def _prepared(
    params: Params, name: str, rate: float, steps: int, attention: float | None = None, half_crops: float = 0.0
) -> tuple[Experiment, Validation]:
    torch.set_num_threads(1)
    run = params.experiment(name)
    budget = dataclasses.replace(run.budget, steps=steps, lr=rate, attention_lr=attention, half_crops=half_crops)
    run = dataclasses.replace(run, budget=budget)
    validation = experiments.validation(run.task, _items("validation", run))
    if validation is None:
        raise sets.SetError(f"task {run.task.name}: a search needs validation photographs, and profile "
                            f"{params.profile} has none")  # fmt: skip
    return run, validation


def _trained(run: Experiment, network: Network, validation: Validation, seed: int = SEED) -> Trained:
    crops = experiments.crops(run.task, _items("train", run), run.budget.crop, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        return train(
            network, crops, run.recipe, run.budget, seed, Path(folder) / "checkpoint.pt",
            validation=validation, precision=run.precision, clock=time.monotonic, save_every=float("inf"),
        )  # fmt: skip


def _items(side: str, run: Experiment) -> list[sets.Item]:
    return sets.read(ROOT / "data" / side / f"{run.task.name}.csv", side == "validation" and not run.task.validation)


def _acts(run: Experiment, network: nn.Module, validation: Validation) -> pd.DataFrame:
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


def figure_of_courses(courses: Mapping[str, pd.DataFrame]) -> Figure:
    """Along each training: a query's share of the keys, the share of queries with one and the same largest key, and the
    dB lost without the module's variation; a line per training, of its first module's first head."""
    shown = {
        "effective_share": ("effective keys, share of all", None),
        "same_largest": ("queries with the same largest key", health.LARGEST_SHARE),
        "psnr_lost_mean": ("dB lost with its mean in its place", health.SMALLEST_LOSS),
    }
    drawn, axes = plt.subplots(1, len(shown), figsize=(12, 3.4 + 0.2 * len(courses) / 3), layout="constrained")
    for axis, (column, (label, limit)) in zip(axes, shown.items(), strict=True):
        for title, table in courses.items():
            rows = table.groupby("step").first().reset_index()
            axis.plot(rows.step, rows[column], "o-", ms=3, label=title)
        if limit is not None:
            axis.axhline(limit, color="0.6", lw=0.8, ls="--")
        axis.set(xscale="symlog", xlabel="step", title=label)
        axis.set_xlim(left=0)
    axes[0].set_yscale("log")
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return drawn
