"""Executes one notebook for one DVC stage: live output in the terminal, a reproducible executed copy in results/.

Papermill is known to this file alone, DVC to `pipeline`, `fast_dvc` and `networks`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML

from ..params import ROOT, Params, missing

#: The study that compares our conventions with published numbers: a stage of its own, with a report and no experiment.
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


#: Folder for what other machines computed, a folder per experiment (`remote` fills it, `transfer` moves it).
ELSEWHERE = ROOT / "elsewhere"

#: stage -> the file that is there once it was done elsewhere, and what its notebook then runs after its imports.
DONE = {"train": "log.csv", "evaluate": "images.csv"}
RETURNED = {
    "train": "train = Returned(experiment).train",
    "evaluate": "evaluation.measure = Returned(experiment).measure\n"
    "evaluation.mechanism = Returned(experiment).mechanism",
}

#: Code of the two stages that neither trains nor measures: it draws, and that is always done here.
DRAWN_HERE = ("lib/figures.py",)

#: In place of a row's results, where `missing` says why there are none.
NOT_RUN = "not_run.txt"

#: glibc: what a training step frees stays for the next one; to get it anew can cost a fifth of the step.
KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": 2**25, "MALLOC_TRIM_THRESHOLD_": 2**31 - 1}


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
    if stage in ("train", "evaluate") and (reason := missing(params.row(key))):
        return _not_run(params, stage, key, reason)
    before, began = code_digest(params, stage, key), time.monotonic()
    execute(source, target, {PARAMETER[stage]: key} if key else {}, done_elsewhere(params, stage, key))
    if code_digest(params, stage, key) != before:
        raise StageError(f"{stage} {key or ''}: its code changed while it ran; run it again")
    _record(params, stage, key, time.monotonic() - began)
    return target


def _not_run(params: Params, stage: str, key: str, reason: str) -> Path:
    """Say in a row's results why it was not run; returns that file."""
    params.results("weights", key).mkdir(parents=True, exist_ok=True)
    path = params.results(stage, key, NOT_RUN)
    first = "train" if key in params.experiments else params.stage(key)
    path.write_text(f"{reason}; once it is: dvc repro --force {first}@{key}\n")
    print(f"{stage} {key}: not run, {reason}")
    return path


def done_elsewhere(params: Params, stage: str, key: str | None) -> list[dict]:
    """The cells that make a notebook show what another machine computed for `key` and say so; none where it is to be
    computed here."""
    if stage not in DONE or not (ELSEWHERE / key / DONE[stage]).exists():
        return []
    stages = ("train",) if stage == "train" else ("train", "evaluate")  # numbers are those of their own weights
    if differs := difference(params, key, stages):
        print(f"{stage} {key}: {differs} from what {ELSEWHERE.name}/{key} was made with, so it is done here")
        return []
    visits = [visit for visit in json.loads((ELSEWHERE / key / "visits.json").read_text()) if visit["stage"] == stage]
    machines = "".join(
        f"* {visit['begins']}: {visit['device']}, torch {visit['torch']}, Python {visit['python']}\n"
        for visit in visits
    )
    done = "Trained" if stage == "train" else "Measured"
    said = f"## {done} elsewhere\n\nNot on this machine: what follows shows the files that came back.\n\n{machines}"
    common = {"metadata": {"tags": ["elsewhere"]}}
    code = f"from lib.pipeline.remote import Returned\n\n{RETURNED[stage]}"
    return [
        {**common, "id": "said", "cell_type": "markdown", "source": said},
        {**common, "id": "code", "cell_type": "code", "source": code, "outputs": [], "execution_count": None},
    ]


def execute(source: Path, target: Path, parameters: dict, cells: Sequence[dict] = ()) -> None:
    """Execute a notebook with `parameters` into `target`, with live output; raises StageError when it fails.

    cells: put after the notebook's imports, the code cell that follows its parameters.
    """
    # jsonschema would import it, optionally; it builds a grammar as it loads, which takes twice as long as torch.
    sys.modules.setdefault("rfc3987_syntax", None)
    import nbformat
    import papermill  # slow to import, and not needed to check parameters
    from papermill.exceptions import PapermillExecutionError

    # One thread per notebook: the same sums on any number of cores, and as many experiments at a time as cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name, size in KEEP_FREED.items():
        os.environ.setdefault(name, str(size))
    notebook = nbformat.read(source, as_version=4)
    if cells:
        tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
        notebook.cells[tagged[0] + 2 : tagged[0] + 2] = map(nbformat.from_dict, cells)
    try:
        papermill.execute_notebook(
            notebook,
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
    return [name for name in _listed(params, stage, key, "deps") if name.startswith(("lib/", "notebooks/"))]


def version(params: Params, stage: str, key: str) -> dict[str, object]:
    """What the result of training or measuring `key` belongs to: the sha256 of every file of code and of the manifest
    of the images, and the value of every parameter, by the names that dvc.yaml gives them.

    What only draws is left out. Raises StageError where a file is missing.
    """
    files = [name for name in _listed(params, stage, key, "deps") if not name.startswith("results/")]
    found = {}
    for name in sorted({*files} - {*DRAWN_HERE}):
        if not (ROOT / name).exists():
            raise StageError(f"{stage} {key}: {name} does not exist; run `dvc repro data.dvc`")
        found[name] = hashlib.sha256((ROOT / name).read_bytes()).hexdigest()
    return found | {name: params.value(name) for name in _listed(params, stage, key, "params")}


def difference(params: Params, key: str, stages: Sequence[str] = tuple(DONE), folder: Path = ELSEWHERE) -> str:
    """Which files and parameters are not what `key` was packed with for another machine; "" where all are."""
    packed, names = json.loads((folder / key / "version.json").read_text()), set()
    for stage in stages:
        now = version(params, stage, key)
        names |= {name for name in {**packed[stage], **now} if packed[stage].get(name) != now.get(name)}
    return f"{', '.join(sorted(names))} differ{'s' if len(names) == 1 else ''}" if names else ""


def _listed(params: Params, stage: str, key: str | None, what: str) -> list[str]:
    """The `deps` or `params` of a stage as dvc.yaml lists them, filled in for `key`."""
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    entry = stages[params.stage(key) if stage == "evaluate" else stage]
    values = {"key": key, "profile": params.profile}
    if stage in ("train", "evaluate"):  # `item` is what `foreach` goes through
        values |= params.value(f"{entry['foreach'].strip('${}')}.{key}")
    return [
        re.sub(r"\$\{(?:item\.)?(\w+)\}", lambda m: str(values[m[1]]), name) for name in entry.get("do", entry)[what]
    ]


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
