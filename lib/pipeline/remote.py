"""Training and measuring on a machine that has neither DVC nor the notebooks' packages, for the notebooks to show here.

`python -m lib pack` carries code, parameters, images and checkpoints there; `python -m lib remote` trains and measures
with them, by the calls of the notebooks `train` and `evaluate`, which then show the returned results (`returned`).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ..images import sets
from ..measuring import evaluation
from ..params import ROOT, Experiment, Params, fingerprint
from ..tasks import experiment as experiments
from ..training import read_checkpoint, train, write_checkpoint, write_whole
from .returned import DONE, ELSEWHERE, difference, read_rows
from .runner import StageError, code_digest

#: The two photographs that notebooks show, of the first seed: side of their corner in pixels.
SHOWN = 128

#: Seconds between two lines of progress of an experiment.
SAY_EVERY = 20


class OutOfTime(Exception):
    """The time of the visit is over; the state is saved."""


def run(names: Sequence[str], jobs: int, minutes: float | None, compact: bool) -> int:
    """Train and measure packed experiments, all where none is named, `jobs` at a time; returns 1 if one failed.

    minutes: after these it saves its state and begins nothing; run again, it continues.
    compact: leave checkpoints of two thirds the size, rounded (see `_compact`). Raises StageError for a name that was
    not packed, and where nothing was.
    """
    packed = sorted(path.parent.name for path in ELSEWHERE.glob("*/version.json"))
    if unknown := {*names} - {*packed}:
        raise StageError(f"{', '.join(sorted(unknown))}: not packed here; packed: {', '.join(packed) or 'nothing'}")
    if not packed:
        raise StageError(
            f"{ELSEWHERE.name}: nothing is packed here; unpack what `python -m lib pack` made, and run there"
        )
    unfold(ROOT / "data" / "images")
    deadline = time.time() + 60 * minutes if minutes else float("inf")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    failed = False
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for line in pool.map(partial(_work, deadline=deadline, compact=compact), names or packed):
            print(line, flush=True)
            failed |= line.startswith("error:")
    return int(failed)


def fold(pixels: np.ndarray, path: Path) -> None:
    """Write a decoded image as a lossless WebP file, half its size."""
    Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB").save(path, "WEBP", lossless=True)


def unfold(folder: Path) -> None:
    """Turn packed images into the decoded ones that `lib.images.sets` reads.

    WebP knows no gray image: one with three equal channels becomes gray, as which every task sees the same.
    """
    for path in folder.rglob("*.webp"):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        gray = (pixels == pixels[..., :1]).all()
        write_whole(path.with_suffix(".npy"), partial(_save_array, pixels[..., 0] if gray else pixels))
        path.unlink()


def _save_array(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:  # np.save by name would append a suffix
        np.save(file, array)


def _work(name: str, deadline: float, compact: bool) -> str:
    """Bring one experiment as far as time allows; returns a line on how far that is."""
    params, watch = Params(), _Watch(name, deadline)
    run, folder = params.experiment(name), ELSEWHERE / name
    (folder / "error.txt").unlink(missing_ok=True)
    try:
        if time.time() >= deadline:
            raise OutOfTime
        if differs := difference(params, name):
            raise StageError(f"{differs} from what was packed; unpack the archive anew")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if not (folder / DONE["train"]).exists():
            _train(params, run, folder, watch, device)
        if not (folder / DONE["evaluate"]).exists():
            _measure(run, folder, watch, device)
        return f"{name}: trained and measured"
    except OutOfTime:
        for path in folder.glob("*.pt") if compact else ():
            _compact(path, run.budget.steps)
        return f"{name}: out of time; `python -m lib remote {name}` goes on"
    except Exception as error:  # one experiment's failure must not cost the others their turn
        (folder / "error.txt").write_text(traceback.format_exc())
        return f"error: {name}: {str(error).splitlines()[0]} (traceback in {ELSEWHERE.name}/{name}/error.txt)"


class _Watch:
    """A clock for `train`: at the deadline it jumps ahead, which makes `train` save a checkpoint; asked once more, it
    raises OutOfTime."""

    def __init__(self, name: str, deadline: float):
        self.name, self.deadline, self.up, self.said = name, deadline, False, 0.0

    def __call__(self) -> float:
        if self.up:
            raise OutOfTime
        now = time.time()
        self.up = now >= self.deadline
        return now + 86400 * self.up

    def say(self, line: str) -> None:
        if not self.up and time.time() - self.said > SAY_EVERY:
            print(f"{self.name}  {line}", flush=True)
            self.said = time.time()


def _train(params: Params, run: Experiment, folder: Path, watch: _Watch, device: str) -> None:
    """Train as the notebook `train` does, with the checkpoints beside the results."""
    items = sets.read(ROOT / "data" / "train" / f"{run.task.name}.csv")
    crops = experiments.crops(run.task, items, run.budget.crop, device)
    validated = sets.read(ROOT / "data" / "validation" / f"{run.task.name}.csv", not run.task.validation)
    validation = experiments.validation(run.task, validated)
    digest, logs, curves = fingerprint(run, code_digest(params, "train", run.name)), [], []
    for seed in run.seeds:
        checkpoint = folder / f"{run.name}-{seed}-{digest}.pt"
        saved = read_checkpoint(checkpoint) if checkpoint.exists() else {"step": 0}
        if saved["step"] < run.budget.steps:
            rounded = ", a checkpoint with rounded moments and averages" if "rounded" in saved else ""
            _note(folder, "train", device, f"seed {seed} from step {saved['step']:,}{rounded}")
        network = experiments.network(run, seed)
        trained = train(network, crops, run.recipe, run.budget, seed, checkpoint, validation=validation,
                        precision=run.precision, clock=watch, say=watch.say)  # fmt: skip
        write_whole(experiments.weights_file(folder, seed), partial(save_file, trained.weights))
        logs.append(pd.DataFrame(trained.log).assign(seed=seed))
        curves.append(pd.DataFrame(trained.curve, columns=["step", "psnr"]).assign(seed=seed))
    write_whole(folder / "validation.csv", partial(pd.concat(curves).to_csv, index=False))
    write_whole(folder / DONE["train"], partial(pd.concat(logs).to_csv, index=False))
    for path in folder.glob("*.pt"):
        path.unlink()


def _compact(path: Path, steps: int) -> None:
    """Round in a checkpoint the tensors from whose rounding a training recovers: Adam's moments and the averaged
    weights, to 16 bits.

    The row of the log at which that happened says so in a column `joint`. Where all `steps` are done, only the averaged
    weights remain, as they are.
    """
    saved = read_checkpoint(path)
    if saved["step"] == steps:
        saved["network"], saved["optimiser"]["state"] = saved["average"], {}
    else:
        for moments in saved["optimiser"]["state"].values():
            moments |= {key: value.bfloat16() for key, value in moments.items() if key.startswith("exp_avg")}
        average = saved["average"].items()
        saved["average"] = {key: value.half() if value.is_floating_point() else value for key, value in average}
        saved["rounded"] = True
        if saved["log"]:
            saved["log"][-1]["joint"] = saved["step"]
    write_checkpoint(path, saved)


def _measure(run: Experiment, folder: Path, watch: _Watch, device: str) -> None:
    """Measure as the notebook `evaluate` does, one photograph at a time: a later visit continues with the next one."""
    torch.backends.cudnn.allow_tf32 = False
    items = sets.read(ROOT / "data" / "test" / f"{run.task.name}.csv")
    networks = experiments.trained(run, folder)
    part, rows = folder / f"{DONE['evaluate']}.part", pd.DataFrame()
    if part.exists():
        rows = read_rows(part)
    done = len(rows) // len(networks)
    if done < len(items):
        _note(folder, "evaluate", device, f"from photograph {done + 1}")
    if device != "cpu":  # minutes per experiment on a processor, and no part of what is measured
        evaluation.self_similarity = partial(_on_device, evaluation.self_similarity, device)
    for count, item in enumerate(items[done:], done + 1):
        watch()
        found, [picture, _] = evaluation.measure(run, networks, [item])
        rows = pd.concat([rows, found], ignore_index=True)
        gains = _gains(rows)
        extremes = {"smallest": gains.argmin() == len(gains) - 1, "largest": gains[-1] == gains.max()}
        for name, is_extreme in extremes.items():
            if is_extreme:
                corners = {key: getattr(picture, key)[:SHOWN, :SHOWN] for key in ("clean", "degraded", "restored")}
                write_whole(folder / f"{name}_gain.npz", partial(_save_arrays, asdict(picture) | corners))
        write_whole(part, partial(rows.to_csv, index=False))
        watch.say(f"{count}/{len(items)} photographs")
    chosen, first = evaluation.most_self_similar(items, rows), networks[run.seeds[0]]
    write_whole(folder / "picture.npz", partial(_save_arrays, evaluation.picture(run, first, chosen)))
    shown = evaluation.mechanism(run, first, chosen)
    if shown:
        write_whole(folder / "mechanism.npz", partial(_save_arrays, shown))
    tables = {"acts": evaluation.acts(run, networks, items), "field": evaluation.field_curve(run, networks, items)}
    for name, table in tables.items():
        write_whole(folder / f"{name}.json", partial(table.to_json, orient="split", double_precision=15))
    part.rename(folder / DONE["evaluate"])


def _gains(rows: pd.DataFrame) -> np.ndarray:
    """The gain of the first seed's network on each photograph, in dB."""
    first = rows[rows.seed == rows.seed.iloc[0]]
    return (first.psnr - first.input_psnr).to_numpy()


def _save_arrays(arrays: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _on_device(function: Callable, device: str, image: Tensor):
    with torch.device(device):
        return function(image.to(device))


def _note(folder: Path, stage: str, device: str, begins: str) -> None:
    """Add to an experiment's visits which machine goes on from where."""
    path = folder / "visits.json"
    visits = json.loads(path.read_text()) if path.exists() else []
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    machine = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
    visits.append({"stage": stage, "begins": begins, **machine})
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(visits, indent=1) + "\n"))


def lacking(run: Experiment, folder: Path) -> str | None:
    """The first result of `run` that is missing in `folder`, named for a reader; None if none is."""
    for stage, name in DONE.items():
        if not (folder / name).exists():
            return f"{name} is not there: {stage} is not done"
    log, rows = pd.read_csv(folder / DONE["train"]), read_rows(folder / DONE["evaluate"])
    items = sets.read(ROOT / "data" / "test" / f"{run.task.name}.csv")
    for seed in run.seeds:
        if seed == run.seeds[0] and not experiments.weights_file(folder, seed).exists():
            return f"the weights of seed {seed} are not there"
        if log[log.seed == seed].step.max() != run.budget.steps:
            return f"{DONE['train']} does not reach step {run.budget.steps} of seed {seed}"
        of_seed = rows[rows.seed == seed]
        if [*zip(of_seed.set, of_seed.image, strict=True)] != [(item.set, item.name) for item in items]:
            return f"{DONE['evaluate']} has not one row per photograph for seed {seed}"
    return None
