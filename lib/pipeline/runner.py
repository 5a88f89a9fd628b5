"""Executes one notebook for one DVC stage: live output in the terminal, a reproducible executed copy in results/.

Papermill is known to this file alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import resource
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML

from ..params import ROOT, Params
from ..params.faults import unknown
from . import files, resolve
from .files import digest

#: The study that compares our conventions with the literature: two stages of its own, one that measures and one that
#: reports, beside the reports of the others.
PUBLISHED_NUMBERS = "published_numbers"
REPORT_PUBLISHED_NUMBERS = f"report_{PUBLISHED_NUMBERS}"

STAGES = (
    "download", "train", "evaluate", "tables", "report", "summary", PUBLISHED_NUMBERS, REPORT_PUBLISHED_NUMBERS
)  # fmt: skip

#: The notebooks behind a profile's recipe, which belong to no stage.
SEARCHES = ("recipe_search", "attention_in_training", "attention_begins", "precision")

#: In place of the results of a row that needs a missing file or package.
NOT_RUN = "not_run.txt"

#: glibc: what a training step frees stays for the next one; to get it anew can cost a fifth of the step.
KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": 2**25, "MALLOC_TRIM_THRESHOLD_": 2**31 - 1}


class StageError(RuntimeError):
    """A stage failed: the message is one line and says where to look."""


def notebook_of(stage: str, key: str | None) -> Path:
    """The notebook behind a stage: one per kind, and one report per study."""
    return ROOT / "notebooks" / (f"report_{key}.ipynb" if stage == "report" else f"{stage}.ipynb")


def run(params: Params, stage: str, key: str | None = None) -> Path:
    """Execute the notebook of `stage` for experiment or study `key`; returns the executed copy's path.

    Raises StageError for a key that the stage does not know, when the notebook fails (the executed copy keeps the
    traceback), or when code or parameters of the stage change while it runs: DVC would record the new ones beside the
    result of the old.
    """
    _check_key(params, stage, key)
    source = notebook_of(stage, key)
    target = params.results(*_folder(stage, key), source.name)
    if not source.exists():
        raise StageError(f"{source.relative_to(ROOT)} does not exist; a study needs a report notebook of that name")
    given = resolve.given(params, stage, key)
    target.parent.mkdir(parents=True, exist_ok=True)
    if reason := given.get("missing"):
        return _not_run(params, stage, str(key), reason)
    before, began = code_digest(params, stage, key), time.monotonic()
    execute(source, target, {"experiment": key} if key and stage in ("train", "evaluate") else {})
    now = Params(profile=params.profile)
    if code_digest(now, stage, key) != before or resolve.given(now, stage, key) != given:
        raise StageError(f"{stage} {key or ''}: its code or values changed while it ran; run it again")
    if stage == "train":
        _make_readable(params.results("weights", str(key)))
    _record(params, stage, key, time.monotonic() - began)
    return target


def _folder(stage: str, key: str | None) -> tuple[str, ...]:
    """Where a stage writes, below results/<profile>."""
    if stage == REPORT_PUBLISHED_NUMBERS:
        return "report", PUBLISHED_NUMBERS
    return (stage, key) if key else (stage,)


def stage_of_dvc() -> tuple[str, str | None]:
    """Stage and key of the process's own stage of DVC; raises StageError where DVC did not start it."""
    kind, _, key = os.environ.get("DVC_STAGE", "").partition("@")
    if not kind:
        raise StageError("run: lacks the name of the stage, such as `train edsr_gray_denoise_25`")
    return kind.replace("baseline", "evaluate"), key or None


def _check_key(params: Params, stage: str, key: str | None) -> None:
    keys = {
        "train": ("experiment", params.experiments),
        "evaluate": ("row", params.rows),
        "report": ("study", params.studies),
    }
    if stage not in keys:
        if key is not None:
            raise StageError(f"run {stage} {key}: it takes no name; leave {key!r} out")
        return
    kind, known = keys[stage]
    if key is None:
        raise StageError(f"run {stage}: lacks the name of the {kind}")
    if key not in known:
        raise StageError(unknown(kind, key, known, params.file))


def _make_readable(folder: Path) -> None:
    """Give files the mode that the user's umask asks for; safetensors lets their owner alone read them."""
    os.umask(umask := os.umask(0))
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)


def search(params: Params) -> None:
    """Execute `SEARCHES`: their result is chosen, and written in params.yaml, by hand. Raises StageError where the
    profile has no search, or one fails."""
    if params.settings.recipe_search is None:
        raise StageError(f"{params.file}: profile {params.profile} has no recipe_search")
    for name in SEARCHES:
        target = params.results("recipe_search", f"{name}.ipynb")
        target.parent.mkdir(parents=True, exist_ok=True)
        execute(ROOT / "notebooks" / target.name, target, {"profile": params.profile})


def _not_run(params: Params, stage: str, key: str, reason: str) -> Path:
    """Say in a row's results why it was not run; returns that file."""
    params.results("weights", key).mkdir(parents=True, exist_ok=True)
    path = params.results(stage, key, NOT_RUN)
    first = "train" if key in params.experiments else params.stage(key)
    path.write_text(f"{reason}; once it is: dvc repro --force {first}@{key}\n")
    print(f"{stage} {key}: not run, {reason}")
    return path


def execute(source: Path, target: Path, parameters: dict[str, str]) -> None:
    """Execute a notebook with `parameters` into `target`, with live output; raises StageError when it fails."""
    # jsonschema would import it, optionally; it builds a grammar as it loads, which takes twice as long as torch.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import papermill  # slow to import, and not needed to check parameters
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it tells by a traceback that Ctrl-C ended the kernel
    # One thread per notebook: the same sums on any number of cores, and as many experiments at a time as cores.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    for name, size in KEEP_FREED.items():
        os.environ.setdefault(name, str(size))
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
            extra_arguments=[
                "--log-level=CRITICAL"
            ],  # the kernel warns of its transport, and of the signal that ends it
            record_timing=False,
            cwd=ROOT,
        )
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise StageError(f"{reason} (traceback in {target.relative_to(ROOT)})") from None
    finally:
        with contextlib.suppress(ValueError):  # cut short by a full disk: papermill's own error says so
            normalise(target)


def normalise(path: Path) -> None:
    """Drop from an executed notebook all that two equal runs do not share: times, paths, versions, random cell ids."""
    if not path.exists():
        return
    notebook = json.loads(path.read_text())
    notebook["metadata"].pop("papermill", None)
    notebook["metadata"].get("language_info", {}).pop("version", None)
    for number, cell in enumerate(notebook["cells"]):
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
        cell["id"] = f"cell-{number}"
    files.write(path, json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def code_digest(params: Params, stage: str, key: str | None) -> str:
    """Hash of the code (lib/ and notebooks/) that dvc.yaml names as dependencies of a stage."""
    named = [name for name in dependencies(params, stage, key) if name.startswith(("lib/", "notebooks/"))]
    return hashlib.sha256("".join(f"{name} {digest(ROOT / name)}\n" for name in sorted(named)).encode()).hexdigest()


def dependencies(params: Params, stage: str, key: str | None) -> list[str]:
    """The dependencies of a stage as dvc.yaml lists them, filled in for `key`."""
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    values = {"profile": params.profile, "key": str(key)}
    if stage in ("train", "evaluate"):
        row = params.entry(str(key))
        values |= {"item.model": row.model, "item.task": row.task}
        stage = "train" if stage == "train" else params.stage(str(key))
    return [re.sub(r"\$\{([\w.]+)\}", lambda m: values[m[1]], name) for name in body(stages[stage])["deps"]]


def body(stage: dict) -> dict:
    """The body of a stage in dvc.yaml, that of each row where it has rows."""
    return stage.get("do", stage)


def _record(params: Params, stage: str, key: str | None, seconds: float) -> None:
    """Write the numbers that differ from machine to machine beside the results, outside DVC and git."""
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
