"""The parts of the benchmark. Each yields records, one per measured number, which `__main__` writes to the csv.

The memory that a form holds on a CPU is measured in a process of its own, so that nothing held or freed before counts:
`python -m benchmarks.parts <arguments of held as JSON>` prints a line of JSON for each finding.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from lib.flops import flops
from lib.models.blocks import Attention
from lib.pipeline import progress

from . import measure
from .cases import CASES, FORMS, Call

if TYPE_CHECKING:  # the training steps alone need these, and more packages than the rest
    from lib.params import Experiment, Params

ROOT = Path(__file__).resolve().parent.parent

#: Seconds for each module, and for the training steps of each network, unless the command line says otherwise.
SECONDS, STEP_SECONDS = 60.0, 3.0

#: Sides of the square inputs of the curves against size; a curve ends at a call of LONGEST seconds or LARGEST bytes.
SIDES, LONGEST, LARGEST = (32, 48, 64, 96, 128, 192, 256), 4.0, 4 * 2**30

#: Fixed thresholds: the C library (glibc) then hands every large block back to the system when it is freed.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

#: A forward pass without a graph, and one with its backward pass.
MODES = ("forward", "both")

#: Name of the case that holds what the machine can do.
MACHINE = "machine"


@dataclass(frozen=True)
class Record:
    """One number. `mode`: forward, both (forward and backward) or step; `form`: ours or definition, after a comma the
    bound of its scores; `side`: of the input; `repeat`: the round, in which all forms were measured alternately."""

    part: str
    case: str
    quantity: str
    value: float
    form: str = ""
    mode: str = ""
    dtype: str = "float32"
    side: int = 0
    repeat: int = 0


Records = Iterator[Record]


def modules(device: str, names: Sequence[str], seconds: float = 0, side: int = 0) -> Records:
    """Time, operations and agreement of every module; `side` of the inputs other than the cases' own."""
    types = dtypes(device)
    for dtype in types:
        rate = measure.peak_rate(device, getattr(torch, dtype))
        yield Record("modules", MACHINE, "flop/s", rate, dtype=dtype)
    calls = {
        (name, dtype, mode): {form: Call(name, form, mode, device, dtype, side) for form in FORMS}
        for name, dtype, mode in itertools.product(names, types, MODES)
    }
    yield from _rounds("modules", calls, (seconds or SECONDS) / len(types) / len(MODES))
    for (name, dtype, mode), forms in calls.items():
        found = {}
        for form, call in forms.items():
            with call.context():
                found[form] = flops(call)
        for form, (outputs, counted) in found.items():
            difference = max(map(measure.relative_difference, outputs, found["definition"][0]))
            for quantity, value in {"difference": difference, "flops": counted}.items():
                yield Record("modules", name, quantity, value, form, mode, dtype, forms[form].side)


def _rounds(part: str, calls: dict[tuple[str, str, str], dict[str, Call]], seconds: float) -> Records:
    """The seconds of every round; keys are case, type and mode."""
    for (name, dtype, mode), repeat, found in measure.rounds(calls, seconds):
        shown = (f"{form} {1e3 * value:.1f} ms" for form, value in found.items())
        progress.show(f"{name}, {mode}, {dtype}", f"round {repeat + 1}", *shown)
        for form, value in found.items():
            side = calls[name, dtype, mode][form].side
            yield Record(part, name, "seconds", value, form, mode, dtype, side, repeat)


def memory(device: str, names: Sequence[str], seconds: float = 0) -> Records:
    """Most bytes that every module holds beyond its weights and inputs."""
    for name, form, dtype, mode in itertools.product(names, FORMS, dtypes(device), MODES):
        [found] = in_process(device, name, form, mode, [0], dtype)
        yield Record("memory", name, "bytes", found["growth"], form, mode, dtype, found["side"])


def blocks(device: str, names: Sequence[str], seconds: float = 0, side: int = 0) -> Records:
    """Time and memory of a forward pass against the bound of the scores held at a time."""
    calls = {}
    for name in names:
        bounds = {f"ours, 2^{power} scores": 2**power for power in CASES[name].blocks}
        calls[name, "float32", "forward"] = {
            form: Call(name, base(form), "forward", device, side=side, max_scores=bound)
            for form, bound in {"definition": None, "ours": None, **bounds}.items()
        }
    yield from _rounds("blocks", calls, seconds or SECONDS)
    for (name, dtype, mode), forms in calls.items():
        for form, call in forms.items():
            [found] = in_process(device, name, base(form), mode, [side], dtype, call.max_scores)
            yield Record("blocks", name, "bytes", found["growth"], form, mode, dtype, found["side"])


def base(form: str) -> str:
    """The form of a case, without the bound of its scores."""
    return form.split(",")[0]


def sizes(device: str, names: Sequence[str], seconds: float = 0, sides: Sequence[int] = SIDES) -> Records:
    """Time and memory of a forward pass on one image against its side."""
    for name, form in itertools.product(names, FORMS):
        for found in in_process(device, name, form, "forward", list(sides), "float32"):
            for quantity, value in (("seconds", found["seconds"]), ("bytes", found["growth"])):
                yield Record("sizes", name, quantity, value, form, "forward", side=found["side"])


def in_process(device: str, *arguments) -> list[dict]:
    """The findings of `held` in a process of its own, or on a GPU, whose allocator counts, in this one."""
    progress.show(f"memory of {', '.join(map(str, arguments[:3]))}")
    if device == "cuda":
        return list(held(device, *arguments))
    command = [sys.executable, "-m", "benchmarks.parts", json.dumps([device, *arguments])]
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"memory of {arguments}: {ran.stderr.strip().splitlines()[-1]}")
    return [json.loads(line) for line in ran.stdout.splitlines()]


def held(
    device: str, name: str, form: str, mode: str, sides: list[int], dtype: str, max_scores: int | None = None
) -> Iterator[dict]:
    """A case's memory and seconds for one side after the other, 0 being its own. Several sides are those of a curve: of
    one image, until LONGEST or LARGEST."""
    batch = int(len(sides) > 1)
    measure.timed(Call(name, form, mode, device, dtype, 16, batch, max_scores))  # sets up what stays
    for side in sides:
        call = Call(name, form, mode, device, dtype, side, batch, max_scores)
        if device == "cuda":  # where the first call of a size chooses and compiles kernels
            measure.timed(call)
        growth, seconds = measure.growth(call, device), measure.timed(call)
        yield {"side": call.side, "seconds": seconds, "growth": growth}
        if seconds > LONGEST or growth > LARGEST:
            return


class Step:
    """A step of an experiment's training as in lib/training.py, all losses begun, on a batch of noise that stays."""

    form = "ours"

    def __init__(self, chosen: Experiment, device: str):
        from lib.tasks import experiment
        from lib.training import OPTIMISERS, PRECISIONS

        how, budget, scale = chosen.recipe.optimiser, chosen.budget, chosen.task.degradation.scale
        self.device, self.clip = device, chosen.recipe.clip or torch.inf
        self.dtype = PRECISIONS[chosen.precision] or torch.float32
        self.network = experiment.network(chosen).train().to(device, memory_format=torch.channels_last)
        self.network.start_step(0.999, torch.Generator().manual_seed(0))
        self.optimiser = OPTIMISERS[how.name](
            self.network.parameters(), lr=1e-6, betas=how.betas, weight_decay=how.weight_decay, fused=True
        )
        noise = torch.Generator().manual_seed(0)
        shapes = [(budget.batch, chosen.task.colors, side, side) for side in (budget.crop // scale, budget.crop)]
        degraded, clean = (torch.rand(shape, generator=noise).to(device) for shape in shapes)
        self.degraded, self.clean = degraded.contiguous(memory_format=torch.channels_last), clean

    def context(self) -> contextlib.AbstractContextManager:
        return FORMS[self.form]()

    def __call__(self) -> None:
        with measure.precision(self.device, self.dtype):
            restored = self.network(self.degraded)
        loss = F.mse_loss(restored.float(), self.clean) + self.network.auxiliary_loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimiser.step()


def steps(device: str, names: Sequence[str], seconds: float = 0) -> Records:
    """One training step of the experiments' networks, with our modules and with their definitions, as they train: on
    one thread, on a GPU those of the profile `gpu`.

    Experiments with the same network and crops are measured once, under the first one's name; networks without
    attention are left out.
    """
    from lib import params

    threads, seen = torch.get_num_threads(), set[str]()
    torch.set_num_threads(1)
    for chosen in map(study(device).experiment, names):
        scale, budget = chosen.task.degradation.scale, chosen.budget
        alike = str((chosen.model, chosen.options, chosen.task.colors, scale, budget.batch, budget.crop))
        if alike in seen or params.missing(chosen):
            continue
        ours = Step(chosen, device)
        if any(isinstance(module, Attention) for module in ours.network.modules()):
            if not seen:
                yield Record("steps", MACHINE, "flop/s", measure.peak_rate(device, ours.dtype))
            yield from _step(chosen.name, ours, seconds or STEP_SECONDS)
            seen.add(alike)
    torch.set_num_threads(threads)


def _step(name: str, ours: Step, seconds: float) -> Records:
    definition = copy.copy(ours)
    definition.form = "definition"
    record = partial(Record, "steps", name, mode="step", side=ours.clean.shape[3])
    yield record("flops", flops(ours)[1], "ours")
    for _, repeat, found in measure.rounds({name: {"ours": ours, "definition": definition}}, seconds):
        progress.show(name, f"round {repeat + 1}")
        yield from (record("seconds", value, form, repeat=repeat) for form, value in found.items())


def study(device: str) -> Params:
    """The experiments whose steps are measured."""
    from lib import params

    return params.Params(profile="gpu" if device == "cuda" else None)


def known(part: str, device: str) -> list[str]:
    """The modules or experiments that a part measures, and can be restricted to."""
    if part == "steps":
        return study(device).experiments
    return [name for name, case in CASES.items() if case.blocks or part != "blocks"]


def dtypes(device: str) -> list[str]:
    return ["float32", "bfloat16"] if device == "cuda" else ["float32"]


PARTS: dict[str, Callable[..., Records]] = {
    "modules": modules,
    "memory": memory,
    "blocks": blocks,
    "sizes": sizes,
    "steps": steps,
}


if __name__ == "__main__":
    for finding in held(*json.loads(sys.argv[1])):
        print(json.dumps(finding), flush=True)
