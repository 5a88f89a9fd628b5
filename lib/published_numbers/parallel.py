"""Images in parallel processes: one image and one thread each, so that no result depends on the number of cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from operator import call

import torch

MOST_WORKERS = 8  # up to 3 GB each, a network's on an image of a megapixel


def each(jobs: Sequence[Callable], say: Callable[[str], None] = lambda line: None, workers: int | None = None) -> list:
    """Call every job; returns the results in the order of the jobs.

    workers: processes, None for one per core; 1 stays in this process. say: told how far it is, after every job.
    """
    workers = workers or min(_cores(), len(jobs), MOST_WORKERS)
    if workers <= 1:
        return _collect(map(call, jobs), len(jobs), say)
    context = multiprocessing.get_context("spawn")  # forking a process with threads may hang
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return _collect(pool.map(call, jobs), len(jobs), say)


def _collect(results: Iterable, total: int, say: Callable[[str], None]) -> list:
    found = []
    for result in results:
        found.append(result)
        say(f"{len(found)}/{total} photographs")
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
