"""Trained networks that come with the project.

Chosen networks lie in git, as results/<profile>/networks/<experiment>/seed_<seed>.safetensors: `python -m lib keep`
puts them there, `python -m lib pull` brings them to where a training leaves them, so that DVC takes it as done. Weights
are used only if they are those that the profile's dvc.lock states.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ruamel.yaml import YAML

from ..params import ROOT, Baseline, Params, missing
from ..training import TrainingError, write_whole
from . import repro as pipeline
from . import resolve
from .runner import StageError


def keep(names: Sequence[str], profile: str | None = None) -> None:
    """Have git hold the trained networks `names` of a profile, all their seeds, in place of those it held.

    Raises StageError for a baseline and for an experiment whose weights are not those that dvc.lock states; what git
    held then stays.
    """
    params, names = Params(profile=profile), [*dict.fromkeys(names)]
    for name in names:
        if isinstance(params.row(name), Baseline):
            raise StageError(f"{name}: is not trained; there is nothing to keep")
        check_trained(params, name)
        if code := other_code(params, name):
            raise StageError(f"{name}: its weights were trained with other code ({code}); `make repro` trains it anew")
    folder = _folder(params)
    filled, former = folder.with_name("networks.part"), folder.with_name("networks.former.part")
    for left in (filled, former):
        shutil.rmtree(left, ignore_errors=True)
    for name in names:
        shutil.copytree(params.results("weights", name), filled / name)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(former)
    filled.rename(folder)
    shutil.rmtree(former, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"{folder.relative_to(ROOT)}: {len(names)} network(s), {size:.1f} MB; commit them")


def pull(names: Sequence[str], profile: str | None = None) -> None:
    """Make `profile` the one in force and bring its networks `names`, all that are kept where none is named, to
    results/<profile>/weights.

    Raises StageError, before anything is changed, for one that is not kept as the profile's lock states it, and where
    other weights are in the way.
    """
    params = Params(profile=profile)
    for name in names:
        params.row(name)
        _check_kept(params, name)
    chosen = [*dict.fromkeys(names or kept(params))]
    if not chosen:
        raise StageError(f"profile {params.profile} keeps no networks; `make repro` trains them")
    place = params.results("weights").relative_to(ROOT)
    for name in chosen:
        _check_kept(params, name)
        there = params.results("weights", name)
        if there.exists() and _listing(there)[1] != _stated(params, name):
            raise StageError(f"{place / name}: holds other weights; move or delete them first")
    with pipeline.alone():
        pipeline.switch(params.profile)
        try:
            for name in chosen:
                _cache(_folder(params) / name)
        except TrainingError as error:
            raise StageError(str(error)) from None
        if status := pipeline.dvc("checkout", "--quiet", *(f"train@{name}" for name in chosen)):
            raise StageError(f"{place}: dvc checkout failed with status {status}")
    print(f"{place}: {', '.join(chosen)}")


def kept(params: Params) -> list[str]:
    """The experiments whose networks git holds in the version that the profile's lock states."""
    names = [name for name in params.experiments if (_folder(params) / name).is_dir()]
    return [name for name in names if _listing(_folder(params) / name)[1] == _stated(params, name)]


def _check_kept(params: Params, name: str) -> None:
    folder = _folder(params) / name
    if not folder.is_dir():
        raise StageError(f"{name}: profile {params.profile} keeps no such network; it keeps "
                         f"{', '.join(kept(params)) or 'none'}")  # fmt: skip
    if _listing(folder)[1] != _stated(params, name):
        place = folder.relative_to(ROOT)
        raise StageError(f"{place}: is not what the lock of profile {params.profile} states; `git checkout {place}` "
                         "brings it back, or `make repro` trains it anew")  # fmt: skip


def _listing(folder: Path) -> tuple[str, str]:
    """DVC's listing of a folder's files, and the hash of that, by which its locks name the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    entries = [{"md5": _md5(path), "relpath": path.relative_to(folder).as_posix()} for path in files]
    listing = json.dumps(entries, sort_keys=True)
    return listing, f"{hashlib.md5(listing.encode()).hexdigest()}.dir"


def _cache(folder: Path) -> None:
    """Put a folder's files into DVC's cache, in its published layout: files/md5/<2 digits>/<30 digits>."""
    listing, digest = _listing(folder)
    cache = ROOT / ".dvc" / "cache" / "files" / "md5"
    for path in filter(Path.is_file, folder.rglob("*")):
        md5 = _md5(path)
        write_whole(cache / md5[:2] / md5[2:], partial(shutil.copyfile, path))
    write_whole(cache / digest[:2] / digest[2:], lambda path: path.write_text(listing))


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def _folder(params: Params) -> Path:
    return params.results("networks")


def _lock(params: Params) -> dict[str, dict]:
    """The stages of the profile's lock: the root's where it is in force, else that of its pins."""
    folder = ROOT if params.profile == Params().profile else params.results("pins")
    pipeline.check_pins(params.profile, folder)
    path = folder / "dvc.lock"
    return _stages(path.read_text()) if path.exists() else {}


@functools.cache  # a lock takes a second to parse
def _stages(lock: str) -> dict[str, dict]:
    return YAML(typ="safe").load(lock)["stages"]


def _stated(params: Params, name: str) -> str | None:
    """The hash of the experiment's weights that the profile's lock states, None where it states none."""
    place = params.results("weights", name).relative_to(ROOT).as_posix()
    outs = _lock(params).get(f"train@{name}", {}).get("outs", [])
    return next((out["md5"] for out in outs if out["path"] == place), None)


def other_code(params: Params, name: str) -> str:
    """The code that differs from that of the lock's training of `name`."""
    found = []
    for dep in _lock(params)[f"train@{name}"]["deps"]:
        path = ROOT / dep["path"]
        if dep["path"].startswith(("lib/", "notebooks/")):
            now = None if not path.exists() else _listing(path)[1] if path.is_dir() else _md5(path)
            found += [dep["path"]] if now != dep["md5"] else []
    return ", ".join(found)


def _other_values(params: Params, name: str) -> bool:
    """Whether params.yaml gives other values than the lock's training of `name` had."""
    given = resolve.file_of(params, "train", name).relative_to(ROOT).as_posix()
    now = hashlib.md5(resolve.text(params, "train", name).encode()).hexdigest()
    return any(dep["path"] == given and dep["md5"] != now for dep in _lock(params)[f"train@{name}"]["deps"])


def check_trained(params: Params, name: str) -> None:
    """Raises StageError, saying how to get them, unless the weights of `name` are there, those of the profile's lock,
    and trained with the present values."""
    folder = params.results("weights", name)
    stated, place = _stated(params, name), folder.relative_to(ROOT)
    if not any(folder.glob("*.safetensors")):
        if reason := missing(params.experiment(name)):
            raise StageError(f"{name}: {reason}")
        verb, does = ("pull " + name, "brings") if name in kept(params) else ("repro", "trains")
        raise StageError(f"{place} is not there; `python -m lib {verb} --profile {params.profile}` {does} it")
    if stated is None or _listing(folder)[1] != stated:
        raise StageError(f"{place}: is not what dvc.lock states; delete it and `dvc checkout train@{name}` brings it "
                         "back, or `make repro` trains it anew")  # fmt: skip
    if _other_values(params, name):
        raise StageError(
            f"{name}: its weights were trained with other values in params.yaml; `make repro` trains it anew"
        )
