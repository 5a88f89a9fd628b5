"""What is measured in a process of its own, so that nothing held or freed before counts; on a GPU, whose memory
PyTorch's allocator counts, in this one.

`python -m benchmarks.process <task> <arguments as JSON>` prints a line of JSON for each finding.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection

import torch

from lib.models import build
from lib.params import ROOT

from . import measure
from .cases import CASES, call, set_blocks

#: Where the processes of forms come from: it imports what they need once, and computes nothing.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["benchmarks.process"])

#: What ends a curve: seconds of a call, bytes held.
LONGEST, LARGEST = 4.0, 4 * 2**30

#: Fixed thresholds: the C library then hands every large block back to the system when it is freed.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def in_process(task: str, *arguments) -> list[dict]:
    """What the function `task` of `TASKS` yields in a process of its own, or on a GPU in this one."""
    if measure.device() == "cuda":
        return list(TASKS[task](*arguments))
    command = [sys.executable, "-m", "benchmarks.process", task, json.dumps(arguments)]
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{task} {arguments}: {ran.stderr.strip().splitlines()[-1]}")
    return [json.loads(line) for line in ran.stdout.splitlines()]


class Form:
    """A form of a case in a process of its own, where nothing that another form held or freed has a part in its time;
    `max_scores` other than the module's own if given.

    A context manager; inside, `seconds` calls it once more, the first call being made already.
    """

    def __init__(self, name: str, form: str, mode: str, side: int | None, dtype: str, max_scores: int | None = None):
        self.title = f"{name}, {form}, {mode}"
        self.pipe, self.theirs = SERVER.Pipe()
        arguments = (self.theirs, name, form, mode, side, dtype, max_scores)
        self.process = SERVER.Process(target=answer, args=arguments, daemon=True)

    def __enter__(self) -> Form:
        self.process.start()
        self.theirs.close()
        self._read()
        return self

    def seconds(self) -> float:
        self.pipe.send("seconds")
        return self._read()

    def apart(self) -> dict[str, float]:
        """`measure.apart` of one more call."""
        self.pipe.send("apart")
        return self._read()

    def _read(self) -> float | dict[str, float]:
        try:
            return self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.title}: failed, with the traceback above") from None

    def __exit__(self, *_) -> None:
        self.pipe.close()
        self.process.join()


class FormHere:
    """A form of a case in this process, with what a `Form` has. Its first call is made."""

    def __init__(self, name: str, form: str, mode: str, side: int | None, dtype: str, max_scores: int | None = None):
        case, self.device, self.dtype = CASES[name], measure.device(), getattr(torch, dtype)
        module, inputs = case.module(self.device), case.inputs(side, device=self.device)
        if max_scores:
            set_blocks(module, max_scores)
        self.call = partial(call, case.forms[form], module, inputs, mode)

    def __enter__(self) -> FormHere:
        self.seconds()
        return self

    def seconds(self) -> float:
        with measure.precision(self.device, self.dtype):
            return measure.seconds(self.call, self.device)

    def apart(self) -> dict[str, float]:
        with measure.precision(self.device, self.dtype):
            return measure.apart(self.call, self.device)

    def __exit__(self, *_) -> None:
        pass


#: How a form is run on each device.
FORM = {"cpu": Form, "cuda": FormHere}


def answer(pipe: Connection, *form) -> None:
    """Send the seconds of a call of a `FormHere` at once, then, for each message until the pipe ends, those of one
    more call or, for the message "apart", where they went."""
    here = FormHere(*form)
    measure.keep_freed()
    gc.disable()
    said = "seconds"
    with contextlib.suppress(EOFError):
        while True:
            gc.collect()
            pipe.send(here.apart() if said == "apart" else here.seconds())
            said = pipe.recv()


def held(name: str, form: str, mode: str, sides: list, dtype: str, max_scores: int | None = None) -> Iterator[dict]:
    """A case's memory and seconds for one side after the other, None being its own, until one is LONGEST or LARGEST;
    `max_scores` other than the module's own if given."""
    case, device = CASES[name], measure.device()
    module = case.module(device)
    if max_scores:
        set_blocks(module, max_scores)
    call(case.forms[form], module, case.inputs(16, device=device), mode)  # sets up what stays
    batch = 1 if len(sides) > 1 else None
    for side in sides:
        inputs = case.inputs(side, batch, device)
        called = partial(call, case.forms[form], module, inputs, mode)
        with measure.precision(device, getattr(torch, dtype)):
            if device == "cuda":  # where the first call of a size chooses and compiles kernels
                called()
            with measure.Peak(device) as peak:
                seconds = measure.seconds(called, device)
        yield {"side": inputs[0].shape[3], "seconds": seconds, "growth": peak.growth, "resident": peak.resident}
        if seconds > LONGEST or peak.growth > LARGEST:
            return


def restore(name: str, side: int, options: dict) -> Iterator[dict]:
    """A network's memory and seconds for one image."""
    device = measure.device()
    network = build(name, **options).to(device).eval()
    image = torch.rand(1, options["colors"], side, side, device=device)
    with torch.inference_mode(), measure.precision(device, torch.float32), measure.Peak(device) as peak:
        network(image[:, :, :16, :16] if device == "cpu" else image)
        seconds = measure.seconds(lambda: network(image), device)
    yield {"seconds": seconds, "growth": peak.growth, "resident": peak.resident}


TASKS = {"held": held, "restore": restore}


if __name__ == "__main__":
    for finding in TASKS[sys.argv[1]](*json.loads(sys.argv[2])):
        print(json.dumps(finding), flush=True)
