"""Rows on many machines: each is a task of Ray, which finds a node for it, and another one where that is lost.

`--cluster auto` starts Ray on this machine alone; HOST:PORT joins a cluster, of which this machine is a node. Only this
file knows Ray, and only `work` knows what a task does.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live

from ..params import Params
from . import runs, work
from .repro import MOST_JOBS, PipelineError
from .work import run_in_new_folder

#: How often a task is begun again whose machine or process was lost.
RETRIES = 3

#: Seconds between two looks at the tasks.
TICK = 0.5


def check(address: str) -> None:
    """Raises PipelineError where Ray is not installed, or nothing answers at the address HOST:PORT."""
    if importlib.util.find_spec("ray") is None:
        raise PipelineError(
            "--cluster needs Ray, which is not installed: pip install -e '.[cluster]' -c constraints.txt"
        )
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise PipelineError(f"--cluster {address}: {error}; `ray start --head` starts a cluster") from None


def run_on_cluster(rows: Mapping[str, list[str]], params: Params, address: str, jobs: int | None = None) -> int:
    """Bring rows up to date, each by its stages, on the nodes at `address`; returns 1 if one failed, which stops no
    other. jobs: rows at a time on this machine ("auto").

    Raises PipelineError where the cluster cannot be joined, or this machine alone has no room for a row. Finished rows
    stay done when this is interrupted.
    """
    rows = {name: stages for name, stages in rows.items() if runs.restore(stages)}  # finished after an interrupt
    if not rows:
        return 0
    ray = _joined(address, jobs)
    try:
        takes, has = {name: params.resources(name) for name in rows}, _resources(ray)
        for name, row in takes.items():
            if address == "auto" and (row.cpus > has[0] or row.gpus > has[1]):  # a cluster may get more nodes
                wanted = f"{row.cpus} CPUs and {row.gpus:g} GPUs, by `resources` in params.yaml"
                raise PipelineError(f"{name}: takes {wanted}; here are {has[0]:g} and {has[1]:g}")
        archive, todo = work.prepare(rows, params, remote=address != "auto")
        code = ray.put(archive)
        near = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        here = near(ray.get_runtime_context().get_node_id(), soft=False)
        board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
        task, pending = ray.remote(max_retries=RETRIES)(_task), {}
        for name, job in todo.items():
            options = {"name": name, "num_cpus": takes[name].cpus, "num_gpus": takes[name].gpus}
            pending[task.options(**options).remote(code, name, job, board)] = name
        return _collect(ray, pending, todo, board)
    finally:
        ray.shutdown()


def _collect(ray: Any, pending: dict[Any, str], todo: Mapping[str, dict[str, Any]], board: Any) -> int:
    """Put results in place as they come, one row at a time; returns 1 if one failed."""
    console, failed = Console(), 0
    with Live(console=console, transient=True, refresh_per_second=1 / TICK) as view:
        while pending:
            done, _ = ray.wait([*pending], num_returns=len(pending), timeout=TICK)
            for reference in done:
                name = pending.pop(reference)
                try:
                    reason, written = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    reason, written = f"{type(error.cause).__name__}: {error.cause}", {}
                except ray.exceptions.RayError as error:
                    reason, written = f"lost {RETRIES + 1} times: {str(error).splitlines()[0]}", {}
                reason = work.collect_result(todo[name], reason, written)
                failed |= bool(reason)
                said = f"{name}: {f'failed: {reason}' if reason else 'done'}"
                console.print(said, markup=False, highlight=False, soft_wrap=True)
            view.update(_view(ray, board, len(pending)))
    return failed


def _joined(address: str, jobs: int | None) -> Any:
    """Ray, connected; tokens are on unless RAY_AUTH_MODE says otherwise: whoever reaches a node runs code there."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
    import ray

    for module in (work, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)  # nodes have no clone to import them from
    how: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == "auto":
        how |= {"address": "local", "num_cpus": jobs or min(os.cpu_count() or 1, MOST_JOBS), "include_dashboard": False}
        os.environ.setdefault("RAY_worker_niceness", "0")  # else rows give way to every other program here
    try:
        ray.init(**how)
    except Exception as error:  # Ray has a type of its own for each way in which this can fail
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PipelineError(f"--cluster {address}: Ray cannot be started or joined ({reason})") from None
    return ray


class _Board:
    """The last line of each running task's output."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}

    def say(self, name: str, line: str | None) -> None:
        self.lines.pop(name, None) if line is None else self.lines.update({name: line})

    def shown(self) -> dict[str, str]:
        return self.lines


def _task(code: bytes, name: str, job: dict[str, Any], board: Any) -> tuple[str | None, dict[str, bytes]]:
    try:
        return run_in_new_folder(code, job, lambda line: board.say.remote(name, line))
    finally:
        board.say.remote(name, None)


def _view(ray: Any, board: Any, pending: int) -> Group:
    """A line for the whole, and one for each running row."""
    shown, nodes = ray.get(board.shown.remote()), sum(node["Alive"] for node in ray.nodes())
    cpus, gpus = _resources(ray)
    total = f"{len(shown)} of {pending} rows run; {nodes} nodes, {cpus:g} CPUs, {gpus:g} GPUs"
    return Group(total, *(f"{name}  {line}" for name, line in sorted(shown.items())))


def _resources(ray: Any) -> tuple[float, float]:
    """CPUs and GPUs of all nodes."""
    has = ray.cluster_resources()
    return has.get("CPU", 0), has.get("GPU", 0)
