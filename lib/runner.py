"""Executes one notebook for one DVC stage: live output in the terminal, a reproducible executed copy in results/.

Only this file and `pipeline` know papermill and DVC.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import string
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML

from .params import ROOT, Params, missing

#: The study that measures the ruler itself: a stage of its own, with a report like the others and no experiment.
PROTOCOL = "protocol"

#: stage -> name of the notebook's one parameter, or None
PARAMETER = {
    "download": None,
    "train": "experiment",
    "evaluate": "experiment",
    "tables": None,
    "report": "study",
    "summary": None,
    PROTOCOL: None,
}


#: In place of a row's results, where `missing` says why there are none.
NOT_RUN = "not_run.txt"


class StageError(RuntimeError):
    """A stage failed: the message is one line and says where to look."""


def notebook_of(stage: str, key: str | None) -> Path:
    """The notebook behind a stage: one per kind, and one report per study."""
    study = key if stage == "report" else PROTOCOL if stage == PROTOCOL else None
    return ROOT / "notebooks" / (f"report_{study}.ipynb" if study else f"{stage}.ipynb")


def run(params: Params, stage: str, key: str | None = None) -> Path:
    """Execute the notebook of `stage` for experiment or study `key`; returns the executed copy's path.

    Raises StageError when the notebook fails (the executed copy keeps the traceback) or when code that the stage
    depends on changed while it ran: DVC would record the new code beside the old code's result.
    """
    source = notebook_of(stage, key)
    folder = ("report", PROTOCOL) if stage == PROTOCOL else (stage, *([key] if key else []))
    target = params.results(*folder, source.name)
    if not source.exists():
        raise StageError(f"{source.relative_to(ROOT)} does not exist; a study needs a report notebook of that name")
    target.parent.mkdir(parents=True, exist_ok=True)
    if stage in ("train", "evaluate") and (reason := missing(params.experiment(key))):
        return _not_run(params, stage, key, reason)
    before, began = code_digest(params, stage, key), time.monotonic()
    execute(source, target, {PARAMETER[stage]: key} if key else {})
    if code_digest(params, stage, key) != before:
        raise StageError(f"{stage} {key or ''}: its code changed while it ran; run it again")
    _record(params, stage, key, time.monotonic() - began)
    return target


def _not_run(params: Params, stage: str, key: str, reason: str) -> Path:
    """Say in a row's results why it was not run; returns that file."""
    params.results("weights", key).mkdir(parents=True, exist_ok=True)
    path = params.results(stage, key, NOT_RUN)
    path.write_text(f"{reason}; once it is: dvc repro --force train@{key}\n")
    print(f"{stage} {key}: not run, {reason}")
    return path


def execute(source: Path, target: Path, parameters: dict) -> None:
    """Execute a notebook with `parameters` into `target`, with live output; raises StageError when it fails."""
    # jsonschema would import it, optionally; it builds a grammar as it loads, which takes twice as long as torch.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill  # slow to import, and not needed to check parameters
    from papermill.exceptions import PapermillExecutionError

    # One thread per notebook: the same sums on any number of cores, and as many experiments at a time as cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        papermill.execute_notebook(
            source,
            target,
            parameters,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            coalesce_streams=True,
            extra_arguments=["--log-level=ERROR"],  # the kernel warns of its own transport at every start
            record_timing=False,
            cwd=ROOT,
        )
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise StageError(f"{reason} (traceback in {target.relative_to(ROOT)})") from None
    finally:
        if target.exists():
            normalise(target)


def normalise(path: Path) -> None:
    """Drop from an executed notebook what differs between two equal runs: times, paths, versions, random cell ids."""
    notebook = json.loads(path.read_text())
    notebook["metadata"].pop("papermill", None)
    notebook["metadata"].get("language_info", {}).pop("version", None)
    for number, cell in enumerate(notebook["cells"]):
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
        cell["id"] = f"cell-{number}"
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def code_digest(params: Params, stage: str, key: str | None) -> str:
    """Hash of the code (lib/ and notebooks/) that dvc.yaml names as dependencies of a stage."""
    digest = hashlib.sha256()
    for name in sorted(code_of(params, stage, key)):
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(name.encode() + file.read_bytes())
    return digest.hexdigest()


def code_of(params: Params, stage: str, key: str | None) -> list[str]:
    """The code dependencies of a stage as dvc.yaml lists them, filled in for `key`."""
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    entry = stages[params.stage(key) if stage == "evaluate" else stage]
    model = params.experiment(key).model if stage in ("train", "evaluate") else ""
    deps = [dep.replace("item.model", "model") for dep in entry.get("do", entry).get("deps", [])]
    filled = [string.Template(dep).safe_substitute(key=key, model=model, profile=params.profile) for dep in deps]
    return [dep for dep in filled if dep.startswith(("lib/", "notebooks/"))]


def _record(params: Params, stage: str, key: str | None, seconds: float) -> None:
    """What differs from machine to machine: kept beside the results, outside DVC and git."""
    record = {
        "seconds": round(seconds, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    path = params.results("machine", f"{stage}{'@' + key if key else ''}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
