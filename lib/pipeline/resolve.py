"""The values of each stage, resolved from params.yaml and written to a file of its own, on which the stage depends.

So a stage is out of date when a value that reaches it changes, and not when params.yaml says the same in another form:
a title, a comment or another experiment retrains nothing. The files also hold the hashes of files that may be
absent, which DVC cannot take for dependencies: files in own/ that a row names, the model's file in lib/insights, and
other models whose parts a model is made of.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..params import ROOT, Baseline, Experiment, Params, ParamsError, Row, check, missing
from .files import digest

#: In the folder of the files: the hash of the params.yaml that they were resolved from.
SOURCE = "source"


def training(run: Experiment) -> dict[str, Any]:
    """The values of a training, beside the images."""
    budget = asdict(run.budget)
    del budget["seeds"]
    return {
        "model": run.model,
        "options": run.options,
        "task": _images(run),
        "recipe": asdict(run.recipe),
        "budget": budget,
        "precision": run.precision,
        "seeds": run.seeds,
        "missing": missing(run),
        "needs": _published(run.needs) if run.needs else None,
        **_borrowed(run.model),
    }


def evaluation(run: Experiment | Baseline) -> dict[str, Any]:
    """The values of an evaluation, beside the images and the weights."""
    return {
        "model": run.model,
        "options": run.options,
        "task": _images(run) | {"convention": asdict(run.task.convention)},
        "evaluation": asdict(run.evaluation),
        "seeds": run.seeds,
        "missing": missing(run),
        "needs": _published(run.needs) if run.needs else None,
        "checkpoint": _published(run.checkpoint) if isinstance(run, Baseline) and run.checkpoint else None,
        "insights": _insights(run.model),
        **_borrowed(run.model),
    }


def study(params: Params, name: str) -> dict[str, Any]:
    """The values of a report, beside the tables: its study, and the values of every row."""
    found, rows = params.study(name), {}
    for row in map(params.row, found.experiments):
        rows[row.name] = {"title": row.title, "task": row.task.title, **evaluation(row)}
        if isinstance(row, Experiment):
            rows[row.name] |= training(row)
    return {**asdict(found), "delta": asdict(params.delta), "rows": rows}


def download(params: Params) -> dict[str, Any]:
    """The values of the download: image sets and the tasks that use them."""
    tasks = {name: {**task.sides, "colors": task.colors} for name, task in params.used_tasks.items()}
    return {"sets": params.references, "published_numbers": params.published_numbers.sets, "tasks": tasks}


def values(params: Params, stage: str, key: str | None = None) -> dict[str, Any]:
    """The values of the stage for the row or study `key`."""
    if stage == "train" and key:
        return training(params.experiment(key))
    if stage == "evaluate" and key:
        return evaluation(params.row(key))
    if stage == "report" and key:
        return study(params, key)
    if stage == "download":
        return download(params)
    if stage in ("published_numbers", "report_published_numbers"):
        return asdict(params.published_numbers)
    return {name: study(params, name) for name in params.studies}


def file_of(params: Params, stage: str, key: str | None = None) -> Path:
    """The file that holds `values`."""
    if stage in ("tables", "summary"):
        stage = "studies"
    elif stage == "report_published_numbers":
        stage = "published_numbers"
    return params.results("parameters", *([stage, f"{key}.json"] if key else [f"{stage}.json"]))


def text(params: Params, stage: str, key: str | None = None) -> str:
    """The content of the file that belongs to a stage now."""
    return json.dumps(values(params, stage, key), indent=1) + "\n"


def given(params: Params, stage: str, key: str | None = None) -> dict[str, Any]:
    """The values in the file of a stage; raises ParamsError where params.yaml says something else by now."""
    file = file_of(params, stage, key)
    found = file.read_text() if file.exists() else ""
    # `text` comes last: to resolve a row imports torch, which takes seconds
    if not found or (not unchanged(params) and found != text(params, stage, key)):
        raise ParamsError(
            f"{params.file}: says something else than {file.relative_to(ROOT)}, which {stage} {key or ''} is given;"
            " `dvc repro resolve` writes it anew"
        )
    return json.loads(found)


def unchanged(params: Params) -> bool:
    """Whether params.yaml is, byte for byte, what `write` last checked for this profile."""
    source = params.results("parameters", SOURCE)
    return source.exists() and source.read_text() == f"{_file('params.yaml')}\n"


def write(params: Params) -> None:
    """Check params.yaml and write the files of every stage, in place of all that were there."""
    check(params)
    rows = [*params.experiments, *params.baselines]
    wanted = [
        *((stage, None) for stage in ("download", "published_numbers", "studies")),
        *(("train", name) for name in params.experiments),
        *(("evaluate", name) for name in rows),
        *(("report", name) for name in params.studies),
    ]
    shutil.rmtree(params.results("parameters"), ignore_errors=True)
    params.results("parameters").mkdir(parents=True)
    for stage, key in wanted:
        path = file_of(params, stage, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(params, stage, key))
    params.results("parameters", SOURCE).write_text(f"{_file('params.yaml')}\n")  # last: it says that all is there


def _images(run: Row) -> dict[str, Any]:
    """How a row's images come about, their sets aside: the manifests hold these."""
    degradation = run.task.degradation
    return {"degradation": [degradation.name, asdict(degradation)], "colors": run.task.colors, "gray": run.task.gray}


def _insights(model: str) -> str:
    """The hash of the code in lib/insights that such a row runs: all but the files of other models."""
    files = sorted((ROOT / "lib" / "insights").glob("*.py"))
    used = [path for path in files if path.stem == model or not (ROOT / "lib" / "models" / path.stem).is_dir()]
    return hashlib.sha256(b"".join(path.read_bytes() for path in used)).hexdigest()


def _borrowed(model: str) -> dict[str, dict[str, str]]:
    """The hashes of the folders of other models that the model's files import from, or theirs; nothing without any."""
    models, found, todo = ROOT / "lib" / "models", {model}, [model]
    while todo:
        text = "".join(path.read_text() for path in (models / todo.pop()).rglob("*.py"))
        names = {*re.findall(r"^\s*from \.\.(?: import )?(\w+)", text, re.M)} - found
        todo += [name for name in names if (models / name).is_dir()]
        found |= {*todo}
    hashes = {name: digest(models / name) for name in sorted(found - {model})}
    return {"borrowed": hashes} if hashes else {}


def _published(file: str) -> str | None:
    """SHA-256 of a file that a row needs, of one that is downloaded as the registry has it."""
    from ..images import registry  # of which trainings are independent

    return registry.published().checkpoints.get(file) or _file(file)


def _file(name: str) -> str | None:
    path = ROOT / name
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
