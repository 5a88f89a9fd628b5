"""Seconds of several forms by turns, the most memory that a form holds, floating-point operations, the machine."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count

from lib.measuring.inference import FUSED_ATTENTION
from lib.models.blocks import CACHED_SCORES
from lib.pipeline.runner import KEEP_FREED

#: What PyTorch's counter does not know: products in place, and the derivative of the CPU's fused attention.
MORE_FLOPS = {
    torch.ops.aten.addmm_: lambda total, a, b, *_, **__: 2 * math.prod(total) * a[-1],
    torch.ops.aten.baddbmm_: lambda total, a, b, *_, **__: 2 * math.prod(total) * a[-1],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}

#: Operations that take the exponential of each number; fused attention does, too, of each score.
EXPONENTIALS = (torch.ops.aten.exp, torch.ops.aten.exp_, torch.ops.aten.softmax, torch.ops.aten._softmax)

#: Kinds of a CPU's operations and of a GPU's kernels, by their names in a profile; the first that fits.
KINDS = {
    "matrix products": r"mm_?$|conv|dot_product|gemm|nvjet|fmha|sdpa|grad_|cutlass|_fft",
    "exponentials": r"(?i)softmax|::exp_?$",
    "other operations": "",
}

#: Side of the square matrix product that stands for what a device can do.
LARGE = {"cpu": 2048, "cuda": 8192}

#: Numbers in arrays that stay in the cores' own caches, in arrays that stay in the last cache (on a CPU, a block of
#: scores), and in arrays that no cache holds.
SMALL, IN_CACHE, BEYOND_CACHE = {"cpu": 2**18, "cuda": 2**24}, {"cpu": CACHED_SCORES, "cuda": 2**20}, 2**24

#: Calls that are timed together where a rate is asked for: a GPU's are too short to be waited for one by one.
TOGETHER = {"cpu": 1, "cuda": 50}

#: glibc's names in malloc.h of the sizes from which it maps blocks apart, and hands freed memory back.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1

#: Most rounds of a comparison.
MOST = 100

Result = TypeVar("Result")

STATUS = Path("/proc/self/status")


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine(device: str) -> dict[str, str | int]:
    """Name (of the files), processor or card, threads, and what computes."""
    if device == "cuda":
        name = processor = torch.cuda.get_device_name()
        threads = 1
    else:  # processors that hide their model differ by their instructions
        instructions, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
        processor = f"{_processor()}, {instructions}"
        name = f"{processor} {threads} threads"
    return {
        "device": device,
        "name": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
        "processor": processor,
        "threads": threads,
        "memory_gib": round(_memory(device) / 2**30),
        "torch": torch.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def seconds(function: Callable[[], object], device: str = "cpu") -> float:
    """Of one call, all of the device's work included."""
    _finish(device)
    began = time.perf_counter()
    function()
    _finish(device)
    return time.perf_counter() - began


def by_turns(
    forms: Mapping[str, Callable[[], float]],
    repeats: int,
    limit: float,
    enough: float = 0.0,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, float]]:
    """Seconds that each form says one call took, one entry per round; in a round every form is called once, in the
    order of the mapping.

    `repeats` rounds, or at least three until `limit` seconds are over; of short calls more, until `enough` seconds are
    over or MOST rounds done. Forms should have been called before: the first call sets up what later ones find.
    """
    rounds: list[dict[str, float]] = []
    began = time.monotonic()

    def wanted() -> bool:
        passed = time.monotonic() - began
        return (len(rounds) < repeats and passed < limit) or (len(rounds) < MOST and passed < enough)

    gc.collect()
    gc.disable()
    try:
        while len(rounds) < min(3, repeats) or wanted():
            rounds.append({name: call() for name, call in forms.items()})
            say(f"round {len(rounds)}  " + "  ".join(f"{n} {1e3 * s:.1f} ms" for n, s in rounds[-1].items()))
    finally:
        gc.enable()
    return rounds


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Peak:
    """What was held at most inside the context, in bytes: `growth` beyond what was held before, and `resident`.

    CPU: resident pages of the process (Linux), so that libraries' own buffers count; to be read in a process in which
    nothing large has been freed before. CUDA: bytes of PyTorch's allocator. NaN where neither is known.
    """

    growth = resident = float("nan")

    def __init__(self, device: str = "cpu"):
        self.device = device

    def __enter__(self) -> Peak:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        elif STATUS.exists():
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *_) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.resident = torch.cuda.max_memory_allocated()
            self.growth = self.resident - self.before
        elif STATUS.exists():
            self.resident = _status("VmHWM")
            self.growth = self.resident - self.before


def _status(key: str) -> int:
    return 1024 * int(re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text())[1])


class Work(NamedTuple):
    """flops: floating-point operations of convolutions, matrix products and fused attention; exponentials: how many are
    taken; moved: bytes that all other operations read and write."""

    flops: int
    moved: int
    exponentials: int


def counted(function: Callable[[], Result]) -> tuple[Result, Work]:
    """A function's result and its work, backward passes included."""
    counter = FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION | MORE_FLOPS)
    others = _Others(counter.flop_registry)
    with counter, others:
        result = function()
    return result, Work(counter.get_total_flops(), others.moved, others.exponentials)


def apart(function: Callable[[], object], device: str = "cpu") -> dict[str, float]:
    """Seconds that one call spends in each of KINDS, and `between` them: in Python, and on a CPU in the profiler. On a
    GPU the whole is that of another call, without the profiler: less than nothing can seem to be left."""
    activities = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activities.CPU if device == "cpu" else activities.CUDA]) as profiler:
        whole = seconds(function, device)
    if device == "cuda":
        whole = seconds(function, device)
    spent = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        if device == "cuda" or event.key.startswith("aten::"):
            kind = next(kind for kind, names in KINDS.items() if re.search(names, event.key))
            spent[kind] += (event.self_cpu_time_total if device == "cpu" else event.self_device_time_total) / 1e6
    return {**spent, "between": whole - sum(spent.values())}


class _Others(TorchDispatchMode):
    """Bytes of the tensors that operations outside `products` take and give, views moving none, and exponentials."""

    def __init__(self, products: Mapping):
        super().__init__()
        self.products, self.moved, self.exponentials = products, 0, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        aliases = [given.alias_info for given in operation._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        if operation.overloadpacket in EXPONENTIALS:
            self.exponentials += found.numel()
        elif "_scaled_dot_product" in str(operation):
            query, key = args[1:3] if "backward" in str(operation) else args[:2]
            self.exponentials += math.prod(query.shape[:-1]) * key.shape[-2]
        elif not view and operation.overloadpacket not in self.products and "empty" not in str(operation):
            self.moved += sum(_stored(t) for t in tree_leaves((args, found)) if isinstance(t, Tensor))
        return found


def _stored(tensor: Tensor) -> int:
    """Bytes of a tensor, once where it is expanded."""
    return tensor.element_size() * math.prod(n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step)


def bandwidth(device: str, count: int) -> float:
    """Byte/s of additions of two arrays of `count` numbers into a third."""
    a, b, c = (torch.randn(count, device=device) for _ in range(3))
    return 3 * 4 * count / _best(lambda: torch.add(a, b, out=c), device)


def exponential_rate(device: str) -> float:
    """Exponentials per second where most are taken: in the softmax of rows, with its other passes."""
    count = SMALL[device]
    x = torch.randn(count, device=device).unflatten(0, (-1, 2**12))
    y = torch.empty_like(x)
    return count / _best(lambda: torch.softmax(x, 1, out=y), device)


def _best(function: Callable[[], object], device: str) -> float:
    """Seconds of a call, the least of fifty times."""
    calls = TOGETHER[device]
    return min(seconds(lambda: [function() for _ in range(calls)], device) for _ in range(50)) / calls


def peak_rate(device: str, dtype: torch.dtype, side: int | None = None) -> float:
    """FLOP/s of one large matrix product, the best of five: what a device can do at most."""
    side = side or LARGE[device]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(6))


def keep_freed() -> None:
    """Let the C library (glibc) keep what is freed for what comes next, as in a stage of the pipeline (lib/runner.py),
    instead of handing it back to the system or not by the sizes that happen to come first."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, KEEP_FREED["MALLOC_TRIM_THRESHOLD_"])
        library.mallopt(M_MMAP_THRESHOLD, KEEP_FREED["MALLOC_MMAP_THRESHOLD_"])


@contextlib.contextmanager
def precision(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`, off for float32, where matrix products and convolutions then keep all of its digits."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        yield


def relative_difference(a: Tensor, b: Tensor) -> float:
    a, b = (t.detach().double() for t in (a, b))
    return float((a - b).norm() / b.norm())
