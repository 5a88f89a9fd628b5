"""One row's stages on a machine that has Python and the environment, but no clone: the same work for any engine.

`prepare` makes a job of each row. A machine unpacks the code, which travels as an archive, into a new folder and has
DVC run the row's stages there (`run_in_new_folder`). Results travel through DVC's run cache (`runs`), and
`collect_result` puts them in place. The engine, `cluster`, only decides where and when.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..params import ROOT, Experiment, Params, cache
from . import runs
from .runner import StageError

#: What `python -m lib run` needs of the project, beside own/ and what `needed` adds.
TRACKED = ("lib", "notebooks", "params.yaml", "dvc.yaml", "dvc.lock", "data.dvc", ".dvc/config", ".dvcignore")


def needed(params: Params, stages: Iterable[str]) -> list[Path]:
    """The files that stages need beside images and weights: code with local edits, values, what own/ holds for them."""
    stages = {*stages}
    rows = {name: params.row(name) for name in {stage.partition("@")[2] for stage in stages}}
    trained = [name for name, row in rows.items() if isinstance(row, Experiment) and f"train@{name}" not in stages]
    values = params.results("parameters").relative_to(ROOT)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *TRACKED, str(values)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    listed += [getattr(row, "checkpoint", None) or row.needs or "" for row in rows.values()]
    found = [ROOT / name for name in listed if name]
    for name in trained:
        found += params.results("train", name).iterdir()
    return sorted({path for path in found if path.is_file()})


def prepare(rows: Mapping[str, list[str]], params: Params, remote: bool) -> tuple[bytes, dict[str, dict[str, Any]]]:
    """The code for rows with their stages, and the job of each; with `remote`, results travel through the default
    remote of DVC where there is one, and images are pushed there. Raises StageError where they do not arrive there."""
    store, checkpoints, jobs = runs.store(remote), ROOT / "checkpoints", {}
    checkpoints.mkdir(exist_ok=True)
    for name, stages in rows.items():
        needs = ["data.dvc", f"train@{name}"] if stages == [f"evaluate@{name}"] else ["data.dvc"]  # its weights
        lock = str(checkpoints / f"{name}.lock")
        jobs[name] = {"stages": stages, "needs": needs, "store": store, "lock": lock}
    if "remote" in store and jobs:
        runs.push_outputs({output for job in jobs.values() for output in job["needs"]})
    return archive(needed(params, [stage for stages in rows.values() for stage in stages]), ROOT), jobs


def collect_result(job: dict[str, Any], reason: str | None, written: Mapping[str, bytes]) -> str | None:
    """Put in place what `run_in_new_folder` gave for a job; returns the reason if the job failed."""
    for path, content in written.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_bytes(content)
    try:
        lacking = runs.restore(job["stages"])
    except StageError as error:
        return reason or str(error)
    if not lacking:
        Path(job["lock"]).unlink(missing_ok=True)
    elif not reason:
        return f"{lacking[0]} came back, but not for the code and values here: they changed meanwhile; run it again"
    return reason


def archive(paths: Iterable[Path], root: Path) -> bytes:
    """Files of the folder `root` as a compressed archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", dereference=True) as packed:
        for path in paths:
            packed.add(path, path.relative_to(root))
    return buffer.getvalue()


def run_in_new_folder(
    code: bytes, job: dict[str, Any], say: Callable[[str], object]
) -> tuple[str | None, dict[str, bytes]]:
    """Do a job (see `_work`) in a new folder, into which `code` is unpacked and which is deleted at the end; `say` gets
    the job's output line by line.

    Returns the reason if the job failed, and files for the same place at home: the records of the machine, and the
    executed notebooks of a failed job, one of which holds the traceback. Ends this process, and the job, where the one
    that started it is gone. It needs nothing of this project: an engine sends it to machines where it is not.
    """
    reason, last, parent = None, "", os.getppid()
    with tempfile.TemporaryDirectory(prefix="restoration-") as folder:
        with tarfile.open(fileobj=io.BytesIO(code)) as archive:
            archive.extractall(folder, filter="data")
        first = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": folder}  # not a `lib` that is installed here
        environment = {name: os.pathsep.join([value, os.environ.get(name, "")]) for name, value in first.items()}
        with subprocess.Popen(
            [sys.executable, "-m", "lib.pipeline.work"],
            cwd=folder, env={**os.environ, **environment}, text=True, errors="replace", start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as child:  # fmt: skip
            assert child.stdin and child.stdout
            child.stdin.write(json.dumps(job) + "\n")
            child.stdin.flush()  # and stays open: the job ends when it closes, which it does where this process is lost
            for line in child.stdout:  # the carriage return that ends a line of progress ends a line here too
                if os.getppid() != parent:  # a task of Ray outlives its node, while the next one waits for the lock
                    raise SystemExit("the process that started this one is gone")
                if line := line.strip():
                    last = line
                    reason = reason or (line.removeprefix("error: ") if line.startswith("error: ") else None)
                    say(line)
            status = child.wait()
        last = f"ended by signal {-status}" if status < 0 else last or f"ended with status {status}"
        kept = [*Path(folder).glob("results/*/machine/*")]
        kept += Path(folder).glob("results/*/*/*/*.ipynb") if status else []
        written = {str(path.relative_to(folder)): path.read_bytes() for path in kept}
    return (reason or last) if status else None, written


def _main() -> int:
    """Do the job that stands in the first line of the standard input."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _work(**job)
    except StageError as error:
        print(f"error: {error}")
        return 1
    return 0


def _work(stages: list[str], store: dict[str, Any], needs: list[str], lock: str) -> None:
    """Have DVC run `stages`, in their order. `store`: where runs are kept (`runs.store`); `needs`: other outputs of DVC
    to take from there; `lock`: a file that a machine locks while it works on a row, beside checkpoints that others may
    see too. Finished results are taken from the store, and trainings that others began are continued."""
    if "remote" in store:  # images stay on the machine for the rows to come
        store["cache"] = {"dir": str(cache() / "dvc"), "type": runs.LINKS}
    runs.configure(store)
    checkpoints = ROOT / "checkpoints"
    if Path(lock).parent.is_dir():
        checkpoints.symlink_to(Path(lock).parent)
    checkpoints.mkdir(exist_ok=True)
    with FileLock(checkpoints / Path(lock).name):  # a lost machine may still be at it
        runs.make(stages, needs)


def _end_with_parent() -> None:
    """End, with every process that was started here, when the other end of the standard input is closed: a training
    must not go on beside the one that takes its place."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(_main())
