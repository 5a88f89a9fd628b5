"""Images in parallel processes: one image and one thread each, so that no result depends on the number of cores."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch

MOST_WORKERS = 8  # up to 3 GB each, a network's on an image of a megapixel


def each(jobs: Sequence[Callable], say: Callable[[str], None] = lambda line: None, workers: int | None = None) -> list:
    """Call every job; returns the results in the order of the jobs.

    workers: processes, None for one per core; 1 stays in this process. say: told how far it is, after every job.
    """
    workers = workers or min(_cores(), len(jobs), MOST_WORKERS)
    found = []
    with contextlib.ExitStack() as stack:
        results = map(_call, jobs)
        if workers > 1:
            context = multiprocessing.get_context("spawn")  # forking a process with threads may hang
            pool = stack.enter_context(ProcessPoolExecutor(workers, context, initializer=_start))
            results = pool.map(_call, jobs)
        for result in results:
            found.append(result)
            say(f"{len(found)}/{len(jobs)} photographs")
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start() -> None:
    torch.set_num_threads(1)
    # glibc hands large blocks back to the system and fetches them anew for every layer; keeping them saves a fifth
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _call(job: Callable) -> object:
    return job()
