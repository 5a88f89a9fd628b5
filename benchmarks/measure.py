"""Seconds of several forms alternately, the most memory that one holds, its floating-point operations, the machine."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import platform
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

#: Side of the square matrix product that shows the peak rate of a device.
LARGE = {"cpu": 2048, "cuda": 8192}

#: A comparison has this many rounds, or at least FEWEST_ROUNDS where its time is over before.
ROUNDS, FEWEST_ROUNDS = 9, 3

#: Numbers in glibc's malloc.h of the settings that environment variables set at the start of a process.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}

STATUS = Path("/proc/self/status")


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine(device: str) -> dict[str, str | int]:
    """Name (of the files), processor or GPU, threads, memory, and what computes."""
    if device == "cuda":
        name = processor = torch.cuda.get_device_name()
        threads, memory = 1, torch.cuda.get_device_properties(0).total_memory
    else:  # processors that hide their model differ by their instructions
        instructions, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
        info = Path("/proc/cpuinfo")
        found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
        processor = f"{found[1].strip() if found else platform.processor() or platform.machine()}, {instructions}"
        name, memory = f"{processor} {threads} threads", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "device": device,
        "name": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
        "processor": processor,
        "threads": threads,
        "memory_gib": round(memory / 2**30),
        "torch": torch.__version__,
    }


def rounds(
    comparisons: Mapping[Any, Mapping[str, Callable]], seconds: float
) -> Iterator[tuple[Any, int, dict[str, float]]]:
    """Seconds per call of every form of every comparison, round after round: key, number of the round, seconds by form.

    A machine that shares caches and memory with strangers is fast for some minutes and slow for others: within a round
    the forms of a comparison follow each other, and every comparison has its round before the next one begins. A
    comparison ends after ROUNDS rounds, or after FEWEST_ROUNDS once it has taken `seconds`. A form is a `cases.Call` or
    a `parts.Step`, which is called within its `context()`.
    """
    taken: dict[Any, float] = defaultdict(float)
    for number in range(ROUNDS):
        for key, forms in comparisons.items():
            if number >= FEWEST_ROUNDS and taken[key] >= seconds:
                continue
            began = time.monotonic()
            # The timer's own search for a number of calls takes as long as the calls that are timed.
            found = {form: timed(call, seconds / ROUNDS / len(forms) / 2) for form, call in forms.items()}
            taken[key] += time.monotonic() - began
            yield key, number, found


def timed(call: Callable, seconds: float = 0.0) -> float:
    """Seconds per call, all of the device's work included, of calls that take `seconds` together, or of one call; after
    at least one call that does not count."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    with call.context():
        return timer.blocked_autorange(min_run_time=seconds).median


def growth(call: Callable, device: str) -> float:
    """Most bytes held during a call beyond those held before it.

    CPU: resident pages of the process (Linux), so that libraries' own buffers count; to be called in a process in which
    nothing large has been freed before. CUDA: PyTorch's allocator. NaN where neither is known.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    elif STATUS.exists():
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before, peak = _status("VmRSS"), partial(_status, "VmHWM")
    else:
        return math.nan
    with call.context():
        call()
    return peak() - before


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text())
    return 1024 * int(found[1]) if found else 0


def peak_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the most that a device can do."""
    a, b = (torch.randn(LARGE[device], LARGE[device], device=device).to(dtype) for _ in range(2))
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    with precision(device, torch.float32):
        return 2 * LARGE[device] ** 3 / min(timer.blocked_autorange(min_run_time=0.5).times)


def keep_freed() -> None:
    """Let the C library (glibc) keep freed memory for what comes next, as in a stage of the pipeline."""
    from lib.pipeline.runner import KEEP_FREED  # needs more packages than a GPU's measurements

    with contextlib.suppress(OSError, AttributeError):
        for name, size in KEEP_FREED.items():
            ctypes.CDLL(None).mallopt(MALLOC[name], size)


@contextlib.contextmanager
def precision(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`, off for float32, where matrix products and convolutions then keep all of its digits."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        yield


def relative_difference(a: Tensor, b: Tensor) -> float:
    a, b = (t.detach().double() for t in (a, b))
    return float((a - b).norm() / b.norm())
